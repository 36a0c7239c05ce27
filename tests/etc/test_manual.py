"""The manual pages: no complaint from mandoc and groff, and nothing in them that is out of date."""

import re
import sys
from pathlib import Path

import pytest

from geosocks.rules import lines, meanings, parse_rules
from tests.support.programs import needed, run
from tests.support.proxy import ROOT

MAN = ROOT / "etc" / "man"
PAGES = sorted(MAN.iterdir())
SCRIPT = ROOT / "scripts" / "build_help.py"

pages = pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])


def test_pages_and_completion_follow_from_the_options() -> None:
    pytest.importorskip("shtab")
    done = run([sys.executable, SCRIPT, "--check"])
    cure = "run scripts/build_help.py, and commit what it writes"
    assert done.code == 0, f"{done.out.decode()}{done.err}{cure}"


@pages
def test_mandoc_has_nothing_to_say(page: Path) -> None:
    done = run([needed("mandoc"), "-T", "lint", page])
    lines = done.out.decode().splitlines()
    # Of the pages beside this one, which are not installed.
    assert [line for line in lines if "STYLE: referenced manual not found: Xr " not in line] == []


@pages
def test_groff_has_nothing_to_say(page: Path) -> None:
    groff = needed("groff")
    done = run([groff, "-mandoc", "-t", "-Tutf8", "-ww", "-rHY=0", "-Kutf8", "-z", page])
    assert (done.code, done.err) == (0, "")


@pages
def test_man_shows_the_page(page: Path) -> None:
    done = run(
        [needed("man"), "--warnings=w", "--local-file", page],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANPAGER": "cat"},
    )
    assert (done.code, done.err) == (0, "")
    text = done.out.decode()
    for name in ("NAME", "DESCRIPTION", "SEE ALSO"):
        assert f"\n{name}\n" in text
    assert max(map(len, text.splitlines())) <= 80


def rules_page() -> str:
    return (MAN / "geosocks-rules.5").read_text()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(lines.WORDS_OF_A_RULE, id="conditions-and-effects"),
        pytest.param(tuple(lines.ALIASES), id="aliases"),
        pytest.param(meanings.FROM_WORDS, id="from"),
        pytest.param(meanings.TO_WORDS, id="to"),
        pytest.param(tuple(meanings.SERVICES), id="services"),
        pytest.param(tuple(meanings.COMMANDS), id="commands"),
        pytest.param(tuple(meanings.METHODS), id="methods"),
    ],
)
def test_every_word_of_the_rules_is_told(words: tuple[str, ...]) -> None:
    told = {
        word
        for line in rules_page().splitlines()
        if re.match(r"\.(It )?Cm ", line)
        for word in line.split()
    }
    assert set(words) <= told, "etc/man/geosocks-rules.5 has to tell of these, as .It Cm or .Cm"


def test_what_the_page_tells_of_as_a_word_is_one() -> None:
    told = re.findall(r"^\.It Cm ([a-z]+) Ar", rules_page(), re.MULTILINE)
    assert sorted(told) == sorted(lines.WORDS_OF_A_RULE)


def test_the_example_of_the_page_is_a_rule_file() -> None:
    example = re.search(r"\.Bd -literal\n(.*)\.Ed", rules_page(), re.DOTALL)
    assert example
    assert len(parse_rules(example[1])) == 6


def test_the_sample_rules_show_every_word() -> None:
    sample = (ROOT / "etc" / "rules.conf").read_text()
    words = set(re.findall(r"[a-z]+", sample))
    assert words >= {*lines.VERBS, *lines.WORDS_OF_A_RULE}
    assert words >= {*meanings.FROM_WORDS, *meanings.TO_WORDS}
    # What is commented out as an example, is a rule, too.
    rules = re.findall(r"^#?((?:allow|deny|group) .*)$", sample, re.MULTILINE)
    assert parse_rules("\n".join(rules))
