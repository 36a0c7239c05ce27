"""Options from flags, environment and file; where each came from; what is wrong, and where."""

import os
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from geosocks.auth import NoAuth
from geosocks.auth.userpass import PasswordAuthenticator
from geosocks.codes import ProtectionLevel
from geosocks.config import (
    Settings,
    build_policy,
    control_by_default,
    listen_address,
    load_settings,
    shown,
)
from geosocks.entrance import Entrance
from geosocks.errors import ConfigError
from geosocks.limits import LimitCells, SlabStore
from geosocks.logs import LogTo
from geosocks.relay.direct import DirectDialer
from geosocks.relay.listen import DirectBinder
from geosocks.relay.target import AresResolver, ThreadResolver
from geosocks.rules import LOCAL
from geosocks.server import Listen
from geosocks.shared import Slab


def load(*argv: str, env: dict[str, str] | None = None) -> Settings:
    return load_settings(argv, env or {}).settings


@pytest.fixture
def users(tmp_path: Path) -> str:
    path = tmp_path / "users"
    path.write_text("alice:$2b$04$abcdefghijklmnopqrstuuJ6WFqS5CAmvUqQGSnGyFdzb0IIhWYSG\n")
    path.chmod(0o600)
    return str(path)


def test_the_defaults() -> None:
    settings = load()
    assert [one.listen for one in settings.listen] == [Listen(("127.0.0.1", 1080))]
    assert settings.methods == ("none",)
    assert settings.gss_levels == (ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.INTEGRITY)
    assert settings.timeout_handshake == settings.timeout_connect == 10.0
    assert settings.timeout_idle == 3600.0
    assert settings.log_level == "info"
    policy = build_policy(settings)
    assert isinstance(policy.authenticators[0], NoAuth)
    assert policy.rules is LOCAL
    assert policy.resolver == AresResolver()


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_text("timeout-idle = 1\ntimeout-connect = 1\ndrain = 1\n# a comment\n")
    env = {"GEOSOCKS_TIMEOUT_IDLE": "2", "GEOSOCKS_TIMEOUT_CONNECT": "2"}
    loaded = load_settings(["--config", str(path), "--timeout-idle", "3"], env)
    settings = loaded.settings
    assert (settings.timeout_idle, settings.timeout_connect, settings.drain) == (3, 2, 1)
    assert loaded.origins["timeout_idle"] == "flag"
    assert loaded.origins["timeout_connect"] == "GEOSOCKS_TIMEOUT_CONNECT"
    assert loaded.origins["drain"] == f"{path}:3"
    assert loaded.origins["rules"] == "default"


def test_a_list_is_a_flag_given_again_or_a_line_given_again(tmp_path: Path) -> None:
    settings = load("--listen", "[::1]:1", "--listen", "127.0.0.1:2")
    assert [one.listen.where for one in settings.listen] == [("::1", 1), ("127.0.0.1", 2)]
    path = tmp_path / "conf"
    path.write_text("listen = 127.0.0.1:1\nlisten = 127.0.0.2:2   # why\nallow-open = true\n")
    settings = load("--config", str(path))
    assert [one.port for one in settings.listen] == [1, 2]
    assert settings.allow_open


