"""Listeners with a name and settings of their own, UNIX sockets, and rules about them."""

import os
import socket
import stat
from pathlib import Path

import gevent.socket
import pytest

from geosocks.auth import NoAuth
from geosocks.auth.userpass import Password, PasswordAuthenticator
from geosocks.cli.explain import main as explain
from geosocks.client import Client
from geosocks.codes import ProtectionLevel
from geosocks.config import Loaded, build_policy, listen_option, load_settings, shown
from geosocks.errors import ConfigError, NoAcceptableMethod, RequestDenied
from geosocks.events import Listening, Reloaded, ReloadRefused, SessionOpened
from geosocks.policy import AtListener, Policy
from geosocks.rules import LOCAL, RuleSet
from geosocks.server import Listen, Server, refuse_open_proxy
from geosocks.worker.reloading import reload
from tests.support.net import echo, recv_exactly, serving, wait_for
from tests.support.proxy import running, users_file
from tests.support.servers import EVERYWHERE, Witness, read_reply, request

pytestmark = pytest.mark.usefixtures("no_leaks")

ANY_PORT = ("127.0.0.1", 0)
PASSWORD = PasswordAuthenticator(check=lambda user, password: password == b"wonder")
ALICE = Password("alice", "wonder")


def load(*argv: str) -> Loaded:
    return load_settings(argv, {})


def unix_client(path: object) -> gevent.socket.socket:
    sock = gevent.socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


# --- in the library ---------------------------------------------------------------------------


def two_listeners(policy: Policy) -> tuple[Server, Witness]:
    witness = Witness()
    listen = [Listen(ANY_PORT, name="inside"), Listen(ANY_PORT, name="outside")]
    return Server(listen, policy, observers=[witness]), witness


def test_a_listener_has_methods_of_its_own_and_a_name_in_events() -> None:
    own = {"outside": AtListener(authenticators=(PASSWORD,))}
    server, witness = two_listeners(Policy(rules=EVERYWHERE, listeners=own))
    with serving(echo) as target, server:
        assert [event.name for event in witness.of(Listening)] == ["inside", "outside"]
        inside, outside = (address[:2] for address in server.addresses)
        Client(inside).connect(target).close()
        with pytest.raises(NoAcceptableMethod):
            Client(outside).connect(target)
        Client(outside, [ALICE]).connect(target).close()
        with pytest.raises(NoAcceptableMethod):
            Client(inside, [ALICE]).connect(target)
        names = [event.listener for event in witness.of(SessionOpened)]
    assert names == ["inside", "outside", "outside", "inside"]


def test_one_assignment_swaps_the_methods_of_every_listener() -> None:
    policy = Policy(rules=EVERYWHERE)
    server, _ = two_listeners(policy)
    with serving(echo) as target, server:
        _, outside = (address[:2] for address in server.addresses)
        Client(outside).connect(target).close()
        own = {"outside": AtListener(authenticators=(PASSWORD,))}
        server.policy = policy.replace(listeners=own)
        with pytest.raises(NoAcceptableMethod):
            Client(outside).connect(target)


def test_socks4_is_refused_at_a_listener_that_wants_more() -> None:
    own = {"outside": AtListener(authenticators=(PASSWORD,))}
    server, _ = two_listeners(Policy(rules=EVERYWHERE, listeners=own))
    with serving(echo) as (host, port), server:
        answers = []
        for address in server.addresses:
            sock = gevent.socket.create_connection(address[:2])
            octets = b"\x04\x01" + port.to_bytes(2, "big") + socket.inet_aton(host) + b"\x00"
            sock.sendall(octets)
            answers.append(recv_exactly(sock, 8)[1])
            sock.close()
        assert answers == [90, 91]


def test_rules_know_the_listener() -> None:
    rules = RuleSet.parse("allow listener inside to everywhere\nallow listener other\n")
    server, _ = two_listeners(Policy(rules=rules))
    with serving(echo) as target, server:
        inside, outside = (address[:2] for address in server.addresses)
        Client(inside).connect(target).close()
        with pytest.raises(RequestDenied):
            Client(outside).connect(target)


