"""What a search space holds: how many architectures, and the least of each exact quantity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from inlay.nas.families import Described, Shape
from inlay.nas.job import Scenario
from inlay.nas.modeling.subblock_inlay import SLOTS
from inlay.nas.stages.estimate import Space
from inlay.nas.variants import Variant, ends_parameters, parameters
from inlay.nas.variants.storage import Storage


def num_architectures(space: Space) -> int:
    """How many ways there are to fill the layers, each with a block or with a run of layers that begins there."""
    behind = [1]  # of the layers from each one on, the last first
    for variants in reversed(space):
        apart = [variant for variant in variants if variant.beside is None]
        pairs = math.prod(sum(variant.slot == slot for variant in apart) for slot in SLOTS)
        pairs += len({variant.block for variant in variants if variant.beside is not None and not variant.run})
        behind.append(pairs * behind[-1] + sum(behind[-len(run[0].run)] for run in _runs(variants)))
    return behind[-1]


def least_sizes(
    parent: Described,
    space: Space,
    ends: Sequence[str],
    scenario: Scenario,
    storage: Storage,
    caches: Sequence[str] = (),
) -> dict[str, int]:
    """The least of each exact quantity that the space reaches, each on its own, ends and every cache included."""
    shape = parent.shape
    weights = min(storage.ends(shape, form) for form in (None, *ends))
    outside = {"parameters": ends_parameters(shape), "weights": weights, "kv": 0, "memory": weights}
    found = [_least_of_layers(shape, space, scenario, storage, cache) for cache in (None, *caches)]
    return {name: own + min(each[name] for each in found) for name, own in outside.items()}


def _least_of_layers(
    shape: Shape, space: Space, scenario: Scenario, storage: Storage, cache: str | None
) -> dict[str, int]:
    """The same of all layers of models with one cache."""
    length = scenario.prefill + scenario.generate

    def sizes(variant: Variant, layer: int) -> dict[str, int]:
        entry = variant.entry(shape, layer)
        kv = storage.kv(entry, shape, scenario.batch_size, length, cache)
        weights = storage.weights(entry, variant.slot, shape)
        count = parameters(entry, variant.slot, shape)
        return {"parameters": count, "weights": weights, "kv": kv, "memory": weights + kv}

    behind = [dict.fromkeys(("parameters", "weights", "kv", "memory"), 0)]
    for layer, variants in reversed(list(enumerate(space))):
        own = [[sizes(v, layer) for v in variants if v.slot == slot and not v.run] for slot in SLOTS]
        runs = [([sizes(v, layer) for v in run], behind[-len(run[0].run)]) for run in _runs(variants)]
        behind.append(
            {
                name: min(
                    [
                        sum(min(each[name] for each in held) for held in own) + rest,
                        *(sum(each[name] for each in held) + after[name] for held, after in runs),
                    ]
                )
                for name, rest in behind[-1].items()
            }
        )
    return behind[-1]


def _runs(variants: Sequence[Variant]) -> Iterator[tuple[Variant, Variant]]:
    """The runs of layers that begin at a layer, each by the two subblocks that are left of it."""
    for block in dict.fromkeys(variant.block for variant in variants if variant.run):
        attention, ffn = (next(v for v in variants if v.label == label) for label in block)
        yield attention, ffn
