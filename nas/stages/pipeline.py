"""The stages in their order, each timed, tabled and told to the tracker."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Self

from inlay.cluster.errors import PieceError
from inlay.cluster.pieces import Record
from inlay.cluster.runtime import Cluster
from inlay.nas.export.hf import write_model_folder
from inlay.nas.families import Parent
from inlay.nas.job import Job
from inlay.nas.loop.prompts import side_by_side_on_prompts
from inlay.nas.loop.sampling import sampled
from inlay.nas.loop.search import Search
from inlay.nas.loop.solving import Tables, solve_pool
from inlay.nas.loop.sources import changed_sources
from inlay.nas.loop.texts import Packed, pack_texts, store_texts
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.standard_error import Values
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.weights import Library
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.assemble import Assembled, assemble
from inlay.nas.stages.beside import add_beside, first_variants
from inlay.nas.stages.distill import build_library, failures, library_of, variant_tokens
from inlay.nas.stages.estimate import expected_stages
from inlay.nas.stages.evaluate import judge, side_by_side
from inlay.nas.stages.guided import Trained, train_guided
from inlay.nas.stages.machines import ThisCpu, machine_of
from inlay.nas.stages.measure import cost_rows, costs_origin
from inlay.nas.stages.outcome import loss_rows
from inlay.nas.stages.quality import above_child, judged_text
from inlay.nas.stages.recording.logged_model import CHILD
from inlay.nas.stages.recording.record import SearchRecord
from inlay.nas.stages.recover import Recovered, recover
from inlay.nas.stages.score import offered_caches, offered_ends
from inlay.nas.stages.scoring import Scored, mix_formats, score_all
from inlay.nas.tables.architecture import Block, identify
from inlay.nas.tables.costs import TIMES, CostTable, quantities
from inlay.nas.tables.idle_limits import idle_limits
from inlay.nas.tables.origin import metadata_of
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.variants import variants_of
from inlay.nas.workspace import Workspace

STAGES = ("measure", "distill", "score", "assemble", "recover", "evaluate", "export")
"""In their order, as people see them."""
SAMPLE = "sample"
"""Before them all, where the parent writes a text."""


class Pipeline:
    """One run of all stages; a context manager, so that the tracker learns how it ended."""

    def __init__(
        self,
        job: Job,
        place: Workspace,
        parent: Parent,
        cluster: Cluster,
        reporter: Reporter,
        fingerprint: str,
        original: Parent | None = None,
    ) -> None:
        self.job, self.place, self.parent = job, place, parent
        self.record = SearchRecord(job, place, reporter)
        tracked = self.record.tracked
        told = (tracked.numbers, tracked.models.name, tracked.best)
        self.search = Search(job, place, parent, cluster, reporter, *told, original=original)
        self.fingerprint = fingerprint

    def __enter__(self) -> Self:
        self.record.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.record.end(value)

    def run(self, packed: Packed | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """All stages; evaluation.json's and run.json's contents. Without a text the parent writes it first."""
        self.search.reporter.search_started(STAGES if packed else (SAMPLE, *STAGES), *self._planned())
        if packed is None:
            tokenizer = self.parent.tokenizer()
            with self.stage(SAMPLE) as told:
                written = sampled(self.search, tokenizer)
                told.note = f"{sum(ids.size for ids in written.values()):,} tokens"
            packed = pack_texts(self.job, tokenizer, written)
        texts = store_texts(packed, self.place)
        self._tell_sources(packed)
        self.record.tracked.texts(texts)
        self.place.write_json("texts.json", texts.to_dict())
        tables_costs = self._costs(texts)
        self._warn_of_idle_times(tables_costs)
        self._check_reachable(tables_costs)
        records, scores = self._scored(texts, self._trained(texts, tables_costs), tables_costs)
        library, lost = library_of(records), failures(records)
        tables = Tables(ScoreTable.of(scores.rows), tables_costs, self._tokens())
        assembled = self._assemble(texts, library, tables, scores.scored)
        recovered = self._recover(texts, assembled, tables)
        models = recovered.models
        evaluation = self._evaluate(texts, library, tables_costs, recovered)
        winner = str(evaluation["chosen"])
        with self.stage("export"):
            write_model_folder(self.place, self.parent, models[winner], evaluation, self.job, CHILD)
            self.record.exported(models[winner], evaluation, texts)
            self.search.forget_rounded()
        run = self.record.finish(self.fingerprint, evaluation, lost, models)
        return evaluation, run

    def _planned(self) -> tuple[dict[str, float], bool]:
        """Seconds of each stage as planned, and whether they are of the machine that computes; what is known of the
        stages' work is kept beside what they take."""
        machine = machine_of(self.job, self.parent)
        expected = expected_stages(self.job, self.parent, machine or ThisCpu(self.parent))
        if machine is not None:
            self.record.planned = {name: each.figures for name, each in expected.items()}
        return {name: each.seconds for name, each in expected.items()}, self.job.hardware.device == "cpu"

    def stage(self, name: str) -> Any:
        """Times a stage and collects what its pieces report."""
        return self.record.stage(name, self.search)

    def _tell_sources(self, packed: Packed) -> None:
        """What is to be known of the texts, and of those that changed since the workspace's last run."""
        for note in packed.notes:
            self.search.reporter.message(note)
        for warning in changed_sources(self.place.find_json("sources.json") or {}, packed.sources):
            self.search.reporter.warning(warning)
        self.place.write_json("sources.json", packed.sources)

    def _tokens(self) -> dict[str, int]:
        return {s.name: s.batch_size * s.generate for s in self.job.hardware.scenarios}

    def _costs(self, texts: Texts) -> CostTable:
        with self.stage("measure") as told:
            if mixes := mix_formats(self.search, texts):
                told.note = f"{mixes} mixes of formats"
            rows = cost_rows(self.search)
            origin = costs_origin(self.search)
            self.record.table("costs", rows, metadata_of(origin) if origin else None)
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

    def _warn_of_idle_times(self, costs: CostTable) -> None:
        """Limits on times above the parent's own, now that these are known; sizes were known before the run."""
        blocks = costs.reference(self.parent.shape.num_layers)
        tokens = self._tokens()
        own = {name: quantities(costs.total(name, blocks), tokens[name]) for name in costs.scenarios}
        timed = {name: {key: row[key] for key in (*TIMES, "throughput")} for name, row in own.items()}
        for warning in idle_limits(self.job.budget, timed):
            self.search.reporter.warning(warning)

    def _check_reachable(self, costs: CostTable) -> None:
        """An impossible budget is told now, before anything is trained."""
        measured: dict[int, dict[Block, float]] = {}
        for layer in range(self.parent.shape.num_layers):
            for variant in variants_of(self.search.space, self.parent.shape, layer):
                measured.setdefault(layer, {})[variant.block] = 0.0
        ends, caches = (dict.fromkeys(told(self.search), 0.0) for told in (offered_ends, offered_caches))
        scores = ScoreTable(measured, ends=ends, caches=caches)
        problem = Tables(scores, costs, self._tokens()).problem(self.job.budget)
        solve_pool(problem, 1, 0.0, self.job.solve.time_limit)

    def _trained(self, texts: Texts, costs: CostTable) -> Trained:
        """What is trained before anything is solved."""
        with self.stage("distill") as told:
            if self.job.distill.guided:
                trained = train_guided(self.search, texts, costs)
            else:
                trained = Trained(build_library(self.search, texts.distill, first_variants(self.search)))
            rows, lost = self._tell_library(trained), failures(trained.records)
            told.note = (f"{len(rows) - len(lost)} variants" if rows else "nothing to train") + (
                f", {len(lost)} failed" if lost else ""
            )
            told.note += f", {trained.note}" if trained.note else ""
            told.metrics["variant_tokens"] = variant_tokens(trained.records, self.job)
        return trained

    def _tell_library(self, trained: Trained) -> list[dict[str, Any]]:
        """The table of what was trained so far; its rows."""
        rows, library = loss_rows(trained.records, self.job, trained.left), library_of(trained.records)
        self.record.table("losses", rows)
        self.place.write_json("library.json", {str(layer): dict(held) for layer, held in library.digests.items()})
        return rows

    def _scored(self, texts: Texts, trained: Trained, costs: CostTable) -> tuple[list[Record], Scored]:
        """The scores, and the records of what was trained, in a second pass too."""
        records = trained.records
        with self.stage("score") as told:
            found = score_all(self.search, texts, library_of(records))
            every, found = add_beside(self.search, texts, records, found, costs)
            if len(every) > len(records):
                self._tell_library(replace(trained, records=every))
            self.record.table("scores", found.rows)
            told.note = found.note
            told.metrics |= found.metrics
        return every, found

    def _assemble(
        self, texts: Texts, library: Library, tables: Tables, scored: dict[tuple[int, Block], Values]
    ) -> Assembled:
        with self.stage("assemble") as told:
            assembled = assemble(self.search, texts, library, tables, scored)
            self.record.assembled(assembled, tables)
            kept = assembled.kept
            probed = sum(candidate.probe_kl is not None for candidate in assembled.pool.candidates)
            told.note = (
                f"{len(assembled.pool.candidates)} candidates, {probed} probed, KL {kept.true.kl_nats:.4f} as assembled"
            )
        return assembled

    def _recover(self, texts: Texts, assembled: Assembled, tables: Tables) -> Recovered:
        with self.stage("recover") as told:
            named = {name: baseline.architecture for name, baseline in assembled.baselines.items()}
            named = {"child": assembled.kept.architecture, **named}
            self.search.on_names({name: identify(blocks) for name, blocks in named.items()})
            recovered = recover(self.search, texts, assembled)
            self.record.recovered(recovered)
            told.note = recovered.note
        self.record.assembled(recovered.assembled, tables)
        return recovered

    def _evaluate(self, texts: Texts, library: Library, costs: CostTable, recovered: Recovered) -> dict[str, Any]:
        models = recovered.models
        with self.stage("evaluate") as told:
            judged = judge(self.search, texts, library, costs, recovered)
            ranked, parent, after = judged.ranked, judged.parent, judged.after
            presets = {"presets": judged.presets} if judged.presets else {}
            rows = side_by_side(self.search, costs, judged, models, texts.sources)
            allowed = [name for name in models if name == "child" or not rows[name]["over_budget"]]
            # Ranked on the score text: the report text chooses nothing.
            winner = min(allowed, key=lambda name: (ranked[name].kl_nats, name != "child"))
            above = {name: ranked[name].above(ranked[winner]) for name in allowed if name != winner}
            self.search.part(1.0, 1)
            evaluation = {
                **rows,
                **presets,
                "prompts": self._prompts(texts, models[winner]),
                "report_text": judged_text(parent),
                "above_child": above_child(after),
                "chosen": winner,
                "scenario": self.job.hardware.scenarios[0].name,
                "score_kl_nats": {name: comparison.kl_nats for name, comparison in ranked.items()},
                "above_chosen": {name: asdict(difference) for name, difference in above.items()},
            }
            self.record.evaluation(evaluation)
            told.note = (
                f"KL {rows[winner]['kl_nats']:.4f}, {1 / rows[winner]['runtime_ratio']:.2f}x as fast as the parent"
            )
            for name, difference in above.items():
                if difference.within_noise and models[name] != models[winner]:
                    told.note += f", not told apart from {name} by the score text"
        return evaluation

    def _prompts(self, texts: Texts, model: TrainedModel) -> list[dict[str, Any]]:
        """What parent and child make of ten prompts; none, said as a warning, where a worker cannot hold them whole."""
        try:
            return side_by_side_on_prompts(self.search, texts, model)
        except PieceError as error:
            self.search.reporter.warning(f"no prompts were continued, which changes nothing else: {error}")
            return []
