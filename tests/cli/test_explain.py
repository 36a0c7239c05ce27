"""``geosocks explain``: what the rules say, and why."""

from collections.abc import Callable
from pathlib import Path

import pytest

from geosocks.cli.explain import COMMANDS, SERVED, main, method_of
from geosocks.codes import Method

RULES = """\
# a comment
deny user bob
allow user alice to localhost,loopback port 22,8000-8010
allow method gssapi user *@EXAMPLE.ORG to 192.168.7.0/24
allow method 0x80 to any
allow from 10.0.0.0/8 to any port 443 command connect
"""

Explain = Callable[..., tuple[int, str]]


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Explain:
    """Run the command: its exit code, and what it printed."""
    for name in ("CONFIG", "RULES", "LISTEN", "RESOLVER"):
        monkeypatch.delenv(f"GEOSOCKS_{name}", raising=False)

    def run(*argv: object) -> tuple[int, str]:
        try:
            code = main(list(map(str, argv)))
        except SystemExit as leaving:
            code = int(str(leaving.code))
        out, err = capsys.readouterr()
        assert bool(err) == (code == 2)
        return code, out + err

    return run


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.conf"
    path.write_text(RULES)
    return path


# --- without options: what `geosocks serve` does without any ----------------------------------


def test_all_of_what_it_tells(explain: Explain) -> None:
    assert explain("connect", "192.0.2.7", "80") == (
        0,
        "connect to 192.0.2.7:80, asked by anybody with method none from 127.0.0.1\n"
        "allow  default:1: allow from loopback to everywhere\n"
        "       covers 192.0.2.7 (reserved)\n"
        "allowed, to 192.0.2.7, by default:1: allow from loopback to everywhere\n",
    )


def test_client_of_another_host_is_denied(explain: Explain) -> None:
    code, said = explain("--from", "192.0.2.9", "connect", "192.0.2.7", "80")
    assert code == 1
    assert "from does not match 192.0.2.9" in said
    assert "\nrefused with X'02': no rule allows 192.0.2.7:80" in said


@pytest.mark.parametrize("source", ["::1", "[::1]", "127.9.9.9"])
def test_other_spellings_of_this_host(source: str, explain: Explain) -> None:
    assert explain("--from", source, "connect", "192.0.2.7", "80")[0] == 0


def test_name_is_resolved(explain: Explain) -> None:
    code, said = explain("connect", "localhost", "80")
    assert code == 0
    assert "\nlocalhost has " in said
    assert "127.0.0.1" in said.splitlines()[1]


def test_name_is_resolved_in_the_systems_way(explain: Explain) -> None:
    code, said = explain("--resolver", "thread", "connect", "localhost", "80")
    assert code == 0
    assert "127.0.0.1" in said


def test_name_without_an_address(explain: Explain) -> None:
    # Nobody answers on port 1: no server of the network is asked.
    code, said = explain("--dns-server", "127.0.0.1:1", "connect", "no.such.host.invalid", "80")
    assert code == 1
    assert "refused with X'04': no.such.host.invalid" in said


@pytest.mark.parametrize("name", ["a..b", "a b.test", "\x1b[2J.test"])
def test_name_that_is_none(name: str, explain: Explain) -> None:
    code, said = explain("connect", name, "80")
    assert code == 1
    assert "refused with X'04'" in said
    assert "\x1b" not in said


def test_server_itself_is_no_destination(explain: Explain) -> None:
    code, said = explain("connect", "127.0.0.1", "1080")
    assert code == 1
    assert said.endswith("refused with X'02': this server itself is the destination\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_command_that_is_allowed_and_not_done(command: str, explain: Explain) -> None:
    code, said = explain(command, "192.0.2.7", "1080")
    assert code == 0  # by the rules
    note = f"note: this version does not do {command}: it answers X'07'\n"
    assert said.endswith(note) == (COMMANDS[command] not in SERVED)


# --- with rules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "say"),
    [
        ("--user alice connect 127.0.0.1 22", 0, "rules.conf:3"),
        ("--user alice connect localhost 8005", 0, "rules.conf:3"),
        ("--user alice connect 127.0.0.1 23", 1, "port does not match 23"),
        ("--user bob connect 127.0.0.1 22", 1, "is denied by"),
        ("connect 127.0.0.1 22", 1, "user does not match nobody"),
        ("--user kim@EXAMPLE.ORG connect 192.168.7.9 80", 0, "rules.conf:4"),
        ("--user kim@EXAMPLE.ORG connect 192.168.8.9 80", 1, "192.168.8.9 (private)"),
        (
            "--user kim@EXAMPLE.ORG --method username connect 192.168.7.9 80",
            1,
            "method does not match username",
        ),
        ("--method 0x80 connect 8.8.8.8 80", 0, "with method 0x80"),
        ("--method 128 connect 8.8.8.8 80", 0, "with method 0x80"),
        ("--method 0x80 connect 10.0.0.1 80", 1, "10.0.0.1 (private)"),
        ("--from 10.1.2.3 connect 8.8.8.8 443", 0, "rules.conf:6"),
        ("--from 10.1.2.3 bind 8.8.8.8 443", 1, "command does not match bind"),
        ("--from 11.1.2.3 connect 8.8.8.8 443", 1, "from does not match 11.1.2.3"),
    ],
)
def test_rules_decide(argv: str, code: int, say: str, explain: Explain, rules: Path) -> None:
    found, said = explain("--rules", rules, *argv.split())
    assert found == code
    assert say in said
    assert ("\nallowed, to " in said) == (code == 0)


