"""A UDP association: datagrams between one client and whom it writes to (RFC 1928, section 7).

::

    client  <- header, DATA ->  inside |association| outside  <- DATA ->  hosts

The inside socket is bound where the client reached us, and only the client is heard on it; targets
write to the outside sockets, one for each family, made when first needed.  ``up`` is from the
client and runs in the greenlet that calls ``run``, which watches the client's connection, too;
``down`` runs in one more.  A name is looked up in a greenlet of its own, so that nothing waits for
it but the datagrams to that name.

``association`` moves them, by ``routes`` (where to), ``hosts`` (who may answer) and ``sockets``;
``quick`` has most of them moved in C, where that is compiled.  ``onward`` is what it asks of an
encapsulation and of an upstream, ``traffic`` what it counts.

Knows sockets and datagrams.  Where a datagram may go is a callback's to say.
"""

from geosocks.relay.udp.association import ASKED_FOR, Association
from geosocks.relay.udp.onward import MAX_STRAY, Onward, Seal
from geosocks.relay.udp.sockets import Inbox, open_inside, open_outside, wait_writable
from geosocks.relay.udp.traffic import Associations, Traffic

__all__ = [
    "ASKED_FOR",
    "MAX_STRAY",
    "Association",
    "Associations",
    "Inbox",
    "Onward",
    "Seal",
    "Traffic",
    "open_inside",
    "open_outside",
    "wait_writable",
]
