"""RFC 1961 frames, octet by octet; what a token means is ``auth/gss``'s."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geosocks.codes import Mtyp
from geosocks.errors import ProtocolError
from geosocks.wire import NeedMore
from geosocks.wire.gss import ABORT, HEADER, KNOWN, MAX_TOKEN, Frame, encapsulated_size
from tests.support.octets import assert_bears_garbage, assert_is_message, assert_reads_exactly

QUICK = settings(max_examples=200, deadline=None)
FRAMES = st.builds(Frame, st.sampled_from(sorted(KNOWN)), st.binary(max_size=700))
SIZES = st.lists(st.integers(1, 800), max_size=20)


@pytest.mark.parametrize(
    ("octets", "frame"),
    [
        pytest.param("01 01 0003 746f6b", Frame(Mtyp.AUTHENTICATION, b"tok"), id="context-token"),
        pytest.param("01 02 0001 02", Frame(Mtyp.PROTECTION_LEVEL, b"\x02"), id="level"),
        pytest.param("01 03 0005 0000ff0102", Frame(Mtyp.ENCAPSULATED, b"\0\0\xff\1\2"), id="data"),
        pytest.param("01 01 0000", Frame(Mtyp.AUTHENTICATION), id="token-of-no-octets"),
        pytest.param("01 ff", Frame(Mtyp.ABORT), id="abort"),
    ],
)
def test_frame(octets: str, frame: Frame) -> None:
    assert_is_message(Frame.decode, bytes.fromhex(octets), frame)


def test_abort_is_two_octets_whatever_follows() -> None:
    assert ABORT == b"\x01\xff"
    assert_reads_exactly(Frame.decode, ABORT, Frame(Mtyp.ABORT), (HEADER,))
    assert Frame(Mtyp.ABORT, b"never sent").encode() == ABORT


@pytest.mark.parametrize("size", [1, 127, 128, 255, 256, 0x7FFF, 0x8000, MAX_TOKEN])
def test_lengths_about_the_signs_and_the_end(size: int) -> None:
    frame = Frame(Mtyp.ENCAPSULATED, bytes(size - 1) + b"\xff")
    data = b"\x01\x03" + size.to_bytes(2) + frame.token
    assert Frame.decode(data) == frame
    assert frame.encode() == data
    assert_reads_exactly(Frame.decode, data, frame, (1, 1, 1, 1, size - 1 or 1, 1))
    with pytest.raises(NeedMore) as caught:
        Frame.decode(data[:HEADER])
    assert caught.value.missing == size


def test_a_token_too_long_is_refused_and_not_cut() -> None:
    with pytest.raises(ValueError, match="65536 octets; LEN holds up to 65535"):
        Frame(Mtyp.ENCAPSULATED, bytes(MAX_TOKEN + 1)).encode()


@pytest.mark.parametrize("version", [0, 2, 5, 0x81, 0xFF])
def test_another_version_is_refused_at_its_octet(version: int) -> None:
    for rest in (b"", b"\x01", b"\xff", b"\x01\x00\x01x"):
        with pytest.raises(ProtocolError, match=f"VER is {version:#04x}, expected 0x01"):
            Frame.decode(bytes((version,)) + rest)


@pytest.mark.parametrize("mtyp", sorted(set(range(256)) - {1, 2, 3, 0xFF}))
def test_another_mtyp_is_refused_at_its_octet(mtyp: int) -> None:
    with pytest.raises(ProtocolError, match=f"MTYP {mtyp:#04x} is not known"):
        Frame.decode(bytes((1, mtyp)))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 0x8000, MAX_TOKEN])
def test_encapsulated_data_is_measured_by_its_header(size: int) -> None:
    data = Frame(Mtyp.ENCAPSULATED, bytes(size)).encode()
    for beginning in (data[:HEADER], data, data + b"\x05 not a frame"):
        assert encapsulated_size(beginning) == encapsulated_size(bytearray(beginning)) == len(data)
    for cut in range(HEADER):
        with pytest.raises(NeedMore) as caught:
            encapsulated_size(data[:cut])
        assert caught.value.missing == HEADER - cut


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        ("05", "VER is 0x05"),
        ("47 45 54 20", "VER is 0x47"),
        ("01 01", "MTYP is 0x01"),
        ("01 02 0001 02", "MTYP is 0x02"),
        ("01 ff", "aborted"),
    ],
)
def test_what_is_not_encapsulated_data_is_refused(octets: str, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        encapsulated_size(bytes.fromhex(octets))


@QUICK
@given(FRAMES, SIZES)
def test_any_frame_survives_any_pieces(frame: Frame, sizes: list[int]) -> None:
    data = frame.encode()
    assert Frame.decode(data) == frame
    assert_reads_exactly(Frame.decode, data, frame, sizes)


@QUICK
@given(st.binary(max_size=600))
def test_garbage_is_borne(data: bytes) -> None:
    for start in (b"", b"\x01", b"\x01\x01", b"\x01\x02\x00", b"\x01\x03\x00", b"\x01\x03\xff"):
        assert_bears_garbage(Frame.decode, start + data)
