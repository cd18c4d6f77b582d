"""Numbers as people write them: read exactly, refused with a way out, shown shortly."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.nas import quantities as q


@pytest.mark.parametrize(
    ("written", "read"),
    [(7, 7), ("64k", 64_000), ("4M", 4_000_000), ("1.5k", 1500), ("1e6", 10**6), ("2 M", 2 * 10**6), (5e5, 500_000),
     ("1_000", 1000), ("-3", -3), ("3B", 3 * 10**9)],
)  # fmt: skip
def test_counts(written: object, read: int) -> None:
    assert q.parse_count(written) == read


@pytest.mark.parametrize(
    ("written", "read"),
    [("24GiB", 24 * 2**30), ("512 MB", 512 * 10**6), ("1.5KiB", 1536), (4096, 4096), ("7B", 7), ("2TiB", 2**41)],
)
def test_bytes(written: object, read: int) -> None:
    assert q.parse_bytes(written) == read


@pytest.mark.parametrize(
    ("written", "read"),
    [("20ms", 20_000_000), ("1.5s", 1_500_000_000), ("3us", 3000), ("3µs", 3000), ("2min", 120 * 10**9), ("0.4ns", 0)],
)
def test_times(written: object, read: int) -> None:
    assert q.parse_nanoseconds(written) == read


def test_ratios_are_exact() -> None:
    assert q.parse_ratio("0.6x") == Fraction(3, 5)
    assert q.parse_ratio(" 1.10 x") == Fraction(11, 10)


@pytest.mark.parametrize(
    ("parse", "written", "words"),
    [
        (q.parse_count, "64kk", "the unit `kk`"),
        (q.parse_count, "4m", "did you mean `M`?"),
        (q.parse_count, "2.5", "is not whole"),
        (q.parse_count, True, "is not a number"),
        (q.parse_count, None, "is not a number"),
        (q.parse_count, "", "is not a number"),
        (q.parse_count, "k", "is not a number"),
        (q.parse_count, "e3", "is not a number"),
        (q.parse_count, "1e30k", "too large"),
        (q.parse_count, "1e999", "out of all proportion"),
        (q.parse_count, float("nan"), "is not a number"),
        (q.parse_count, float("inf"), "is not a number"),
        (q.parse_bytes, "24G", "did you mean `GB`?"),
        (q.parse_bytes, "24gib", "did you mean `GiB`?"),
        (q.parse_nanoseconds, "20", "has no unit; write a time such as 20ms"),
        (q.parse_nanoseconds, "20 msec", "the unit `msec`"),
        (q.parse_ratio, "60%", "write 0.6x"),
        (q.parse_number, "3k", "takes none"),
    ],
)
def test_refusals_name_a_way_out(parse: object, written: object, words: str) -> None:
    with pytest.raises(ValueError, match=r"write|largest") as caught:
        parse(written)  # type: ignore[operator]
    assert words in str(caught.value)


@given(st.integers(-(10**15), 10**15))
def test_whole_numbers_read_back(number: int) -> None:
    assert q.parse_count(number) == q.parse_count(str(number)) == number


@given(st.integers(0, 10**6), st.sampled_from(sorted(q.BYTE_UNITS)))
def test_units_multiply(number: int, unit: str) -> None:
    assert q.parse_bytes(f"{number}{unit}") == number * q.BYTE_UNITS[unit]


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    for parse in (q.parse_count, q.parse_bytes, q.parse_nanoseconds, q.parse_seconds, q.parse_ratio, q.parse_number):
        refusal: Exception | None = None
        try:
            parse(text)
        except ValueError as error:
            refusal = error
        # The type is exact: not a decoder's or a converter's own error that slipped through.
        assert refusal is None or (type(refusal) is ValueError and len(str(refusal)) > 10)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (q.show_count(512), "512"),
        (q.show_count(3_215_000), "3.21M"),
        (q.show_count(999_900), "1M"),
        (q.show_bytes(640), "640 B"),
        (q.show_bytes(24 * 2**30), "24 GiB"),
        (q.show_bytes(1023.9), "1 KiB"),
        (q.show_seconds(0.0032), "3.2 ms"),
        (q.show_seconds(48), "48 s"),
        (q.show_seconds(200), "3 min 20 s"),
        (q.show_seconds(7500), "2 h 5 min"),
        (q.show_seconds(0), "0 ns"),
    ],
)
def test_shown(shown: str, text: str) -> None:
    assert shown == text
