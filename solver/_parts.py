"""What a problem is made of: choices with integer scores and costs, limits on totals, pair terms."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to fill a layer, or several consecutive layers from the one it is listed at.

    `score` is in units of 1e-9 nats and is minimised; `costs` are whole non-negative numbers (bytes, nanoseconds) in
    the order of the problem's `cost_names`; `layers` is how many layers the choice covers.
    """

    label: str
    score: int
    costs: tuple[int, ...] = ()
    layers: int = 1


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound on the total of one cost, base costs included: at most `upper`, at least `lower`, either may be None."""

    name: str
    upper: int | None = None
    lower: int | None = None

    @staticmethod
    def relative(
        name: str,
        reference: int,
        *,
        upper: str | float | Fraction | None = None,
        lower: str | float | Fraction | None = None,
    ) -> Limit:
        """A limit as a share of `reference` (the parent's total), exactly: `upper="0.6"` rounds down, `lower` up."""
        most = None if upper is None else _fraction(upper) * reference
        least = None if lower is None else _fraction(lower) * reference
        return Limit(
            name,
            upper=None if most is None else most.numerator // most.denominator,
            lower=None if least is None else -(-least.numerator // least.denominator),
        )


@dataclass(frozen=True, slots=True)
class PairTerm:
    """An addition to the score, of any sign, when two choices, written (layer, index in it), are both taken."""

    first: tuple[int, int]
    second: tuple[int, int]
    score: int


def _fraction(value: str | float | Fraction) -> Fraction:
    return value if isinstance(value, Fraction) else Fraction(str(value))
