"""The cost table: what each variant and the ends cost in each scenario, and what an architecture adds up to.

Rows: `scenario, layer, slot, variant, prefill_ns, decode_ns, runtime_ns, spread_ns, parameters, weights_bytes,
kv_bytes`; the embedding, final norm, head and greedy choice are the row with layer -1, slot `ends`. Times of layers
are added to the measured ends; sizes are exact. Where the engine's layers are an attention and an ffn, rows say which
`half` they are and what the last ffn takes (`AT_END`), and layer -1, slot `stand_in` has what stands in for a missing
half. Where a search chooses between caches, what has one has a row for each: `attention:parent + kv:q8_0`. No torch
here: tables are read where solving happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inlay.nas.job.budget import PEAK
from inlay.nas.tables.architecture import (
    ORIGINAL_BLOCK,
    PARENT_BLOCK,
    Block,
    Blocks,
    cache_form,
    cache_label,
    ends_form,
    ends_label,
)
from inlay.nas.tables.halves import Half, StandIn, layers_of, stand_ins_at_most
from inlay.nas.variants import is_free

TIMES = ("prefill", "decode", "runtime")
ADDED = ("prefill_ns", "decode_ns", "runtime_ns", "parameters", "weights_bytes", "kv_bytes")
ENDS = (-1, "ends", "ends")
STAND_IN = "stand_in"
"""The slot of what stands in for half a layer."""
COMPUTE = "compute_bytes"
"""Bytes that the engine computes in, in the row of the ends, where it tells them."""
HALF = "half"
AT_END = {"prefill_ns": "last_prefill_ns", "runtime_ns": "last_runtime_ns"}
"""Columns of an ffn's times where it is the last of a whole model."""


