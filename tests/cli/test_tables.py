"""Sizes, durations and tables as a person reads them."""

import pytest

from geosocks.cli.tables import duration, octets, rate, table


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (1949, "1.9k"),
        (9949, "9.9k"),
        (9950, "10k"),
        (999_499, "999k"),
        (999_500, "1.0M"),
        (45_300_000, "45M"),
        (2**62, "4.6E"),
        (0.4, "0"),
        (10**22, "10000E"),
    ],
)
def test_octets_have_three_digits(number: float, text: str) -> None:
    assert octets(number) == text
    assert rate(number) == f"{text}/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (3599.4, "59m59s"),
        (3599.6, "1h00m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
        (1e7, "115d17h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_columns_are_aligned_and_those_of_numbers_at_their_right() -> None:
    rows = [(7, "alice", ""), (1234, None, "x")]
    assert list(table((">ID", "USER", "END"), rows)) == [
        "  ID  USER   END",
        "   7  alice  -",
        "1234  -      x",
    ]
    assert list(table((">ID", "USER"), [])) == ["ID  USER"]
