"""A small hand-made workspace with everything that reports read: 8 layers, figures of a plausible search."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.job import Job
from inlay.nas.report.pictures import Picture, all_pictures
from inlay.nas.workspace import Workspace

LAYERS = 8
ATTENTION = {"attention:parent": 1.0, "attention:kv_heads=2": 0.85, "attention:window=64": 0.8, "attention:no_op": 0.0}
FFN = {"ffn:parent": 1.0, "ffn:width=256": 0.55, "ffn:width=128": 0.32, "ffn:linear": 0.2, "ffn:no_op": 0.0}
PARENT = ("attention:parent", "ffn:parent")
CHILD = [
    PARENT,
    ("attention:kv_heads=2", "ffn:parent"),
    ("attention:window=64", "ffn:width=256"),
    ("attention:no_op", "ffn:width=256"),
    ("attention:no_op", "ffn:linear"),
    ("attention:kv_heads=2", "ffn:no_op"),
    ("attention:parent", "ffn:width=128"),
    PARENT,
]


@pytest.fixture
def search(tmp_path: Path) -> Workspace:
    """The workspace of a finished search."""
    return make_workspace(tmp_path / "demo.search")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Picture]:
    """The pictures of such a workspace, for tests that change nothing in theirs."""
    return dict(all_pictures(make_workspace(tmp_path_factory.mktemp("drawn") / "demo.search")))


def make_workspace(folder: Path) -> Workspace:
    """Writes the files of a finished search into `folder`."""
    place, chance = Workspace(folder), random.Random(0)
    place.write_json("workspace.json", {"schema": 1, "parent_digest": "0" * 64, "parent": "./parent"})
    place.write_table("costs", cost_rows())
    place.write_table("scores", score_rows(chance))
    place.write_table("losses", loss_rows(chance))
    place.write_table("pool", pool_rows(chance))
    place.write_table("recovery", recovery_rows(chance))
    place.write_json("evaluation.json", evaluation())
    place.write_json("solution.json", solution("aaaa00000000", CHILD, 0.41, 0.44))
    stored = [PARENT, *CHILD[1:7], ("attention:no_op", "ffn:width=128")]
    place.write_json("solutions/bbbb00000000.json", solution("bbbb00000000", stored, 0.57, None))
    place.write_json("run.json", run_record())
    return place


def evaluation() -> dict[str, Any]:
    """evaluation.json."""
    depth = [PARENT if layer < 5 else ("attention:no_op", "ffn:no_op") for layer in range(LAYERS)]
    uniform = [("attention:kv_heads=2", "ffn:width=256")] * LAYERS
    return {
        "parent": figures([PARENT] * LAYERS, 0.0, 1.0),
        "child": figures(CHILD, 0.081, 0.58, before=0.43),
        "uniform": figures(uniform, 0.142, 0.59, before=0.71),
        "depth": figures(depth, 0.334, 0.61, before=2.9) | {"over_budget": {"chat.runtime": 1.05}},
        "chosen": "child",
        "scenario": "chat",
    }


def figures(blocks: list[tuple[str, str]], kl: float, ratio: float, before: float | None = None) -> dict[str, Any]:
    """One model of evaluation.json."""
    row: dict[str, Any] = {
        "kl_nats": kl,
        "kl_standard_error": kl / 30,
        "perplexity": 9.1 * math.exp(kl),
        "top1_agreement": 1 - 0.6 * kl,
        "parameters": round(3_700_000 * (0.2 + 0.8 * ratio)),
        "weights_bytes": 2 * round(3_700_000 * (0.2 + 0.8 * ratio)),
        "kv_bytes_per_token": 3072 * ratio,
        "prefill_tokens_per_second": 21_000 / ratio,
        "decode_tokens_per_second": 1_450 / ratio,
        "runtime_seconds": 0.93 * ratio,
        "architecture": [list(block) for block in blocks],
    }
    if before is not None:
        row |= {"before_recover": before, "runtime_ratio": ratio, "over_budget": {}}
    return row


def cost_rows() -> list[dict[str, Any]]:
    """tables/costs: the ends, then every variant of every layer in one scenario."""
    rows = [cost("ends", "ends", -1, 120_000_000, 600_000, 0)]
    for layer in range(LAYERS):
        rows += [
            cost("attention", v, layer, round(50e6 * s), round(110_000 * s), round(64 * s))
            for v, s in ATTENTION.items()
        ]
        for variant, share in FFN.items():
            rows.append(cost("ffn", variant, layer, round(51e6 * share), round(295_000 * share), 0))
    return rows


def cost(slot: str, variant: str, layer: int, runtime_ns: int, parameters: int, kv_bytes: int) -> dict[str, Any]:
    """A row of tables/costs."""
    return {
        "scenario": "chat",
        "layer": layer,
        "slot": slot,
        "variant": variant,
        "prefill_ns": runtime_ns // 4,
        "decode_ns": runtime_ns // 170,
        "runtime_ns": runtime_ns,
        "spread_ns": runtime_ns // 50,
        "parameters": parameters,
        "weights_bytes": 2 * parameters,
        "kv_bytes": 1024 * kv_bytes,
    }


def score_rows(chance: random.Random) -> list[dict[str, Any]]:
    """tables/scores."""
    rows = []
    for layer in range(LAYERS):
        ends = 8 if layer in (0, LAYERS - 1) else 1
        singles = [(a, "ffn:parent", 0.04 + 0.1 * (1 - s)) for a, s in ATTENTION.items() if s < 1]
        singles += [("attention:parent", f, 0.02 + 0.2 * (1 - s) ** 2) for f, s in FFN.items() if s < 1]
        for attention, ffn, kl in [*singles, ("attention:no_op", "ffn:no_op", 0.3)]:
            value = ends * kl * chance.uniform(0.6, 1.5)
            rows.append(
                {"layer": layer, "attention": attention, "ffn": ffn, "kl_nats": value, "standard_error": value / 20}
            )
    return rows


def loss_rows(chance: random.Random) -> list[dict[str, Any]]:
    """tables/losses, one variant failed."""
    rows = []
    for layer in range(LAYERS):
        for label, share in {**ATTENTION, **FFN}.items():
            if label.endswith((":parent", ":no_op")):
                continue
            loss = min(0.95, (0.15 + 0.5 * (1 - share)) * chance.uniform(0.7, 1.4))
            rows.append(
                {
                    "layer": layer,
                    "variant": label,
                    "status": "trained",
                    "kept": "last",
                    "start_loss": min(1, 1.6 * loss),
                    "loss": loss,
                    "reason": "",
                }
            )
    rows[11] |= {"status": "failed", "loss": None, "reason": "the loss was not finite at step 40 and again at step 55"}
    return rows


def pool_rows(chance: random.Random) -> list[dict[str, Any]]:
    """tables/pool."""
    parent = 120e6 + LAYERS * 101e6
    rows = []
    for number in range(16):
        ratio = 0.5 + 0.012 * number * chance.uniform(0.6, 1.2)
        kl = 0.44 + 0.9 * abs(ratio - 0.58) + chance.uniform(0.0, 0.5)
        kept = number == 0
        measured = ratio * chance.uniform(0.97, 1.03) if number < 4 else None
        rows.append(
            {
                "id": f"{number:012x}",
                "round": number // 8,
                "origin": "pool",
                "predicted_kl_nats": kl * chance.uniform(0.75, 1.05),
                "kl_nats": 0.43 if kept else kl,
                "standard_error": 0.01,
                "predicted_runtime_ns": round(0.58 * parent if kept else ratio * parent),
                "measured_runtime_ns": None,
                "measured_ratio": 0.58 if kept else measured,
                "memory_bytes": 1,
                "parameters": 1,
                "kept": kept,
            }
        )
    return rows


def recovery_rows(chance: random.Random) -> list[dict[str, Any]]:
    """tables/recovery."""
    starts = {"child": (0.43, 0.08), "uniform": (0.71, 0.14), "depth": (2.9, 0.33)}
    return [
        {"model": name, "point": point, "loss": value + 0.2, "kl_nats": value, "cosine": 0.2}
        for name, (start, end) in starts.items()
        for point in range(120)
        for value in [(end + (start - end) * math.exp(-point / 18)) * chance.uniform(0.9, 1.1)]
    ]


def solution(name: str, blocks: list[tuple[str, str]], predicted: float, true: float | None) -> dict[str, Any]:
    """solution.json and solutions/*.json."""
    return {
        "id": name,
        "architecture": [list(block) for block in blocks],
        "origin": "pool",
        "predicted_kl_nats": predicted,
        "kl_nats": true,
        "totals": {"chat": {"runtime_ns": 540_000_000}},
    }


def run_record() -> dict[str, Any]:
    """run.json."""
    job = Job.from_dict(
        {
            "parent": "inlay:pystdlib",
            "data": {"distill": {"path": "inlay:pystdlib/train"}, "validate": {"path": "inlay:pystdlib/held_out"}},
            "space": {
                "attention": [{"kv_heads": 2}, {"window": 64}, "no_op"],
                "ffn": [{"width": 256}, {"width": 128}, "linear", "no_op"],
            },
            "budget": {"runtime": "0.6x"},
        }
    )
    seconds = {
        "measure": 21.4,
        "distill": 96.0,
        "score": 41.2,
        "assemble": 30.8,
        "recover": 140.9,
        "evaluate": 17.3,
        "export": 0.6,
    }
    pieces = {"measure": 1, "distill": 16, "score": 8, "assemble": 22, "recover": 3, "evaluate": 5, "export": 0}
    return {
        "finished": "f" * 64,
        "stages": [
            {"name": n, "seconds": s, "peak_bytes": 410 * 2**20 if pieces[n] else 0, "pieces": pieces[n]}
            for n, s in seconds.items()
        ],
        "failed_variants": [
            {
                "layer": 2,
                "variant": "ffn:width=128",
                "reason": "the loss was not finite at step 40 and again at step 55",
            }
        ],
        "mlflow_run_id": "0123456789abcdef0123456789abcdef",
        "job": job.to_dict(),
        "folder": str(job.folder),
        "chosen": "child",
    }
