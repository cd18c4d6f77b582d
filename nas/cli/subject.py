"""What `solve` and `sweep` work on: a bare table, or the tables of a workspace. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from inlay.nas.cli.limits import Asked, parse_asked
from inlay.nas.errors import UserError
from inlay.nas.job.budget import BudgetLimit, parse_budget
from inlay.nas.loop.solving import Tables, load_tables
from inlay.nas.problems import FieldProblems
from inlay.nas.quantities import is_ratio, parse_number, parse_ratio
from inlay.nas.tables.costs import CostTable, quantities
from inlay.nas.tables.files import PARENT, SCORES, BareTable, Column
from inlay.nas.tables.pairs import read_pairs
from inlay.nas.tables.problem import NANO, cost_name, solver_limits
from inlay.nas.tables.reading import read_bare_table
from inlay.nas.workspace import Workspace
from inlay.solver import Limit, Problem, ProblemError

KL = "predicted_kl_nats"


class Subject(Protocol):
    """A problem without limits, and what its integers mean to people."""

    source: str
    problem: Problem
    score: Column
    columns: dict[str, Column]

    def limits(self, asked: Asked) -> list[Limit]:
        """One limit of the command line on the problem's costs, in its integers."""

    def ratio(self, name: str, total: int) -> float | None:
        """A total relative to the parent's, None where that is not known."""


def open_subject(source: str, minimize: str | None, pairs: str | None = None) -> TableSubject | WorkspaceSubject:
    """A workspace for a folder or URL, a table for a file; UserError with the way out for anything else.

    `pairs` is the file of a table of pair terms.
    """
    if is_workspace(source):
        return WorkspaceSubject(open_workspace(source, minimize), pairs=pairs)
    return TableSubject(source, read_bare_table(Path(source)), minimize, pairs)


def is_workspace(source: str) -> bool:
    """Whether a source is a folder or URL and not the file of a table."""
    return "://" in source or Path(source).is_dir()


def open_workspace(source: str, minimize: str | None) -> Workspace:
    """The workspace; UserError when there is none, or another column than its predicted KL is to be minimised."""
    if minimize not in (None, "kl", *SCORES):
        raise UserError("--minimize: a workspace is solved for its predicted KL; leave --minimize out")
    place = Workspace(source).last_round()
    place.require()
    return place


@contextmanager
def told_to_user() -> Iterator[None]:
    """What the solver refuses is the user's to mend."""
    try:
        yield
    except ProblemError as error:
        raise UserError(str(error)) from error


def with_limits(subject: Subject, texts: Sequence[str]) -> Problem:
    """The subject's problem under the limits of the command line; UserError where they contradict each other."""
    limits = [limit for text in texts for limit in subject.limits(parse_asked(text))]
    return limited(subject, limits)


def limited(subject: Subject, limits: Sequence[Limit]) -> Problem:
    """The subject's problem under these limits; UserError, in the columns' units, where they contradict each other."""
    for name, column in subject.columns.items():
        upper = min((limit.upper for limit in limits if limit.name == name and limit.upper is not None), default=None)
        lower = max((limit.lower for limit in limits if limit.name == name and limit.lower is not None), default=None)
        if upper is not None and lower is not None and lower > upper:
            raise UserError(
                f"--limit: the limits on `{name}` contradict each other, at least {column.show(lower)} and at most "
                f"{column.show(upper)}; drop or move one"
            )
    with told_to_user():
        return subject.problem.with_limits(*limits)


class TableSubject:
    """A bare table. `minimize` names the column of the scores, `pairs` a file with pair terms."""

    def __init__(self, source: str, table: BareTable, minimize: str | None, pairs: str | None = None) -> None:
        self.source, self._table = source, table
        with told_to_user():
            self.problem, self.score, self.columns = table.problem(minimize)
        if pairs is not None:
            self.problem = with_pairs(self.problem, pairs, self.score)
        known = self.columns if table.layer_without_parent is None else ()
        self._parent = {name: self._parent_total(name) * self.columns[name].scale for name in known}

    def limits(self, asked: Asked) -> list[Limit]:
        """At most, or at least, an amount in the column's unit, or a ratio to the rows named `parent`."""
        return [self._limit(asked, column) for column in self._columns(asked)]

    def ratio(self, name: str, total: int) -> float | None:
        """Relative to the rows named `parent`, where every layer has one."""
        return float(total / self._parent[name]) if self._parent.get(name) else None

    def _limit(self, asked: Asked, column: Column) -> Limit:
        try:
            amount = column.parse(asked.value) if not is_ratio(asked.value) else self._share(asked, column)
        except ValueError as error:
            raise asked.refuse(f"{asked.value!r} {error}") from error
        if asked.lower:
            return Limit(column.name, lower=column.lower(amount))
        return Limit(column.name, upper=column.upper(amount))

    def _columns(self, asked: Asked) -> list[Column]:
        """The column that a limit names; one in each scenario where it names none of them."""
        name = self._table.find(asked.name, "--limit")
        names = [name, *(f"{scenario}.{name}" for scenario in self._table.scenarios)]
        found = [self.columns[each] for each in names if each in self.columns]
        if not found or (self.problem.pairs and name == self.score.name):
            why = "pair terms" if self.problem.pairs else "negative values"
            raise asked.refuse(f"`{name}` has {why}, so it can be minimised but not limited")
        return found

    def _share(self, asked: Asked, column: Column) -> Fraction:
        share = parse_ratio(asked.value)
        layer = self._table.layer_without_parent
        if layer is not None:
            raise ValueError(f"is of the parent, but layer {layer} has no variant `{PARENT}`; write a number")
        return share * self._parent_total(column.name)

    def _parent_total(self, name: str) -> Fraction:
        """The parent's total; that of a column which all scenarios share is any one's."""
        if name in self._table.numbers:
            return self._table.parent(name)
        return next(iter(self._table.scenarios.values())).parent(name)


