"""The shell completion as the shells themselves take it; test_manual sees that it is up to date."""

from pathlib import Path

import pytest

from geosocks.cli import COMMANDS
from tests.support.programs import needed, run
from tests.support.proxy import ROOT

COMPLETION = ROOT / "etc" / "completion"

BASH = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
read -r _ _ _ _ function _ < <(complete -p geosocks)
"$function"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(*words: str) -> set[str]:
    """What bash would offer for the last of ``words``."""
    script = COMPLETION / "bash" / "geosocks"
    done = run([needed("bash"), "--norc", "-c", BASH, "bash", script, "geosocks", *words])
    assert done.err == ""
    return set(done.out.decode().split())


def test_commands() -> None:
    assert bash("") >= {*COMMANDS}
    assert bash("exp") == {"explain"}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("serve", "--log-l"), {"--log-level"}),
        (("serve", "--log-level", ""), {"debug", "info", "warning", "error"}),
        (("serve", "--rules", "x", "--log-level", "w"), {"warning"}),
        (("explain", "--ru"), {"--rules"}),
        (("explain", "co"), {"connect"}),
        (("serve", "--nothing-like-it"), set()),
    ],
)
def test_options_and_their_values(words: tuple[str, ...], offered: set[str]) -> None:
    assert bash(*words) == offered


def test_files(tmp_path: Path) -> None:
    (tmp_path / "rules.conf").touch()
    for command, option in (("serve", "--rules"), ("serve", "--config"), ("explain", "--rules")):
        assert bash(command, option, f"{tmp_path}/ru") == {f"{tmp_path}/rules.conf"}
    assert bash("passwd", f"{tmp_path}/ru") == {f"{tmp_path}/rules.conf"}


@pytest.mark.parametrize("shell", sorted(path.name for path in COMPLETION.iterdir()))
def test_the_shell_can_read_it(shell: str) -> None:
    (script,) = (COMPLETION / shell).iterdir()
    done = run([needed(shell), *(["--no-execute"] if shell == "fish" else ["-n"]), script])
    assert (done.code, done.err) == (0, "")


def test_fish() -> None:
    script = COMPLETION / "fish" / "geosocks.fish"
    ask = f"source {script}; complete --do-complete 'geosocks serve --log-l'"
    done = run([needed("fish"), "--no-config", "-c", ask])
    assert done.out.decode().split()[0] == "--log-level", done.err


ZSH = """
zmodload zsh/zpty
zpty shell zsh --no-rcs --interactive
zpty -w shell "PS1= TERM=dumb; fpath=($1 \\$fpath); autoload -Uz compinit; compinit -D -u"
zpty -w shell "zstyle ':completion:*' list-prompt ''; echo READY"
zpty -r shell said "*READY*READY*"
zpty -w -n shell $'geosocks serve --log-le\\t'
zpty -r -m shell said "*--log-level*"
print -r -- "$said"
"""


def test_zsh() -> None:
    done = run([needed("zsh"), "--no-rcs", "-c", ZSH, "zsh", COMPLETION / "zsh"], seconds=10)
    assert "--log-level" in done.out.decode(), done.err
