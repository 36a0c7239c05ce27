"""GSSAPI end to end: ``geosocks serve`` with a real KDC, our client, and the wire between them."""

import hashlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import gevent
import gevent.event
import gevent.socket
import pytest

from geosocks.auth.gss import GssCredential
from geosocks.client import Client
from geosocks.codes import ProtectionLevel
from geosocks.errors import AuthFailed, NegotiationFailed, ProtocolError
from tests.support.kdc import Realm
from tests.support.kdc import environment as variables
from tests.support.net import recv_exactly, serving
from tests.support.proxy import Proxy, running

pytestmark = [pytest.mark.e2e, pytest.mark.kerberos]

MB = 1_000_000
SIZE = 100 * MB


@pytest.fixture
def gateway(realm: Realm, tmp_path: Path) -> Iterator[Proxy]:
    """A server that takes GSSAPI and nothing else, level 2 first."""
    env = {"KRB5_CONFIG": realm.env["KRB5_CONFIG"]}
    options = ["--methods=gssapi", f"--keytab={realm.keytab}"]
    with running(tmp_path, *options, env=env) as proxy:
        yield proxy


def client(proxy: Proxy, ccache: str, **options: object) -> Client:
    credential = GssCredential("localhost", ccache=ccache, **options)  # type: ignore[arg-type]
    return Client(proxy.address, [credential])


def mirror(sock: gevent.socket.socket, _: object) -> None:
    """Answer each octet with itself."""
    with suppress(OSError):
        while data := sock.recv(1 << 18):
            sock.sendall(data)


def test_a_hundred_megabytes_both_ways_at_level_2_and_no_plaintext_on_the_wire(
    gateway: Proxy, realm: Realm, tmp_path: Path
) -> None:
    capture = tmp_path / "capture"
    tcpdump = shutil.which("tcpdump", path="/usr/bin:/usr/sbin:/sbin")
    if tcpdump is None:
        pytest.skip("tcpdump is not installed")
    # Only what goes between client and proxy, and only its first megabytes: enough to look at.
    sniffer = subprocess.Popen(
        [
            tcpdump,
            *["-i", "lo", "-U", "-s", "0", "-c", "3000", "-w"],
            capture,
            "tcp",
            "port",
            str(gateway.port),
        ],
        stderr=subprocess.PIPE,
    )
    try:
        assert sniffer.stderr is not None
        said = b""
        while b"listening on" not in said:
            line = sniffer.stderr.readline()
            said += line
            if not line:
                pytest.skip(f"tcpdump may not capture here: {said.decode()}")
        marker = b"PLAINTEXT-THAT-NOBODY-MAY-SEE-ON-THE-WIRE"
        piece = (marker + random.Random(1).randbytes(1000)) * 100
        with serving(mirror) as target:
            stream = client(gateway, realm.ticket()).connect(target)
            sent, got = hashlib.sha256(), hashlib.sha256()

            def send() -> None:
                left = SIZE
                while left:
                    data = piece[:left]
                    stream.sendall(data)
                    sent.update(data)
                    left -= len(data)

            sender = gevent.spawn(send)
            left = SIZE
            while left:
                data = stream.recv(1 << 18)
                assert data
                got.update(data)
                left -= len(data)
            sender.get()
            stream.close()
        assert sent.digest() == got.digest()
    finally:
        sniffer.terminate()
        sniffer.wait()
        assert sniffer.stderr is not None
        sniffer.stderr.close()
    captured = capture.read_bytes()
    assert len(captured) > 5 * MB
    assert marker not in captured
    assert marker[:12] not in captured
    closed = gateway.wait_event("session_closed")
    assert (closed["up"], closed["down"], closed["reason"]) == (SIZE, SIZE, "closed")
    assert closed["identity"] == f"alice@{realm.name}"
    assert gateway.events("authenticated")[0]["detail"] == "confidentiality"


def test_level_1_is_granted_where_it_is_asked_for(gateway: Proxy, realm: Realm) -> None:
    with serving(mirror) as target:
        asked = client(gateway, realm.ticket(), level=ProtectionLevel.INTEGRITY)
        stream = asked.connect(target)
        stream.sendall(b"x" * 100_000)
        assert recv_exactly(stream, 100_000) == b"x" * 100_000
        stream.close()
    assert gateway.wait_event("authenticated")["detail"] == "integrity"


