"""``geosocks check``: what it finds out about our own server, and about worse ones."""

import json
import os
import pty
import re
import socket
import sys
from collections.abc import Callable
from io import StringIO
from typing import Any

import gevent.socket
import pytest
from gevent.event import AsyncResult

from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.cli import check, examination
from geosocks.cli.check import main
from geosocks.cli.examination import Finding, question_for, weigh_bound, weigh_told
from geosocks.policy import Policy
from geosocks.rules import RuleSet
from geosocks.wire.socks5 import Address
from tests.support.net import echo, recv_all, recv_exactly, reset, serving, unused_port
from tests.support.programs import Popen
from tests.support.servers import EVERYWHERE, proxy
from tests.support.udp_client import answering

LINE = re.compile(r"(ok|note|FAIL) +(\S+(?: \S+)?)  +(.*?)(?: +([0-9.]+) ms)?")

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "CLOSE", 0.1)
    monkeypatch.delenv("GEOSOCKS_PROXY_PASSWORD", raising=False)


Findings = dict[str, tuple[str, str]]
Examine = Callable[..., tuple[int, Findings]]


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Examine:
    """Run the command: its exit code, and result and detail of each step."""

    def run(*argv: object) -> tuple[int, Findings]:
        code = main(list(map(str, argv)))
        out, err = capsys.readouterr()
        assert err == ""
        found = [LINE.fullmatch(line) for line in out.splitlines()]
        assert all(found), out
        return code, {match[2]: (match[1], match[3]) for match in found if match}

    return run


def url_of(address: tuple[str, int], userinfo: str = "") -> str:
    host, port = address
    return f"socks5://{userinfo}{host}:{port}"


def only_alice() -> Policy:
    authenticator = PasswordAuthenticator(check=lambda user, password: password == b"wonder")
    return Policy(rules=EVERYWHERE, authenticators=(authenticator,))


# --- our own server ---------------------------------------------------------------------------


def test_our_server_is_as_the_rfc_has_it(examine: Examine) -> None:
    with serving(echo) as (host, port), proxy() as (server, _):
        address = server.addresses[0]
        code, found = examine(url_of(address), "--to", f"{host}:{port}")
    assert code == 0
    assert {result for result, _ in found.values()} == {"ok"}
    details = {what: detail for what, (_, detail) in found.items() if what != "method gssapi"}
    assert re.fullmatch(r"BND is 127\.0\.0\.1:\d+", details.pop("bound"))
    assert details == {
        "reach": f"connected to 127.0.0.1:{address[1]}",
        "method none": "taken",
        "method username": "not taken (X'FF')",
        "method 0x7f": "not taken (X'FF'), then closed",
        "auth none": "let in",
        "connect": f"{host}:{port}, with method none",
        "command 0x7f": "refused (X'07'), then closed",
    }


def test_password_that_is_taken(examine: Examine) -> None:
    with proxy(only_alice()) as (server, _):
        code, found = examine(url_of(server.addresses[0], "alice:wonder@"))
    assert code == 0
    assert found["method username"] == ("ok", "taken")
    assert found["method none"] == ("ok", "not taken (X'FF')")
    assert found["auth username"] == ("ok", "let in, as 'alice'")
    assert found["command 0x7f"][0] == "ok"
    assert "connect" not in found


def test_password_that_is_not_taken(examine: Examine) -> None:
    with proxy(only_alice()) as (server, _):
        code, found = examine(url_of(server.addresses[0], "alice:s3cr3t@"))
    assert code == 1
    assert found["auth username"][0] == "FAIL"
    assert "refused user name and password" in found["auth username"][1]
    assert "command 0x7f" not in found  # that takes a way in
    assert "s3cr3t" not in str(found)


