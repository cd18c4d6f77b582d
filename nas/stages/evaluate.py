"""evaluate: child, parent and baselines side by side, on text that nothing has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.nas.job.sections import Scenario
from inlay.nas.loop.excess import excess_of, over_budget
from inlay.nas.loop.search import Search
from inlay.nas.loop.together import Together
from inlay.nas.loop.true_kl import models_question, true_scores_question
from inlay.nas.loop.true_times import times_are_given, times_question
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.comparison import Comparison
from inlay.nas.pieces.measuring import Measured
from inlay.nas.pieces.model_files import ModelFiles
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.weights import Library
from inlay.nas.stages.presets import has_presets, preset_quality_question, preset_rows, presets_question
from inlay.nas.stages.quality import quality_of
from inlay.nas.stages.recover import Recovered
from inlay.nas.stages.sizes import attentions_in, parent_file_bytes, sizes_of
from inlay.nas.tables.architecture import Blocks, cache_form, is_original
from inlay.nas.tables.costs import TIMES, CostTable


@dataclass(frozen=True)
class Judged:
    """What was seen of all models, by name: on the report text `before` and `after` recovery, on the score text
    (`ranked`), their times by scenario, and llama.cpp's presets of the parent, if any."""

    parent: Comparison
    before: Mapping[str, Comparison]
    after: Mapping[str, Comparison]
    ranked: Mapping[str, Comparison]
    times: Mapping[str, Mapping[str, Measured]]
    presets: Mapping[str, Mapping[str, Any]]


def judge(search: Search, texts: Texts, library: Library, costs: CostTable, recovered: Recovered) -> Judged:
    """Judges all models on texts and by the clock, in two batches: presets are rounded once their types are known."""
    models = recovered.models
    architectures = {name: model.architecture for name, model in models.items()}
    whole = costs.reference(search.parent.shape.num_layers)
    search.part(0.5, 1)
    together = Together(search)
    untrained = together.ask(true_scores_question(search, texts.report, library, [*architectures.values(), whole]))
    made = together.ask(presets_question(search)) if has_presets(search) else None
    trained = None
    if search.job.recover.tokens:
        trained = together.ask(models_question(search, texts.report, models))
        on_score = together.ask(models_question(search, texts.score, models))
    together.run("true KL before and after recovery" if trained else "true KL", "pieces")
    *seen, parent = untrained.value
    before = dict(zip(models, seen, strict=True))
    ranked = on_score.value if trained else recovered.assembled.seen(architectures)
    search.part(0.95, 1)
    together = Together(search)
    times = together.ask(times_question(search, costs, list(architectures.values())))
    rounded = together.ask(preset_quality_question(search, texts.report, made.value)) if made else None
    together.run(f"times of {', '.join(models)}{' and KL of presets' if made else ''}", "pieces")
    return Judged(
        parent,
        before,
        trained.value if trained else before,
        ranked,
        dict(zip(models, times.value, strict=True)),
        preset_rows(made.value, rounded.value) if made and rounded else {},
    )


def side_by_side(
    search: Search, costs: CostTable, judged: Judged, models: Mapping[str, TrainedModel], sources: Sequence[str]
) -> dict[str, Any]:
    """What evaluation.json holds: quality on the report text before and after recovery, sizes, speed."""
    store = search.workspace.store
    stored = {name: ModelFiles(store, model.blob).file_bytes for name, model in models.items()}
    architectures = {name: model.architecture for name, model in models.items()}
    rows = rows_of(search, costs, judged.after, judged.parent, architectures, judged.times, stored, sources)
    for name, was in {"parent": judged.parent, **judged.before}.items():
        rows[name]["before_recover"] = was.kl_nats
    return rows


def rows_of(
    search: Search,
    costs: CostTable,
    quality: Mapping[str, Comparison],
    parent: Comparison,
    architectures: Mapping[str, Blocks],
    times: Mapping[str, Mapping[str, Measured]],
    stored: Mapping[str, int],
    sources: Sequence[str],
) -> dict[str, Any]:
    """Figures of the parent and of some architectures: quality, exact sizes, speed in the first scenario.

    Each row's `times` says whether its speed was `measured` here or is the `given` cost table's. `limits` has every
    limit of the budget with value over limit and its standard error, which is 0 where nothing was measured. `stored`
    has the bytes of the weights of those that were trained; `sources` are the names of the report text's.
    """
    scenario = search.job.hardware.scenarios[0]
    first = next(iter(times.values()))[scenario.name]
    own, reference = first.parent, search.reference
    whole = costs.reference(reference.shape.num_layers)
    rows = {"parent": _row(search, costs, scenario, whole, own, quality_of(parent, sources))}
    rows["parent"] |= sizes_of(search, costs, scenario, whole, first.parent_held, parent_file_bytes(reference.folder))
    for name, architecture in architectures.items():
        measured = times[name][scenario.name]
        # Every model took turns with the parent; its ratio to it is carried over to the parent's time of one run.
        scaled = {key: round(own[key] * measured.ratios[key.removesuffix("_ns")]) for key in own}
        rows[name] = _row(search, costs, scenario, architecture, scaled, quality_of(quality[name], sources))
        rows[name] |= sizes_of(search, costs, scenario, architecture, measured.held, stored.get(name))
        rows[name] |= _promised(costs, scenario.name, architecture, measured)
        rows[name]["runtime_ratio_error"] = measured.ratios["runtime"] * measured.ratio_errors["runtime"]
        excesses = excess_of(search, costs, architecture, times[name])
        rows[name]["limits"] = {e.field: {"ratio": e.ratio, "error": e.error} for e in excesses}
        rows[name]["over_budget"] = over_budget(excesses)
    return rows


def _promised(costs: CostTable, scenario: str, architecture: Blocks, measured: Measured) -> dict[str, float]:
    """Times relative to the parent's, as measured in turns with it and as the cost table adds them up."""
    own, parent = costs.total(scenario, architecture), costs.total(scenario, costs.reference(len(architecture)))
    found = {}
    for name in TIMES:
        found[f"{name}_ratio"] = measured.ratios[name]
        found[f"predicted_{name}_ratio"] = own[f"{name}_ns"] / parent[f"{name}_ns"]
    return found


def _row(
    search: Search,
    costs: CostTable,
    scenario: Scenario,
    architecture: Blocks,
    times: Mapping[str, int],
    quality: Mapping[str, Any],
) -> dict[str, Any]:
    total = costs.total(scenario.name, architecture)
    shape = search.parent.shape
    # One more token at the end of the scenario: what a sequence's cache grows by where nothing is cut off.
    length = scenario.prefill + scenario.generate
    cache = cache_form(architecture)
    attentions = attentions_in(search, architecture)
    per_sequence = sum(search.storage.kv(entry, shape, 1, length, cache) for entry in attentions)
    return {
        "times": "given" if times_are_given(search) else "measured",
        **quality,
        "parameters": total["parameters"],
        "kv_format": cache or search.target.kv_format,
        "kv_bytes_per_token": per_sequence / length,
        "prefill_tokens_per_second": scenario.batch_size * scenario.prefill * 1e9 / times["prefill_ns"],
        "decode_tokens_per_second": scenario.batch_size * 1e9 / times["decode_ns"],
        "runtime_seconds": times["runtime_ns"] / 1e9,
        # An original is none of the search's architectures.
        "architecture": [] if is_original(architecture) else [list(block) for block in architecture],
    }
