"""Upstreams: other proxies to send sessions through, alone, in chains, and one for another.

A rule's ``via``, or the server's default, names upstreams in the order to try them.  The first that
takes us gets the request and its answer is the answer, whatever it is; one that cannot be reached
or breaks its handshake is passed over, and rests for a while (``Health``).

A chain is one upstream of several hops: each is asked to connect to the next, and the handshake
with that one runs inside.  Names are passed on as they are; the last hop finds out what they stand
for.  The first hop's own name is looked up by the server's resolver and dialled as any target is.

::

    urls -> chain (an upstream) -> hops (one proxy), datagrams (UDP through it)
    failover: which of several

Knows proxies; knows no client of ours and no rule.
"""

from geosocks.upstream.chain import (
    Opened,
    Upstream,
    UpstreamListener,
    UpstreamUnusable,
    associate_by,
    listen_by,
    open_by,
)
from geosocks.upstream.datagrams import UpstreamAssociation
from geosocks.upstream.failover import Health, first_to_answer
from geosocks.upstream.hops import Hop, HttpHop, SocksHop
from geosocks.upstream.urls import DEFAULT, SCHEMES, build_upstreams, hop_of, split_via

__all__ = [
    "DEFAULT",
    "SCHEMES",
    "Health",
    "Hop",
    "HttpHop",
    "Opened",
    "SocksHop",
    "Upstream",
    "UpstreamAssociation",
    "UpstreamListener",
    "UpstreamUnusable",
    "associate_by",
    "build_upstreams",
    "first_to_answer",
    "hop_of",
    "listen_by",
    "open_by",
    "split_via",
]