def test_password_of_the_environment(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOSOCKS_PROXY_PASSWORD", "wonder")
    with proxy(only_alice()) as (server, _):
        assert examine(url_of(server.addresses[0], "alice@"))[0] == 0


def test_one_way_in_is_enough(examine: Examine) -> None:
    with proxy() as (server, _):
        url = url_of(server.addresses[0], "alice:wonder@") + "?auth=username,none"
        code, found = examine(url)
    assert code == 0
    assert found["auth none"][0] == "ok"
    assert found["auth username"][0] == "note"


def test_target_that_is_not_reached(examine: Examine) -> None:
    with proxy() as (server, _):
        code, found = examine("--to", f"127.0.0.1:{unused_port()}", url_of(server.addresses[0]))
    assert code == 1
    assert found["connect"][0] == "FAIL"
    assert "X'05', connection refused" in found["connect"][1]
    assert "bound" not in found
    assert found["command 0x7f"][0] == "ok"


def test_nobody_listens(examine: Examine) -> None:
    port = unused_port()
    code, found = examine(f"socks5://localhost:{port}")
    assert code == 1
    assert found == {"reach": ("FAIL", f"localhost:{port}: Connection refused")}


def test_name_that_is_none(examine: Examine) -> None:
    code, found = examine("socks5://no-such-host.invalid")
    assert code == 1
    assert list(found) == ["reach"]


# --- worse servers ----------------------------------------------------------------------------


class Bad:
    """A server that answers an offer and a request with given octets, then does ``then``."""

    def __init__(self, choice: str, reply: str = "", then: str = "close") -> None:
        self.choice = bytes.fromhex(choice)
        self.reply = bytes.fromhex(reply)
        self.then = then

    def __call__(self, sock: gevent.socket.socket, _: object) -> None:
        try:
            size = recv_exactly(sock, 2)[1:]
            if size:
                recv_exactly(sock, size[0])
                sock.sendall(self.choice)
            if self.choice[1:] == b"\x00" and recv_exactly(sock, 10):
                sock.sendall(self.reply)
            if self.then == "reset":
                gevent.sleep(0.02)
                reset(sock)
            elif self.then == "stay":
                recv_all(sock)
        except OSError:
            pass


GRANTED = "05 00 00 01 0a000001 04d2"


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        pytest.param(
            Bad("05 00", GRANTED),
            {
                "method none": ("ok", "taken"),
                "method username": ("note", "X'00' selected, which was not offered"),
                "method 0x7f": ("note", "X'00' selected; expected X'FF'"),
                "auth none": ("ok", "let in"),
                "command 0x7f": ("note", "X'00' answered; expected X'07'"),
            },
            id="takes-everything",
        ),
        pytest.param(
            Bad("05 00", "05 01 00 01 00000000 0000"),
            {"command 0x7f": ("note", "X'01' answered; expected X'07'")},
            id="fails-in-general",
        ),
        pytest.param(
            Bad("05 00", "05 07 00 01 00000000 0000", "reset"),
            {"command 0x7f": ("note", "refused (X'07'), but then: Connection reset by peer")},
            id="resets-after-the-refusal",
        ),
        pytest.param(
            Bad("05 00", "05 07 00 01 00000000 0000", "stay"),
            {"command 0x7f": ("note", "refused (X'07'), but not closed within 0.1 s")},
            id="stays-after-the-refusal",
        ),
        pytest.param(
            Bad("05 00", ""),
            {"command 0x7f": ("note", "peer closed before its next message")},
            id="closes-without-a-reply",
        ),
        pytest.param(
            Bad("05 00", "", "stay"),
            {"command 0x7f": ("note", "no answer within 0.3 s")},
            id="never-replies",
        ),
        pytest.param(
            Bad("05 ff", then="reset"),
            {
                "method none": ("ok", "not taken (X'FF')"),
                "method 0x7f": ("note", "not taken (X'FF'), but then: Connection reset by peer"),
                "auth none": ("FAIL", "the server takes no method that we offer: none"),
            },
            id="resets-after-ff",
        ),
        pytest.param(
            Bad("05 ff", then="stay"),
            {"method 0x7f": ("note", "not taken (X'FF'), but not closed within 0.1 s")},
            id="stays-after-ff",
        ),
        pytest.param(
            Bad("48 54"),
            {
                "method none": ("note", "METHOD selection VER is 0x48, expected 0x05"),
                "auth none": ("FAIL", "METHOD selection VER is 0x48, expected 0x05"),
            },
            id="speaks-http",
        ),
        pytest.param(
            Bad("", then="stay"),
            {
                "method none": ("note", "no answer within 0.3 s"),
                "auth none": ("FAIL", "no answer within 0.3 s"),
            },
            id="says-nothing",
        ),
    ],
)
def test_server_that_is_not_as_the_rfc_has_it(
    server: Bad, expected: Findings, examine: Examine
) -> None:
    with serving(server) as address:
        code, found = examine(url_of(address), "--timeout", "0.3")
    assert {what: found[what] for what in expected} == expected
    assert code == int(any(result == "FAIL" for result, _ in found.values()))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_connect_that_is_not_answered(host: str, examine: Examine) -> None:
    with serving(Bad("05 00", "", "stay")) as address:
        code, found = examine(url_of(address), "--to", "192.0.2.1:80", "--timeout", "0.1")
    assert code == 1
    assert found["connect"] == ("FAIL", "no answer within 0.1 s")


