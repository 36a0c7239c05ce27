"""Who may see the page."""

import base64
import os
from pathlib import Path

import pytest

from geosocks.admin import open_admin, start_admin
from geosocks.admin.access import is_this_host, read_token, shows_token
from geosocks.errors import ConfigError
from tests.admin.http import get
from tests.support.servers import proxy

pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")

TOKEN = b"0123456789abcdef"


def token_file(folder: Path, text: bytes = TOKEN + b"\n", mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_bytes(text)
    path.chmod(mode)
    return path


def basic(user: str, password: bytes) -> str:
    return "Basic " + base64.b64encode(user.encode() + b":" + password).decode()


# --- the token's file -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_a_token_is_read_without_the_space_around_it(tmp_path: Path, mode: int) -> None:
    assert read_token(token_file(tmp_path, b"  " + TOKEN + b"\r\n", mode)) == TOKEN


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o666, 0o755])
def test_a_token_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=r"token: mode 0\d\d\d is open to others; .*chmod"):
        read_token(token_file(tmp_path, mode=mode))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"short",
        b"fifteen-octets.",
        b"0123456789abcdef0123\n0123456789abcdef",
        b"with a blank in the middle",
        b"\xff" * 20,
        b"x" * 513,
        b"\0" * 20,
    ],
)
def test_what_is_no_token_is_refused_and_not_shown(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ConfigError, match="a token is one line of 16 to 512") as refused:
        read_token(token_file(tmp_path, text))
    assert "blank" not in str(refused.value)


def test_a_token_has_to_be_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_token(tmp_path / "none")
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ConfigError, match="regular file"):
        read_token(tmp_path / "fifo")


# --- what is shown ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [
        f"Bearer {TOKEN.decode()}",
        f"bearer   {TOKEN.decode()} ",
        basic("", TOKEN),
        basic("anybody", TOKEN),
    ],
)
def test_a_token_is_shown_by_a_program_or_a_browser(shown: str) -> None:
    assert shows_token(shown, TOKEN)


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer 0123456789abcdeF",
        f"Bearer {TOKEN.decode()}x",
        f"Digest {TOKEN.decode()}",
        TOKEN.decode(),
        basic(TOKEN.decode(), b""),
        basic("x", TOKEN + b":"),
        "Basic !!!",
        "Basic " + base64.b64encode(TOKEN).decode(),
        "Bearer \udcff\xe9\u20ac",
    ],
)
def test_anything_else_is_not_it(shown: str) -> None:
    assert not shows_token(shown, TOKEN)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:9180", "127.0.0.1", "127.0.0.1:9180", "[::1]:9180", "192.0.2.7", ""],
)
def test_an_address_is_this_host(host: str) -> None:
    assert is_this_host(host)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:9180", "127.0.0.1.evil.example", "localhost.evil.example"),
        *("[::1", "[evil.example]", "[::1]x", "2130706433.example", "127.0.0.1@evil.example"),
    ],
)
def test_a_name_may_be_anybodys(host: str) -> None:
    assert not is_this_host(host)


# --- over HTTP --------------------------------------------------------------------------------

PATHS = ("/", "/metrics", "/healthz", "/readyz", "/sessions", "/nothing")


@pytest.mark.usefixtures("no_leaks")
def test_with_a_token_nobody_sees_anything_without_it(tmp_path: Path) -> None:
    place = open_admin(("127.0.0.1", 0), token_file(tmp_path))
    with proxy() as (server, _), start_admin(server, place, version="1") as admin:
        for path in PATHS:
            for method in ("GET", "HEAD", "POST"):
                refused = get(admin.address, path, method)
                assert refused.status == 401
                assert TOKEN not in refused.body
        asked = refused.header("WWW-Authenticate")
        assert asked.startswith("Bearer ")
        assert ", Basic realm=" in asked
        wrong = {"Authorization": "Bearer fedcba9876543210"}
        assert get(admin.address, headers=wrong).status == 401
        for shown in (f"Bearer {TOKEN.decode()}", basic("admin", TOKEN)):
            seen = get(admin.address, headers={"Authorization": shown, "Host": "any.example"})
            assert seen.status == 200
            assert TOKEN not in seen.body


@pytest.mark.usefixtures("no_leaks")
def test_without_a_token_a_page_from_elsewhere_cannot_ask() -> None:
    with proxy() as (server, _), start_admin(server, ("127.0.0.1", 0)) as admin:
        for path in PATHS:
            assert get(admin.address, path, headers={"Host": "evil.example"}).status == 421
        assert get(admin.address, headers={"Host": "localhost:1"}).status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_off_loopback_it_is_not_opened_without_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match=r"not a loopback address.*--admin-token-file"):
        open_admin((host, 0))


@pytest.mark.usefixtures("no_leaks")
def test_a_bad_token_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with pytest.raises(ConfigError, match="open to others"):
        open_admin(str(path), token_file(tmp_path, mode=0o644))
    assert not path.exists()


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geosocks.admin.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'geosocks\[metrics\]'"):
        open_admin(("127.0.0.1", 0))
