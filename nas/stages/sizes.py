"""What a model takes, in bytes: as promised from shapes alone, and as the engine and the disk say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.nas.errors import UserError
from inlay.nas.job.sections import Scenario
from inlay.nas.loop.search import Search
from inlay.nas.modeling.subblock_inlay import FORMAT
from inlay.nas.tables.architecture import Blocks, is_original
from inlay.nas.tables.configs import config_of
from inlay.nas.tables.costs import COMPUTE, CostTable, quantities
from inlay.nas.variants.entries import entries_of

if TYPE_CHECKING:
    from inlay.nas.modeling import InlayConfig


def sizes_of(
    search: Search,
    costs: CostTable,
    scenario: Scenario,
    architecture: Blocks,
    held: Mapping[str, int | None],
    stored: int | None,
) -> dict[str, int | None]:
    """Bytes of weights, cache, peak and file, each as predicted and, as far as it is known, as it was found.

    Args:
        search: whose engine runs the model.
        costs: predict the peak.
        scenario: the workload of cache and buffers.
        architecture: the model's.
        held: what the engine said that it held for it; empty where it does not tell.
        stored: bytes of its weights in Transformers' form; None where there are none.
    """
    shape, storage = search.parent.shape, search.storage
    config = config_of(search.parent.config, shape, architecture) if not is_original(architecture) else None
    config = config or search.reference.config
    weights, total = storage.model(shape, config.blocks, config.ends_format), costs.total(scenario.name, architecture)
    predicted_file, file = _file(search, config, weights, held, stored)
    return {
        "weights_bytes": weights,
        "held_weights_bytes": held.get("weights_bytes"),
        "kv_bytes": total["kv_bytes"],
        "held_kv_bytes": held.get("kv_bytes"),
        "predicted_memory_peak_bytes": _whole(quantities(total, 1).get("memory_peak")),
        "memory_peak_bytes": sum(int(held[name] or 0) for name in ("weights_bytes", "kv_bytes", COMPUTE))
        if held
        else None,
        "predicted_file_bytes": predicted_file,
        "file_bytes": file,
    }


def attentions_in(search: Search, architecture: Blocks) -> list[dict[str, Any]]:
    """The attention entries of an architecture of the search, or of the original."""
    if is_original(architecture):
        return [block["attention"] for block in search.reference.shape.blocks]
    return [entry["attention"] for entry in entries_of(search.parent.shape, architecture)]


def parent_file_bytes(folder: Path) -> int:
    """Bytes of a parent's weights as they lie there."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _file(
    search: Search, config: InlayConfig, weights: int, held: Mapping[str, int | None], stored: int | None
) -> tuple[int | None, int | None]:
    """Of the engine's own file: the one that was timed has no tokenizer, whose bytes are added to both."""
    form = search.target.format
    bare = search.engine.file_bytes(config, form, None)
    if bare is None:
        # What is stored of a model in formats has all numbers in the parent's type, and is not what the engine runs.
        in_formats = any(FORMAT in entry for block in config.blocks for entry in block.values())
        return weights, None if in_formats else stored
    try:
        whole = search.engine.file_bytes(config, form, search.parent.folder)
    except UserError:  # a tokenizer that cannot be rebuilt is told by the export, which needs it
        whole = None
    timed = held.get("file_bytes")
    return whole, None if whole is None or timed is None else timed + whole - bare


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
