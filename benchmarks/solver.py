"""The solver's times, gaps and proofs beside the plain program in HiGHS and CBC.

    python benchmarks/solver.py [--part small single pool front large hard formats shell why]

Five instances of each kind and size; medians are quoted, then every run. One thread. Results are kept in a JSON file
between calls, and the page is written from all that is there (`--part` alone: without running anything).
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
import pulp
from instances import Maker, correlated, even_subset_sum, precise, realistic, uniform
from machine import footer

from inlay.solver import Axis, Problem, Solution, front, solve

RUNS = 5
KINDS: dict[str, Maker] = {"realistic": realistic, "uniform": uniform}
ADVERSARIAL: dict[str, Maker] = {"strongly correlated": correlated, "even subset sums": even_subset_sum}
TINY, SMALL, USUAL, LARGE = (30, 12, 3), (80, 16, 2), (80, 54, 3), (1000, 100, 3)
FORMATS = (80, 864, 4)
PLAIN_LIMIT = 10.0
"""Seconds after which a back end on the plain program is stopped."""

ALONE, ALONE_LIMIT = (4, 8, 16), 300.0
"""Answers of a uniform pool that HiGHS is given once more, one by one, and its seconds for each."""

Row = dict[str, Any]
Part = dict[str, Any]
"""What one part measured: its `rows`, and the `footer` with commit, date and machine."""


def measured(case: str, kind: str, seed: int, run: Callable[[], list[Solution]], backend: str = "inlay") -> Row:
    """One run: its wall time, how many answers, the status of the first and the largest gap (None: no answer)."""
    begin = time.perf_counter()
    found = run()
    seconds = time.perf_counter() - begin
    gaps = [solution.gap for solution in found]
    gap = None if None in gaps else max(gap for gap in gaps if gap is not None)
    print(f"{case} {kind} {seed} {backend}: {seconds:.3f} s, {found[0].status}, gap {gap}", flush=True)
    return {
        "case": case,
        "kind": kind,
        "seed": seed,
        "backend": backend,
        "seconds": seconds,
        "answers": len(found),
        "first": found[0].status,
        "gap": gap,
        "objective": found[0].objective,
    }


def single(size: tuple[int, int, int]) -> list[Row]:
    """One answer, proven; the plain program beside it."""
    rows = []
    for kind, make in KINDS.items():
        for seed in range(RUNS):
            problem = make(*size, seed)
            rows.append(measured(name_of(size), kind, seed, functools.partial(solve, problem)))
            for backend in ("highs", "cbc"):
                run = functools.partial(solve, problem, backend=backend, time_limit=PLAIN_LIMIT)
                rows.append(measured(name_of(size), kind, seed, run, backend))
    return rows


def pool() -> list[Row]:
    """Sixteen that differ in a fifth of the layers: the first proven, the others within 0.1 %; HiGHS beside them."""
    case = f"pool of 16, {name_of(USUAL)}"
    plain = functools.partial(_pool, backend="highs")
    return each(case, USUAL, _pool) + each(case, USUAL, plain, "highs")


def front_of_50() -> list[Row]:
    """Fifty values of the runtime, each within 0.01 %."""
    return each(f"front of 50, {name_of(USUAL)}", USUAL, _front)


def large() -> list[Row]:
    """A thousand layers in ten seconds."""
    return each(name_of(LARGE), LARGE, lambda problem: solve(problem, time_limit=10.0))


def hard() -> list[Row]:
    """Adversarial ones, five seconds each."""
    rows = []
    for kind, make in ADVERSARIAL.items():
        for num_limits in (1, 3):
            size = (*USUAL[:2], num_limits)
            for seed in range(RUNS):
                run = functools.partial(solve, make(*size, seed), time_limit=5.0)
                rows.append(measured(f"{name_of(size)} in 5 s", kind, seed, run))
    return rows


def formats() -> list[Row]:
    """Structure x number formats: one answer, proven, with HiGHS beside it, and eight that differ in a fifth."""
    rows = []
    for seed in range(RUNS):
        problem = precise(*FORMATS, seed)
        rows.append(measured(name_of(FORMATS), "formats", seed, functools.partial(solve, problem)))
        run = functools.partial(solve, problem, backend="highs", time_limit=PLAIN_LIMIT)
        rows.append(measured(name_of(FORMATS), "formats", seed, run, "highs"))
        eight = functools.partial(
            solve, problem, solutions=8, min_difference=0.2, pool_gap=1e-3, time_limit=PLAIN_LIMIT
        )
        rows.append(measured(f"pool of 8, {name_of(FORMATS)}", "formats", seed, eight))
    return rows


def shell() -> list[Row]:
    """`inlay solve` on a table: its wall time less the solver's own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(RUNS):
            problem = realistic(*USUAL, seed)
            path = Path(folder) / f"{seed}.csv"
            with path.open("w", newline="") as file:
                lines = csv.writer(file)
                lines.writerow(["layer", "variant", "score", *problem.cost_names])
                lines.writerow(["", "ends", "", *problem.base_costs])
                for number, layer in enumerate(problem.layers):
                    lines.writerows([number, choice.label, choice.score / 1e9, *choice.costs] for choice in layer)
            words = [sys.executable, "-m", "inlay.nas.cli", "solve", str(path), "--json"]
            for limit in problem.limits:
                words += ["--limit", f"{limit.name}={limit.upper}"]
            begin = time.perf_counter()
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - begin
            (told,) = json.loads(done.stdout)["solutions"]
            print(f"inlay solve {seed}: {seconds:.3f} s, {told['seconds']:.3f} s of it the solver's", flush=True)
            row = {"case": "inlay solve", "kind": "realistic", "seed": seed, "backend": "inlay"}
            answer = {"answers": 1, "first": told["status"], "gap": told["gap"], "objective": told["objective"]}
            rows.append({**row, "seconds": seconds - told["seconds"], **answer})
    return rows


