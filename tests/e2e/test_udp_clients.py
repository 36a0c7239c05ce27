"""UDP clients that others wrote, each asking a DNS server through UDP ASSOCIATE: PySocks, Node."""

import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from geosocks.client import Client
from geosocks.wire.socks5 import Address
from tests.support.dns import dns
from tests.support.programs import needed, run
from tests.support.proxy import running

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("no_leaks")]

NAME = "www.corp.test"
ADDRESS = "192.0.2.77"
QUERY = (
    struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, 0)
    + b"".join(bytes((len(label),)) + label for label in (b"www", b"corp", b"test", b""))
    + struct.pack("!2H", 1, 1)
)
"""ID 1234, RD; the A record of www.corp.test."""

PYSOCKS = """
import socket, sys, socks

proxy, port = int(sys.argv[1]), int(sys.argv[2])
rdns, query = sys.argv[3], bytes.fromhex(sys.argv[4])
sock = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
sock.set_proxy(socks.SOCKS5, "127.0.0.1", proxy, rdns=rdns == "rdns")
sock.settimeout(10)
sock.sendto(query, ("localhost" if rdns == "rdns" else "127.0.0.1", port))
answer, source = sock.recvfrom(4096)
assert source == ("127.0.0.1", port), source
sock.connect(("127.0.0.1", port))
sock.send(query)
assert sock.recv(4096) == answer
for size in (0, 1, 60000):
    sock.sendto(query + bytes(size), ("127.0.0.1", port))
    assert sock.recvfrom(4096)[0] == answer, size
sock.close()
print(answer.hex())
"""

NODE = """
const dgram = require("dgram");
const { SocksClient } = require("socks");
const [proxy, port] = [+process.argv[2], +process.argv[3]];
const query = Buffer.from(process.argv[4], "hex");

const udp = dgram.createSocket("udp4");
const client = new SocksClient({
  proxy: { host: "127.0.0.1", port: proxy, type: 5 },
  command: "associate",
  destination: { host: "0.0.0.0", port: 0 },
});
client.on("error", (error) => { console.error(error); process.exit(1); });
client.on("established", ({ socket, remoteHost }) => {
  udp.on("message", (message) => {
    const { remoteHost: from, data } = SocksClient.parseUDPFrame(message);
    if (from.port !== port) throw new Error(JSON.stringify(from));
    console.log(data.toString("hex"));
    udp.close();
    socket.destroy();
  });
  const target = { host: "127.0.0.1", port };
  const packet = SocksClient.createUDPFrame({ remoteHost: target, data: query });
  udp.send(packet, remoteHost.port, remoteHost.host);
});
client.connect();
"""


def address_in(answer: bytes) -> str:
    """The address that an answer to QUERY ends in."""
    assert answer[:2] == QUERY[:2]
    return ".".join(map(str, answer[-4:]))


@pytest.mark.parametrize("rdns", ["rdns", "here"])
def test_pysocks(tmp_path: Path, rdns: str) -> None:
    if find_spec("socks") is None:
        pytest.skip("there is no PySocks here: pip install PySocks")
    with dns({NAME: [ADDRESS]}) as names, running(tmp_path) as proxy:
        port = names.server.server_port
        done = run((sys.executable, "-c", PYSOCKS, proxy.port, port, rdns, QUERY.hex()))
        assert (done.code, done.err) == (0, "")
        assert address_in(bytes.fromhex(done.out.decode())) == ADDRESS
        ended = proxy.wait_event("udp_ended")
        assert (ended["datagrams_up"], ended["datagrams_down"]) == (5, 5)
        proxy.wait_event("session_closed")


@pytest.fixture(scope="module")
def socks_of_node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the npm package ``socks`` in it."""
    node, npm = needed("node"), needed("npm")
    assert node
    folder = tmp_path_factory.mktemp("node")
    done = subprocess.run(
        [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, "socks@2"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"npm_config_fetch_retries": "0", "npm_config_fetch_timeout": "30000"},
        check=False,
    )
    if done.returncode:
        pytest.skip(f"npm cannot install socks: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def test_socks_of_node(tmp_path: Path, socks_of_node: Path) -> None:
    script = socks_of_node / "ask.js"
    script.write_text(NODE)
    with dns({NAME: [ADDRESS]}) as names, running(tmp_path) as proxy:
        done = run((needed("node"), script, proxy.port, names.server.server_port, QUERY.hex()))
        assert (done.code, done.err) == (0, "")
        assert address_in(bytes.fromhex(done.out.decode())) == ADDRESS
        ended = proxy.wait_event("udp_ended")
        assert (ended["datagrams_up"], ended["datagrams_down"]) == (1, 1)
        proxy.wait_event("session_closed")


def test_ours(tmp_path: Path) -> None:
    with dns({NAME: [ADDRESS]}) as names, running(tmp_path) as proxy:
        with Client(proxy.address).associate() as association:
            association.settimeout(10)
            for host in ("127.0.0.1", "localhost"):
                association.sendto(QUERY, (host, names.server.server_port))
                answer, source = association.recvfrom()
                assert source == Address("127.0.0.1", names.server.server_port)
                assert address_in(answer) == ADDRESS
        proxy.wait_event("udp_ended")
