"""A scenario to be decided: `--any-scenario`, `--maximize`; such as the batch size with the highest throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from inlay.nas.cli.limits import Asked, parse_asked
from inlay.nas.cli.subject import (
    KL,
    TableSubject,
    WorkspaceSubject,
    is_workspace,
    limited,
    open_workspace,
    told_to_user,
)
from inlay.nas.errors import InfeasibleError, InlayError, UserError
from inlay.nas.tables.files import BareTable
from inlay.nas.tables.problem import alternative_of
from inlay.nas.tables.reading import read_bare_table
from inlay.solver import Candidate, Decision, Limit, Problem, Solution, decide, explain_infeasible

THROUGHPUT = "throughput"
RATIO = "write the column that a scenario delivers over the one that is minimised, such as tokens/runtime_ms"


@dataclass(frozen=True)
class Rate:
    """What is maximised: `name`, and by scenario the amount delivered, in the unit shown times the score's unit."""

    name: str
    amounts: Mapping[str, Fraction]


@dataclass(frozen=True)
class Decided:
    """The decision over the scenarios: each one's subject and problem under its limits, and what is maximised."""

    decision: Decision
    subjects: Mapping[str, TableSubject | WorkspaceSubject]
    problems: Mapping[str, Problem]
    rate: Rate | None

    def rate_of(self, name: str, solution: Solution) -> float:
        """What a solution reaches in a scenario, of what is maximised."""
        assert self.rate is not None
        assert solution.objective is not None
        total = solution.objective + _base(self.subjects[name], self.problems[name])
        return _reached(self.rate.amounts[name], Fraction(total, self.subjects[name].score.scale))

    def most(self, name: str) -> float | None:
        """What no architecture can exceed in a scenario: its rate, else its score; None where none meets the limits."""
        bound = self.decision.bounds.get(name)
        if bound is None:
            return None
        return float(bound) if self.rate is None else _reached(Fraction(1), bound)


def decide_scenario(
    source: str, limits: Sequence[str], minimize: str | None, maximize: str | None, pairs: str | None, seconds: float
) -> Decided:
    """Solves every scenario of a source as far as it could still be the best.

    Raises UserError for what cannot be decided, InfeasibleError with each scenario's explanation when nothing fits, and
    InlayError when time ran out before any answer.
    """
    if maximize is not None and minimize is not None:
        raise UserError("--maximize: leave --minimize out; its column stands after the / of --maximize")
    if maximize is not None and pairs is not None:
        raise UserError("--pairs: pair terms are of the score, and with --maximize that is a limit; leave one out")
    subjects, rate = (_of_workspace if is_workspace(source) else _of_table)(source, minimize, maximize, pairs)
    asked = [parse_asked(text) for text in limits]
    for each in asked:
        if each.name.split(".", 1)[0] in subjects and "." in each.name:
            raise each.refuse(
                f"the limits hold in the scenario that is decided for; write {each.name.split('.', 1)[1]}"
            )
    if is_workspace(source):
        _check_workspace_limits(asked, maximize)
    problems = {
        name: limited(subject, [limit for each in asked for limit in subject.limits(each)])
        for name, subject in subjects.items()
    }
    candidates = [
        Candidate(name, problem, _amount(subjects[name], name, rate), _base(subjects[name], problem))
        for name, problem in problems.items()
    ]
    with told_to_user():
        decided = Decided(decide(candidates, time_limit=seconds), subjects, problems, rate)
    if decided.decision.name is None:
        raise _no_answer(decided, seconds)
    return decided


def whole_problem(subject: WorkspaceSubject, scenario: str, problem: Problem) -> Problem:
    """The problem of all scenarios of a workspace, under the limits that hold in one."""
    whole = WorkspaceSubject(subject.place)
    limits = [
        Limit(whole.whole_name(scenario, limit.name), limit.upper, limit.lower)
        for limit in problem.limits
        if limit.name != KL
    ]
    return whole.problem.each(lambda one: replace(one, limits=tuple(limits), pairs=problem.pairs))


def restated(problem: Problem, solution: Solution) -> Solution:
    """A solution over the same choices with the scores and costs of another problem."""
    problem = alternative_of(problem, solution.labels[-1])
    taken = set(enumerate(solution.choices))
    choices = [problem.layers[layer][index] for layer, index in enumerate(solution.choices) if index >= 0]
    totals = zip(problem.cost_names, problem.base_costs, *(choice.costs for choice in choices), strict=True)
    return replace(
        solution,
        objective=sum(choice.score for choice in choices)
        + sum(pair.score for pair in problem.pairs if pair.first in taken and pair.second in taken),
        totals={name: sum(amounts) for name, *amounts in totals},
    )


def decided_dict(decided: Decided, solution: Solution) -> dict[str, Any]:
    """What JSON has beside the solution: the scenario and, where one is maximised, the rate."""
    told: dict[str, Any] = {"scenario": decided.decision.name}
    if decided.rate is not None:
        assert decided.decision.name is not None
        told[decided.rate.name] = decided.rate_of(decided.decision.name, solution)
    return told


