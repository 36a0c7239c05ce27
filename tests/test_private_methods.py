"""Methods by import path, and the worked example of one: ``etc/examples/ticket_method.py``."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gevent.socket
import pytest

from geosocks.auth import NoAuth
from geosocks.auth.private import is_reference, load_authenticator, load_credential
from geosocks.cli.check import main as check
from geosocks.client import Client
from geosocks.config import build_policy, load_settings, shown
from geosocks.errors import AuthFailed, ConfigError, ProtocolError
from geosocks.events import Authenticated, AuthenticationFailed, NegotiationEnded
from geosocks.policy import Policy
from geosocks.rules import RuleSet
from geosocks.wire import NeedMore
from tests.support.net import echo, recv_all, recv_exactly, serving
from tests.support.proxy import running
from tests.support.servers import dial, proxy

EXAMPLES = Path(__file__).parents[1] / "etc" / "examples"
KEY = b"a key of our office"

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example as its reader imports it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import ticket_method  # type: ignore[import-not-found]

    yield ticket_method
    sys.modules.pop("ticket_method")


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module ``office_auth``, whose text the test writes."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "office_auth.py"
    sys.modules.pop("office_auth", None)


# --- the example ------------------------------------------------------------------------------


def test_a_ticket_decodes_encodes_and_never_overreads(example: ModuleType) -> None:
    ticket = example.Ticket.issue("alicé", 1 << 40, KEY)
    data = ticket.encode()
    assert example.Ticket.decode(data + b"more") == ticket
    assert ticket.is_genuine(KEY)
    assert not ticket.is_genuine(b"another key")
    assert ticket.mac.hex() not in repr(ticket)
    for cut in range(len(data)):
        with pytest.raises(NeedMore) as caught:
            example.Ticket.decode(data[:cut])
        assert 1 <= caught.value.missing <= len(data) - cut


@pytest.mark.parametrize("octets", [b"\x02\x01a" + bytes(40), b"\x01\x01\xff" + bytes(40)])
def test_octets_that_are_no_ticket(example: ModuleType, octets: bytes) -> None:
    with pytest.raises(ProtocolError):
        example.Ticket.decode(octets)


def test_an_answer_that_is_none(example: ModuleType) -> None:
    with pytest.raises(ProtocolError):
        example.Answer.decode(b"\x05\x00")


@pytest.mark.parametrize("holder", ["", "x" * 256])
def test_a_name_that_no_ticket_holds(example: ModuleType, holder: str) -> None:
    with pytest.raises(ValueError, match="1 to 255"):
        example.Ticket.issue(holder, 1, KEY)


def test_client_and_server_of_method_80(example: ModuleType) -> None:
    rules = RuleSet.parse("allow user alice method 0x80 to everywhere")
    policy = Policy(authenticators=(example.TicketAuthenticator(KEY), NoAuth()), rules=rules)
    ticket = example.Ticket.issue("alice", int(time.time()) + 60, KEY)
    with serving(echo) as target, proxy(policy) as (server, witness):
        client = Client(server.addresses[0][:2], [example.TicketCredential(ticket)])
        sock = client.connect(target)
        sock.sendall(b"hello")
        assert recv_exactly(sock, 5) == b"hello"
        sock.close()
        entered = witness.wait(Authenticated)
    assert (entered.method, entered.identity) == (0x80, "alice")
    assert entered.detail == f"until {ticket.expires}"


def test_the_octets_of_method_80(example: ModuleType) -> None:
    policy = Policy(authenticators=(example.TicketAuthenticator(KEY),))
    ticket = example.Ticket.issue("alice", 1 << 40, KEY)
    with proxy(policy) as (server, _):
        sock = dial(server)
        sock.sendall(b"\x05\x02\x00\x80" + ticket.encode())
        assert recv_exactly(sock, 4) == b"\x05\x80\x01\x00"
        sock.close()


@pytest.mark.parametrize(
    ("key", "seconds", "reason"),
    [
        (b"the key of another office", 60, "not one of ours"),
        (KEY, -60, "has expired"),
    ],
)
def test_a_ticket_that_is_not_taken(
    example: ModuleType, key: bytes, seconds: int, reason: str
) -> None:
    policy = Policy(authenticators=(example.TicketAuthenticator(KEY),))
    ticket = example.Ticket.issue("mallory", int(time.time()) + seconds, key)
    with proxy(policy) as (server, witness):
        client = Client(server.addresses[0][:2], [example.TicketCredential(ticket)])
        with pytest.raises(AuthFailed, match="does not take our ticket"):
            client.connect(("127.0.0.1", 1))
        failed = witness.wait(AuthenticationFailed)
    assert (failed.method, failed.identity) == (0x80, "mallory")
    assert reason in failed.reason


def test_what_is_no_ticket_ends_the_session(example: ModuleType) -> None:
    with proxy(Policy(authenticators=(example.TicketAuthenticator(KEY),))) as (server, witness):
        sock = dial(server)
        sock.sendall(b"\x05\x01\x80\x09\x09")
        assert recv_all(sock) == b"\x05\x80"
        sock.close()
        assert "ticket VER is 0x09" in witness.wait(NegotiationEnded).reason


def test_the_example_is_served_from_the_command_line(example: ModuleType, tmp_path: Path) -> None:
    key = tmp_path / "ticket.key"
    key.write_bytes(KEY + b"\n")
    env = {"PYTHONPATH": str(EXAMPLES), "TICKET_KEY_FILE": str(key), "PYTHONDONTWRITEBYTECODE": "1"}
    ticket = example.Ticket.issue("alice", int(time.time()) + 60, KEY)
    with (
        serving(echo) as target,
        running(tmp_path, "--methods=ticket_method:make,none", env=env) as server,
    ):
        credential = example.TicketCredential(ticket)
        sock = Client(server.address, [credential]).connect(target)
        sock.sendall(b"hello")
        assert recv_exactly(sock, 5) == b"hello"
        sock.close()
        Client(server.address).connect(target).close()
        entered = server.wait_event("authenticated")
        assert (entered["method"], entered["identity"]) == ("0x80", "alice")
        key.write_bytes(b"another key of our office")
        server.reload()
        with pytest.raises(AuthFailed):
            Client(server.address, [credential]).connect(target)
        key.unlink()
        assert "ticket.key: cannot be read" in server.reload("reload_refused")["reason"]


def test_the_example_without_its_key(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(["--methods", "ticket_method:make"], {}).settings
    monkeypatch.delenv("TICKET_KEY_FILE", raising=False)
    with pytest.raises(ConfigError, match="TICKET_KEY_FILE is not set"):
        build_policy(settings)


# --- by import path ---------------------------------------------------------------------------

MODULE = """
class Method:
    method = 0x81
    def authenticate(self, stream, peer): ...
