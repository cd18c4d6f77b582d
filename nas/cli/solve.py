"""`inlay solve`: the best architectures under given limits, from a bare table or a workspace."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer

from inlay.nas.cli.output import JsonOption, print_json, print_rich

SourceArgument = Annotated[
    str, typer.Argument(metavar="TABLE|WORKSPACE", help="A table (CSV or Parquet) or the folder of a search.")
]
MinimizeOption = Annotated[
    str | None,
    typer.Option("--minimize", metavar="COLUMN", help="Column to minimise; default: score or kl_nats."),
]
PairsOption = Annotated[
    str | None,
    typer.Option("--pairs", metavar="FILE", help="Table of what two choices together add to the score."),
]
TimeLimitOption = Annotated[str, typer.Option("--time-limit", metavar="TIME", help="When the solver stops: 60s, 2min.")]


class Method(StrEnum):
    """The exact solver, or a simpler rule that is shown beside it."""

    exact = "exact"
    greedy = "greedy"
    uniform = "uniform"
    random = "random"
    largest = "largest"
    no_op = "no_op"


class Backend(StrEnum):
    """The exact solver, or the plain program in one of two back ends."""

    auto = "auto"
    highs = "highs"
    cbc = "cbc"


def solve_command(
    source: SourceArgument,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="NAME=VALUE",
            help="At most VALUE: 1200, 24GiB, 20ms, 0.6x of the parent; 'NAME>=VALUE': at least. Repeatable.",
        ),
    ] = None,
    minimize: MinimizeOption = None,
    maximize: Annotated[
        str | None,
        typer.Option(
            "--maximize",
            metavar="RATIO",
            help="throughput (workspace) or COLUMN/COLUMN (table), such as tokens/runtime_ms; decides the scenario.",
        ),
    ] = None,
    any_scenario: Annotated[
        bool, typer.Option("--any-scenario", help="Limits hold in one scenario, which is decided too, not in all.")
    ] = False,
    pairs: PairsOption = None,
    solutions: Annotated[int, typer.Option("--solutions", min=1, max=1000, help="How many to look for.")] = 1,
    min_difference: Annotated[
        float, typer.Option("--min-difference", min=0, max=1, help="Share of layers in which they differ.")
    ] = 0.2,
    gap: Annotated[
        float, typer.Option("--gap", min=0, max=1, help="Share within which all but the first are proven; 0: exactly.")
    ] = 0.0,
    method: Annotated[
        Method, typer.Option("--method", help="A simpler rule to show beside the optimum.")
    ] = Method.exact,
    backend: Annotated[
        Backend, typer.Option("--backend", help="highs, cbc: solve the plain program instead, as a cross-check.")
    ] = Backend.auto,
    time_limit: TimeLimitOption = "60s",
    changes: Annotated[bool, typer.Option("--sensitivity", help="Tell what changes first when a limit moves.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Choose the best architecture under limits, proven, from a table or a workspace."""
    from inlay.nas.cli import answers
    from inlay.nas.cli.scenarios import decide_scenario, decided_dict, decided_text
    from inlay.nas.cli.subject import WorkspaceSubject, limited, open_subject, told_to_user, with_limits
    from inlay.nas.errors import UserError
    from inlay.solver import baseline, sensitivity, solve

    seconds = seconds_of(time_limit)
    decided = None
    if any_scenario or maximize is not None:
        if solutions > 1 or backend is not Backend.auto:
            extra = "--solutions" if solutions > 1 else "--backend"
            raise UserError(f"{extra}: a decided scenario has one solution, of the exact solver; leave {extra} out")
        decided = decide_scenario(source, limit or [], minimize, maximize, pairs, seconds)
        assert decided.decision.name is not None
        subject, problem = decided.subjects[decided.decision.name], decided.problems[decided.decision.name]
        found = [decided.decision.solution]
    else:
        subject = open_subject(source, minimize, pairs)
        if isinstance(subject, WorkspaceSubject) and not limit:
            problem = limited(subject, subject.budget())
        else:
            problem = with_limits(subject, limit or [])
        with told_to_user():
            found = solve(
                problem,
                solutions=solutions,
                min_difference=min_difference,
                time_limit=seconds,
                pool_gap=gap,
                backend=backend.value,
            )
        if found[0].objective is None:
            give_up(subject, problem, found[0], seconds, as_json)
    with told_to_user():
        simple = [] if method is Method.exact else [baseline(problem, method.value)]
    moved = sensitivity(problem, time_limit=seconds) if changes else []
    ids = _store(subject, problem, [*found, *simple], None if decided is None else decided.decision.name)
    if as_json:
        told: dict[str, Any] = {"source": subject.source, "minimize": subject.score.name}
        told["limits"] = answers.limits_dict(subject, problem)
        told["solutions"] = [answers.solution_dict(subject, solution) for solution in [*found, *simple]]
        for entry, name in zip(told["solutions"], ids, strict=False):
            entry["id"] = name or None
        if decided is not None:
            for entry, solution in zip(told["solutions"], [*found, *simple], strict=True):
                entry |= decided_dict(decided, solution)
        if changes:
            told["sensitivity"] = [answers.sensitivity_dict(subject, each) for each in moved]
        print_json(told)
        return
    print_rich(answers.table_of(subject, problem, [*found, *simple], ids))
    if len(found) < solutions:
        print(f"No more than {len(found)} differ by {100 * min_difference:g} % of the layers.")
    lines = [answers.architecture_text(found[0])]
    if decided is not None:
        lines.append(decided_text(decided))
    if backend is Backend.auto:
        lines.append(answers.binding_text(subject, problem, found[0]))
    lines += [answers.sensitivity_text(subject, each) for each in moved]
    if ids:
        lines.append(f"Take its true KL and times with: inlay evaluate {source} --solution {ids[0]}")
    print("\n".join(line for line in lines if line))