def why() -> list[Row]:
    """How far the answers of a uniform pool are above the relaxation, and what their proof takes: ours, and HiGHS."""
    rows: list[Row] = []
    for size, gap, seconds in ((TINY, 0.0, 100.0), (USUAL, 1e-3, 600.0)):
        problem = uniform(*size, 0)
        found = solve(problem, solutions=16, min_difference=0.2, pool_gap=gap, time_limit=seconds)
        for number, solution in enumerate(found):
            assert solution.objective is not None
            held = {"case": name_of(size), "answer": number + 1}
            above = solution.objective / relaxed(problem, found[:number], 0.2) - 1
            row = {"backend": "inlay", "gap": solution.gap, "above": above, "seconds": solution.seconds}
            rows.append({**held, **row})
            print(rows[-1], flush=True)
            if size == USUAL and number + 1 in ALONE:
                rows.append({**held, "backend": "highs", **alone(problem, found[:number], 0.2, gap)})
                print(rows[-1], flush=True)
    return rows


def relaxed(problem: Problem, earlier: list[Solution], min_difference: float) -> float:
    """The least score of the linear relaxation, for choices of one layer, with a row for each earlier solution."""
    program = plain_program(problem, earlier, min_difference, "Continuous")
    program.solve(pulp.HiGHS(msg=False, threads=1))
    return float(pulp.value(program.objective))


def alone(problem: Problem, earlier: list[Solution], min_difference: float, gap: float) -> Row:
    """One answer of the plain program after the same earlier ones, with ALONE_LIMIT for itself."""
    program = plain_program(problem, earlier, min_difference, "Binary")
    begin = time.perf_counter()
    program.solve(pulp.HiGHS(msg=False, threads=1, gapRel=gap, timeLimit=ALONE_LIMIT))
    seconds = time.perf_counter() - begin
    info = program.solverModel.getInfo()
    best = info.objective_function_value
    left = (best - info.mip_dual_bound) / best if math.isfinite(best) else None
    return {"gap": left, "above": None, "seconds": seconds}