class Numberless:
    def authenticate(self, stream, peer): ...
class Wrong(Method):
    method = 0xFF
def make(): return Method()
def fail(): raise OSError("no office\\ntoday")
def needs(argument): return Method()
def nothing(): return None
def numberless(): return Numberless()
def wrong(): return Wrong()
class Taken(Method):
    method = 0
class Here:
    class there:
        make = make
    method = 0x82
ready = Method()
number = 3
"""


def methods(*names: str) -> list[int]:
    settings = load_settings(["--methods", ",".join(names)], {}).settings
    return [authenticator.method for authenticator in build_policy(settings).authenticators]


@pytest.mark.parametrize("name", ["make", "Method", "ready", "Here.there.make"])
def test_a_factory_a_class_or_the_thing_itself(office: Path, name: str) -> None:
    office.write_text(MODULE)
    assert methods("none", f"office_auth:{name}") == [0, 0x81]


def test_a_factory_is_called_anew_for_each_policy(office: Path) -> None:
    office.write_text(MODULE)
    first, second = load_authenticator("office_auth:make"), load_authenticator("office_auth:make")
    assert first is not second
    assert load_authenticator("office_auth:ready") is load_authenticator("office_auth:ready")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("office_auth:absent", "there is no absent in it"),
        ("office_auth:make.absent", "there is no absent in it"),
        ("office_auth:fail", "failed: OSError: no office today"),
        ("office_auth:needs", "failed: TypeError: "),
        ("office_auth:nothing", "a NoneType is not an Authenticator"),
        ("office_auth:Here", "a Here is not an Authenticator"),
        ("office_auth:number", "is neither an Authenticator nor callable"),
        ("office_auth:numberless", "its method is None, not a number 0x00 to 0xfe"),
        ("office_auth:wrong", "its method is 255, not a number 0x00 to 0xfe"),
        ("no_such_office:make", "there is no module no_such_office; install it, or put"),
        ("office_auth.auth:make", "No module named 'office_auth.auth'|there is no module"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_path(office: Path, name: str, complaint: str) -> None:
    office.write_text(MODULE)
    with pytest.raises(ConfigError, match=complaint) as caught:
        methods(name)
    assert str(caught.value).startswith(f"--methods {name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import no_such_thing_at_all", "No module named 'no_such_thing_at_all'"),
        ("def", "cannot be imported: SyntaxError"),
        ("1/0", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_a_module_that_cannot_be_imported(office: Path, text: str, complaint: str) -> None:
    office.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        methods("office_auth:make")


def test_two_of_one_number_are_refused(office: Path) -> None:
    office.write_text(MODULE)
    with pytest.raises(ConfigError, match=r"office_auth:Taken are both method none \(0x00\)"):
        methods("none", "office_auth:Taken")
    with pytest.raises(ConfigError, match="both method 0x81"):
        methods("office_auth:make", "office_auth:Method")


@pytest.mark.parametrize(
    "text", ["office", "office:", ":make", "off ice:make", "office:make()", "1:2", "a..b:c"]
)
def test_what_is_no_path_is_an_unknown_method(text: str) -> None:
    assert not is_reference(text)
    with pytest.raises(ConfigError, match="is not one of gssapi, username, none"):
        load_settings(["--methods", text], {})


def test_what_is_printed_means_the_same(tmp_path: Path) -> None:
    loaded = load_settings(["--methods", "office.auth:make, none"], {})
    path = tmp_path / "conf"
    path.write_text(shown(loaded))
    assert load_settings(["--config", str(path)], {}).settings == loaded.settings
    assert loaded.settings.methods == ("office.auth:make", "none")


def test_a_listener_may_have_a_method_of_its_own(office: Path) -> None:
    office.write_text(MODULE)
    argv = ["--listen", "127.0.0.1:0?name=office&methods=office_auth:make,none"]
    policy = build_policy(load_settings(argv, {}).settings)
    assert [a.method for a in policy.authenticators_at("office")] == [0x81, 0]
    assert [a.method for a in policy.authenticators_at("other")] == [0]


def test_the_example_closes_its_sockets(example: ModuleType) -> None:
    """The client's half leaves nothing open when the server hangs up."""

    def hang_up(sock: gevent.socket.socket, _: object) -> None:
        recv_exactly(sock, 3)
        sock.sendall(b"\x05\x80")

    ticket = example.Ticket.issue("alice", 1, KEY)
    with serving(hang_up) as address, pytest.raises(ConnectionError):
        Client(address, [example.TicketCredential(ticket)]).connect(("127.0.0.1", 1))