def decided_text(decided: Decided) -> str:
    """The scenario decided for, what it reaches, and what the others can reach at best."""
    name, solution = decided.decision.name, decided.decision.solution
    assert name is not None
    own = decided.most(name) if decided.rate is None else decided.rate_of(name, solution)
    side = "at least" if decided.rate is None else "at most"
    others = []
    for other in decided.subjects:
        most = decided.most(other)
        if most is None:
            others.append(f"`{other}` cannot meet the limits")
        elif other != name:
            # A scenario is solved only as far as it could be better.
            is_open = own is None or f"{most:.6g}" != f"{own:.6g}"
            others.append(f"`{other}` has {side} {most:.6g}" if is_open else f"`{other}` is no better")
    reached = ""
    if decided.rate is not None:
        reached = f" with a {decided.rate.name} of {decided.rate_of(name, solution):.6g}"
    head = f"Scenario: `{name}`{reached}" if name else f"Reached:{reached.removeprefix(' with')}"
    return "; ".join([head, *others]) + "."


def _of_table(
    source: str, minimize: str | None, maximize: str | None, pairs: str | None
) -> tuple[dict[str, TableSubject | WorkspaceSubject], Rate | None]:
    table = read_bare_table(Path(source))
    if maximize is None and not table.scenarios:
        raise UserError(
            f"--any-scenario: {table.name} has no column `scenario` with several scenarios; there is nothing to decide"
        )
    held = table.scenarios or {"": table}
    delivered = None
    if maximize is not None:
        delivered, slash, minimize = maximize.partition("/")
        if not slash:
            raise UserError(f"--maximize {maximize}: {RATIO}")
    subjects: dict[str, TableSubject | WorkspaceSubject] = {
        name: TableSubject(source, part, minimize, pairs) for name, part in held.items()
    }
    if delivered is None:
        return subjects, None
    return subjects, Rate(str(maximize), {name: _delivered(part, delivered) for name, part in held.items()})


def _delivered(table: BareTable, column: str) -> Fraction:
    """What a scenario delivers: a whole number that only base rows have."""
    name = table.find(column, "--maximize")
    value = table.base[name]
    if table.numbers[name].any() or value < 1 or value != int(value):
        raise UserError(
            f"--maximize: column `{name}` of {table.name} is not a whole number above 0 in the base row alone (layer "
            "empty); what a scenario delivers does not depend on the choices"
        )
    return Fraction(int(value))


def _of_workspace(
    source: str, minimize: str | None, maximize: str | None, pairs: str | None
) -> tuple[dict[str, TableSubject | WorkspaceSubject], Rate | None]:
    if maximize not in (None, THROUGHPUT):
        raise UserError(f"--maximize {maximize}: of a workspace the throughput can be maximised; write {THROUGHPUT}")
    place = open_workspace(source, minimize)
    tokens = WorkspaceSubject(place).tokens
    subjects: dict[str, TableSubject | WorkspaceSubject] = {
        name: WorkspaceSubject(place, pairs=pairs, only=name, fastest=maximize is not None) for name in tokens
    }
    if maximize is None:
        return subjects, None
    # Runtimes are in ns, and a throughput is in tokens a second.
    return subjects, Rate(THROUGHPUT, {name: Fraction(count * 10**9) for name, count in tokens.items()})


def _check_workspace_limits(asked: Sequence[Asked], maximize: str | None) -> None:
    if not asked:
        raise UserError(
            "--any-scenario: give the limits of the scenario that is decided for, such as --limit memory=24GiB"
        )
    if maximize is not None and not any(each.name == "kl" for each in asked):
        raise UserError(
            "--maximize throughput: without a limit on the KL the fastest is a model without layers; add one, such as "
            "--limit kl=0.05"
        )


def _amount(subject: TableSubject | WorkspaceSubject, name: str, rate: Rate | None) -> int:
    """What a candidate's total is divided by, so that candidates whose scores have other scales compare."""
    return subject.score.scale * (1 if rate is None else int(rate.amounts[name]))


def _base(subject: TableSubject | WorkspaceSubject, problem: Problem) -> int:
    name = subject.score.name
    return problem.base_costs[problem.cost_names.index(name)] if name in problem.cost_names else 0


def _reached(amount: Fraction, total: Fraction) -> float:
    return float(amount / total) if total > 0 else float("inf")


def _no_answer(decided: Decided, seconds: float) -> InlayError:
    from inlay.nas.cli import answers

    if decided.decision.solution.status != "infeasible":
        return InlayError(
            f"no architecture was found in any scenario in the time limit of {seconds:g} s; raise --time-limit or "
            "loosen a limit"
        )
    texts = []
    for name, subject in decided.subjects.items():
        try:
            told = explain_infeasible(decided.problems[name], time_limit=max(seconds, 1.0))
        except TimeoutError:
            told = None
        text = "" if told is None else answers.infeasible_text(subject, told)
        texts.append(f"scenario `{name}`: {text}" if name else text)
    return InfeasibleError("\n".join(texts))