def plain_program(problem: Problem, earlier: list[Solution], min_difference: float, category: str) -> pulp.LpProblem:
    """One variable a choice, for choices of one layer, with a row for each earlier solution."""
    program = pulp.LpProblem("plain", pulp.LpMinimize)
    takes = [
        [program.add_variable(f"x{n}_{k}", 0, 1, category) for k in range(len(own))]
        for n, own in enumerate(problem.layers)
    ]
    pairs = [pair for own, layer in zip(takes, problem.layers, strict=True) for pair in zip(own, layer, strict=True)]
    program.setObjective(pulp.lpSum(choice.score * take for take, choice in pairs))
    for own in takes:
        program += pulp.lpSum(own) == 1
    for limit in problem.limits:
        column = problem.cost_names.index(limit.name)
        assert limit.upper is not None
        most = limit.upper - problem.base_costs[column]
        program += pulp.lpSum(choice.costs[column] / most * take for take, choice in pairs) <= 1
    same = len(problem.layers) - math.ceil(min_difference * len(problem.layers))
    for solution in earlier:
        program += pulp.lpSum(own[k] for own, k in zip(takes, solution.choices, strict=True)) <= same
    return program


def each(
    case: str, size: tuple[int, int, int], run: Callable[[Problem], list[Solution]], backend: str = "inlay"
) -> list[Row]:
    """Five runs of both kinds."""
    return [
        measured(case, kind, seed, functools.partial(run, make(*size, seed)), backend)
        for kind, make in KINDS.items()
        for seed in range(RUNS)
    ]


def _pool(problem: Problem, backend: str = "auto") -> list[Solution]:
    return solve(problem, solutions=16, min_difference=0.2, pool_gap=1e-3, time_limit=PLAIN_LIMIT, backend=backend)


def _front(problem: Problem) -> list[Solution]:
    return [point.solution for point in front(problem, [Axis("runtime_ns", 50)], gap=1e-4, time_limit=20.0)]


def name_of(size: tuple[int, int, int]) -> str:
    """How a size is written: layers x choices x limits."""
    return " x ".join(f"{number:,}" for number in size)


PARTS: dict[str, Callable[[], list[Row]]] = {
    "small": functools.partial(single, SMALL),
    "single": functools.partial(single, USUAL),
    "pool": pool,
    "front": front_of_50,
    "large": large,
    "hard": hard,
    "formats": formats,
    "shell": shell,
    "why": why,
}
ASKED: dict[str, tuple[str, float, float]] = {
    name_of(SMALL): ("proven in 0.3 s", 0.3, 0.0),
    name_of(USUAL): ("proven in 1 s", 1.0, 0.0),
    f"pool of 16, {name_of(USUAL)}": ("first proven, others within 0.1 %, in 2 s", 2.0, 1e-3),
    f"front of 50, {name_of(USUAL)}": ("each within 0.01 %, in 10 s", 10.0, 1e-4),
    name_of(LARGE): ("within 0.1 % in 10 s", 10.1, 1e-3),
    name_of(FORMATS): ("proven in 2 s", 2.0, 0.0),
    f"pool of 8, {name_of(FORMATS)}": ("first proven, others within 0.1 %, in 10 s", 10.0, 1e-3),
    "inlay solve": ("1.5 s beside the solver", 1.5, 0.0),
}
"""What each case is asked for, and that as seconds and gap, both of the median run."""


def is_missed(runs: list[Row]) -> bool:
    """Whether the medians of a case are above what is asked for."""
    _, seconds, gap = ASKED[runs[0]["case"]]
    return median(runs, "seconds") > seconds or median(runs, "gap") > gap


def median(runs: list[Row], key: str) -> float:
    """The median over the runs; no answer counts as endless."""
    return statistics.median(float("inf") if row[key] is None else row[key] for row in runs)


