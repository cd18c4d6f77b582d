"""The problem as plain data: layers of choices and limits on the totals, checked when it is made; and its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from inlay.solver._checks import build_table, check_limits, check_names, check_others, check_pairs
from inlay.solver._parts import Choice, Limit, PairTerm
from inlay.solver._table import Table


@dataclass(frozen=True)
class Problem:
    """Layers × choices with limits: take choices that cover each layer exactly once, at the least total score.

    `layers[i]` lists the choices that start at layer i; `base_costs` (the embedding, norm and head; zeros when empty)
    are added to every total. `others` are the same layers at other costs and scores, with as many choices that start
    and end alike: one of them all is decided for the whole model, such as what its cache is stored in. Raises
    ProblemError for whatever is malformed.
    """

    cost_names: tuple[str, ...]
    layers: tuple[tuple[Choice, ...], ...]
    base_costs: tuple[int, ...] = ()
    limits: tuple[Limit, ...] = ()
    pairs: tuple[PairTerm, ...] = ()
    others: tuple[Problem, ...] = ()
    table: Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cost_names", tuple(self.cost_names))
        object.__setattr__(self, "layers", tuple(tuple(layer) for layer in self.layers))
        base = tuple(self.base_costs) or (0,) * len(self.cost_names)
        object.__setattr__(self, "base_costs", base)
        object.__setattr__(self, "limits", tuple(self.limits))
        object.__setattr__(self, "pairs", tuple(self.pairs))
        check_names(self.cost_names, self.base_costs, self.layers)
        object.__setattr__(self, "table", build_table(self.cost_names, self.base_costs, self.layers, self.pairs))
        check_limits(self.cost_names, self.limits)
        check_pairs(self.layers, self.pairs)
        check_others(self.cost_names, self.table, [(each.cost_names, each.table) for each in self.others])

    @property
    def alternatives(self) -> tuple[Problem, ...]:
        """Itself and the others, one of which is decided."""
        return (self, *self.others)

    def each(self, change: Callable[[Problem], Problem]) -> Problem:
        """The problem with every alternative changed alike."""
        own = replace(self, others=())
        return replace(change(own), others=tuple(change(other) for other in self.others))

    def with_limits(self, *limits: Limit) -> Problem:
        """The same choices under other limits; the arrays are shared, so that this costs nothing."""
        other = object.__new__(Problem)
        other.__dict__.update(self.__dict__)
        object.__setattr__(other, "limits", tuple(limits))
        object.__setattr__(other, "others", tuple(each.with_limits(*limits) for each in self.others))
        check_limits(other.cost_names, other.limits)
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