def test_what_is_printed_is_a_config_file_that_means_the_same(tmp_path: Path) -> None:
    argv = ["--listen", "[::1]:1081", "--gss-levels", "integrity,clear", "--outgoing", "127.0.0.1"]
    argv += ["--dns-server", "127.0.0.1:5353", "--timeout-idle", "7.5", "--allow-open"]
    loaded = load_settings(argv, {})
    path = tmp_path / "conf"
    path.write_text(shown(loaded))
    again = load_settings(["--config", str(path)], {})
    assert again.settings == loaded.settings
    assert "# flag" in shown(loaded)
    assert f"# {path}:" in shown(again)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1080", ("127.0.0.1", 1080)),
        ("127.0.0.1", ("127.0.0.1", 1080)),
        ("[::1]:81", ("::1", 81)),
        ("[::1]", ("::1", 1080)),
        ("::1", ("::1", 1080)),
        (":81", ("0.0.0.0", 81)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_listen_addresses(text: str, address: tuple[str, int]) -> None:
    assert listen_address(text) == address


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("timeout-idle = soon", "timeout-idle: 'soon' is not a number of seconds above 0"),
        ("timeout-idle = -1", "not a number of seconds"),
        ("timeout-idle = nan", "not a number of seconds"),
        ("timeout-idel = 3", "unknown option 'timeout-idel'; did you mean timeout-idle?"),
        ("what", "'what' is no 'name = value'"),
        ("listen = nowhere:80", "is not ADDRESS:PORT"),
        ("listen = 127.0.0.1:99999", "has no port from 0 to 65535"),
        ("listen = 127.0.0.1:x", "has no port"),
        ("methods = gssapi,nono", "did you mean none?"),
        ("methods = none,none", "names one twice"),
        ("max-sessions = 0", "not a whole number above 0"),
        ("max-handshakes = 500", "not START:RATE:FULL, such as 500:30:1000"),
        ("max-handshakes = 9:30:5", "START is at least 1 and at most FULL"),
        ("max-handshakes = 0:30:5", "START is at least 1 and at most FULL"),
        ("max-handshakes = 5:101:5", "RATE is percent, 0 to 100"),
        ("max-handshakes = 5:-1:9", "not START:RATE:FULL"),
        ("penalty-exempt = office", "'office' is not an address or a network"),
        ("penalty-exempt = 10.0.0.1/8", "is not an address or a network"),
        ("outgoing = x", "'x' is not an IP address"),
        ("family = ipv5", "invalid choice"),
        ("methods = username", "needs --users FILE"),
        ("gss-grant = clear", "needs clear among --gss-levels"),
        ("allow-open = maybe", "maybe"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(
    tmp_path: Path, line: str, complaint: str
) -> None:
    path = tmp_path / "conf"
    path.write_text(f"# first\ndrain = 3\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load("--config", str(path))
    assert complaint in str(caught.value)
    if "maybe" not in line:
        assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--timeout-idle", "soon"], "--timeout-idle: 'soon' is not a number of seconds above 0"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--timeout", "3"], "unrecognized arguments"),
        (["--config", "/nonexistent/conf"], "/nonexistent/conf"),
        (["--keytab", "/k", "--methods", "none"], "--methods leaves gssapi out"),
        (["--users", "/u", "--methods", "none"], "--methods leaves username out"),
        (["--dns-server", "127.0.0.1", "--resolver", "thread"], "--resolver ares only"),
        (["--dns-server", "127.0.0.1:1", "--dns-server", "127.0.0.2:2"], "the same port"),
        (["--outgoing", "127.0.0.1", "--outgoing", "127.0.0.2"], "one address of each family"),
    ],
)
def test_what_is_wrong_in_a_flag_is_told(argv: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*argv)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_in_the_environment_is_told_with_its_name() -> None:
    with pytest.raises(ConfigError, match=r"GEOSOCKS_DRAIN: .*'x'"):
        load(env={"GEOSOCKS_DRAIN": "x"})


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load("--config", str(path))


# --- policies ---------------------------------------------------------------------------------


def test_methods_follow_from_what_there_is(users: str) -> None:
    settings = load("--users", users)
    assert settings.methods == ("username",)
    policy = build_policy(settings)
    assert isinstance(policy.authenticators[0], PasswordAuthenticator)
    both = build_policy(load("--users", users, "--methods", "username, none"))
    assert [authenticator.method for authenticator in both.authenticators] == [2, 0]


