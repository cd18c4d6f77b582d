"""What `solve` and `sweep` work on: a bare table, or the tables of a workspace. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from inlay.nas.cli.limits import Asked, parse_asked
from inlay.nas.errors import UserError
from inlay.nas.hardware.costs import quantities
from inlay.nas.job.budget import BudgetLimit, parse_budget
from inlay.nas.job.problems import FieldProblems
from inlay.nas.job.quantities import is_ratio, parse_ratio
from inlay.nas.stages.solving import load_tables
from inlay.nas.tables import PARENT_BLOCK, cost_name, solver_limits
from inlay.nas.tables_io import PARENT, SCORES, BareTable, Column, read_bare_table
from inlay.nas.workspace import Workspace
from inlay.solver import Limit, Problem, ProblemError


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


def open_subject(source: str, minimize: str | None) -> TableSubject | WorkspaceSubject:
    """A workspace for a folder or URL, a table for a file; UserError with the way out for anything else."""
    if "://" in source or Path(source).is_dir():
        place = Workspace(source)
        place.require()
        return WorkspaceSubject(place, minimize)
    return TableSubject(source, read_bare_table(Path(source)), minimize)


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
    """A bare table. `minimize` names the column of the scores."""

    def __init__(self, source: str, table: BareTable, minimize: str | None) -> None:
        self.source, self._table = source, table
        with told_to_user():
            self.problem, self.score, self.columns = table.problem(minimize)
        known = self.columns if table.layer_without_parent is None else ()
        self._parent = {name: table.parent(name) * self.columns[name].scale for name in known}

    def limits(self, asked: Asked) -> list[Limit]:
        """At most, or at least, an amount in the column's unit, or a ratio to the rows named `parent`."""
        column = self._column(asked)
        try:
            amount = column.parse(asked.value) if not is_ratio(asked.value) else self._share(asked)
        except ValueError as error:
            raise asked.refuse(f"{asked.value!r} {error}") from error
        if asked.lower:
            return [Limit(column.name, lower=column.lower(amount))]
        return [Limit(column.name, upper=column.upper(amount))]

    def ratio(self, name: str, total: int) -> float | None:
        """Relative to the rows named `parent`, where every layer has one."""
        return float(total / self._parent[name]) if self._parent.get(name) else None

    def _column(self, asked: Asked) -> Column:
        name = self._table.find(asked.name, "--limit")
        if name not in self.columns:
            raise asked.refuse(f"`{name}` has negative values, so it can be minimised but not limited")
        return self.columns[name]

    def _share(self, asked: Asked) -> Fraction:
        share = parse_ratio(asked.value)
        layer = self._table.layer_without_parent
        if layer is not None:
            raise ValueError(f"is of the parent, but layer {layer} has no variant `{PARENT}`; write a number")
        return share * self._table.parent(asked.name)


class WorkspaceSubject:
    """The tables of a workspace: the predicted KL is minimised, limits are those of a job's budget."""

    def __init__(self, place: Workspace, minimize: str | None) -> None:
        if minimize not in (None, "kl", *SCORES):
            raise UserError("--minimize: a workspace is solved for its predicted KL; leave --minimize out")
        self.source, self.place = place.url, place
        self._tables = load_tables(place)
        with told_to_user():
            self.problem = self._tables.problem(())
        self.score = Column("predicted_kl_nats", 10**9)
        self.columns = {name: Column(name, kind=_kind(name)) for name in self.problem.cost_names}
        costs, tokens = self._tables.costs, self._tables.tokens
        parent = {s: quantities(costs.total(s, [PARENT_BLOCK] * len(self.problem.layers)), tokens[s]) for s in tokens}
        self._parent = {cost_name(costs, s, name): value for s in parent for name, value in parent[s].items()}

    @property
    def first(self) -> str:
        """What stands before the costs of the first scenario: `chat.`, or nothing where there is only one."""
        return cost_name(self._tables.costs, self._tables.costs.scenarios[0], "runtime").removesuffix("runtime")

    def limits(self, asked: Asked) -> list[Limit]:
        """The same limits as in a job's `budget`; without a scenario's name it holds in each."""
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

    def _upper(self, limits: list[BudgetLimit]) -> list[Limit]:
        return solver_limits(self._tables.costs, limits, self._tables.tokens, len(self.problem.layers))


def _kind(name: str) -> str:
    quantity = name.rpartition(".")[2]
    return {"parameters": "count", "runtime": "ns", "prefill": "ns", "decode": "ns"}.get(quantity, "bytes")
