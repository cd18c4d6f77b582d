"""What matrices read, found in the store by a manifest: for each matrix the blob and the tensor (pieces/inputs.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from inlay.cluster.store import Store
from inlay.nas.families.shape import Shape, layer_prefix, subblock_tensors
from inlay.nas.formats.inputs import Inputs
from inlay.nas.tables.architecture import Blocks
from inlay.nas.variants import Variant, parse_variant

Places = Mapping[str, tuple[str, str]]
"""By a matrix's whole-model name: the blob, and the name of its tensor there."""


def manifest(places: Places) -> bytes:
    """The blob that says where everything lies."""
    return json.dumps({name: list(place) for name, place in sorted(places.items())}).encode()


@dataclass(frozen=True)
class MatrixInputs:
    """What matrices read, by their names; each is read from the store when it is asked for.

    Args:
        store: the workspace's.
        places: where they lie.
        prefix: of the names that are asked for.
    """

    store: Store
    places: Places
    prefix: str = ""

    @staticmethod
    def of(store: Store, digest: str) -> MatrixInputs:
        """Those of a manifest; "" is of none."""
        return MatrixInputs(store, _places(str(store.blob_path(digest))) if digest else {})

    def within(self, layer: int, variant: Variant) -> MatrixInputs:
        """By the names within a layer, for what stands there; none for a trained variant, as `where_own` says."""
        return replace(self, prefix=layer_prefix(layer), places=self.places if variant.is_own else {})

    def where_own(self, shape: Shape, architecture: Blocks) -> MatrixInputs:
        """Without those of trained variants: merged heads have another order, and what stands alone reads something
        else, though their rows are as long as the parent's."""
        others = {
            layer_prefix(layer) + name
            for layer, block in enumerate(architecture)
            for variant in map(parse_variant, block[:2])
            if not variant.is_own
            for name in subblock_tensors(shape, variant.slot, shape.parent_entry(layer, variant.slot))
        }
        return replace(self, places={name: place for name, place in self.places.items() if name not in others})

    def get(self, name: str, row: int) -> Inputs | None:
        """Of a matrix with such rows; None where it is not told: of a variant whose inputs are not the parent's."""
        place = self.places.get(self.prefix + name)
        found = _inputs(str(self.store.blob_path(place[0])), *place) if place else None
        return found if found is not None and len(found.gram_CC) == row else None


@lru_cache(maxsize=2)
def _places(path: str) -> Places:
    return {name: (digest, tensor) for name, (digest, tensor) in json.loads(Path(path).read_text()).items()}


@lru_cache(maxsize=2)
def _inputs(path: str, digest: str, tensor: str) -> Inputs:
    """Matrices that read the same come one after the other: it is factored once for them."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return Inputs(f"{digest} {tensor}", file.get_tensor(tensor))
