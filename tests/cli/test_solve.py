"""`inlay solve` and `inlay sweep` as processes and in one: tables, a workspace, refusals, explanations, no torch."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.cli import main
from inlay.nas.workspace import Workspace

Inlay = Callable[..., Any]
Captured = pytest.CaptureFixture[str]
Answer = Callable[..., Any]
Refusal = Callable[..., str]

LAYERS = 6
TIMES = {"parent": 2.25, "w50": 1.5, "w25": 1.1, "no_op": 0.0}
SCORES = {"parent": 0.0, "w50": 0.013, "w25": 0.031, "no_op": 0.1}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six layers, four variants, a base row."""
    lines = ["layer,variant,score,runtime_ms,memory_bytes", ",ends,,0.5,1048576"]
    for layer, (variant, time) in itertools.product(range(LAYERS), TIMES.items()):
        size = int(time * 2**20)
        lines.append(f"{layer},{variant},{SCORES[variant] * (1 + layer % 4):.4f},{time},{size}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    return tmp_path / "t.csv"


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """A workspace with the tables that solving reads."""
    found = Workspace(tmp_path / "demo.search")
    attention = {"attention:parent": 100_000, "attention:window=8": 60_000, "attention:no_op": 0}
    ffn = {"ffn:parent": 200_000, "ffn:width=8": 90_000, "ffn:no_op": 0}
    costs, scores = [], []
    ends = {"prefill_ns": 5000, "decode_ns": 50, "runtime_ns": 9000, "parameters": 900, "weights_bytes": 3600}
    costs.append({"scenario": "chat", "layer": -1, "slot": "ends", "variant": "ends", **ends, "kv_bytes": 0})
    for layer in range(4):
        for label, time in (attention | ffn).items():
            row = {"scenario": "chat", "layer": layer, "slot": label.split(":")[0], "variant": label}
            sizes = {"parameters": time // 10, "weights_bytes": time // 10 * 4, "kv_bytes": 64 if "att" in label else 0}
            costs.append({**row, "prefill_ns": time // 4, "decode_ns": time // 100, "runtime_ns": time, **sizes})
        for number, label in enumerate([*attention][1:] + [*ffn][1:], start=1):
            kl = 0.01 * number * (layer + 1)
            pair = (label, "ffn:parent") if label in attention else ("attention:parent", label)
            scores.append({"layer": layer, "attention": pair[0], "ffn": pair[1], "kl_nats": kl})
    found.write_json("workspace.json", {"schema": 1, "parent_digest": "0" * 64, "parent": "./parent"})
    found.write_table("costs", costs)
    found.write_table("scores", scores)
    found.write_table("scenarios", [{"scenario": "chat", "generated_tokens": 64}])
    return found


def test_the_answer_is_the_best_of_all(table: Path, answer: Answer) -> None:
    told = answer("solve", table, "--limit", "runtime_ms=9", "--limit", "memory_bytes=8MiB")
    (solution,) = told["solutions"]
    best = min(
        sum(round(SCORES[v] * (1 + n % 4) * 1e9) for n, v in enumerate(choice))
        for choice in itertools.product(TIMES, repeat=LAYERS)
        if sum(round(100 * TIMES[v]) for v in choice) <= 850 and sum(int(TIMES[v] * 2**20) for v in choice) <= 7 * 2**20
    )
    assert solution["status"] == "optimal"
    assert solution["objective"] == solution["bound"] == best / 1e9
    assert solution["gap"] == 0
    assert len(solution["choices"]) == LAYERS
    assert solution["totals"]["runtime_ms"] == pytest.approx(0.5 + sum(TIMES[v] for v in solution["choices"]))
    assert set(solution) == {
        "status", "method", "objective", "bound", "gap", "totals", "binding", "choices", "seconds"
    }  # fmt: skip
    assert told["limits"][1] == {"name": "memory_bytes", "side": "upper", "value": 8 * 2**20}


def test_a_ratio_is_of_the_rows_named_parent(table: Path, answer: Answer, refusal: Refusal) -> None:
    told = answer("solve", table, "--limit", "runtime_ms=0.6x")
    assert told["limits"][0]["value"] == 8.4
    table.write_text(table.read_text().replace("3,parent", "3,own"))
    said = refusal("solve", table, "--limit", "runtime_ms=0.6x")
    assert "--limit runtime_ms=0.6x: '0.6x' is of the parent, but layer 3 has no variant `parent`" in said


def test_pools_differ_and_lower_limits_hold(table: Path, answer: Answer) -> None:
    words = ["solve", table, "--limit", "runtime_ms=9", "--limit", "memory_bytes>=6MiB", "--solutions", "4"]
    found = answer(*words, "--min-difference", "0.5")["solutions"]
    assert len(found) == 4
    assert all(one["totals"]["memory_bytes"] >= 6 * 2**20 for one in found)
    for one, other in itertools.combinations(found, 2):
        assert sum(a != b for a, b in zip(one["choices"], other["choices"], strict=True)) >= 3


def test_another_column_can_be_minimised(table: Path, answer: Answer) -> None:
    told = answer("solve", table, "--minimize", "runtime_ms", "--limit", "score=0.1")
    assert told["minimize"] == "runtime_ms"
    assert told["solutions"][0]["totals"]["score"] <= 0.1


@pytest.mark.parametrize("method", ["greedy", "uniform", "random", "largest", "no_op"])
def test_baselines_stand_beside_the_optimum(method: str, table: Path, answer: Answer) -> None:
    best, simple = answer("solve", table, "--limit", "runtime_ms=9", "--method", method)["solutions"]
    assert (best["method"], simple["method"]) == ("exact", method)
    assert simple["status"] == ("infeasible" if method == "largest" else "feasible")
    assert simple["status"] == "infeasible" or best["objective"] <= simple["objective"]


@pytest.mark.parametrize("backend", ["auto", "highs", "cbc"])
def test_stdout_is_json_alone_and_back_ends_agree(backend: str, table: Path, inlay: Inlay) -> None:
    done = inlay("solve", table, "--limit", "runtime_ms=9", "--limit", "memory_bytes=8MiB", "--backend", backend,
                 "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["solutions"][0]["objective"] == 0.291


def test_infeasible_is_explained(table: Path, answer: Answer, refusal: Refusal) -> None:
    words = ["solve", table, "--limit", "runtime_ms=3", "--limit", "memory_bytes>=12MiB"]
    said = refusal(*words, code=3)
    assert said.startswith("inlay: no architecture meets the limits\n  runtime_ms <= 3: reaches 0.5 (0.0357x) alone, ")
    assert "in conflict: runtime_ms <= 3 and memory_bytes >= 12 MiB\n" in said
    assert "nearest: with every limit " in said
    told = answer(*words, code=3)
    assert told["solutions"][0]["status"] == "infeasible"
    assert [near["alone"] for near in told["infeasible"]["nearest"]] == [0.5, int(14.5 * 2**20)]
    assert {each["name"] for each in told["infeasible"]["conflict"]} == {"runtime_ms", "memory_bytes"}
    assert told["infeasible"]["together"]["status"] in ("optimal", "feasible")
    alone = refusal("solve", table, "--limit", "runtime_ms=0.4", code=3)
    assert "out of reach by itself: runtime_ms <= 0.4" in alone


def test_sensitivity_and_prices(table: Path, answer: Answer, capsys: Captured) -> None:
    words = ["solve", table, "--limit", "runtime_ms=9", "--sensitivity"]
    (found,) = answer(*words)["sensitivity"]
    assert found["looser"]["gain"] > 0 > found["tighter"]["gain"]
    assert main([*map(str, words)]) == 0
    told = capsys.readouterr().out
    assert "`runtime_ms` binds: 1 more is worth about " in told
    assert "it gains " in told


def test_no_time_says_so_with_the_bound(table: Path, capsys: Captured) -> None:
    words = ["solve", table, "--limit", "runtime_ms=9", "--backend", "highs", "--time-limit", "1ns"]
    code = main([*map(str, words)])
    said = capsys.readouterr().err
    if code:  # a back end may be quicker than its clock
        assert code == 1
        assert "no architecture was found in the time limit of 1e-09 s; " in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "runtime_sm=9"], "--limit: t.csv has no column `runtime_sm`; did you mean `runtime_ms`?"),
        (["--limit", "a\x1b[2J=\r9"], r"--limit 'a\x1b[2J=\r9': write NAME=VALUE (at most) or 'NAME>=VALUE'"),
        (["--limit", "runtime_ms"], "--limit runtime_ms: write NAME=VALUE (at most) or 'NAME>=VALUE'"),
        (["--limit", "runtime_ms=fast"], "--limit runtime_ms=fast: 'fast' is not a number"),
        (["--limit", "runtime_ms=3GiB"], "--limit runtime_ms=3GiB: '3GiB' has the unit `GiB`"),
        (["--limit", "runtime_ms>=5", "--limit", "runtime_ms=4"],
         "--limit: the limits on `runtime_ms` contradict each other, at least 5 and at most 4; drop or move one"),
        (["--minimize", "scroe"], "--minimize: t.csv has no column `scroe`; did you mean `score`?"),
        (["--solutions", "0"], "invalid value for '--solutions': "),
        (["--time-limit", "soon"], "--time-limit: 'soon' is not a number"),
        (["--time-limit", "0s"], "--time-limit: '0s' is not above 0"),
        (["--method", "gredy"], "invalid value for '--method': 'gredy' is not one of "),
    ],
)  # fmt: skip
def test_refusals(words: list[str], said: str, table: Path, refusal: Refusal) -> None:
    told = refusal("solve", table, *words)
    assert told.startswith(f"inlay: {said}")
    assert told.count("\n") == 1


def test_a_front_marks_what_is_dominated(table: Path, answer: Answer, capsys: Captured) -> None:
    told = answer("sweep", table, "--limit", "runtime_ms=0.3x..1x", "--points", "8")
    scores = [point["objective"] for point in told["points"]]
    assert len(scores) == 8
    assert scores == sorted(scores, reverse=True)
    assert told["points"][-1]["objective"] == 0
    both = answer("sweep", table, "--limit", "runtime_ms=..", "--limit", "memory_bytes=..9MiB", "--points", "4")
    assert any(point["dominated"] for point in both["points"])
    assert not all(point["dominated"] for point in both["points"])
    assert main(["sweep", str(table), "--limit", "runtime_ms=..", "--limit", "memory_bytes=9MiB"]) == 0
    assert "marked -" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (["runtime_ms=3"], "--limit: 0 limits have a range; sweep one or two"),
        (["runtime_ms=9..3"], "--limit runtime_ms=9..3: the range goes down; write the smaller value first"),
        (["runtime_ms>=3..9"], "--limit runtime_ms>=3..9: a sweep goes through upper limits"),
        (["runtme_ms=.."], "--limit: t.csv has no column `runtme_ms`; did you mean `runtime_ms`?"),
    ],
)
def test_sweeps_that_are_refused(limits: list[str], said: str, table: Path, refusal: Refusal) -> None:
    words = [word for limit in limits for word in ("--limit", limit)]
    assert refusal("sweep", table, *words).startswith(f"inlay: {said}")


