"""The status page in a headless Chromium: light, dark, on a desk and on a phone, with a token."""

import struct
import zlib
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")

from tests.support.net import echo, recv_exactly, serving
from tests.support.programs import Finished, needed, run
from tests.support.proxy import running
from tests.support.service import session

pytestmark = pytest.mark.e2e

DARK, LIGHT = 0, 1
"""As Chromium's preferredColorScheme."""

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --hide-scrollbars --enable-logging=stderr"
)


def chromium(folder: Path, url: str, *more: str) -> Finished:
    """Show ``url``; nothing of the machine's profile."""
    profile = f"--user-data-dir={folder / 'profile'}"
    return run((needed("chromium"), *FLAGS.split(), profile, *more, url), seconds=90.0)


def corner(path: Path) -> tuple[tuple[int, int], bytes]:
    """A screenshot's width and height, and its first pixel (PNG, RFC 2083)."""
    data = path.read_bytes()
    size = struct.unpack(">II", data[16:24])
    colours = {2: 3, 6: 4}[data[25]]
    packed, place = b"", 8
    while place < len(data):
        (length,), kind = struct.unpack(">I", data[place : place + 4]), data[place + 4 : place + 8]
        if kind == b"IDAT":
            packed += data[place + 8 : place + 8 + length]
        place += length + 12
    rows = zlib.decompress(packed)
    return size, rows[1 : 1 + min(3, colours)]  # no filter changes the first pixel


@pytest.mark.parametrize(
    ("width", "scheme", "ground"),
    [
        pytest.param(1200, LIGHT, "f4f6f8", id="desk-light"),
        pytest.param(390, DARK, "0e141a", id="phone-dark"),
    ],
)
def test_it_is_shown_as_it_is_meant_to_be(
    tmp_path: Path, width: int, scheme: int, ground: str
) -> None:
    with (
        running(tmp_path, "--admin=127.0.0.1:0", "--control=off") as proxy,
        serving(echo) as target,
    ):
        proxy.wait_for(lambda: len(proxy.events("listening")) == 2)
        url = proxy.events("listening")[1]["address"]
        sock = session(proxy, target)
        sock.sendall(b"x" * 1000)
        recv_exactly(sock, 1000)
        picture = tmp_path / "page.png"
        scheme_flag = f"--blink-settings=preferredColorScheme={scheme}"
        done = chromium(
            tmp_path,
            f"{url}/?refresh=off",
            scheme_flag,
            f"--window-size={width},1600",
            f"--screenshot={picture}",
        )
        assert done.code == 0, done.err
        assert "Content Security Policy" not in done.err
        assert corner(picture) == ((width, 1600), bytes.fromhex(ground))
        shown = chromium(tmp_path, f"{url}/?refresh=off", "--dump-dom")
        assert shown.code == 0, shown.err
        assert b"All is well." in shown.out
        assert b"1 worker, up for" in shown.out


def test_a_browser_can_show_the_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    options = ("--admin=127.0.0.1:0", f"--admin-token-file={token}", "--control=off")
    with running(tmp_path, *options) as proxy:
        proxy.wait_for(lambda: len(proxy.events("listening")) == 2)
        place = str(proxy.events("listening")[1]["address"]).removeprefix("http://")
        refused = chromium(tmp_path, f"http://{place}/?refresh=off", "--dump-dom")
        assert b"All is well." not in refused.out
        shown = chromium(
            tmp_path, f"http://any:0123456789abcdef@{place}/?refresh=off", "--dump-dom"
        )
        assert b"All is well." in shown.out, shown.err
