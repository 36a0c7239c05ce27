"""What is served at which path; one WSGI application."""

import json
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

from geosocks.admin.access import CHALLENGES, is_this_host, shows_token
from geosocks.admin.health import Overview
from geosocks.admin.http import Environ
from geosocks.admin.look import POLICY
from geosocks.admin.page import page
from geosocks.greenlets import give_way

HEADERS: Final = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
    ("Connection", "close"),
)
"""Of every answer."""

TURN: Final = 100
"""Sessions written before others get a turn."""

SESSIONS: Final = 1000
MOST_SESSIONS: Final = 20_000
"""How many sessions /sessions tells of, if not told, and at most."""

PLAIN: Final = "text/plain; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"
JSON: Final = "application/json"

Answer = tuple[str, str, bytes]
"""Status, content type and body."""


class Source(Protocol):
    """Where what is shown comes from."""

    def metrics_text(self, accept: str) -> tuple[str, bytes]:
        """The content type and the text of /metrics."""
        ...

    def ready(self) -> str | None:
        """Why no connections are taken; None if they are."""
        ...

    def overview(self) -> Overview:
        """What the page shows."""
        ...

    def sessions(self, most: int) -> tuple[Iterable[dict[str, Any]], dict[str, Any]]:
        """The first ``most`` sessions, and what there is to say of all of them."""
        ...

    def crashed(self, fault: Exception, traceback: str) -> None:
        """A fault of ours ended a request."""
        ...


class Refused(Exception):
    """The request is answered with ``status``, and a line for a person."""

    def __init__(self, status: str, what: str, *headers: tuple[str, str]) -> None:
        super().__init__(what)
        self.status = status
        self.headers = headers


class Application:
    """Answers GET and HEAD.

    ``token`` must be shown by everybody, if there is one.  Without, ``on_network`` says that it
    listens on an address, where a browser could be made to ask by a page from elsewhere.
    """

    def __init__(self, source: Source, token: bytes | None, *, on_network: bool) -> None:
        self._source = source
        self._token = token
        self._check_host = token is None and on_network

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers: tuple[tuple[str, str], ...] = ()
        try:
            status, kind, body = self._answer(environ)
        except Refused as refused:
            status, kind, body = refused.status, PLAIN, f"{refused}\n".encode()
            headers = refused.headers
        except Exception as fault:
            self._source.crashed(fault, traceback.format_exc())
            status, kind = "500 Internal Server Error", PLAIN
            body = b"a fault in the server; its log tells more\n"
        length = ("Content-Length", str(len(body)))
        start_response(status, [("Content-Type", kind), length, *HEADERS, *headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: Environ) -> Answer:
        """What is asked for.

        Raises:
            Refused: not to be had, or not by this client.
        """
        self._let_in(environ)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            raise Refused("405 Method Not Allowed", "GET and HEAD only", ("Allow", "GET, HEAD"))
        source = self._source
        try:
            query = parse_qs(environ["QUERY_STRING"], max_num_fields=10)
        except ValueError as error:
            raise Refused("400 Bad Request", "too much is asked for at once") from error
        match environ["PATH_INFO"]:
            case "/":
                refresh = query.get("refresh") != ["off"]
                return "200 OK", HTML, page(source.overview(), refresh).encode()
            case "/metrics":
                return "200 OK", *source.metrics_text(environ.get("HTTP_ACCEPT", ""))
            case "/healthz":
                return "200 OK", PLAIN, b"ok\n"
            case "/readyz":
                why_not = source.ready()
                if why_not is not None:
                    raise Refused("503 Service Unavailable", why_not)
                return "200 OK", PLAIN, b"ready\n"
            case "/sessions":
                return "200 OK", JSON, self._sessions(query)
        raise Refused("404 Not Found", "there are /, /metrics, /healthz, /readyz and /sessions")

    def _let_in(self, environ: Environ) -> None:
        if self._check_host and not is_this_host(environ.get("HTTP_HOST", "")):
            raise Refused("421 Misdirected Request", "ask for it by its address, or as localhost")
        if self._token is None or shows_token(environ.get("HTTP_AUTHORIZATION", ""), self._token):
            return
        challenges = [("WWW-Authenticate", challenge) for challenge in CHALLENGES]
        raise Refused("401 Unauthorized", "show the token", *challenges)

    def _sessions(self, query: dict[str, list[str]]) -> bytes:
        text = query.get("limit", [str(SESSIONS)])[-1]
        if not (text.isascii() and text.isdecimal()) or not 1 <= len(text) <= 9:
            raise Refused("400 Bad Request", "limit is to be a whole number")
        rows, of_all = self._source.sessions(min(int(text), MOST_SESSIONS))
        written = []
        for number, row in enumerate(rows, 1):
            if number % TURN == 0:
                give_way()
            written.append(json.dumps(row))
        head = json.dumps(of_all | {"sessions": []}).removesuffix("]}")
        return f"{head}{_BETWEEN.join(written)}]}}\n".encode()


_BETWEEN: Final = ",\n"
