"""The architecture layer by layer: what stands in every subblock of parent, child and baselines, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inlay.nas.report.grid import Cell, GridRecord
from inlay.nas.tables.architecture import Block
from inlay.nas.variants import is_free, parse_variant

SLOTS = ("attention", "ffn")

Shares = Mapping[tuple[int, str], float]
"""Cost of a variant at a layer over that of the parent's own subblock there, by (layer, label)."""


def architecture_record(models: Mapping[str, Sequence[Block]], shares: Shares) -> GridRecord:
    """Computes the picture: two rows a model, coloured by the share of the parent's time that is left.

    Dark cells cost as much as the parent's own subblock, white ones nothing.
    """
    rows, cells = [], []
    for name, blocks in models.items():
        for place, slot in enumerate(SLOTS):
            rows.append(f"{name}  {slot}")
            labels = [block[place] for block in blocks]
            cells.append(tuple(Cell(_share(layer, label, shares), short(label)) for layer, label in enumerate(labels)))
    breaks = tuple(range(0, len(rows), 2))
    return GridRecord("Architecture", tuple(rows), tuple(cells), "time, of the parent's subblock", False, 0, 1, breaks)


def shares_of(costs: Sequence[Mapping[str, object]]) -> dict[tuple[int, str], float]:
    """Shares of runtime from the rows of `tables/costs.parquet`, in its first scenario."""
    scenario = costs[0]["scenario"] if costs else None
    held = {
        (int(str(row["layer"])), str(row["variant"])): float(str(row["runtime_ns"]))
        for row in costs
        if row["scenario"] == scenario
    }
    shares = {}
    for (layer, label), value in held.items():
        own = held.get((layer, f"{label.split(':')[0]}:parent"))
        if own:
            shares[layer, label] = value / own
    return shares


def short(label: str) -> str:
    """`attention:kv_heads=2` as `kv 2`, `ffn:width=256` as `256`, a no-op as `–`, the parent's own as nothing."""
    return parse_variant(label).short


def _share(layer: int, label: str, shares: Shares) -> float | None:
    if is_free(label):
        return 0.0
    if parse_variant(label).is_parent:
        return 1.0
    share = shares.get((layer, label))
    return None if share is None else max(0.0, share)