class WorkspaceSubject:
    """The tables of a workspace, or those of its scenario `only`; limits are those of a job's budget.

    The predicted KL is minimised; with `fastest` it is the runtime, and the KL can be limited.
    """

    def __init__(
        self, place: Workspace, *, pairs: str | None = None, only: str | None = None, fastest: bool = False
    ) -> None:
        self.source, self.place = place.url, place
        self._tables = load_tables(place) if only is None else _restricted(load_tables(place), only)
        with told_to_user():
            self.problem = self._tables.problem(())
        self.score = Column(KL, NANO)
        self.columns = {name: Column(name, kind=_kind(name)) for name in self.problem.cost_names}
        if pairs is not None:
            self.problem = with_pairs(self.problem, pairs, self.score)
        if fastest:
            self.problem = self.problem.each(_for_runtime)
            self.columns[KL], self.score = self.score, self.columns["runtime"]
        costs, tokens = self._tables.costs, self._tables.tokens
        reference = costs.reference(len(self.problem.layers))
        parent = {s: quantities(costs.total(s, reference), tokens[s]) for s in tokens}
        self._parent = {cost_name(costs, s, name): value for s in parent for name, value in parent[s].items()}

    @property
    def first(self) -> str:
        """What stands before the costs of the first scenario: `chat.`, or nothing where there is only one."""
        return cost_name(self._tables.costs, self._tables.costs.scenarios[0], "runtime").removesuffix("runtime")

    def limits(self, asked: Asked) -> list[Limit]:
        """The same limits as in a job's `budget`; without a scenario's name it holds in each."""
        if asked.name == "kl":
            return [self._kl_limit(asked)]
        *scenario, name = asked.name.split(".", 1)
        value: Any = {scenario[0]: {name: asked.value}} if scenario else {name: asked.value}
        try:
            (limit,) = parse_budget(value)
        except FieldProblems as error:
            raise asked.refuse("; ".join(text for _, text in error.problems)) from error
        if asked.lower and not limit.is_lower:
            return [Limit(found.name, lower=found.upper) for found in self._upper([limit])]
        if limit.is_lower and not asked.lower and "<" in asked.text:
            raise asked.refuse(f"`{limit.name}` is at least what is given; write {limit.name}={asked.value}")
        return self._upper([limit])

    def budget(self) -> list[Limit]:
        """The limits of the job that finished here last; UserError when none did."""
        job: dict[str, Any] = (self.place.find_json("run.json") or {}).get("job") or {}
        if not job.get("budget"):
            raise UserError(
                f"--limit: no search has finished in {self.source}, so there is no budget to take; give at least one "
                "limit, such as --limit runtime=0.6x"
            )
        return self._upper(list(parse_budget(job["budget"])))

    def ratio(self, name: str, total: int) -> float | None:
        """Relative to the parent in the same tables."""
        parent = self._parent.get(name)
        return total / parent if parent else None

    @property
    def tokens(self) -> dict[str, int]:
        """Generated tokens by scenario."""
        return self._tables.tokens

    def whole_name(self, scenario: str, name: str) -> str:
        """How a cost of one scenario is called among those of all."""
        return cost_name(self._tables.costs, scenario, name)

    def _upper(self, limits: list[BudgetLimit]) -> list[Limit]:
        return solver_limits(self._tables.costs, limits, self._tables.tokens, len(self.problem.layers))

    def _kl_limit(self, asked: Asked) -> Limit:
        if KL not in self.columns:
            raise asked.refuse("the predicted KL is what is minimised; it can be limited with --maximize throughput")
        try:
            value = Fraction(repr(parse_number(asked.value)))
        except ValueError as error:
            raise asked.refuse(f"{asked.value!r} {error}") from error
        if asked.lower or value < 0:
            raise asked.refuse("the KL is limited from above, by nats per token; write kl=0.05")
        return Limit(KL, upper=self.columns[KL].upper(value))


def with_pairs(problem: Problem, pairs: str, score: Column) -> Problem:
    """The problem with the pair terms of a file."""
    terms = read_pairs(Path(pairs), problem, score)
    with told_to_user():
        return problem.each(lambda one: replace(one, pairs=terms))


def _restricted(tables: Tables, scenario: str) -> Tables:
    costs = CostTable([row for row in tables.costs.rows if str(row["scenario"]) == scenario])
    return Tables(tables.scores, costs, {scenario: tables.tokens[scenario]})


def _for_runtime(problem: Problem) -> Problem:
    """The same choices, of one alternative, with runtime as the score and the score as a cost."""
    runtime = problem.cost_names.index("runtime")
    layers = (
        tuple(replace(choice, score=choice.costs[runtime], costs=(*choice.costs, choice.score)) for choice in layer)
        for layer in problem.layers
    )
    return Problem((*problem.cost_names, KL), tuple(layers), (*problem.base_costs, 0))


def _kind(name: str) -> str:
    quantity = name.rpartition(".")[2]
    return {"parameters": "count", "runtime": "ns", "prefill": "ns", "decode": "ns"}.get(quantity, "bytes")