# --- the client's half ------------------------------------------------------------------------


def test_a_credential_by_import_path(
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ticket = tmp_path / "alice.ticket"
    ticket.write_bytes(example.Ticket.issue("alice", int(time.time()) + 60, KEY).encode())
    monkeypatch.setenv("TICKET_FILE", str(ticket))
    policy = Policy(authenticators=(example.TicketAuthenticator(KEY),))
    with proxy(policy) as (server, witness):
        url = f"socks5://127.0.0.1:{server.addresses[0][1]}"
        assert check(["--credential", "ticket_method:present", url]) == 0
        assert witness.wait(Authenticated).identity == "alice"
    assert "auth 0x80" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "ticket_method: TICKET_FILE is not set"),
        (b"", "alice.ticket: holds no ticket"),
        (b"\x05\x05\x05", "alice.ticket: holds no ticket"),
    ],
)
def test_a_credential_that_cannot_be_used(
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    complaint: str,
) -> None:
    monkeypatch.delenv("TICKET_FILE", raising=False)
    if content is not None:
        ticket = tmp_path / "alice.ticket"
        ticket.write_bytes(content)
        monkeypatch.setenv("TICKET_FILE", str(ticket))
    with pytest.raises(SystemExit) as caught:
        check(["--credential", "ticket_method:present", "socks5://127.0.0.1"])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_what_is_no_credential(office: Path) -> None:
    office.write_text(MODULE)
    with pytest.raises(ConfigError, match="is not a Credential: it cannot present"):
        load_credential("office_auth:make")