def page(held: dict[str, Part]) -> str:
    """The results as Markdown: what is missed first, then every case, then every run."""
    rows = [row for part in PARTS if part != "why" for row in held.get(part, {"rows": []})["rows"]]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["kind"], row["backend"]), []).append(row)
    asked = {key for key in groups if key[2] == "inlay" and key[0] in ASKED}
    lines = [
        "# The solver",
        "",
        "Layers x choices x limits; five instances of each kind, one thread. `realistic`: scores of a few early and",
        "late layers ten times the median, convex in width, costs in proportion to width plus a constant, noise.",
        "`uniform`: everything random. `formats`: `realistic` with both subblocks of a layer in any of four number",
        "formats, limits on decode and prefill time, memory and weights. `highs` and `cbc` solve the plain PuLP",
        "program of the same instance, to their",
        f"own tolerance, stopped after {PLAIN_LIMIT:g} s. Pools and fronts count as proven by their first answer, and",
        "their gap is the largest of all their answers. `inlay solve` is the command's wall time less its `seconds`.",
        "Of adversarial ones an honest status, bound and gap are asked. Written by `benchmarks/solver.py`.",
        "",
    ]
    missed = [key for key in groups if key in asked and is_missed(groups[key])]
    if missed:
        lines += ["## Missed", ""]
    for key in missed:
        told = ", ".join(f"{row['seconds']:.2f} s (gap {show_gap(row['gap'])})" for row in groups[key])
        lines += [f"- {key[0]}, {key[1]}: asked for is {ASKED[key[0]][0]}; the five runs: {told}.", ""]
    if any(key[0].startswith("pool") for key in missed):
        lines += reason(held.get("why", {"rows": []})["rows"])
    lines += [
        "## Medians",
        "",
        "| case | instances | | asked for | seconds | slowest | proven | gap |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, runs in groups.items():
        proven = sum(row["first"] == "optimal" for row in runs)
        lines.append(
            f"| {' | '.join(key)} | {ASKED[key[0]][0] if key in asked else ''} | {median(runs, 'seconds'):.3f} | "
            f"{max(row['seconds'] for row in runs):.2f} | {proven} of {len(runs)} | {show_gap(median(runs, 'gap'))} |"
        )
    lines += ["", disagreements(rows), "", "## Every run", ""]
    lines += ["| case | instances | seed | | seconds | answers | first | gap |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        names = f"| {row['case']} | {row['kind']} | {row['seed']} | {row['backend']} |"
        lines.append(f"{names} {row['seconds']:.3f} | {row['answers']} | {row['first']} | {show_gap(row['gap'])} |")
    for told in dict.fromkeys(part["footer"] for part in held.values()):
        names = ", ".join(name for name in PARTS if name in held and held[name]["footer"] == told)
        lines += ["", f"{names}: {told}"]
    return "\n".join([*lines, ""])


def reason(rows: list[Row]) -> list[str]:
    """What was measured of the missed pool: answer by answer, on a small instance and on the first of a usual one."""
    lines = [
        f"Why, on the first uniform instance of two sizes (`--part why`): the pool of {name_of(TINY)} to its end, that",
        f"of {name_of(USUAL)} in 600 s. An answer lies well above the relaxation of its own program, which mixes",
        "earlier answers and so meets the differences for almost nothing; what is between the two is left to the",
        f"search, whose states multiply with it. HiGHS was given {ALONE_LIMIT:g} s for each of some answers, after the",
        "same earlier ones.",
        "",
        "| instance | answer | | above the relaxation | gap | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        above = "" if row["above"] is None else f"{100 * row['above']:.2f} %"
        names = f"| {row['case']} | {row['answer']} | {row['backend']} |"
        lines.append(f"{names} {above} | {show_gap(row['gap'])} | {row['seconds']:.2f} |")
    return [*lines, ""]


def disagreements(rows: list[Row]) -> str:
    """Whether those that call an answer optimal agree to the integer."""
    claims: dict[tuple[str, str, int], dict[str, int]] = {}
    for row in rows:
        if row["case"] in (name_of(SMALL), name_of(USUAL), name_of(FORMATS)) and row["first"] == "optimal":
            claims.setdefault((row["case"], row["kind"], row["seed"]), {})[row["backend"]] = row["objective"]
    apart = [f"{key}: {told}" for key, told in claims.items() if len(set(told.values())) > 1]
    several = sum(len(told) > 1 for told in claims.values())
    if apart:
        return f"Answers called optimal that differ: {'; '.join(apart)}."
    return f"Of {several} instances with two or three answers called optimal, all agree to the integer."


def show_gap(gap: float | None) -> str:
    """A gap for reading."""
    return "no answer" if gap is None or gap == float("inf") else "0" if gap == 0 else f"{100 * gap:.2g} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--held", type=Path, default=Path("build/solver.json"), help="results between parts")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "solver.md")
    options = parser.parse_args()
    held: dict[str, Part] = json.loads(options.held.read_text()) if options.held.exists() else {}
    solve(realistic(4, 16, 2, 0))  # the library is loaded once
    for part in options.part:
        held[part] = {"rows": PARTS[part](), "footer": footer()}
        options.held.parent.mkdir(parents=True, exist_ok=True)
        options.held.write_text(json.dumps(held))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page(held))


if __name__ == "__main__":
    main()