def test_name_in_bnd_is_not_for_the_terminal(examine: Examine) -> None:
    with serving(Bad("05 00", "05 00 00 03 05 1b5b324aff 0050")) as address:
        code, found = examine(url_of(address), "--to", "192.0.2.1:80")
    assert code == 0
    assert found["bound"][0] == "note"
    assert "\\x1b[2J" in found["bound"][1]


@pytest.mark.parametrize(
    ("bound", "server", "result", "say"),
    [
        ("198.51.100.1:4000", "198.51.100.1:1080", "ok", "BND is 198.51.100.1:4000"),
        ("8.8.8.8:4000", "9.9.9.9:1080", "ok", "BND is 8.8.8.8:4000"),
        ("10.0.0.1:4000", "10.0.0.2:1080", "ok", "BND is 10.0.0.1:4000"),
        ("0.0.0.0:0", "9.9.9.9:1080", "note", "tells nothing"),
        ("0.0.0.0:4000", "9.9.9.9:1080", "note", "tells nothing"),
        ("8.8.8.8:0", "9.9.9.9:1080", "note", "tells nothing"),
        ("1.1.1.1:443", "9.9.9.9:1080", "note", "destination itself"),
        ("9.9.9.9:1080", "9.9.9.9:1080", "note", "where the server listens"),
        ("10.0.0.1:4000", "9.9.9.9:1080", "note", "inside"),
        ("127.0.0.1:4000", "9.9.9.9:1080", "note", "inside"),
        ("fd00::1:4000", "2606:4700::1:1080", "note", "inside"),
        ("proxy.test:4000", "9.9.9.9:1080", "note", "is a name"),
    ],
)
def test_bnd_is_weighed(bound: str, server: str, result: str, say: str) -> None:
    def address(text: str) -> Address:
        host, _, port = text.rpartition(":")
        return Address(host, int(port))

    found = weigh_bound(address(bound), address("1.1.1.1:443"), address(server))
    assert (found[0], found[1]) == (result, "bound")
    assert say in found[2]


def test_open_proxy_is_worth_a_note(examine: Examine) -> None:
    here = outside_address()
    with serving(Bad("05 00", GRANTED), here) as address:
        assert examine(url_of(address))[1]["method none"] == (
            "note",
            "taken: whoever can reach the server is let in",
        )