def _store(subject: Any, problem: Any, solutions: list[Any], scenario: str | None) -> list[str]:
    """Keeps a workspace's solutions, a decided scenario's in terms of all; ids, "" for one that breaks a limit."""
    from inlay.nas.cli.scenarios import restated, whole_problem
    from inlay.nas.cli.subject import WorkspaceSubject
    from inlay.nas.loop.solving import store_solution

    if not isinstance(subject, WorkspaceSubject):
        return []
    if scenario is not None:
        problem = whole_problem(subject, scenario, problem)
        solutions = [restated(problem, solution) for solution in solutions]
    kept = ("optimal", "feasible")
    return [store_solution(subject.place, problem, each) if each.status in kept else "" for each in solutions]


def seconds_of(text: str, option: str = "--time-limit") -> float:
    """The time that an option gives, in seconds; UserError when it is none above 0."""
    from inlay.nas.errors import UserError
    from inlay.nas.quantities import parse_seconds

    try:
        seconds = parse_seconds(text)
    except ValueError as error:
        raise UserError(f"{option}: {text!r} {error}") from error
    if not seconds > 0:
        raise UserError(f"{option}: {text!r} is not above 0; write a time such as 60s or 2min")
    return seconds


def give_up(subject: Any, problem: Any, solution: Any, seconds: float, as_json: bool) -> NoReturn:
    """Ends a command without a solution: InfeasibleError with the explanation, or InlayError with the bound."""
    from inlay.nas.cli import answers
    from inlay.nas.errors import InfeasibleError, InlayError
    from inlay.solver import explain_infeasible

    told = None
    if solution.status == "infeasible":
        try:
            told = explain_infeasible(problem, time_limit=max(seconds, 1.0))
        except TimeoutError:
            text = "no architecture meets the limits; why was not found in time: give --time-limit more"
        else:
            assert told is not None
            text = answers.infeasible_text(subject, told)
    if as_json:
        values = {
            "source": subject.source,
            "minimize": subject.score.name,
            "limits": answers.limits_dict(subject, problem),
            "solutions": [answers.solution_dict(subject, solution)],
        }
        if told is not None:
            values["infeasible"] = answers.infeasible_dict(subject, told)
        print_json(values)
    if solution.status == "infeasible":
        raise InfeasibleError(text)
    bound = "no bound is known" if solution.bound is None else f"none is better than {_bound(subject, solution)}"
    raise InlayError(
        f"no architecture was found in the time limit of {seconds:g} s; {bound}; raise --time-limit or loosen a limit"
    )


def _bound(subject: Any, solution: Any) -> str:
    return f"{subject.score.name} {subject.score.show(solution.bound)}"
