"""An architecture: the two variants chosen at every layer, with its exact sizes and its JSON."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from inlay.nas.errors import UserError
from inlay.nas.families.shape import SLOTS, Entry, Shape
from inlay.nas.variants import sizes
from inlay.nas.variants.variant import Variant, parse_variant

_SCHEMA = 1


@dataclass(frozen=True)
class Architecture:
    """One (attention, ffn) pair of variants a layer. Raises `ValueError` for a pair in another order."""

    layers: tuple[tuple[Variant, Variant], ...]

    def __post_init__(self) -> None:
        for layer, pair in enumerate(self.layers):
            if tuple(variant.slot for variant in pair) != SLOTS:
                raise ValueError(f"Layer {layer} must be an (attention, ffn) pair, not {[str(v) for v in pair]}.")

    @classmethod
    def parent(cls, shape: Shape) -> "Architecture":
        """The parent itself."""
        return cls(((Variant("attention", "parent"), Variant("ffn", "parent")),) * shape.num_layers)

    @classmethod
    def of_labels(cls, labels: Sequence[tuple[str, str]]) -> "Architecture":
        """From one (attention label, ffn label) pair a layer. Raises `UserError` naming a layer and its bad label."""
        return cls(
            tuple((_parse(attention, layer), _parse(ffn, layer)) for layer, (attention, ffn) in enumerate(labels))
        )

    @classmethod
    def from_json(cls, value: Any) -> "Architecture":
        """From what `to_json` gave. Raises `UserError` for another form."""
        try:
            if value["schema"] != _SCHEMA:
                raise UserError(f"architecture.schema: {value['schema']} is not known; this inlay reads {_SCHEMA}.")
            labels = [(str(layer["attention"]), str(layer["ffn"])) for layer in value["layers"]]
        except (KeyError, TypeError):
            raise UserError(
                'architecture: this is not one; it has the form {"schema": 1, "layers": '
                '[{"attention": "attention:parent", "ffn": "ffn:no_op"}, ...]}.'
            ) from None
        return cls.of_labels(labels)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts and labels."""
        layers = [{"attention": attention.label, "ffn": ffn.label} for attention, ffn in self.layers]
        return {"schema": _SCHEMA, "layers": layers}

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        """One (attention label, ffn label) pair a layer."""
        return tuple((attention.label, ffn.label) for attention, ffn in self.layers)

    @property
    def digest(self) -> str:
        """sha256 of the JSON."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        """Short text: layers that are alike together, `0-3 parent/width=256, 4 no_op/no_op`."""
        kinds = [f"{attention.partition(':')[2]}/{ffn.partition(':')[2]}" for attention, ffn in self.labels]
        runs = [list(run) for _, run in groupby(range(len(kinds)), key=kinds.__getitem__)]
        return ", ".join(
            f"{run[0]}-{run[-1]} {kinds[run[0]]}" if len(run) > 1 else f"{run[0]} {kinds[run[0]]}" for run in runs
        )

    def blocks(self, shape: Shape) -> list[dict[str, Entry]]:
        """The `blocks` of the child's config."""
        self._check_depth(shape)
        return [
            {"attention": attention.entry(shape, layer), "ffn": ffn.entry(shape, layer)}
            for layer, (attention, ffn) in enumerate(self.layers)
        ]

    def parameters(self, shape: Shape) -> int:
        """Numbers in the whole model, ends included."""
        layers = sum(sizes.parameters(block[slot], slot, shape) for block in self.blocks(shape) for slot in SLOTS)
        return layers + sizes.ends_parameters(shape)

    def weights_bytes(self, shape: Shape) -> int:
        """Bytes of the whole model as it is stored, ends included."""
        return self.parameters(shape) * shape.dtype_bytes

    def kv_bytes(self, shape: Shape, batch: int, length: int, kv_dtype_bytes: int | None = None) -> int:
        """Bytes of the whole cache for `batch` sequences after `length` tokens."""
        blocks = self.blocks(shape)
        return sum(sizes.kv_bytes(block["attention"], shape, batch, length, kv_dtype_bytes) for block in blocks)

    def _check_depth(self, shape: Shape) -> None:
        if len(self.layers) != shape.num_layers:
            raise UserError(
                f"architecture.layers: it has {len(self.layers)} layers and the parent has {shape.num_layers}; "
                "take an architecture that was searched for this parent."
            )


def _parse(label: str, layer: int) -> Variant:
    try:
        return parse_variant(label)
    except UserError as error:
        raise UserError(f"architecture.layers[{layer}]: {error}") from None
