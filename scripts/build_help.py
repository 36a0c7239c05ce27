#!/usr/bin/env python3
"""Write the parts of the manual pages, and the shell completion, that follow from the options.

    scripts/build_help.py          bring etc/man and etc/completion up to date
    scripts/build_help.py --check  only say what is not, and end with 1 if anything is

The prose of a page is in the page itself.  Between the lines ``.\\" begin PART`` and ``.\\" end``
stands what this script writes there: of geosocks(1) each command with its arguments, as its --help
has them, and of geosocks.conf(5) each option, as etc/geosocks.conf has it.  The completion is made
by shtab, and is written whole.  To be run in the virtual environment of the tests (.venv).
"""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import shtab

from geosocks.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "etc" / "man"
SAMPLE = ROOT / "etc" / "geosocks.conf"
COMPLETION = {"bash": "geosocks", "zsh": "_geosocks", "fish": "geosocks.fish"}
"""What the shells want the file in etc/completion/SHELL to be called."""

FILES = ("FILE", "F", "PATH", "PATH|off")
"""How options call a value that is a file."""


# --- what the commands take -------------------------------------------------------------------


class _Found(Exception):
    """A command is about to read its arguments, with this parser."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that a command makes for itself when it is run."""

    plainly = argparse.ArgumentParser.parse_known_args

    def found(parser: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
        if parser.prog == f"geosocks {command}":
            raise _Found(parser)
        return plainly(parser, *given, **named)  # configargparse's own, for --config

    module = import_module("geosocks.cli." + command.replace("-", "_"))
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GEOSOCKS_")}
    with (
        mock.patch.dict(os.environ, plain, clear=True),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", found),
    ):
        try:
            module.main([])
        except _Found as caught:
            parser: argparse.ArgumentParser = caught.args[0]
            return parser
    raise SystemExit(f"geosocks {command} reads no arguments")


def groups(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[argparse.Action]]]:
    """What it takes under each heading of its help, but for --help itself."""
    for group in parser._action_groups:
        shown = [
            action
            for action in group._group_actions
            if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
        ]
        if shown:
            yield group.title or "", shown


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """All that it takes."""
    return [action for _, shown in groups(parser) for action in shown]


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a command, such as those of ctl."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def metavars(action: argparse.Action) -> list[str]:
    """How its values are called in the help."""
    if action.nargs == 0:
        return []
    if isinstance(action.metavar, tuple):
        return list(action.metavar)
    if action.metavar is None and action.choices is not None:
        return ["|".join(map(str, action.choices))]
    return [action.metavar or action.dest]


# --- mdoc(7) ----------------------------------------------------------------------------------

WIDTH = 78


def word(text: str) -> str:
    """An argument of a macro: plain, whatever it looks like."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    # A macro's own name, or a lone point, would be taken for what it is.
    text = (
        f"\\&{text}" if re.fullmatch(r"[A-Z][a-z]?|[%A-Z][A-Za-z]|[.,:;!?()|\[\]]", text) else text
    )
    return f'"{text}"' if " " in text else text


def prose(text: str) -> Iterator[str]:
    """Text lines: a new sentence begins a new line, and no line is a request."""
    for sentence in re.split(r"(?<=[.!?)])(?<!e\.g\.) +(?=[A-Z0-9\"'*])", " ".join(text.split())):
        words = " ".join(map(_unbroken, sentence.split()))
        for line in textwrap.wrap(words, WIDTH, break_long_words=False, break_on_hyphens=False):
            yield f"\\&{line}" if line.startswith((".", "'")) else line


def _unbroken(text: str) -> str:
    """A word of prose: what is no plain one is broken between lines where that does no harm."""
    core = text.strip("'\"(),.;:?!")
    text = text.replace("\\", "\\e")
    if not core or core.isalpha():
        return text
    if core.startswith("-"):
        text = text.replace("-", "\\-")
    return f"\\%{_broken(text)}"


def _broken(text: str) -> str:
    """The same with places to break it at, if it is long."""
    return re.sub(r"(?<=[?&=])(?=\w)", r"\\:", text) if len(text) > 40 else text


def synopsis(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """How a command is called."""
    yield f".Nm geosocks Cm {word(name)}"
    found = actions(parser)
    options = [action for action in found if action.option_strings]
    if len(options) > 6:
        yield ".Op Ar options"
    else:
        for action in options:
            yield f".Op {_flags(action, all_of_them=False)}"
    for action in found:
        if not action.option_strings:
            commands = subcommands(parser)
            plain = [word(name) for name in metavars(action)] if not commands else ["command ..."]
            macro = f"Ar {' '.join(map(word, plain))}"
            yield f".Op {macro}" if action.nargs in ("?", "*") else f".{macro}"


def _flags(action: argparse.Action, all_of_them: bool = True) -> str:
    flags = action.option_strings if all_of_them else action.option_strings[-1:]
    values = " ".join(f" Ar {word(name)}" for name in metavars(action))
    return " , ".join(f"Fl {word(flag[1:])}" for flag in flags) + values


def arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The lists of what a command takes."""
    for title, found in groups(parser):
        if isinstance(found[0], argparse._SubParsersAction):
            yield from _commands(parser, found[0])
            continue
        if title not in ("options", "positional arguments"):
            yield from (".Pp", f"{title[:1].upper()}{title[1:]}:")
        yield from _list(parser, found)