def outside_address() -> str:
    """An address of this host that is not loopback."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this host has no address but loopback")
        host: str = sock.getsockname()[0]
        return host


# --- BIND and UDP -----------------------------------------------------------------------------


def test_our_server_listens_and_relays(examine: Examine) -> None:
    with answering() as ((host, port), _), proxy() as (server, _):
        code, found = examine(url_of(server.addresses[0]), "--bind", "--udp", f"{host}:{port}")
    assert code == 0
    assert {result for result, _ in found.values()} == {"ok"}
    address = r"127\.0\.0\.1:\d+"
    for what, detail in {
        "bind": f"listens at {address}",
        "bind bound": f"BND is {address}",
        "bind peer": f"connected, and the server says it was {address}",
        "udp associate": f"relay at {address}",
        "udp bound": f"BND is {address}",
        "udp answer": f"16 octets from {host}:{port}",
    }.items():
        assert re.fullmatch(detail, found[what][1])


def test_a_server_that_does_neither(examine: Examine) -> None:
    rules = RuleSet.parse("allow command connect to everywhere\n")
    with proxy(Policy(rules=rules)) as (server, _):
        code, found = examine(
            url_of(server.addresses[0]), "--bind", "--udp", "127.0.0.1:9", "--timeout", "2"
        )
    assert code == 1
    assert found["bind"][0] == found["udp associate"][0] == "FAIL"
    assert "UDP ASSOCIATE: the server answers X'02'" in found["udp associate"][1]
    assert not {"bind bound", "bind peer", "udp bound", "udp answer"} & found.keys()


def test_socks4_has_no_methods_and_no_udp(examine: Examine) -> None:
    with serving(echo) as (host, port), proxy() as (server, _):
        url = url_of(server.addresses[0]).replace("socks5", "socks4a")
        code, found = examine(url, "--to", f"{host}:{port}", "--bind")
        assert code == 0
        assert list(found) == ["reach", "connect", "bind", "bind bound", "bind peer"]
        code, found = examine(url, "--udp", "127.0.0.1:9")
        assert code == 1
        assert found["udp associate"] == ("FAIL", "SOCKS4 knows no UDP")


def test_no_answer_to_a_datagram(examine: Examine) -> None:
    with answering(lambda data: None) as ((host, port), _), proxy() as (server, _):
        code, found = examine(
            url_of(server.addresses[0]), "--udp", f"{host}:{port}", "--timeout", "0.2"
        )
    assert code == 1
    assert found["udp associate"][0] == "ok"
    assert found["udp answer"] == ("FAIL", "no answer within 0.2 s")


def test_a_lost_datagram_is_sent_again(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "ASK_AGAIN", 0.05)
    seen: list[bytes] = []

    def second_time(data: bytes) -> bytes | None:
        seen.append(data)
        return data if len(seen) > 1 else None

    with answering(second_time) as ((host, port), _), proxy() as (server, _):
        code, found = examine(url_of(server.addresses[0]), "--udp", f"{host}:{port}")
    assert code == 0
    assert found["udp answer"] == ("ok", f"16 octets from {host}:{port}, after 1 lost")


def test_a_dns_server_is_asked_a_question() -> None:
    query, is_answer = question_for(Address("192.0.2.1", 53))
    assert len(query) == 17
    assert query[2:] == bytes.fromhex("0100 0001 0000 0000 0000 00 0002 0001")
    assert is_answer(query[:2] + bytes(10))
    assert not is_answer(query[:2] + bytes(9))
    assert not is_answer(bytes((query[0] ^ 1,)) + query[1:])


class BadBinder(Bad):
    """A server that grants a BIND at ``address``, and then answers ``second``."""

    def __init__(self, address: tuple[str, int], second: bytes = b"") -> None:
        super().__init__("05 00", "05 00 00" + Address(*address).encode().hex(), "stay")
        self.reply += second


@pytest.mark.parametrize(
    ("host", "second", "result", "say"),
    [
        ("127.0.0.1", b"", "FAIL", "no answer within 0.3 s"),
        ("127.0.0.1", bytes.fromhex("05 02 00 01 00000000 0000"), "FAIL", "X'02'"),
        ("name.test", b"", "FAIL", "BND is a name, 'name.test'"),
    ],
)
def test_a_bind_that_nothing_comes_of(
    host: str, second: bytes, result: str, say: str, examine: Examine
) -> None:
    with (
        serving(lambda sock, _: recv_all(sock)) as (_, port),
        serving(BadBinder((host, port), second)) as address,
    ):
        code, found = examine(url_of(address), "--bind", "--timeout", "0.3")
    assert code == 1
    assert found["bind"][0] == "ok"
    assert found["bind peer"][0] == result
    assert say in found["bind peer"][1]


def test_a_bind_where_nobody_listens(examine: Examine) -> None:
    with serving(BadBinder(("0.0.0.0", unused_port()))) as address:
        code, found = examine(url_of(address), "--bind", "--timeout", "0.3")
    assert code == 1
    assert found["bind bound"][0] == "note"
    assert "is not to be reached from here: Connection refused" in found["bind peer"][1]


def test_a_nat_before_a_bind_shows(examine: Examine) -> None:
    peers: AsyncResult = AsyncResult()

    def serve(sock: gevent.socket.socket, address: object) -> None:
        recv_exactly(sock, 3)
        sock.sendall(b"\x05\0")
        if recv_exactly(sock, 10)[1:2] != b"\x02":
            return  # a step before or after
        sock.sendall(b"\x05\0\0" + Address(*listener).encode())
        with peers.get() as peer:
            sock.sendall(b"\x05\0\0" + Address("198.51.100.1", 4000).encode())
            peer.sendall(recv_exactly(sock, 16))
            sock.sendall(recv_exactly(peer, 16))
            recv_all(sock)

    def wait(peer: gevent.socket.socket, _: object) -> None:
        peers.set(peer.dup())

    with serving(wait) as listener, serving(serve) as address:
        code, found = examine(url_of(address), "--bind", "--timeout", "2")
    assert code == 0
    assert found["bind peer"][0] == "note"
    assert "the server sees 198.51.100.1:4000, and we are 127.0.0.1:" in found["bind peer"][1]


@pytest.mark.parametrize(
    ("told", "server", "result", "say"),
    [
        ("198.51.100.1:4000", "198.51.100.1:1080", "ok", "BND is 198.51.100.1:4000"),
        ("198.51.100.1:4000", "198.51.100.2:1080", "note", "another address"),
        ("0.0.0.0:4000", "9.9.9.9:1080", "note", "have to take 9.9.9.9"),
        ("[::]:4000", "9.9.9.9:1080", "note", "have to take 9.9.9.9"),
        ("10.0.0.5:4000", "9.9.9.9:1080", "note", "inside a NAT"),
        ("127.0.0.1:4000", "10.0.0.5:1080", "note", "inside a NAT"),
        ("10.0.0.5:4000", "10.0.0.5:1080", "ok", "BND is"),
        ("9.9.9.9:0", "9.9.9.9:1080", "note", "nobody can reach"),
        ("proxy.test:4000", "9.9.9.9:1080", "note", "is a name"),
    ],
)
def test_bnd_for_others_to_come_to_is_weighed(
    told: str, server: str, result: str, say: str
) -> None:
    found = weigh_told("udp bound", check._target(told), check._target(server))
    assert found[:2] == (result, "udp bound")
    assert say in found[2]


# --- what it writes ---------------------------------------------------------------------------


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(echo) as (host, port), proxy() as (server, _):
        url = url_of(server.addresses[0])
        assert main([url, "--json", "--to", f"{host}:{port}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {frozenset(each) for each in found} == {frozenset(("result", "what", "detail", "ms"))}
    by_what = {each["what"]: each for each in found}
    assert by_what["connect"]["result"] == "ok"
    assert by_what["connect"]["ms"] > 0
    assert by_what["bound"]["ms"] is None


def test_json_of_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"socks5://127.0.0.1:{unused_port()}", "--json"]) == 1
    assert [each["result"] for each in json.loads(capsys.readouterr().out)] == ["FAIL"]


class Terminal(StringIO):
    """One that says that it is."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "no_colour", "start"),
    [
        (Terminal(), None, "\x1b[31mFAIL\x1b[0m  reach"),
        (Terminal(), "", "\x1b[31mFAIL\x1b[0m  reach"),
        (Terminal(), "1", "FAIL  reach"),
        (StringIO(), None, "FAIL  reach"),
    ],
)
def test_colours_are_for_terminals(
    out: StringIO, no_colour: str | None, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour is not None:
        monkeypatch.setenv("NO_COLOR", no_colour)
    assert check._coloured(Finding("FAIL", "reach", "no"), out).startswith(start)


def test_on_a_terminal_as_a_process() -> None:
    master, terminal = pty.openpty()
    with proxy() as (server, _):
        process = Popen(
            [sys.executable, "-m", "geosocks", "check", url_of(server.addresses[0])],
            stdout=terminal,
            env={name: value for name, value in os.environ.items() if name != "NO_COLOR"},
        )
        assert process.wait(15) == 0
    os.close(terminal)
    shown = os.read(master, 65536)
    os.close(master)
    assert shown.startswith(b"\x1b[32mok\x1b[0m    reach")


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["http://h.test"], "scheme 'http'"),
        (["socks5://a:s3cr3t"], "port"),
        (["socks5://a@h.test"], "no password"),
        (["socks5://h.test", "--to", "h.test"], "is not HOST:PORT"),
        (["socks5://h.test", "--to", "h.test:x"], "is not HOST:PORT"),
        (["socks5://h.test", "--to", ":80"], "is not HOST:PORT"),
        (["socks5://h.test", "--to", "h.test:65536"], "is not HOST:PORT"),
        (["socks5://h.test", "--to", "socks5://a:s3cr3t@h.test:x"], "://***@h.test"),
        (["socks5://h.test", "--udp", "h.test"], "is not HOST:PORT"),
        (["socks5://h.test", "--timeout", "-1"], "seconds above 0"),
        ([], "URL"),
    ],
)
def test_what_is_not_understood(
    argv: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(argv)
    except SystemExit as leaving:
        code = int(str(leaving.code))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert what in err
    assert "s3cr3t" not in err


def test_help_says_what_can_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(option in out for option in ("--to", "--bind", "--udp", "--timeout", "--json"))


def test_target_in_brackets() -> None:
    target: Any = check._target("[::1]:80")
    assert target == Address("::1", 80)
