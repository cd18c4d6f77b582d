"""Tells of the best architecture as soon as it is known: solved, seen as a real model, recovered for a while."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from inlay.nas.loop.search import Search
from inlay.nas.pieces.measuring import Measured
from inlay.nas.report.best import Best
from inlay.nas.tables.architecture import Blocks
from inlay.nas.tables.costs import CostTable


class Telling:
    """Remembers what was told, so that an architecture is told of only where it is better.

    Args:
        search: told of it.
        costs: as measured of subblocks; they predict its runtime.
    """

    def __init__(self, search: Search, costs: CostTable) -> None:
        self._search, self._costs = search, costs
        self._least: dict[str, float] = {}

    def tell(
        self,
        by: Literal["predicted", "true", "recovered"],
        kl_nats: float,
        architecture: Blocks,
        measured: Mapping[str, Measured] | None = None,
    ) -> None:
        """Tells of an architecture if its KL is the least of its kind, of a predicted one only if it is the first."""
        told = self._least.get(by, math.inf)
        shown = float(f"{kl_nats:.3g}")  # what reads the same is not told again
        if shown >= told or (by == "predicted" and self._least):
            return
        self._least[by] = shown
        scenario = self._costs.scenarios[0]
        own = self._costs.total(scenario, architecture)
        parent = self._costs.total(scenario, self._costs.reference(len(architecture)))
        predicted = own["runtime_ns"] / parent["runtime_ns"]
        memory = [total["weights_bytes"] + total["kv_bytes"] for total in (own, parent)]
        runtime = measured[scenario].ratios["runtime"] if measured else predicted
        self._search.best(Best(by, kl_nats, runtime, memory[0] / memory[1]))