def refused(gateway: Proxy, who: Client) -> str:
    """Be refused; the reason that the server's one event tells."""
    with pytest.raises((AuthFailed, NegotiationFailed)), serving(mirror) as target:
        who.connect(target)
    gateway.wait_event("session_closed")
    told = [event for event in gateway.events() if event["level"] != "debug"]
    told = [event for event in told if "session" in event]
    assert len(told) == 1, told
    assert told[0]["event"] == "authentication_failed"
    return str(told[0]["reason"])


def test_without_a_ticket(gateway: Proxy, realm: Realm, tmp_path: Path) -> None:
    nobody = client(gateway, f"FILE:{tmp_path}/no-such-cache")
    with pytest.raises(AuthFailed, match="kinit"), serving(mirror) as target:
        nobody.connect(target)
    gateway.wait_event("session_closed")
    assert "no ticket" in gateway.events("authentication_failed")[0]["reason"]


def test_with_a_ticket_for_a_service_whose_key_the_server_has_not(
    gateway: Proxy, realm: Realm
) -> None:
    realm.add_principal("socks/localhost")
    reason = refused(gateway, client(gateway, realm.ticket(), service="socks"))
    assert "socks/localhost" in reason or "keytab" in reason


def test_with_a_service_that_the_kdc_does_not_know(gateway: Proxy, realm: Realm) -> None:
    with pytest.raises(AuthFailed, match="nosuch"), serving(mirror) as target:
        client(gateway, realm.ticket(), service="nosuch").connect(target)
    gateway.wait_event("session_closed")


def test_with_an_expired_ticket(gateway: Proxy, realm: Realm) -> None:
    ccache = realm.ticket(lifetime="1s")
    gevent.sleep(2.1)
    with pytest.raises(AuthFailed, match="expired"), serving(mirror) as target:
        client(gateway, ccache).connect(target)
    gateway.wait_event("session_closed")
    assert gateway.events("authentication_failed")


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_token_that_was_tampered_with_ends_the_session(
    gateway: Proxy, realm: Realm, direction: str
) -> None:
    """Somebody between client and server turns one bit, once the relay has begun."""
    armed = gevent.event.Event()

    def pass_on(source: gevent.socket.socket, sink: gevent.socket.socket, bad: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if bad and armed.is_set() and len(data) > 50:
                    data = data[:40] + bytes((data[40] ^ 1,)) + data[41:]
                sink.sendall(data)
        sink.close()

    def in_between(sock: gevent.socket.socket, _: object) -> None:
        onward = gateway.dial()
        down = gevent.spawn(pass_on, onward, sock, direction == "down")
        pass_on(sock, onward, direction == "up")
        down.join()

    with serving(mirror) as target, serving(in_between) as between:
        credential = GssCredential("localhost", ccache=realm.ticket())
        stream = Client(between, [credential]).connect(target)
        stream.sendall(b"good")
        assert recv_exactly(stream, 4) == b"good"
        armed.set()
        stream.sendall(b"bad" * 100)
        if direction == "up":
            # The server ends the session; it has nothing to tell that could be trusted.
            with suppress(ConnectionResetError):
                assert stream.recv(300) == b""
        else:
            with pytest.raises(ProtocolError):
                stream.recv(300)
        stream.close()
        closed = gateway.wait_event("session_closed")
        if direction == "up":
            assert closed["reason"].startswith("broken_by_client: ")
        assert len([e for e in gateway.events() if e["event"] == "session_closed"]) == 1


def test_a_plain_client_is_turned_away(gateway: Proxy) -> None:
    with pytest.raises(NegotiationFailed), serving(mirror) as target:
        Client(gateway.address).connect(target)
    assert "we take gssapi" in gateway.wait_event("negotiation_ended")["reason"]


def test_a_keytab_that_went_missing_does_not_unseat_the_policy(
    gateway: Proxy, realm: Realm
) -> None:
    keytab = Path(realm.keytab)
    moved = keytab.rename(keytab.with_suffix(".moved"))
    try:
        assert str(keytab) in gateway.reload("reload_refused")["reason"]
    finally:
        moved.rename(keytab)
    with serving(mirror) as target, variables(KRB5CCNAME=realm.ticket()):
        stream = Client.from_url(f"{gateway.url()}?auth=gssapi".replace("127.0.0.1", "localhost"))
        sock = stream.connect(target)
        sock.sendall(b"still")
        assert recv_exactly(sock, 5) == b"still"
        sock.close()
    gateway.reload()
