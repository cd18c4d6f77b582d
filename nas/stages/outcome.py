"""What stages found, as rows of tables and as solution.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from inlay.cluster.pieces import Record
from inlay.nas.job import Job
from inlay.nas.loop.solving import Tables
from inlay.nas.stages.assemble import Assembled
from inlay.nas.tables.architecture import identify


def loss_rows(records: Sequence[Record], job: Job, left: Mapping[tuple[int, str], str]) -> list[dict[str, Any]]:
    """The loss table: every trained variant with what its training reached, on how many tokens.

    `left` says why variants were not trained to the end, by layer and label.
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for record in records:
        layer = int(record.values["layer"])
        for label, result in sorted(record.values["variants"].items()):
            tokens = len(result["curve"]) * job.distill.batch_size * job.data.distill.sequence_length
            row: dict[str, Any] = {
                "layer": layer,
                "variant": label,
                "status": result["status"],
                "kept": result["kept"],
                "start_loss": result["start_loss"],
                "loss": result["loss"],
                "learning_rate": result["learning_rate"],
                "tokens": tokens,
                "reason": result["reason"] or left.get((layer, label), ""),
            }
            if before := rows.get((layer, label)):
                # A stretch that went on from another; where it failed, what that one reached is what there is.
                row |= {"start_loss": before["start_loss"], "tokens": before["tokens"] + tokens}
                row |= {"kept": before["kept"]} if row["kept"] == "start" else {}
                if result["status"] == "failed":
                    row |= {name: before[name] for name in ("status", "kept", "loss", "learning_rate")}
            rows[layer, label] = row
    return list(rows.values())


def pool_rows(assembled: Assembled, tables: Tables, job: Job) -> list[dict[str, Any]]:
    """The pool table: every candidate with prediction beside truth; no times are true where the job gives them."""
    scenario = tables.costs.scenarios[0]
    rows = []
    for candidate in sorted(assembled.pool.candidates, key=lambda c: (c.true.kl_nats, c.id)):
        total = tables.costs.total(scenario, candidate.architecture)
        above = candidate.true.above(assembled.kept.true)
        measured = candidate.measured[scenario] if candidate.measured and job.hardware.costs is None else None
        rows.append(
            {
                "id": candidate.id,
                "round": candidate.round,
                "origin": candidate.origin,
                "predicted_kl_nats": candidate.predicted_kl,
                "kl_nats": candidate.true.kl_nats,
                "standard_error": candidate.true.standard_error,
                "above_kept_nats": above.nats,
                "above_kept_standard_error": above.standard_error,
                "probe_kl_nats": None if candidate.probe_kl == math.inf else candidate.probe_kl,
                "predicted_runtime_ns": total["runtime_ns"],
                "measured_runtime_ns": measured.runtime_ns if measured else None,
                "measured_ratio": measured.ratios["runtime"] if measured else None,
                "measured_ratio_error": measured.ratios["runtime"] * measured.ratio_errors["runtime"]
                if measured
                else None,
                "memory_bytes": total["weights_bytes"] + total["kv_bytes"],
                "parameters": total["parameters"],
                "kept": candidate.id == assembled.kept.id,
            }
        )
    return rows


def correction_rows(assembled: Assembled) -> list[dict[str, Any]]:
    """The factors by which true KL corrected the scores of blocks."""
    return [
        {"layer": layer, "block": list(block), "factor": factor}
        for (layer, block), factor in sorted(assembled.pool.scores.factors.items())
    ]


def curve_rows(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """The recovery table: every model's losses, point by point."""
    return [{"model": name, "point": n, **point} for name, curve in curves.items() for n, point in enumerate(curve)]


def solution_of(assembled: Assembled, tables: Tables, job: Job) -> dict[str, Any]:
    """solution.json: the kept architecture with its predicted and true figures."""
    kept = assembled.kept
    measured = kept.measured if kept.measured and job.hardware.costs is None else {}
    return {
        "id": identify(kept.architecture),
        "architecture": [list(block) for block in kept.architecture],
        "origin": kept.origin,
        "predicted_kl_nats": kept.predicted_kl,
        "kl_nats": kept.true.kl_nats,
        "probe_kl_nats": kept.probe_kl,
        "totals": {scenario: tables.costs.total(scenario, kept.architecture) for scenario in tables.costs.scenarios},
        "measured": {scenario: asdict(times) for scenario, times in measured.items()},
        "limits": {e.field: e.ratio for e in kept.excesses or ()},
        "gamma": assembled.pool.scores.gammas.common,
        "gammas": {" + ".join(pair): gamma for pair, gamma in assembled.pool.scores.gammas.by_kind.items()},
        "rounds": assembled.pool.rounds,
    }
