"""llama.cpp's presets of the parent as baselines of a search that chooses formats: bytes, times and KL of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from inlay.cluster.pieces import Piece
from inlay.nas.engines.gguf.packing import pack
from inlay.nas.engines.gguf.presets import PRESETS
from inlay.nas.engines.llama_cpp import NAME as LLAMA_CPP
from inlay.nas.formats.gguf import GGUF
from inlay.nas.loop.conditions import conditions_of, timed_question, workload_of
from inlay.nas.loop.search import Search
from inlay.nas.loop.together import Question, Records
from inlay.nas.pieces.comparison import Comparison, summaries, tensors_of
from inlay.nas.pieces.presets import compare_preset, quantise_presets
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Ids

Q8_0 = "q8_0"
Made = dict[str, dict[str, Any]]
"""By preset, as `quantise_presets` gives them."""
QUANTISE = Stage("presets", 2, quantise_presets)
PRESET_KL = Stage("preset_kl", 2, compare_preset)


def has_presets(search: Search) -> bool:
    """Whether the search chooses formats in llama.cpp, on a machine that is here, for a parent whose rows are whole
    blocks: its quantiser refuses others."""
    job, shape = search.job, search.parent.shape
    if job.hardware.engine != LLAMA_CPP or not job.space.formats or job.hardware.costs or job.original:
        return False
    rows = (tensor.shape[-1] for tensor in pack(shape, shape.blocks, Q8_0).tensors if len(tensor.shape) == 2)
    return all(map(GGUF[Q8_0].fits, rows))


def presets_question(search: Search) -> Question[Made]:
    """What llama.cpp's quantiser makes of each preset: types, exact bytes, and times in the first scenario."""
    scenario = search.job.hardware.scenarios[0]
    settings = {"target": asdict(search.target), "workload": asdict(workload_of(scenario))}
    depends = {**settings, "conditions": conditions_of(search, scenario, QUANTISE.version)}
    piece = search.piece(QUANTISE, f"in {scenario.name}", settings, depends)
    timed = timed_question(search, [(scenario, piece)])

    def read(records: Records) -> Made:
        (record,) = timed.read(records)
        return dict(record.values["presets"])

    return Question(timed.pieces, read, timed.alone)


def preset_rows(made: Made, quality: Mapping[str, Comparison]) -> dict[str, dict[str, Any]]:
    """For each preset, large ones first: its KL on a text, exact bytes, and times relative to the parent in the whole
    file's format."""
    return {
        name: {
            "kl_nats": quality[name].kl_nats,
            "kl_standard_error": quality[name].standard_error,
            "top1_agreement": quality[name].top1_agreement,
            "perplexity": quality[name].perplexity,
            "weights_bytes": made[name]["weights_bytes"],
            "file_bytes": made[name]["file_bytes"],
            **{f"{time}_ratio": ratio for time, ratio in made[name]["measured"]["ratios"].items()},
            "runtime_ratio_error": made[name]["measured"]["ratios"]["runtime"]
            * made[name]["measured"]["ratio_errors"]["runtime"],
        }
        for name in PRESETS
    }


def preset_quality_question(search: Search, ids: Ids, made: Made) -> Question[dict[str, Comparison]]:
    """The KL of each preset on a text, rounded with an importance of channels: a piece rounds one of them."""
    by_name: dict[str, list[Piece]] = {name: [] for name in PRESETS}
    for name, pieces in by_name.items():
        own = dict(made[name]["types"])
        for shard, rows in enumerate(ids.shards):
            depends = {"ids": ids.digest, "rows": list(rows), "types": own, "inputs": search.inputs}
            depends |= search.cache_rounding()
            arguments = {"store": search.workspace.url, **depends}
            pieces.append(search.piece(PRESET_KL, f"{name} shard {shard:05d}", arguments, depends))

    def read(records: Records) -> dict[str, Comparison]:
        store = search.workspace.store
        found: dict[str, Comparison] = {}
        for name, own in by_name.items():
            parts = [tensors_of(store.blob_path(records[piece.key].blobs["sequences"])) for piece in own]
            found |= summaries([name], parts)
        return found

    return Question([piece for own in by_name.values() for piece in own], read)