def test_settings_reach_the_policy(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("deny command bind\nallow from loopback\n")
    argv = ["--rules", str(rules), "--resolver", "thread", "--outgoing", "127.0.0.9"]
    argv += ["--family", "ipv4", "--timeout-handshake", "1", "--timeout-connect", "2"]
    argv += ["--timeout-idle", "3", "--timeout-half-close", "4"]
    policy = build_policy(load(*argv))
    assert isinstance(policy.resolver, ThreadResolver)
    assert isinstance(policy.dialer, DirectDialer)
    assert policy.dialer.outgoing == {ip_address("127.0.0.9").version: "127.0.0.9"}
    assert policy.dialer.family == "ipv4"
    timeouts = policy.timeouts
    assert (timeouts.negotiation, timeouts.connect, timeouts.idle, timeouts.half_close) == (
        1.0,
        2.0,
        3.0,
        4.0,
    )
    assert len(policy.rules.rules) == 2


def test_a_server_off_loopback_lets_those_who_may_enter_go_on(users: str) -> None:
    policy = build_policy(load("--listen", "0.0.0.0:1080", "--users", users))
    assert policy.rules is not LOCAL
    assert not policy.rules.limits_who()


def test_a_reload_keeps_a_resolver_that_did_not_change() -> None:
    before = build_policy(load())
    assert build_policy(load("--drain", "3"), before).resolver is before.resolver
    changed = build_policy(load("--dns-server", "127.0.0.1:5353"), before)
    assert changed.resolver == AresResolver(("127.0.0.1",), port=5353)


def test_the_entrance_is_for_all_but_this_host_unless_something_else_is_said() -> None:
    assert build_policy(load()).entrance == Entrance()
    argv = ["--max-handshakes", "50:20:90", "--max-handshakes-per-source", "7"]
    argv += ["--penalty-exempt", "10.0.0.0/8", "--penalty-exempt", "2001:db8::1"]
    settings = load(*argv)
    networks = (ip_network("10.0.0.0/8"), ip_network("2001:db8::1/128"))
    assert build_policy(settings).entrance == Entrance(
        start=50, rate=0.2, full=90, per_source=7, exempt=networks
    )
    told = shown(load_settings(argv, {}))
    for line in ("max-handshakes = 50:20:90", "penalty-exempt = 10.0.0.0/8"):
        assert f"\n{line} " in told


def test_a_reload_keeps_the_counts_of_limits_which_may_change() -> None:
    before = build_policy(load("--sessions-per-user", "4"))
    assert before.limits.per_user == 4
    store = SlabStore(Slab(1, 16), LimitCells(range(8), range(8, 16)), 0)
    before = before.replace(limits=before.limits.counted_in(store))
    after = build_policy(load("--sessions-per-user", "3"), before)
    assert (after.limits.per_user, after.limits.store) == (3, store)
    assert build_policy(load(), after).limits.per_user is None


@pytest.mark.parametrize(
    ("option", "text", "complaint"),
    [
        ("--rules", "allow\nalow\n", ":2:1: "),
        ("--rules", None, "cannot be read: No such file"),
        ("--users", "alice:plain\n", ":1"),
        ("--users", None, "No such file"),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, option: str, text: str | None, complaint: str
) -> None:
    path = tmp_path / "file"
    if text is not None:
        path.write_text(text)
        path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        build_policy(load(option, str(path)))
    assert str(caught.value).startswith(str(path))
    assert complaint in str(caught.value)


def test_settings_of_bind_and_socks4_reach_the_policy(tmp_path: Path) -> None:
    argv = ["--bind-ports", "40000-40099", "--advertise", "192.0.2.7", "--advertise", "2001:db8::7"]
    argv += ["--timeout-bind", "5", "--socks4", "off", "--outgoing", "127.0.0.9"]
    loaded = load_settings(argv, {})
    path = tmp_path / "conf"
    path.write_text(shown(loaded))
    assert load_settings(["--config", str(path)], {}).settings == loaded.settings
    policy = build_policy(loaded.settings)
    assert isinstance(policy.binder, DirectBinder)
    assert policy.binder.ports == range(40000, 40100)
    assert policy.binder.outgoing == {4: "127.0.0.9"}
    assert policy.advertise == (ip_address("192.0.2.7"), ip_address("2001:db8::7"))
    assert (policy.timeouts.bind, policy.socks4) == (5.0, False)
    assert build_policy(load()).socks4


@pytest.mark.parametrize(
    ("text", "ports"),
    [("1-65535", range(1, 65536)), ("40000", range(40000, 40001)), ("7-7", range(7, 8))],
)
def test_ranges_of_ports(text: str, ports: range) -> None:
    assert load("--bind-ports", text).bind_ports == ports


@pytest.mark.parametrize("text", ["", "-", "0-7", "7-", "-7", "1-65536", "9-7", "1-2-3", "a-b"])
def test_what_is_no_range_of_ports(text: str) -> None:
    with pytest.raises(ConfigError, match="bind-ports"):
        load(f"--bind-ports={text}")


def test_two_addresses_to_advertise_of_one_family() -> None:
    with pytest.raises(ConfigError, match="one address of each family"):
        load("--advertise", "192.0.2.7", "--advertise", "192.0.2.8")


# --- the process ------------------------------------------------------------------------------


def test_the_process_by_default() -> None:
    settings = load()
    assert (settings.workers, settings.reuse_port, settings.rejudge) == (1, False, False)
    assert (settings.user, settings.group, settings.pidfile, settings.daemon) == (
        None,
        None,
        None,
        False,
    )
    assert (settings.admin, settings.admin_token_file, settings.sessions_per_user) == (None,) * 3
    assert settings.log_to == LogTo("stdout")


def test_one_worker_for_each_core_that_there_is() -> None:
    assert load("--workers", "auto").workers == len(os.sched_getaffinity(0))
    assert load("--workers", "3").workers == 3


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9180", ("127.0.0.1", 9180)),
        ("[::1]:9180", ("::1", 9180)),
        ("localhost:0", ("localhost", 0)),
        ("unix:/run/geosocks/admin.sock", "/run/geosocks/admin.sock"),
    ],
)
def test_where_the_status_page_is(text: str, place: tuple[str, int] | str) -> None:
    assert load("--admin", text).admin == place


