"""`mean=n` in a search: how a job writes it, and its start from a statistic of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mean_inlay
from torch import Tensor

from inlay.nas.modeling import InlayLayer
from inlay.nas.modeling.subblock_inlay import MIXERS, NORMS
from inlay.nas.quantities import parse_count
from inlay.nas.variants.kind import Kind, Place, Value, parse_whole, whole
from inlay.nas.variants.linear import ridge
from inlay.nas.variants.statistics import Products, Statistic, Sums


@dataclass(frozen=True)
class MeanProducts(Statistic):
    """X'X and X'Y where X is the mean of the last normed inputs and Y the parent's update."""

    tokens: int

    @property
    def name(self) -> str:
        return f"attention.mean{self.tokens}"

    def watch(self, layer: InlayLayer, seen: dict[str, Tensor]) -> list[Any]:
        return Products("attention").watch(layer, seen)

    def sums(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return Products("attention").sums({"x": mean_inlay.mean_of_last(seen["x"], self.tokens), "y": seen["y"]})


class MeanVariant(Kind):
    """Attention replaced by a mean."""

    name = "mean"
    slots = ("attention",)
    trained = True
    example = "mean: 4"
    forms = "{mean: N}"

    def read(self, value: object) -> int:
        if parse_count(value) < 2:
            raise ValueError("is out of range; it must be at least 2")
        return parse_count(value)

    def resolve(self, item: Any, space: Any, place: Place) -> Value:
        return int(item)

    def parse(self, text: str) -> Value:
        return parse_whole(self.name, text)

    def problem(self, value: Value, place: Place) -> str | None:
        most = place.shape.max_positions
        return None if whole(value) <= most else f"{value} is longer than the context; give at most {most}"

    def entry(self, value: Value, place: Place) -> dict[str, Any]:
        return {"kind": mean_inlay.Mean.name, "tokens": whole(value)}

    def statistics(self, value: Value, place: Place) -> tuple[Statistic, ...]:
        return (MeanProducts(whole(value)),)

    def start(self, value: Value, place: Place, state: dict[str, Tensor], sums: Sums) -> dict[str, Tensor]:
        norm, weight = f"{NORMS[place.slot]}.weight", f"{MIXERS[place.slot]}.weight"
        products = sums.of(MeanProducts(whole(value)))
        return {norm: state[norm], weight: ridge(products["xx"], products["xy"], sums.tokens).to(state[norm].dtype)}