def test_a_front_without_any_answer_is_explained(table: Path, refusal: Refusal) -> None:
    said = refusal("sweep", table, "--limit", "runtime_ms=0.1..0.4", code=3)
    assert "out of reach by itself: runtime_ms <= 0.4" in said


def test_a_workspace_is_solved_and_its_solutions_stored(place: Workspace, answer: Answer, capsys: Captured) -> None:
    told = answer("solve", place.url, "--limit", "runtime=0.5x", "--limit", "chat.memory=0.9x",
                  "--solutions", "2")  # fmt: skip
    assert told["minimize"] == "predicted_kl_nats"
    for solution in told["solutions"]:
        stored = place.read_json(f"solutions/{solution['id']}.json")
        assert stored["predicted_kl_nats"] == solution["objective"]
        assert [" + ".join(block) for block in stored["architecture"]] == solution["choices"]
        assert solution["totals"]["runtime"] <= 0.5 * (9000 + 4 * 300_000)
    assert main(["solve", place.url, "--limit", "runtime=0.5x", "--method", "greedy"]) == 0
    shown = capsys.readouterr().out
    assert "greedy" in shown
    assert f"inlay evaluate {place.url} --solution " in shown


def test_without_limits_a_workspace_takes_its_jobs_budget(place: Workspace, answer: Answer, refusal: Refusal) -> None:
    assert "no search has finished" in refusal("solve", place.url)
    place.write_json("run.json", {"job": {"budget": {"runtime": "0.4x"}}})
    told = answer("solve", place.url)
    assert told["limits"] == [{"name": "runtime", "side": "upper", "value": 483600}]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "runtme=0.5x"], "--limit runtme=0.5x: unknown limit; did you mean `runtime`?"),
        (["--limit", "runtime=2x"], "--limit runtime=2x: '2x' is more than the parent needs"),
        (["--limit", "throughput<=9000"], "--limit throughput<=9000: `throughput` is at least what is given"),
        (["--limit", "fast.runtime=0.5x"], "budget.fast.runtime: there is no scenario `fast`; the tables have chat"),
        (["--minimize", "runtime"], "--minimize: a workspace is solved for its predicted KL"),
    ],
)
def test_a_workspace_refuses(words: list[str], said: str, place: Workspace, refusal: Refusal) -> None:
    assert refusal("solve", place.url, *words).startswith(f"inlay: {said}")
    assert not place.store.list("solutions/")


