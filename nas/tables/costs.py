"""The cost table: what each variant and the ends cost in each scenario, and what an architecture adds up to.

Rows: `scenario, layer, slot, variant, prefill_ns, decode_ns, runtime_ns, spread_ns, parameters, weights_bytes,
kv_bytes`; the embedding, final norm, head and greedy choice are the row with layer -1, slot `ends`. Times of layers
are added to the measured ends; sizes are exact. No torch here: tables are read where solving happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inlay.nas.variants import is_free

TIMES = ("prefill", "decode", "runtime")
ADDED = ("prefill_ns", "decode_ns", "runtime_ns", "parameters", "weights_bytes", "kv_bytes")
ENDS = (-1, "ends", "ends")


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

    def ends(self, scenario: str) -> Mapping[str, Any]:
        """The costs of everything that is not a layer."""
        return self._held[scenario, -1, "ends"]

    def has(self, scenario: str, layer: int, label: str) -> bool:
        """Whether that variant has a row."""
        return (scenario, layer, label) in self._held

    def of(self, scenario: str, layer: int, label: str) -> Mapping[str, Any]:
        """The costs of one variant at one layer; a no-op costs nothing and needs no row."""
        if is_free(label):
            return dict.fromkeys(ADDED, 0)
        return self._held[scenario, layer, label]

    def block(self, scenario: str, layer: int, labels: Sequence[str]) -> dict[str, int]:
        """Costs of a block: its two subblocks added."""
        return {name: sum(int(self.of(scenario, layer, label)[name]) for label in labels) for name in ADDED}

    def total(self, scenario: str, architecture: Sequence[Sequence[str]]) -> dict[str, int]:
        """Costs of a whole model, ends included."""
        total = {name: int(self.ends(scenario)[name]) for name in ADDED}
        for layer, labels in enumerate(architecture):
            for name, value in self.block(scenario, layer, labels).items():
                total[name] += value
        return total


def quantities(total: Mapping[str, int], generated_tokens: int) -> dict[str, float]:
    """The budget's quantities from a total: times in ns, sizes in bytes, `throughput` in tokens a second."""
    return {
        "runtime": total["runtime_ns"],
        "prefill": total["prefill_ns"],
        "decode": total["decode_ns"],
        "throughput": generated_tokens * 1e9 / max(1, total["runtime_ns"]),
        "memory": total["weights_bytes"] + total["kv_bytes"],
        "weights": total["weights_bytes"],
        "kv": total["kv_bytes"],
        "parameters": total["parameters"],
    }