class CostTable:
    """Costs by scenario, layer and variant label.

    Args:
        rows: as the module says; extra keys are ignored.

    Raises:
        KeyError: `total` of an architecture with a variant that no row has.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows = list(rows)
        self.scenarios = list(dict.fromkeys(str(row["scenario"]) for row in self.rows))
        self._held = {(str(r["scenario"]), int(r["layer"]), str(r["variant"])): r for r in self.rows}

    def ends(self, scenario: str, form: str | None = None) -> Mapping[str, Any]:
        """The costs of everything that is not a layer, in the file's format or in another."""
        return self._held[scenario, -1, "ends" if form is None else ends_label(form)]

    def ends_at_least(self, scenario: str) -> dict[str, int]:
        """The least of each of them over all formats of the table."""
        rows = [row for row in self.rows if row["scenario"] == scenario and row["variant"].startswith("ends")]
        return {name: min(int(row[name]) for row in rows) for name in ADDED}

    def has(self, scenario: str, layer: int, label: str) -> bool:
        """Whether that variant has a row."""
        return (scenario, layer, label) in self._held

    def of(self, scenario: str, layer: int, label: str, cache: str | None = None) -> Mapping[str, Any]:
        """The costs of one variant at one layer; a no-op costs nothing and needs no row.

        Args:
            scenario: the workload.
            layer: where it stands.
            label: the variant.
            cache: what keys and values are stored in; None: as the search's own.
        """
        if is_free(label):
            return dict.fromkeys(ADDED, 0)
        return self._with_cache(scenario, layer, label, cache) or self._held[scenario, layer, label]

    def block(self, scenario: str, layer: int, labels: Sequence[str], cache: str | None = None) -> dict[str, int]:
        """Costs of a block: its two subblocks, and what at most stands in for what it lacks; so that sums of blocks
        are never below `total`, but for a model without any attention. `cache` as of `of`."""
        rows = [self.of(scenario, layer, label, cache) for label in labels[:2]]
        held = self._stand_ins(scenario, cache)
        if held:
            there = [row for row in rows if row.get(HALF)]
            rows += [held[name] for name in stand_ins_at_most(there, _half, StandIn.MAP in held, layer == 0)]
        return _sum(rows)

    def blocks(self, scenario: str, layer: int, filled: Blocks, cache: str | None = None) -> dict[str, int]:
        """The same of the blocks of neighbouring layers, from one on."""
        own = [self.block(scenario, layer + place, labels, cache) for place, labels in enumerate(filled)]
        return own[0] if len(own) == 1 else _sum(own)

    def reference(self, num_layers: int) -> Blocks:
        """What budgets and ratios are relative to: the original where the table has one, else the parent."""
        found: Block = ORIGINAL_BLOCK if self.has(self.scenarios[0], 0, ORIGINAL_BLOCK[0]) else PARENT_BLOCK
        return (found,) * num_layers

    def total(self, scenario: str, architecture: Sequence[Sequence[str]]) -> dict[str, int]:
        """Costs of a whole model, ends included, and `compute_bytes` where they are known."""
        compute = self.ends(scenario).get(COMPUTE)
        return _sum(self.terms(scenario, architecture)) | ({} if compute is None else {COMPUTE: int(compute)})

    def terms(self, scenario: str, architecture: Sequence[Sequence[str]]) -> list[Mapping[str, Any]]:
        """The rows that a whole model's costs add up from: the ends, its subblocks as they stand in it, and what stands
        in where a layer of the engine lacks a half."""
        cache = cache_form(architecture)
        rows = [self.of(scenario, i, label, cache) for i, labels in enumerate(architecture) for label in labels[:2]]
        ends = self.ends(scenario, ends_form(architecture))
        held = self._stand_ins(scenario, cache)
        if not held:
            return [ends, *rows]
        layers = layers_of([row for row in rows if row.get(HALF)], _half, StandIn.MAP in held)
        halves = [half for layer in layers for half in layer if half is not None]
        placed = [held[half] if isinstance(half, StandIn) else half for half in halves]
        return [ends, *placed[:-1], _at_end(placed[-1])]

    def _stand_ins(self, scenario: str, cache: str | None) -> dict[StandIn, Mapping[str, Any]]:
        labels = {name: stand_in_label(name) for name in StandIn}
        found = {
            name: self._with_cache(scenario, -1, label, cache) or self._held.get((scenario, -1, label))
            for name, label in labels.items()
        }
        return {name: row for name, row in found.items() if row is not None}

    def _with_cache(self, scenario: str, layer: int, label: str, cache: str | None) -> Mapping[str, Any] | None:
        """The row of what has a cache of its own, in another format than the search's; None of what has none."""
        return None if cache is None else self._held.get((scenario, layer, with_cache(label, cache)))


def with_cache(label: str, cache: str) -> str:
    """What the row of a variant is called whose keys and values are stored so."""
    return f"{label} + {cache_label(cache)}"


def stand_in_label(name: StandIn) -> str:
    """What the row of a stand-in is called."""
    return f"{STAND_IN}:{name}"


def _half(row: Mapping[str, Any]) -> Half:
    half: Half = row[HALF]
    return half


def _at_end(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**row, **{name: row[own] for name, own in AT_END.items() if row.get(own) is not None}}


def _sum(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    held = list(rows)
    return {name: sum(int(row[name]) for row in held) for name in ADDED}


def quantities(total: Mapping[str, int], generated_tokens: int) -> dict[str, float]:
    """The budget's quantities from a total: times in ns, sizes in bytes, `throughput` in tokens a second; no
    `memory_peak` where the engine does not tell its compute buffers."""
    memory = total["weights_bytes"] + total["kv_bytes"]
    found = {
        "runtime": total["runtime_ns"],
        "prefill": total["prefill_ns"],
        "decode": total["decode_ns"],
        "throughput": generated_tokens * 1e9 / max(1, total["runtime_ns"]),
        "memory": memory,
        "weights": total["weights_bytes"],
        "kv": total["kv_bytes"],
        "parameters": total["parameters"],
    }
    return found | ({PEAK: memory + total[COMPUTE]} if COMPUTE in total else {})
