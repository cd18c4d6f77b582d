"""The problem as plain data: layers of choices with integer scores and costs, and limits on the totals."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from inlay.solver._checks import build_table, check_limits, check_names, check_pairs
from inlay.solver._table import Table


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


@dataclass(frozen=True)
class Problem:
    """Layers × choices with limits: take choices that cover each layer exactly once, at the least total score.

    `layers[i]` lists the choices that start at layer i; `base_costs` (the embedding, norm and head; zeros when empty)
    are added to every total. Raises ProblemError for whatever is malformed.
    """

    cost_names: tuple[str, ...]
    layers: tuple[tuple[Choice, ...], ...]
    base_costs: tuple[int, ...] = ()
    limits: tuple[Limit, ...] = ()
    pairs: tuple[PairTerm, ...] = ()
    table: Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cost_names", tuple(self.cost_names))
        object.__setattr__(self, "layers", tuple(tuple(layer) for layer in self.layers))
        base = tuple(self.base_costs) or (0,) * len(self.cost_names)
        object.__setattr__(self, "base_costs", base)
        object.__setattr__(self, "limits", tuple(self.limits))
        object.__setattr__(self, "pairs", tuple(self.pairs))
        check_names(self)
        object.__setattr__(self, "table", build_table(self))
        check_limits(self)
        check_pairs(self)

    def with_limits(self, *limits: Limit) -> Problem:
        """The same choices under other limits; the arrays are shared, so that this costs nothing."""
        other = object.__new__(Problem)
        other.__dict__.update(self.__dict__)
        object.__setattr__(other, "limits", tuple(limits))
        check_limits(other)
        return other


@dataclass(frozen=True)
class Solution:
    """An answer with its proof.

    `status` is optimal (bound and objective are the same integer), feasible (a time limit or a gap asked for ended the
    search), infeasible (proven) or unknown (the time limit came before any answer). `choices` has one index a layer, -1
    where a choice that started earlier covers the layer, and `labels` the label that covers each layer. `objective` and
    `bound` are in the unit of the scores, None where there is none; `gap` is (objective - bound) / |objective|.
    `totals` are exact, base costs included; `binding` names the limits that bind: those to which the relaxation gives a
    price, and `prices` are these, in score per unit of cost.
    """

    status: str
    choices: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    objective: int | None = None
    bound: int | None = None
    gap: float | None = None
    totals: dict[str, int] = field(default_factory=dict)
    binding: tuple[str, ...] = ()
    prices: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    method: str = "exact"


def _fraction(value: str | float | Fraction) -> Fraction:
    return value if isinstance(value, Fraction) else Fraction(str(value))
