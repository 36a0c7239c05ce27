"""The ``geosocks`` command: one module per subcommand, each with a ``main(argv)``."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from geosocks import __version__, session

COMMANDS: Final = {
    "serve": "the proxy, in the foreground",
    "check": "examine a SOCKS server as a client does",
    "connect": "stdin and stdout through a proxy: ssh's ProxyCommand",
    "explain": "which rule decides a request, and why",
    "ctl": "ask a running server, or tell it what to do",
    "passwd": "add, change or delete a user of a users file",
    "gss-check": "is Kerberos set up? what is wrong, and how to mend it",
}

USAGE: Final = (
    "usage: geosocks COMMAND [options]\n\n{}\n\n'geosocks COMMAND --help' tells more.".format(
        "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    )
)


def is_compiled() -> bool:
    """Whether the modules that a session spends its time in are compiled ones (setup.py)."""
    return not str(session.__file__).endswith(".py")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code: 0, 1 failed, 2 usage or configuration, 75."""
    args = list(sys.argv[1:] if argv is None else argv)
    match args[:1]:
        case ["-h" | "--help" | "help"]:
            print(USAGE)
            return 0
        case ["--version" | "version"]:
            print(f"geosocks {__version__}{' (compiled)' if is_compiled() else ''}")
            return 0
        case [name] if name in COMMANDS:
            command = import_module("geosocks.cli." + name.replace("-", "_"))
            try:
                code: int = command.main(args[1:])
            except KeyboardInterrupt:
                code = 130
            except BrokenPipeError:
                sys.stderr.close()
                code = 1
            return code
        case [name]:
            print(f"geosocks: no command {name!r}\n\n{USAGE}", file=sys.stderr)
        case _:
            print(USAGE, file=sys.stderr)
    return 2