def test_the_status_page_off_loopback_has_a_token() -> None:
    settings = load("--admin", "0.0.0.0:9180", "--admin-token-file", "/t")
    assert (settings.admin, settings.admin_token_file) == (("0.0.0.0", 9180), "/t")


@pytest.mark.parametrize(
    ("text", "log_to"),
    [
        ("stderr", LogTo("stderr")),
        ("journald", LogTo("journald")),
        ("syslog", LogTo("syslog")),
        ("syslog:/dev/log", LogTo("syslog", "/dev/log")),
        ("syslog:192.0.2.5", LogTo("syslog", ("192.0.2.5", 514))),
        ("syslog:[2001:db8::5]:5514", LogTo("syslog", ("2001:db8::5", 5514))),
        ("syslog:tcp://192.0.2.5:601", LogTo("syslog", ("192.0.2.5", 601), tcp=True)),
    ],
)
def test_where_to_log(text: str, log_to: LogTo) -> None:
    assert load("--log-to", text).log_to == log_to
    assert load("--log-to", str(log_to)).log_to == log_to


@pytest.mark.parametrize(
    ("environ", "root", "path"),
    [
        ({"RUNTIME_DIRECTORY": "/run/gs:/run/x"}, True, "/run/gs/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/gs"}, False, "/run/gs/control.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, True, "/run/geosocks/control.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, False, "/run/user/7/geosocks/control.sock"),
        ({}, False, None),
    ],
)
def test_where_ctl_s_socket_is_when_nobody_says(
    environ: dict[str, str], root: bool, path: str | None
) -> None:
    assert control_by_default(environ, 0 if root else 1000) == path
    assert not load(env=environ).control_named