def test_without_a_name_it_is_called_by_its_address() -> None:
    witness = Witness()
    with serving(echo) as target, Server([Listen(ANY_PORT)], observers=[witness]) as server:
        Client(server.addresses[0][:2]).connect(target).close()
        assert witness.of(SessionOpened)[0].listener == witness.of(Listening)[0].address
        assert witness.of(Listening)[0].name is None


def test_an_explanation_tells_of_listeners(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules, config = tmp_path / "rules", tmp_path / "conf"
    rules.write_text("allow listener inside to 192.0.2.0/24\n")
    config.write_text(
        f"rules = {rules}\nlisten = 127.0.0.1:1?name=inside\n"
        "listen = 127.0.0.1:2?name=staff&methods=username&users=/not/read\n"
    )
    words = ["--config", str(config), "connect", "192.0.2.1", "80"]
    assert explain(["--listener", "inside", *words]) == 0
    assert explain(["--listener", "staff", *words]) == 1
    told = capsys.readouterr().out
    assert "listener does not match 'staff'" in told
    assert "--methods is username: nobody gets in with method none" in told
    assert explain(["--listener", "other", *words]) == 1
    assert "no listener is called 'other'" in capsys.readouterr().out
    assert explain(words) == 1
    assert "listener does not match none in particular" in capsys.readouterr().out


# --- open proxies -----------------------------------------------------------------------------

OPEN = RuleSet.parse("allow to any")


@pytest.mark.parametrize(
    ("everywhere", "own", "rules", "is_open"),
    [
        pytest.param((NoAuth(),), None, "allow to any", True, id="none"),
        pytest.param((PASSWORD,), (NoAuth(),), "allow to any", True, id="its-own-is-none"),
        pytest.param((NoAuth(),), (PASSWORD,), "allow to any", False, id="its-own-is-a-method"),
        pytest.param((NoAuth(),), None, "allow listener inside to any", False, id="others-only"),
        pytest.param((NoAuth(),), None, "allow listener outside to any", True, id="just-this"),
        pytest.param(
            (NoAuth(),), None, "allow listener inside\nallow from 10.0.0.0/8", False, id="limited"
        ),
    ],
)
def test_each_listener_is_looked_at_for_itself(
    everywhere: tuple[NoAuth, ...], own: tuple[NoAuth, ...] | None, rules: str, is_open: bool
) -> None:
    policy = Policy(
        authenticators=everywhere,
        listeners={"outside": AtListener(authenticators=own)},
        rules=RuleSet.parse(rules),
    )
    listen = [Listen(("127.0.0.1", 1080), "inside"), Listen(("192.0.2.1", 1080), "outside")]
    if is_open:
        with pytest.raises(ConfigError, match=r"192\.0\.2\.1:1080 would be an open proxy"):
            refuse_open_proxy(listen, policy)
    else:
        refuse_open_proxy(listen, policy)


# --- UNIX sockets -----------------------------------------------------------------------------


def test_a_unix_socket_is_made_for_its_owner_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socks"
    witness = Witness()
    server = Server([str(path)], Policy(), observers=[witness])
    with serving(echo) as (host, port), server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert server.addresses == [str(path)]
        assert witness.of(Listening)[0].address == str(path)
        sock = unix_client(path)
        sock.sendall(b"\x05\x01\x00" + request(1, host, port) + b"hello")
        assert recv_exactly(sock, 2) == b"\x05\x00"
        assert read_reply(sock).rep == 0
        assert recv_exactly(sock, 5) == b"hello"
        sock.close()
        opened = witness.of(SessionOpened)[0]
        assert (str(opened.client), opened.listener) == ("127.0.0.1:0", str(path))
        server.close_listeners()
        assert not path.exists()
    assert not path.exists()


def test_its_mode_can_be_another(tmp_path: Path) -> None:
    path = tmp_path / "socks"
    with Server([Listen(str(path), mode=0o660)]):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_file_that_a_server_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socks"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.listen()
    left.close()
    assert path.exists()
    with Server([str(path)]):
        unix_client(path).close()


def test_a_file_that_somebody_listens_on_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socks"
    with Server([str(path)]):
        for _ in range(2):
            with pytest.raises(OSError, match=r"socks: Address already in use"):
                Server([str(path)]).start()
        unix_client(path).close()


def test_one_whose_backlog_is_full_is_not_either(tmp_path: Path) -> None:
    path = tmp_path / "socks"
    busy = socket.socket(socket.AF_UNIX)
    busy.bind(str(path))
    busy.listen(0)
    waiting = unix_client(path)
    with pytest.raises(OSError, match="in use"):
        Server([str(path)]).start()
    assert path.exists()
    waiting.close()
    busy.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(OSError, match="it is no socket"):
        Server([str(path)]).start()
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="it is no socket"):
        Server([str(link)]).start()
    assert path.read_text() == "mine"


