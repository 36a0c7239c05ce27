"""Messages that are read from the octets that they are, and known again."""

from geosocks.wire.socks5 import MethodOffer, whole_offer
from geosocks.wire.straight import Familiar, UnameAndPasswd


def test_a_message_is_decoded_once_and_so_is_what_is_none() -> None:
    asked = list[bytes]()

    def decode(octets: bytes) -> MethodOffer | None:
        asked.append(octets)
        return whole_offer(octets)

    messages = Familiar(decode, 8)
    for _ in range(3):
        assert messages.read(b"\5\2\0\1") == MethodOffer(b"\0\1")
        for odd in b"", b"\5", b"\5\2\0", b"\5\1\0\5", b"\4\1\0":
            assert messages.read(odd) is None
    assert len(asked) == 6


def test_no_more_are_known_than_the_bound() -> None:
    asked = list[bytes]()

    def decode(octets: bytes) -> bytes | None:
        asked.append(octets)
        return octets or None

    messages = Familiar(decode, 3)
    for octets in b"a", b"b", b"", b"a", b"c":  # the fourth is one too many: all are forgotten
        messages.read(octets)
    assert asked == [b"a", b"b", b"", b"c"]
    assert messages.read(b"c") == b"c"
    assert messages.read(b"a") == b"a"
    assert asked == [b"a", b"b", b"", b"c", b"a"]


def test_no_password_is_known_again() -> None:
    fields = UnameAndPasswd()
    assert fields.read(b"\1\5alice\6wonder") == (b"alice", b"wonder")
    assert fields.read(b"\1\5alice\6wonde") is None
    assert not isinstance(fields, Familiar)
