"""Numbers as people write them: `64k` tokens, `24GiB`, `20ms`, `0.6x`; and the way back.

Counts use k, M, G (or B) as powers of 1000. Bytes know kB, MB, GB, TB (1000) and KiB, MiB, GiB, TiB (1024). Times know
ns, us, ms, s, min, h. Every function raises ValueError with one sentence that names what may be written instead.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

COUNT_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
BYTE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
TIME_UNITS_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
LARGEST = 2**63 - 1
_LONGEST = 100

_NUMBER = re.compile(r"\s*([+-]?(?:\d(?:_*\d)*)?(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)\s*([A-Za-zµ/%]*)\s*", re.ASCII)


def parse_count(value: object) -> int:
    """A whole number of things (tokens, parameters, sequences): 500000, `500k`, `4M`, `1e6`."""
    number, unit = _split(value, "write a whole number such as 500000, 500k or 4M")
    if unit not in COUNT_UNITS:
        raise ValueError(_wrong_unit(unit, COUNT_UNITS, "500k or 4M"))
    return _whole(number * COUNT_UNITS[unit], "a whole number such as 500000, 500k or 4M")


def parse_bytes(value: object, *, bare: bool = True) -> int:
    """Bytes: `24GiB`, `512MB`; a number without a unit is bytes, where `bare` allows one."""
    number, unit = _split(value, "write bytes with a unit such as 24GiB or 512MB")
    if not unit and not bare:
        raise ValueError("has no unit; write bytes such as 24GiB or 512MB, or a ratio to the parent such as 0.6x")
    if unit and unit not in BYTE_UNITS:
        raise ValueError(_wrong_unit(unit, BYTE_UNITS, "24GiB or 512MB"))
    return _whole(number * BYTE_UNITS[unit or "B"], "a whole number of bytes such as 24GiB")


def parse_nanoseconds(value: object) -> int:
    """A time in nanoseconds, rounded to a whole one: `20ms`, `1.5s`; the unit is needed."""
    number, unit = _split(value, "write a time such as 20ms or 1.5s")
    if not unit:
        raise ValueError("has no unit; write a time such as 20ms or 1.5s, or a ratio to the parent such as 0.6x")
    if unit not in TIME_UNITS_NS:
        raise ValueError(_wrong_unit(unit, TIME_UNITS_NS, "20ms or 1.5s"))
    return _bounded(round(number * TIME_UNITS_NS[unit]))


def parse_seconds(value: object) -> float:
    """A time in seconds: `60s`, `2min`; a number without a unit is seconds."""
    number, unit = _split(value, "write a time such as 60s or 2min")
    if unit and unit not in TIME_UNITS_NS:
        raise ValueError(_wrong_unit(unit, TIME_UNITS_NS, "60s or 2min"))
    return float(number * TIME_UNITS_NS[unit or "s"] / 10**9)


def parse_ratio(value: object) -> Fraction:
    """A ratio to the parent's value, exactly: `0.6x` is 3/5."""
    number, unit = _split(value, "write a ratio such as 0.6x")
    if unit != "x":
        raise ValueError("is no ratio; write 0.6x for 0.6 of the parent's value")
    return number


def parse_number(value: object) -> float:
    """A plain finite number: 0.001, `1e-3`."""
    number, unit = _split(value, "write a number such as 0.001 or 1e-3")
    if unit:
        raise ValueError(f"has the unit `{unit}`, but takes none; write a plain number such as 0.001 or 1e-3")
    return float(number)


def is_ratio(value: object) -> bool:
    """Whether a text ends in the `x` of a ratio."""
    return isinstance(value, str) and value.strip().endswith("x")


def show_count(value: float) -> str:
    """A count for reading, at most five characters: 512, 64k, 3.2M."""
    return _show(value, ((10**9, "G"), (10**6, "M"), (10**3, "k")), "")


def show_operations(value: float) -> str:
    """A number of operations for reading: 3.2 G, 870 T, 1.4 E."""
    return _show(value, ((10**18, " E"), (10**15, " P"), (10**12, " T"), (10**9, " G"), (10**6, " M")), "")


def show_bytes(value: float) -> str:
    """Bytes for reading: 640 B, 7.9 KiB, 24 GiB."""
    return _show(value, ((2**40, " TiB"), (2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB")), " B")


def show_seconds(value: float) -> str:
    """A time in seconds for reading: 14 us, 3.2 ms, 48 s, 3 min 20 s, 2 h 5 min."""
    if value >= 3600:
        hours, minutes = divmod(round(value / 60), 60)
        return f"{hours} h {minutes} min"
    if value >= 100:
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes} min {seconds} s"
    return _show(value * 1e9, ((10**9, " s"), (10**6, " ms"), (10**3, " us")), " ns")


def show_hours(value: float) -> str:
    """A number of hours for reading, two digits of it or all before the point: 0.0013, 0.52, 120."""
    return f"{value:.0f}" if value >= 100 else f"{float(f'{value:.2g}'):.8f}".rstrip("0").rstrip(".")


def _split(value: object, way_out: str) -> tuple[Fraction, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"is not a number; {way_out}")
    if isinstance(value, str) and len(value) > _LONGEST:
        raise ValueError(f"is {len(value)} characters long, at most {_LONGEST} are read; {way_out}")
    match = _NUMBER.fullmatch(value if isinstance(value, str) else repr(value))
    if match is None or not any(character.isdigit() for character in match[1]) or match[1][:1] in "eE":
        raise ValueError(f"is not a number; {way_out}")
    number = Decimal(match[1].replace("_", ""))
    if number and not -30 <= number.adjusted() <= 30:
        raise ValueError(f"is out of all proportion; {way_out}")
    return Fraction(number), match[2]


def _whole(number: Fraction, what: str) -> int:
    if number.denominator != 1:
        raise ValueError(f"is not whole; write {what}")
    return _bounded(int(number))


def _bounded(number: int) -> int:
    if abs(number) > LARGEST:
        raise ValueError(f"is too large; the largest value is {LARGEST}")
    return number


def _wrong_unit(unit: str, units: dict[str, int], example: str) -> str:
    known = ", ".join(dict.fromkeys(name for name in units if name))
    meant = next((name for name in units if name and name.lower() == unit.lower()), None)
    meant = meant or next((name for name in units if name and unit and name.lower().startswith(unit.lower())), None)
    hint = f"did you mean `{meant}`? " if meant else ""
    return f"has the unit `{unit}`, which is not known here; {hint}write {example} (units: {known})"


def _show(value: float, steps: tuple[tuple[int, str], ...], base: str) -> str:
    for size, unit in steps:
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{unit}" if abs(value) < 999.5 * size else f"{value / size:.0f}{unit}"
    return f"{value:.3g}{base}" if abs(value) < 999.5 else f"{value:.0f}{base}"