def test_a_workspace_explains_and_sweeps(place: Workspace, answer: Answer, refusal: Refusal) -> None:
    said = refusal("solve", place.url, "--limit", "throughput=1000x", code=3)
    assert "out of reach by itself: runtime <= 1.21 us" in said
    points = answer("sweep", place.url, "--limit", "runtime=0.2x..0.9x", "--points", "5")["points"]
    assert len(points) == 5
    assert "`throughput` cannot be swept; sweep `runtime`" in refusal(
        "sweep", place.url, "--limit", "throughput=2x..3x"
    )


def test_what_is_neither_table_nor_workspace(tmp_path: Path, refusal: Refusal) -> None:
    assert "has no workspace.json" in refusal("solve", tmp_path)
    assert "there is no file" in refusal("solve", tmp_path / "nowhere.csv")


def test_no_torch(table: Path, place: Workspace) -> None:
    script = """
import sys
from inlay.nas.cli import main
for words in (["solve", sys.argv[1], "--limit", "runtime_ms=9", "--backend", "highs"],
              ["sweep", sys.argv[1], "--limit", "runtime_ms=5..9", "--points", "2"],
              ["solve", sys.argv[2], "--limit", "runtime=0.5x"],
              ["sweep", sys.argv[2], "--limit", "runtime=0.5x..0.9x", "--points", "2"]):
    assert main(words) == 0
assert not {"torch", "transformers", "ray", "mlflow", "matplotlib"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(table), place.url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_docs_are_true(tmp_path: Path, inlay: Inlay) -> None:
    page = (Path(__file__).parents[2] / "docs" / "solving.md").read_text()
    for script in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    blocks = re.findall(r"```console\n\$ inlay ([^\n]*)\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 5
    for words, shown in blocks:
        done = inlay(*shlex.split(words), cwd=tmp_path)
        assert [line.rstrip() for line in (done.stdout + done.stderr).splitlines()] == shown.splitlines(), words