def test_a_place_where_none_can_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent/socks: No such file"):
        Server([str(tmp_path / "absent" / "socks")]).start()
    with pytest.raises(OSError, match="path too long"):
        Server([str(tmp_path / ("x" * 108))]).start()


def test_the_file_of_somebody_else_stays_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socks"
    with Server([str(path)]):
        os.unlink(path)
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(path))
    assert path.exists()
    other.close()


def test_a_server_that_cannot_start_takes_its_file_away(tmp_path: Path) -> None:
    path = tmp_path / "socks"
    taken = socket.socket()
    taken.bind(ANY_PORT)
    taken.listen()
    with pytest.raises(OSError, match="in use"):
        Server([str(path), taken.getsockname()]).start()
    assert not path.exists()
    taken.close()


# --- options ----------------------------------------------------------------------------------


def test_a_listener_with_all_there_is(tmp_path: Path) -> None:
    text = (
        "10.0.0.1:1080?name=inside&methods=gssapi,none&keytab=/k%26t&users=/u+u"
        "&gss-levels=confidentiality,clear&gss-grant=clear&gss-nec=true"
        "&gss-unsequenced=yes&gss-map=a@R=b&gss-map=strip:R"
    )
    one = listen_option(text)
    assert one.listen == Listen(("10.0.0.1", 1080), "inside")
    own = dict(one.own)
    assert own["methods"] == ("gssapi", "none")
    assert (own["keytab"], own["users"]) == ("/k&t", "/u+u")
    assert own["gss_levels"] == (ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.CLEAR)
    assert (own["gss_grant"], own["gss_nec"]) == ("clear", True)
    assert own["gss_unsequenced"] is True
    assert [str(mapping) for mapping in own["gss_map"]] == ["a@R=b", "strip:R"]


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:1080",
        "[::1]:1080?name=six",
        "unix:/run/geosocks/socks",
        "unix:/run/geosocks/socks?name=local&mode=660",
        "127.0.0.1:1080?methods=none",
        "127.0.0.1:1080?methods=gssapi,none&gss-map=a@R=b&gss-map=strip:R&gss-levels=integrity",
        "127.0.0.1:1080?keytab=/a%26b%20%3Fc",
        "tls://127.0.0.1:1080?tls-cert=/c",
    ],
)
def test_what_is_printed_means_the_same(tmp_path: Path, text: str) -> None:
    loaded = load("--listen", text)
    path = tmp_path / "conf"
    path.write_text(shown(loaded))
    assert load("--config", str(path)).settings == loaded.settings


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("127.0.0.1:1080?", "is no setting=value"),
        ("127.0.0.1:1080?name", "is no setting=value"),
        ("127.0.0.1:1080?name=", "is no setting=value"),
        ("127.0.0.1:1080?nam=x", "no setting 'nam'; did you mean name?"),
        ("127.0.0.1:1080?rules=x", "has no setting 'rules'"),
        ("127.0.0.1:1080?name=1", "a name begins with a letter"),
        ("127.0.0.1:1080?name=a%20b", "a name begins with a letter"),
        ("127.0.0.1:1080?name=port", "is a word of the rules"),
        ("127.0.0.1:1080?name=a&name=b", "name stands twice"),
        ("127.0.0.1:1080?methods=nono", "did you mean none?"),
        ("127.0.0.1:1080?gss-nec=maybe", "not true or false"),
        ("127.0.0.1:1080?gss-map=x", "neither PRINCIPAL=USER"),
        ("127.0.0.1:1080?mode=660", "mode is for unix:PATH"),
        ("unix:/x?mode=9", "is no file mode"),
        ("unix:", "has no path"),
        ("unix:/" + "x" * 107, "has no path of 1 to 107 octets"),
        ("127.0.0.1:1080?methods=username", "inside|needs --users FILE"),
        ("127.0.0.1:1080?users=/u&methods=none", "methods leaves username out"),
        ("127.0.0.1:1080?keytab=/u&methods=none", "methods leaves gssapi out"),
        ("127.0.0.1:1080?gss-grant=clear", "needs clear among"),
        ("127.0.0.1:1080?tls-cert=/c", "tls-cert is for a listener written tls://"),
        ("tls://127.0.0.1:1080", "needs --tls-cert FILE"),
        ("tls://unix:/x", "is not ADDRESS:PORT|needs --tls-cert"),
    ],
)
def test_a_listener_that_cannot_be_used(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "conf"
    path.write_text(f"drain = 1\nlisten = {text}\n")
    with pytest.raises(ConfigError, match=complaint.replace("?", r"\?")) as caught:
        load("--config", str(path))
    assert str(caught.value).startswith(f"{path}:2: ")


def test_two_of_one_name() -> None:
    with pytest.raises(ConfigError, match="two have the name a"):
        load("--listen", "127.0.0.1:1?name=a", "--listen", "127.0.0.1:2?name=a")


def test_own_settings_go_over_the_global_ones(tmp_path: Path) -> None:
    users = users_file(tmp_path, alice="wonder")
    settings = load(
        f"--listen=127.0.0.1:1?name=a&users={users}",
        f"--listen=127.0.0.1:2?name=b&methods=username&users={users}",
        "--listen=127.0.0.1:3?name=c",
    ).settings
    policy = build_policy(settings)
    taken = [[a.method for a in policy.authenticators_at(name)] for name in "abc"]
    assert taken == [[2], [2], [0]]
    assert policy.rules is LOCAL
    with pytest.raises(ConfigError, match="--methods leaves username out"):
        load(f"--users={users}", "--methods=none")
    load(f"--users={users}", "--methods=none", "--listen=127.0.0.1:1?methods=username")


def test_a_file_of_a_listener_that_cannot_be_read(tmp_path: Path) -> None:
    settings = load("--listen", f"127.0.0.1:1?name=a&users={tmp_path}/absent").settings
    with pytest.raises(ConfigError, match="absent: "):
        build_policy(settings)
    settings = load("--listen", "127.0.0.1:1?name=a&methods=no_such_office:make").settings
    with pytest.raises(ConfigError, match=r"listener a: --methods no_such_office:make: "):
        build_policy(settings)


def test_a_unix_listener_alone_is_for_programs_of_this_host(tmp_path: Path) -> None:
    assert build_policy(load(f"--listen=unix:{tmp_path}/socks").settings).rules is LOCAL


def test_rules_may_name_listeners_that_there_are(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("allow listener inside,insid to any\n")
    argv = [f"--rules={rules}", "--listen=127.0.0.1:1?name=inside"]
    with pytest.raises(ConfigError, match=r":1:23: unknown listener 'insid'; did you mean inside"):
        build_policy(load(*argv).settings)
    build_policy(load(*argv, "--listen=127.0.0.1:2?name=insid").settings)
    with pytest.raises(ConfigError, match=r"unknown listener 'inside'; name it: --listen"):
        build_policy(load(f"--rules={rules}").settings)


# --- reload -----------------------------------------------------------------------------------


def served(*argv: str) -> tuple[Server, Loaded, Witness]:
    loaded, witness = load(*argv), Witness()
    listen = [one.listen for one in loaded.settings.listen]
    return Server(listen, build_policy(loaded.settings), observers=[witness]), loaded, witness


def methods_at(server: Server, name: str) -> list[int]:
    return [authenticator.method for authenticator in server.policy.authenticators_at(name)]


def test_a_reload_changes_the_methods_of_a_listener(tmp_path: Path) -> None:
    users = users_file(tmp_path, alice="wonder")
    server, loaded, witness = served("--listen=127.0.0.1:0?name=a&methods=none")
    with server:
        reload(server, [f"--listen=127.0.0.1:0?name=a&users={users}"], loaded)
        assert methods_at(server, "a") == [2]
        assert witness.of(Reloaded)[-1].what == "policy"
        reload(server, ["--listen=127.0.0.1:0?name=a"], loaded)
        assert methods_at(server, "a") == [0]
        assert witness.of(Reloaded)[-1].what == "policy"


def test_a_listener_gone_from_the_settings_keeps_what_it_had(tmp_path: Path) -> None:
    users = users_file(tmp_path, alice="wonder")
    server, loaded, witness = served(f"--listen=127.0.0.1:0?name=a&users={users}")
    with server:
        reload(server, ["--listen=127.0.0.1:0?name=b"], loaded)
        assert methods_at(server, "a") == [2]
        assert "a change of listen needs a restart" in witness.of(Reloaded)[-1].what


def test_a_reload_that_would_open_a_listener_is_refused(tmp_path: Path) -> None:
    users = users_file(tmp_path, alice="wonder")
    server, loaded, witness = served(f"--listen=0.0.0.0:0?name=a&users={users}")
    with server:
        reload(server, ["--listen=0.0.0.0:0?name=a"], loaded)
        assert "would be an open proxy" in witness.of(ReloadRefused)[-1].reason
        assert methods_at(server, "a") == [2]


# --- as a process -----------------------------------------------------------------------------


def test_the_program_with_a_tcp_and_a_unix_listener(tmp_path: Path) -> None:
    path = tmp_path / "socks"
    users = users_file(tmp_path, alice="wonder")
    rules = tmp_path / "rules"
    rules.write_text("allow listener desk to everywhere\n")
    options = [f"--listen=unix:{path}?name=desk&users={users}", f"--rules={rules}"]
    with serving(echo) as (host, port), running(tmp_path, *options) as server:
        server.wait_for(lambda: len(server.events("listening")) == 2)
        listening = server.events("listening")[1]
        assert (listening["address"], listening["name"]) == (str(path), "desk")
        with pytest.raises(RequestDenied):
            Client(server.address).connect((host, port))
        sock = unix_client(path)
        sock.sendall(b"\x05\x01\x02\x01\x05alice\x06wonder" + request(1, host, port))
        assert recv_exactly(sock, 4) == b"\x05\x02\x01\x00"
        assert read_reply(sock).rep == 0
        sock.close()
        closed = server.wait_event("session_closed", 2)
        assert (closed["identity"], closed["rule"]) == (
            "alice",
            f"{rules}:1: allow listener desk to everywhere",
        )
        gone = server.process.pid
        os.kill(gone, 9)
        wait_for(lambda: server.process.poll() is not None)
        assert path.exists()
        server.process.returncode = 0  # it was our doing
        with running(tmp_path, *options):
            wait_for(path.exists)
            unix_client(path).close()
    assert not path.exists()