def test_where_ctl_s_socket_is_when_somebody_says(tmp_path: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": "/run/gs"}
    settings = load("--control", "/tmp/c", env=environ)
    assert (settings.control, settings.control_named) == ("/tmp/c", True)
    shared = load_settings(["--control", "/tmp/c?mode=660"], environ)
    assert (shared.settings.control, shared.settings.control_mode) == ("/tmp/c", 0o660)
    assert "\ncontrol = /tmp/c?mode=660 " in shown(shared)
    for bad in ("/tmp/c?mode=", "/tmp/c?mode=9", "/tmp/c?mode=066"):
        with pytest.raises(ConfigError, match="mode"):
            load("--control", bad, env=environ)
    off = load_settings(["--control", "off"], environ)
    assert (off.settings.control, off.settings.control_named) == (None, True)
    assert "\ncontrol = off " in shown(off)
    assert "\n# control =" in shown(load_settings([], environ))


def test_sockets_of_the_service_manager() -> None:
    one, two, three = load(
        *("--listen", "systemd:inside?methods=none"),
        *("--listen", "tls://systemd:tls"),
        *("--listen", "127.0.0.1:1"),
        *("--tls-cert", "x"),
    ).listen
    assert (one.inherited, two.inherited, three.inherited) == ("inside", "tls", None)
    assert two.listen.tls
    assert [listener.is_local for listener in (one, two, three)] == [False, False, True]
    assert [str(listener) for listener in (one, two)] == [
        "systemd:inside?methods=none",
        "tls://systemd:tls",
    ]
    assert load("--listen", "systemd").listen[0].inherited == ""


def test_sockets_of_the_service_manager_are_not_taken_for_loopback() -> None:
    assert build_policy(load("--listen", "systemd")).rules is not LOCAL


def test_what_is_printed_of_the_process_means_the_same(tmp_path: Path) -> None:
    argv = ["--admin", "unix:/a", "--control", "/c", "--log-to", "syslog:tcp://127.0.0.1:5"]
    argv += ["--workers", "2", "--reuse-port", "--user", "nobody", "--group", "0", "--daemon"]
    argv += ["--pidfile", "/p", "--rejudge", "--sessions-per-user", "4", "--listen", "systemd:x"]
    loaded = load_settings(argv, {})
    path = tmp_path / "conf"
    path.write_text(shown(loaded))
    again = load_settings(["--config", str(path)], {})
    assert again.settings == loaded.settings
    off = load_settings(["--control", "off", "--log-repeats", "all"], {})
    assert off.settings.log_repeats is None
    path.write_text(shown(off))
    assert load_settings(["--config", str(path)], {}).settings == off.settings


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("workers = 0", "neither auto nor from 1 to 512"),
        ("workers = 513", "neither auto nor from 1 to 512"),
        ("workers = two", "neither auto nor from 1 to 512"),
        ("user = a b", "is no name of a user or a group"),
        ("group = -x", "is no name of a user or a group"),
        ("admin = 127.0.0.1", "has no port, as in 127.0.0.1:9180"),
        ("admin = :9180", "is not ADDRESS:PORT"),
        ("admin = unix:", "has no path of 1 to 107 octets"),
        ("admin = 0.0.0.0:9180", "--admin off loopback needs --admin-token-file FILE"),
        ("admin-token-file = /t", "no --admin ADDR:PORT"),
        ("control = /" + "x" * 103, "has no path of 1 to 103 octets"),
        ("daemon = true", "--daemon needs --log-file FILE"),
        ("log-repeats = 0", "not a whole number above 0"),
        ("log-to = journal", "did you mean journald?"),
        ("log-to = stdout:x", "is not one of stdout, stderr, journald, syslog"),
        ("log-to = syslog:", "is not ADDRESS:PORT"),
        ("log-to = syslog:nowhere", "is not ADDRESS:PORT"),
        ("log-to = syslog:udp://127.0.0.1", "is not ADDRESS:PORT"),
        ("listen = systemd:", "has no name after systemd:"),
        ("listen = systemd?mode=600", "mode is for unix:PATH listeners"),
        ("sessions-per-user = 0", "not a whole number above 0"),
        ("rejudge = 2", "is not true or false"),
    ],
)
def test_what_is_wrong_of_the_process_is_told_with_its_line(
    tmp_path: Path, line: str, complaint: str
) -> None:
    path = tmp_path / "conf"
    path.write_text(f"# first\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load("--config", str(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert complaint in str(caught.value)


def test_all_sockets_of_the_service_manager_or_each_by_its_name() -> None:
    with pytest.raises(ConfigError, match="takes all sockets"):
        load("--listen", "systemd", "--listen", "systemd:x")