def _list(parser: argparse.ArgumentParser, found: list[argparse.Action]) -> Iterator[str]:
    yield ".Bl -tag -width Ds"
    for action in found:
        tag = _flags(action) if action.option_strings else f"Ar {word(metavars(action)[0])}"
        yield f".It {tag}"
        yield from prose(_help(parser, action))
    yield ".El"


def _commands(
    parser: argparse.ArgumentParser, listed: "argparse._SubParsersAction[Any]"
) -> Iterator[str]:
    told = {choice.dest: choice.help or "" for choice in listed._choices_actions}
    everywhere = {action.dest for action in actions(parser)}
    yield ".Pp"
    yield "Its commands:"
    yield ".Bl -tag -width Ds"
    for name, inner in listed.choices.items():
        own = [action for action in actions(inner) if action.dest not in everywhere]
        taken = [f"Oo {_flags(one)} Oc" for one in own if one.option_strings]
        taken += [f"Ar {word(metavars(one)[0])}" for one in own if not one.option_strings]
        yield " ".join([f".It Cm {word(name)}", *taken])
        yield from prose(_sentence(told.get(name) or inner.description or ""))
        if own:
            yield from _list(inner, own)
    yield ".El"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return _sentence(text)


def _sentence(text: str) -> str:
    text = re.sub(r"^``geosocks [a-z-]+``: ", "", text.strip())
    if re.match(r"[a-z]+[ ,]", text):
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."


def command_part(name: str) -> Iterator[str]:
    """A command: what it is for, and what it takes."""
    parser = parser_of(name)
    yield f".Ss geosocks {name}"
    yield from prose(_sentence(parser.description or COMMANDS[name]))
    yield from arguments(parser)
    if parser.epilog:
        yield ".Pp"
        yield from prose(_sentence(parser.epilog))


def synopses() -> Iterator[str]:
    """All commands."""
    for name in COMMANDS:
        yield from synopsis(name, parser_of(name))


# --- the sample configuration -----------------------------------------------------------------


@dataclass
class Option:
    """An option of etc/geosocks.conf: the comment above it, and the value that it shows."""

    name: str
    value: str
    text: str


def sample(text: str) -> Iterator[str | Option]:
    """The headings and options of the sample, in order; its introduction is left out."""
    comment: list[str] = []
    begun = False
    for line in text.splitlines():
        heading = re.fullmatch(r"# --- (.+?) -+", line)
        option = re.fullmatch(r"#?([a-z][a-z0-9-]*) = (.*)", line)
        if heading:
            begun = True
            yield heading[1]
        elif option and begun:
            yield Option(option[1], option[2], "\n".join(comment))
        elif line.startswith("# "):
            comment.append(line[2:])
            continue
        comment = []


def options_part() -> Iterator[str]:
    """Every option under its heading, with its default or an example."""
    listed = False
    for one in sample(SAMPLE.read_text()):
        if isinstance(one, str):
            yield from (".El",) if listed else ()
            yield f".Ss {one}"
            listed = False
            continue
        if not listed:
            yield ".Bl -tag -width Ds"
            listed = True
        yield f".It Cm {word(one.name)}"
        none = "None by default" in one.text
        yield from prose(one.text)
        yield ".Pp"
        yield "Example:" if none else "Default:"
        yield f".Ql {_broken(word(one.value))}"
    yield from (".El",) if listed else ()


# --- files ------------------------------------------------------------------------------------


def page(text: str) -> str:
    """A page with its parts as they have to be."""
    parts = re.compile(r'(?<=^\.\\" begin )(.+)\n(?:.*\n)*?(?=\.\\" end$)', re.MULTILINE)
    return parts.sub(lambda found: "\n".join([found[1], *part(found[1]), ""]), text)


def part(name: str) -> Iterable[str]:
    """The lines of a part."""
    if name == "synopsis":
        return synopses()
    if name == "commands":
        return chain.from_iterable(map(command_part, COMMANDS))
    if name == "options":
        return options_part()
    raise SystemExit(f"there is no part {name!r} of a page")


def completion(shell: str) -> str:
    """The completion of every command."""
    root = argparse.ArgumentParser(prog="geosocks", description="A SOCKS proxy, and its clients.")
    commands = root.add_subparsers(dest="command")
    for name, what in COMMANDS.items():
        parser = parser_of(name)
        for one in (parser, *subcommands(parser).values()):
            for action in actions(one):
                _complete(action)
        inner = commands.add_parser(name, parents=[parser], add_help=False, help=what)
        inner.description = what
    text: str = shtab.complete(root, shell)
    # Lines may end in blanks, which editors and git take offence at.
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).rstrip("\n") + "\n"


def _complete(action: argparse.Action) -> None:
    """Prepare an argument for shtab."""
    if isinstance(action, argparse._SubParsersAction):
        return
    if action.choices is not None:
        action.choices = tuple(action.choices)  # it takes a mapping for commands
    elif set(metavars(action)) & {*FILES}:
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def outcome() -> dict[Path, str]:
    """Every file that this script writes to, and what it has to contain."""
    texts = {path: page(path.read_text()) for path in sorted(PAGES.glob("*.[1-8]"))}
    for shell, name in COMPLETION.items():
        texts[ROOT / "etc" / "completion" / shell / name] = completion(shell)
    return texts


def main() -> int:
    """Write what has changed, or with --check only tell."""
    only_look = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not only_look:
        print(__doc__)
        return 2
    stale = 0
    for path, text in outcome().items():
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        print(f"{path.relative_to(ROOT)}: {'not up to date' if only_look else 'written'}")
        if not only_look:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return 1 if only_look and stale else 0


if __name__ == "__main__":
    sys.exit(main())
