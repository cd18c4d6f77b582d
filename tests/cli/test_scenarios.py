"""Several workloads, decided ones, and pair terms on the command line, beside every architecture tried one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.cli import main
from inlay.nas.workspace import Workspace

Captured = pytest.CaptureFixture[str]
Answer = Callable[..., Any]
Refusal = Callable[..., str]

BATCHES = {"b1": 1, "b8": 8, "b32": 32}
SCORES = {"parent": 0.0, "half": 0.02, "no_op": 0.1}
MIB = 2**20
LAYERS = 4


def runtime(batch: int, variant: str) -> float:
    """A layer's time, ms."""
    return {"parent": 2.0, "half": 1.25, "no_op": 0.0}[variant] * (1 + batch / 8)


def memory(batch: int, variant: str) -> int:
    """A layer's weights and cache, bytes."""
    return {"parent": 4, "half": 2, "no_op": 0}[variant] * MIB + (variant != "no_op") * batch * MIB // 4


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three batch sizes; tokens on the base rows alone."""
    lines = ["scenario,layer,variant,score,runtime_ms,memory_bytes,tokens"]
    for name, batch in BATCHES.items():
        lines.append(f"{name},,ends,,0.5,{MIB},{batch * 64}")
        for layer, variant in itertools.product(range(LAYERS), SCORES):
            own = (SCORES[variant] * (1 + layer), runtime(batch, variant), memory(batch, variant))
            lines.append(f"{name},{layer},{variant},{','.join(map(str, own))},")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    return tmp_path / "t.csv"


def everything() -> list[tuple[int, dict[str, float], dict[str, int], tuple[str, ...]]]:
    """(score in 1e-9, runtime and memory by scenario, choices) of every architecture."""
    found = []
    for choices in itertools.product(SCORES, repeat=LAYERS):
        score = sum(round(SCORES[variant] * (1 + layer) * 1e9) for layer, variant in enumerate(choices))
        times = {name: 0.5 + sum(runtime(batch, v) for v in choices) for name, batch in BATCHES.items()}
        sizes = {name: MIB + sum(memory(batch, v) for v in choices) for name, batch in BATCHES.items()}
        found.append((score, times, sizes, choices))
    return found


def test_limits_hold_in_every_scenario_or_in_the_one_named(table: Path, answer: Answer) -> None:
    told = answer("solve", table, "--limit", "memory_bytes=30MiB", "--limit", "b1.runtime_ms=6")
    best = min(s for s, times, sizes, _ in everything() if times["b1"] <= 6 and max(sizes.values()) <= 30 * MIB)
    assert told["solutions"][0]["objective"] == best / 1e9
    assert [limit["name"] for limit in told["limits"]] == [
        "b1.memory_bytes", "b8.memory_bytes", "b32.memory_bytes", "b1.runtime_ms"
    ]  # fmt: skip
    assert set(told["solutions"][0]["totals"]) >= {"score", "b1.runtime_ms", "b32.memory_bytes"}
    half = answer("solve", table, "--limit", "b8.runtime_ms=0.5x")["limits"]
    assert half == [{"name": "b8.runtime_ms", "side": "upper", "value": 8.2}]  # of 16.5, in tenths as all values are


def test_the_highest_throughput_that_fits(table: Path, answer: Answer, capsys: Captured) -> None:
    words = ["solve", table, "--maximize", "tokens/runtime_ms", "--limit", "memory_bytes=20MiB", "--limit", "score=0.3"]
    (solution,) = answer(*words)["solutions"]
    rates = {
        name: max(
            (64 * batch / times[name] for s, times, sizes, _ in everything()
             if s <= 300_000_000 and sizes[name] <= 20 * MIB),
            default=0,
        )
        for name, batch in BATCHES.items()
    }  # fmt: skip
    assert solution["status"] == "optimal"
    assert rates[solution["scenario"]] == max(rates.values())
    assert solution["tokens/runtime_ms"] == pytest.approx(max(rates.values()), rel=1e-12)
    assert solution["totals"]["memory_bytes"] <= 20 * MIB
    assert main([*map(str, words)]) == 0
    assert f"Scenario: `{solution['scenario']}` with a tokens/runtime_ms of " in capsys.readouterr().out


def test_the_scenario_of_the_least_score(table: Path, answer: Answer, capsys: Captured) -> None:
    words = ["solve", table, "--any-scenario", "--limit", "tokens>=500", "--limit", "memory_bytes=14MiB"]
    (solution,) = answer(*words)["solutions"]
    best = min(
        (s, name)
        for s, _, sizes, _ in everything()
        for name, batch in BATCHES.items()
        if 64 * batch >= 500 and sizes[name] <= 14 * MIB
    )
    assert (solution["objective"], solution["scenario"]) == (best[0] / 1e9, best[1])
    assert main([*map(str, words), "--method", "greedy", "--sensitivity"]) == 0
    shown = capsys.readouterr().out
    assert "`b1` cannot meet the limits" in shown
    assert "greedy" in shown


def test_nothing_fits_in_any_scenario(table: Path, refusal: Refusal) -> None:
    said = refusal("solve", table, "--any-scenario", "--limit", "memory_bytes=1000", code=3)
    assert said.startswith("inlay: scenario `b1`: no architecture meets the limits\n")
    assert said.count("out of reach by itself: memory_bytes <= 1000 B") == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minimize", "runtime_ms"],
         "t.csv: layer 0, variant `parent`: `runtime_ms` is 2.25 in scenario `b1` and 4.0 in `b8`; minimise one of "
         "them, such as `b1.runtime_ms`, or let --any-scenario decide"),
        (["--maximize", "tokens"], "--maximize tokens: write the column that a scenario delivers over the one that"),
        (["--maximize", "tokns/runtime_ms"], "--maximize: t.csv, scenario `b1` has no column `tokns`; did you mean"),
        (["--maximize", "memory_bytes/runtime_ms"],
         "--maximize: column `memory_bytes` of t.csv, scenario `b1` is not a whole number above 0 in the base row"),
        (["--maximize", "tokens/runtime_ms", "--minimize", "score"], "--maximize: leave --minimize out"),
        (["--maximize", "tokens/runtime_ms", "--pairs", "p.csv"], "--pairs: pair terms are of the score"),
        (["--any-scenario", "--solutions", "2"], "--solutions: a decided scenario has one solution, of the exact"),
        (["--any-scenario", "--backend", "cbc"], "--backend: a decided scenario has one solution, of the exact"),
        (["--any-scenario", "--limit", "b8.runtime_ms=9"],
         "--limit b8.runtime_ms=9: the limits hold in the scenario that is decided for; write runtime_ms"),
        (["--limit", "b8.runtme_ms=9"], "--limit: t.csv has no column `b8.runtme_ms`; did you mean `b8.runtime_ms`?"),
    ],
)  # fmt: skip
def test_refusals(words: list[str], said: str, table: Path, refusal: Refusal) -> None:
    told = refusal("solve", table, *words)
    assert told.startswith(f"inlay: {said}")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("x,0,a,1\ny,0,b,1\n", "t.csv: scenario `y` has no row for layer 0, variant `a`; each scenario needs the same"),
        ("x,0,a,1\ny,0,a,1\ny,0,b,1\n", "t.csv: scenario `x` has no row for layer 0, variant `b`"),
        ("x,0,a,1\n,0,b,1\n", "t.csv: row 2 has no `scenario`; name it in every row"),
        ("x,0,a,1\nx,0,a,1\ny,0,a,1\n", "t.csv, scenario `x`: layer 0 has the variant `a` twice"),
        ("x,0,a,1\ny,0,a,2\n", "t.csv: layer 0, variant `a`: `score` is 1 in scenario `x` and 2 in `y`"),
    ],
)
def test_tables_of_scenarios_that_are_refused(rows: str, said: str, tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "t.csv").write_text("scenario,layer,variant,score\n" + rows)
    assert refusal("solve", tmp_path / "t.csv").startswith(f"inlay: {said}")


def test_one_scenario_is_a_plain_table(tmp_path: Path, answer: Answer, refusal: Refusal) -> None:
    (tmp_path / "t.csv").write_text("scenario,layer,variant,score,time_ms\nchat,0,a,1,2\nchat,0,b,2,1\n")
    (solution,) = answer("solve", tmp_path / "t.csv", "--limit", "time_ms=1")["solutions"]
    assert solution["choices"] == ["b"]
    said = refusal("solve", tmp_path / "t.csv", "--any-scenario")
    assert said.startswith("inlay: --any-scenario: t.csv, scenario `chat` has no column `scenario` with several")


def test_pair_terms(table: Path, tmp_path: Path, answer: Answer, refusal: Refusal) -> None:
    pairs = {((0, "half"), (2, "half")): -0.05, ((1, "half"), (3, "no_op")): 0.25, ((0, "half"), (3, "half")): 0.03}
    lines = [f"{a},{b},{c},{d},{value}" for ((a, b), (c, d)), value in pairs.items()]
    file = tmp_path / "pairs.csv"
    file.write_text("\n".join(["layer,variant,other_layer,other_variant,score", *lines]))
    words = [table, "--limit", "b8.runtime_ms=9.5", "--pairs", file]
    best = min(
        score + sum(round(v * 1e9) for ends, v in pairs.items() if all(choices[layer] == own for layer, own in ends))
        for score, times, _, choices in everything()
        if times["b8"] <= 9.5
    )
    for backend in ("auto", "highs"):
        assert answer("solve", *words, "--backend", backend)["solutions"][0]["objective"] == best / 1e9
    swept = answer("sweep", table, "--limit", "b8.runtime_ms=9.5..9.5", "--pairs", file, "--gap", "0")
    assert {point["objective"] for point in swept["points"]} == {best / 1e9}
    said = refusal("solve", *words, "--limit", "score=0.3")
    assert said.startswith("inlay: --limit score=0.3: `score` has pair terms, so it can be minimised but not limited")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("7,half,1,half,1", "row 1: `layer` is 7; the layers are 0 to 3"),
        ("0,half,x,half,1", "row 1: `other_layer` is 'x'; the layers are 0 to 3"),
        ("0,haf,1,half,1", "row 1: layer 0 has no variant 'haf'; did you mean `half`? it has parent, half, no_op"),
        ("1,half,1,no_op,1", "row 1 joins two variants of layer 1; a pair is of two layers"),
        ("0,half,1,half,1\n1,half,0,half,2", "row 2 gives a pair that an earlier row has; give each pair once"),
        ("0,half,1,half,nan", "row 1: `score` is nan; write a finite number"),
        ("0,half,1,half,", "row 1: `score` is empty; write a finite number"),
        ("0,half,1,half,1e300", "row 1: `score` is 1e+300; write a finite number"),
    ],
)
def test_pair_terms_that_are_refused(row: str, said: str, table: Path, tmp_path: Path, refusal: Refusal) -> None:
    file = tmp_path / "p.csv"
    file.write_text(f"layer,variant,other_layer,other_variant,score\n{row}\n")
    told = refusal("solve", table, "--pairs", file)
    assert told.startswith(f"inlay: --pairs: p.csv: {said}")
    assert told.count("\n") == 1


def test_pair_tables_that_are_none(table: Path, tmp_path: Path, refusal: Refusal) -> None:
    file = tmp_path / "p.csv"
    file.write_text("layer,variant,other,score\n0,half,1,1\n")
    said = refusal("solve", table, "--pairs", file)
    assert said.startswith("inlay: --pairs: p.csv has no column `other_layer`; it takes layer, variant, other_layer")
    assert "there is no file" in refusal("solve", table, "--pairs", tmp_path / "none.csv")
    (tmp_path / "t.csv").write_text("layer,variant,score\n0,a,1\n1,a,1\n")
    file.write_text("layer,variant,other_layer,other_variant,score\n0,a,1,a,0.5\n")
    said = refusal("solve", tmp_path / "t.csv", "--pairs", file)
    assert said.startswith("inlay: --pairs: p.csv: row 1: `score` is 0.5, but all scores are whole numbers")


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """A workspace with two batch sizes."""
    found = Workspace(tmp_path / "demo.search")
    sizes = {"attention:parent": 100_000, "attention:window=8": 60_000, "attention:no_op": 0}
    sizes |= {"ffn:parent": 200_000, "ffn:width=8": 90_000, "ffn:no_op": 0}
    costs: list[dict[str, Any]] = []
    for scenario, batch in (("b1", 1), ("b16", 16)):
        ends = {"prefill_ns": 5000, "decode_ns": 50, "runtime_ns": 9000, "parameters": 900, "weights_bytes": 3600}
        costs.append({"scenario": scenario, "layer": -1, "slot": "ends", "variant": "ends", **ends, "kv_bytes": 0})
        for layer, (label, time) in itertools.product(range(3), sizes.items()):
            row = {"scenario": scenario, "layer": layer, "slot": label.split(":")[0], "variant": label}
            row |= {"prefill_ns": time // 4, "decode_ns": time // 100, "runtime_ns": time * (8 + batch) // 8}
            cache = 5000 * batch if label.startswith("attention") and time else 0
            costs.append({**row, "parameters": time // 10, "weights_bytes": time // 10 * 4, "kv_bytes": cache})
    single = [(a, "ffn:parent") for a in list(sizes)[1:3]] + [("attention:parent", f) for f in list(sizes)[4:]]
    scores = [
        {"layer": layer, "attention": a, "ffn": f, "kl_nats": 0.01 * number * (layer + 1)}
        for layer in range(3)
        for number, (a, f) in enumerate(single, start=1)
    ]
    tokens = [{"scenario": "b1", "generated_tokens": 64}, {"scenario": "b16", "generated_tokens": 1024}]
    found.write_json("workspace.json", {"schema": 1, "parent_digest": "0" * 64, "parent": "./parent"})
    for name, rows in (("costs", costs), ("scores", scores), ("scenarios", tokens)):
        found.write_table(name, rows)
    return found


def test_a_workspaces_batch_size_is_decided(place: Workspace, answer: Answer) -> None:
    words = ["solve", place.url, "--maximize", "throughput", "--limit", "memory=300KB", "--limit", "kl=0.12"]
    (solution,) = answer(*words)["solutions"]
    name = solution["scenario"]
    tokens = {"b1": 64, "b16": 1024}[name]
    assert solution["throughput"] == pytest.approx(tokens * 1e9 / solution["totals"]["runtime"])
    assert solution["totals"]["memory"] <= 300_000
    assert solution["totals"]["predicted_kl_nats"] <= 0.12
    faster = f"throughput={solution['throughput'] * 1.001:.3f}"
    words = ["solve", place.url, "--any-scenario", "--limit", "memory=300KB", "--limit", faster]
    assert answer(*words)["solutions"][0]["objective"] > 0.12
    stored = place.read_json(f"solutions/{solution['id']}.json")
    assert stored["predicted_kl_nats"] == pytest.approx(solution["totals"]["predicted_kl_nats"])
    assert stored["totals"][f"{name}.runtime"] == solution["totals"]["runtime"]
    assert f"{name}.memory" in stored["limits"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--maximize", "speed"], "--maximize speed: of a workspace the throughput can be maximised; write throughput"),
        (["--maximize", "throughput"], "--any-scenario: give the limits of the scenario that is decided for"),
        (["--maximize", "throughput", "--limit", "memory=1MB"],
         "--maximize throughput: without a limit on the KL the fastest is a model without layers; add one"),
        (["--limit", "kl=0.1"], "--limit kl=0.1: the predicted KL is what is minimised; it can be limited with --max"),
        (["--maximize", "throughput", "--limit", "kl>=0.1"], "--limit kl>=0.1: the KL is limited from above"),
        (["--maximize", "throughput", "--limit", "kl=low"], "--limit kl=low: 'low' is not a number"),
        (["--any-scenario", "--limit", "b1.runtime=1ms"],
         "--limit b1.runtime=1ms: the limits hold in the scenario that is decided for; write runtime"),
    ],
)  # fmt: skip
def test_a_workspace_refuses(words: list[str], said: str, place: Workspace, refusal: Refusal) -> None:
    told = refusal("solve", place.url, *words)
    assert told.startswith(f"inlay: {said}")
    assert not place.store.list("solutions/")
