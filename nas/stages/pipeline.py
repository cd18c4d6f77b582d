"""The stages in their order, each timed, tabled and told to the tracker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from inlay.cluster.pieces import Record
from inlay.cluster.runtime import Cluster
from inlay.nas.export.hf import write_model_folder
from inlay.nas.families import Parent
from inlay.nas.hardware.costs import CostTable
from inlay.nas.job import Job
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.assemble import Assembled, assemble
from inlay.nas.stages.candidates import Blocks, identify, true_scores
from inlay.nas.stages.distill import build_library, failures, library_of
from inlay.nas.stages.evaluate import Recovered, side_by_side, true_scores_of_models
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.record import SearchRecord
from inlay.nas.stages.recover import recover
from inlay.nas.stages.score import score_blocks
from inlay.nas.stages.search import Search
from inlay.nas.stages.solving import Tables, solve_pool
from inlay.nas.stages.source import Library
from inlay.nas.stages.text import TEXTS, Packed, Texts, store_texts
from inlay.nas.tables import PARENT_BLOCK, ScoreTable
from inlay.nas.variants import variants_of
from inlay.nas.workspace import Workspace

BASELINES = ("uniform", "depth")


class Pipeline:
    """One run of all stages; a context manager, so that the tracker learns how it ended."""

    def __init__(
        self, job: Job, place: Workspace, parent: Parent, cluster: Cluster, reporter: Reporter, fingerprint: str
    ) -> None:
        self.job, self.place, self.parent = job, place, parent
        self.record = SearchRecord(job, place, parent, reporter)
        self.search = Search(job, place, parent, cluster, reporter, self.record.numbers)
        self.fingerprint = fingerprint

    def __enter__(self) -> Self:
        self.record.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.record.end(value)

    def run(self, packed: Packed) -> tuple[dict[str, Any], dict[str, Any]]:
        """All stages; evaluation.json's and run.json's contents."""
        self.search.cluster.preload("inlay.nas.stages.distill", "inlay.nas.stages.comparison")
        texts = store_texts(packed, self.place)
        self.record.texts(texts)
        self.place.write_json("texts.json", {name: asdict(getattr(texts, name)) for name in TEXTS})
        tables_costs = self._costs()
        self._check_reachable(tables_costs)
        library, lost = self._library(texts)
        scores = self._scores(texts, library)
        tables = Tables(scores, tables_costs, self._tokens())
        assembled = self._assemble(texts, library, tables)
        architectures = {"child": assembled.kept.architecture} | {
            name: assembled.baselines[name].architecture for name in BASELINES
        }
        models = self._recover(texts, library, architectures)
        evaluation = self._evaluate(texts, library, tables_costs, models)
        winner = str(evaluation["chosen"])
        with self.stage("export"):
            write_model_folder(self.place, self.parent, models[winner], evaluation, self.job, "child")
        run = self.record.finish(self.fingerprint, evaluation, lost, models)
        return evaluation, run

    def stage(self, name: str) -> Any:
        """Times a stage and collects what its pieces report."""
        return self.record.stage(name, self.search)

    def _tokens(self) -> dict[str, int]:
        return {s.name: s.batch_size * s.generate for s in self.job.hardware.scenarios}

    def _costs(self) -> CostTable:
        with self.stage("measure"):
            rows = cost_rows(self.search)
            self.record.table("costs", rows)
            self.record.table(
                "scenarios",
                [
                    {
                        **scenario.model_dump(),
                        "scenario": scenario.name,
                        "generated_tokens": self._tokens()[scenario.name],
                    }
                    for scenario in self.job.hardware.scenarios
                ],
            )
        return CostTable(rows)

    def _check_reachable(self, costs: CostTable) -> None:
        """An impossible budget is told now, before anything is trained."""
        measured: dict[int, dict[tuple[str, str], float]] = {}
        for layer in range(self.parent.shape.num_layers):
            for variant in variants_of(self.job.space, self.parent.shape, layer):
                block = (
                    (variant.label, PARENT_BLOCK[1])
                    if variant.slot == "attention"
                    else (PARENT_BLOCK[0], variant.label)
                )
                measured.setdefault(layer, {})[block] = 0.0
        problem = Tables(ScoreTable(measured, 1.0), costs, self._tokens()).problem(self.job.budget)
        solve_pool(problem, 1, 0.0, self.job.solve.time_limit)

    def _library(self, texts: Texts) -> tuple[Library, list[tuple[int, str, str]]]:
        with self.stage("distill") as told:
            records = build_library(self.search, texts.distill)
            rows = _loss_rows(records)
            self.record.table("losses", rows)
            lost = failures(records)
            told.note = f"{len(rows) - len(lost)} variants" + (f", {len(lost)} failed" if lost else "")
            trained = sum(len(record.values["variants"]) for record in records)
            told.metrics["variant_tokens"] = trained * self.job.distill.tokens
        library = library_of(records)
        self.place.write_json("library.json", {str(layer): dict(held) for layer, held in library.digests.items()})
        return library, lost

    def _scores(self, texts: Texts, library: Library) -> ScoreTable:
        with self.stage("score") as told:
            rows = score_blocks(self.search, texts.score, library)
            self.record.table("scores", rows)
            scores = ScoreTable.of(rows)
            told.note = f"{len(rows)} blocks, gamma {scores.gamma:.3f}"
            told.metrics["gamma"] = scores.gamma
        return scores

    def _assemble(self, texts: Texts, library: Library, tables: Tables) -> Assembled:
        with self.stage("assemble") as told:
            assembled = assemble(self.search, texts, library, tables)
            self.record.assembled(assembled, tables)
            kept = assembled.kept
            probed = sum(candidate.probe_kl is not None for candidate in assembled.candidates)
            told.note = (
                f"{len(assembled.candidates)} candidates, {probed} probed, kept {kept.id} (KL {kept.true.kl_nats:.4f})"
            )
        return assembled

    def _recover(self, texts: Texts, library: Library, architectures: dict[str, Blocks]) -> dict[str, Recovered]:
        with self.stage("recover"):
            self.record.name_series({name: identify(blocks) for name, blocks in architectures.items()})
            records = recover(self.search, texts, library, architectures)
            self.record.curves({name: record.values["curve"] for name, record in records.items()})
        return {name: Recovered(architectures[name], record.blobs["model"]) for name, record in records.items()}

    def _evaluate(
        self, texts: Texts, library: Library, costs: CostTable, models: dict[str, Recovered]
    ) -> dict[str, Any]:
        with self.stage("evaluate") as told:
            names = list(models)
            architectures = {name: models[name].architecture for name in names}
            parent_blocks: Blocks = tuple([PARENT_BLOCK] * self.parent.shape.num_layers)
            asked = [*architectures.values(), parent_blocks]
            *before, parent = true_scores(self.search, texts.report, library, asked)
            after = true_scores_of_models(self.search, texts.report, models)
            ranked = true_scores_of_models(self.search, texts.score, models)
            rows = side_by_side(self.search, costs, after, dict(zip(names, before, strict=True)), parent, architectures)
            allowed = ["child", *(name for name in BASELINES if not rows[name]["over_budget"])]
            # Ranked on the score text: the report text chooses nothing.
            winner = min(allowed, key=lambda name: (ranked[name].kl_nats, name != "child"))
            evaluation = {**rows, "chosen": winner, "scenario": self.job.hardware.scenarios[0].name}
            self.place.write_json("evaluation.json", evaluation)
            self.record.evaluation(evaluation)
            told.note = (
                f"KL {rows[winner]['kl_nats']:.4f}, {1 / rows[winner]['runtime_ratio']:.2f}x as fast as the parent"
            )
        return evaluation


def _loss_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [
        {
            "layer": int(record.values["layer"]),
            "variant": label,
            "status": result["status"],
            "kept": result["kept"],
            "start_loss": result["start_loss"],
            "loss": result["loss"],
            "reason": result["reason"],
        }
        for record in records
        for label, result in sorted(record.values["variants"].items())
    ]


def pool_rows(assembled: Assembled, tables: Tables, job: Job) -> list[dict[str, Any]]:
    """The pool table: every candidate with prediction beside truth; no times are true where the job gives them."""
    scenario = tables.costs.scenarios[0]
    rows = []
    for candidate in sorted(assembled.candidates, key=lambda c: (c.true.kl_nats, c.id)):
        total = tables.costs.total(scenario, candidate.architecture)
        measured = candidate.measured[scenario] if candidate.measured and job.hardware.costs is None else None
        rows.append(
            {
                "id": candidate.id,
                "round": candidate.round,
                "origin": candidate.origin,
                "predicted_kl_nats": candidate.predicted_kl,
                "kl_nats": candidate.true.kl_nats,
                "standard_error": candidate.true.standard_error,
                "probe_kl_nats": None if candidate.probe_kl == math.inf else candidate.probe_kl,
                "predicted_runtime_ns": total["runtime_ns"],
                "measured_runtime_ns": measured.runtime_ns if measured else None,
                "measured_ratio": measured.ratios["runtime"] if measured else None,
                "memory_bytes": total["weights_bytes"] + total["kv_bytes"],
                "parameters": total["parameters"],
                "kept": candidate.id == assembled.kept.id,
            }
        )
    return rows


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
        "gamma": assembled.scores.gamma,
        "rounds": assembled.rounds,
    }