def test_rules_before_the_one_that_decides_are_told(explain: Explain, rules: Path) -> None:
    _, said = explain("--rules", rules, "--method", "0x80", "connect", "8.8.8.8", "80")
    steps = [line for line in said.splitlines() if line.startswith(("pass ", "allow ", "deny "))]
    assert [(step.split()[0], step.split(":")[1]) for step in steps] == [
        ("pass", "2"),
        ("pass", "3"),
        ("pass", "4"),
        ("allow", "5"),
    ]


def test_rules_and_users_of_a_configuration(explain: Explain, rules: Path, tmp_path: Path) -> None:
    config = tmp_path / "geosocks.conf"
    users = tmp_path / "users"  # there is none, and none is needed
    config.write_text(f"rules = {rules}\nusers = {users}\nlisten = 127.0.0.1:8001\n")
    arguments = ("--config", config, "--user", "alice", "connect", "127.0.0.1")
    assert explain(*arguments, "8000")[0] == 0
    code, said = explain(*arguments, "8001")
    assert code == 1
    assert "this server itself" in said


def test_method_that_the_configuration_leaves_out(
    explain: Explain, rules: Path, tmp_path: Path
) -> None:
    config = tmp_path / "geosocks.conf"
    config.write_text(f"rules = {rules}\n")
    code, said = explain("--config", config, "--user", "alice", "connect", "127.0.0.1", "22")
    assert code == 0
    assert said.endswith("note: --methods is none: nobody gets in with method username\n")


def test_rules_of_the_environment(
    explain: Explain, rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEOSOCKS_RULES", str(rules))
    assert explain("connect", "127.0.0.1", "22")[0] == 1
    assert explain("--user", "alice", "connect", "127.0.0.1", "22")[0] == 0


@pytest.mark.parametrize(
    ("user", "method"),
    [(None, Method.NONE), ("alice", Method.USERNAME), ("alice@R", Method.GSSAPI)],
)
def test_method_by_default(user: str | None, method: Method) -> None:
    assert method_of(user) == method


def test_name_beyond_ascii_is_asked_for_as_a_client_would(explain: Explain) -> None:
    _, said = explain("--dns-server", "127.0.0.1:1", "connect", "bücher.invalid", "80")
    assert said.startswith("connect to xn--bcher-kva.invalid:80, ")


# --- what is not understood -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        ("fly h.test 80", "invalid choice: 'fly'"),
        ("connect h.test 65536", "'65536' is no port"),
        ("connect h.test http", "'http' is no port"),
        ("--from h.test connect h.test 80", "'h.test' is not an IP address"),
        ("--method kerberos connect h.test 80", "'kerberos' is not none, username, gssapi"),
        ("--method 255 connect h.test 80", "'255' is not none"),
        ("--user= connect h.test 80", "is empty"),
        ("--resolver dns connect h.test 80", "'dns'"),
        ("--rules /nowhere/rules connect h.test 80", "/nowhere/rules: cannot be read"),
        ("--config /nowhere/conf connect h.test 80", "/nowhere/conf"),
        ("connect h.test", "PORT"),
        ("", "connect|bind|udp"),
    ],
)
def test_what_is_not_understood(argv: str, what: str, explain: Explain) -> None:
    code, said = explain(*argv.split())
    assert code == 2
    assert what in said
    assert said.splitlines()[-1].startswith("geosocks explain: ")


def test_name_that_cannot_be_sent(explain: Explain) -> None:
    assert explain("connect", "n" * 256, "80")[0] == 2
    assert explain("connect", "", "80")[0] == 2


def test_rule_that_cannot_be_read_is_told_with_its_place(explain: Explain, tmp_path: Path) -> None:
    path = tmp_path / "rules.conf"
    path.write_text("allow to any\nallow usr alice\n")
    code, said = explain("--rules", path, "connect", "h.test", "80")
    assert code == 2
    assert said.startswith(f"geosocks explain: {path}:2:7: ")


def test_help_tells_the_default_method(explain: Explain) -> None:
    code, said = explain("--help")
    assert code == 0
    assert "gssapi for a --user with an @, username for another" in " ".join(said.split())


# --- with limits ------------------------------------------------------------------------------


def test_the_limits_that_hold_are_told(explain: Explain, tmp_path: Path) -> None:
    rules = tmp_path / "limited.conf"
    rules.write_text("allow user alice to 127.0.0.1 sessions 3\nallow user bob to 127.0.0.1\n")
    config = tmp_path / "geosocks.conf"
    config.write_text(f"rules = {rules}\nsessions-per-user = 20\n")
    code, said = explain("--config", config, "--user", "alice", "connect", "127.0.0.1", "80")
    assert code == 0
    assert (
        f"allowed, to 127.0.0.1, by {rules}:1: allow user alice to 127.0.0.1 sessions 3\n"
        "       limit: 3 sessions at a time of this user by this rule\n"
        "       limit: 20 sessions at a time of this user in all\n"
    ) in said
    code, said = explain("--config", config, "--user", "bob", "connect", "127.0.0.1", "80")
    assert (code, said.count("limit: ")) == (0, 1)
    code, said = explain("--rules", rules, "--user", "bob", "connect", "127.0.0.1", "80")
    assert (code, said.count("limit: ")) == (0, 0)
    code, said = explain("--config", config, "--user", "eve", "connect", "127.0.0.1", "80")
    assert (code, said.count("limit: ")) == (1, 0)
