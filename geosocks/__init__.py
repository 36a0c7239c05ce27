"""A SOCKS5 server, and the client's half of the same procedure, on gevent (RFC 1928)."""

from geosocks.client import Client
from geosocks.policy import Policy, Timeouts
from geosocks.rules import RuleSet
from geosocks.server import Server
from geosocks.wire.socks5 import Address

__all__ = ["Address", "Client", "Policy", "RuleSet", "Server", "Timeouts"]

__version__ = "0.1.0"
