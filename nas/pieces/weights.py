"""Subblocks for a worker: the parent's own from its checkpoint, variants from the block library.

A worker never holds more than it asked for: one subblock at a time comes from disk, in the type that is stored, and is
computed in the search's compute type. Stored weights are what is scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from inlay.cluster.store import Store
from inlay.distill.sweep import Slot
from inlay.nas.families import Parent, open_parent
from inlay.nas.formats import FORMATS
from inlay.nas.formats.by_tensor import form_of
from inlay.nas.formats.kept import KeptRounding
from inlay.nas.formats.tensors import rounded
from inlay.nas.hub_ids import has_hub_form
from inlay.nas.modeling import Ends, InlayLayer, build_layer, make_context
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.pieces.matrix_inputs import MatrixInputs
from inlay.nas.tables.architecture import Blocks, is_original
from inlay.nas.variants import parse_variant


@dataclass(frozen=True)
class Library:
    """Where the trained weights are: blob digests by layer and label, without formats."""

    digests: Mapping[int, Mapping[str, str]]

    def has(self, layer: int, label: str) -> bool:
        """Whether that variant was trained."""
        return label in self.digests.get(layer, {})


def used_weights(library: Library, architectures: Sequence[Blocks]) -> dict[str, dict[str, str]]:
    """Digests of the trained weights that these architectures hold, by layer and label without its format."""
    held: dict[str, dict[str, str]] = {}
    for architecture in architectures:
        for layer, block in enumerate(() if is_original(architecture) else architecture):
            for label in (parse_variant(label).bare.label for label in block[:2]):
                if library.has(layer, label):
                    held.setdefault(str(layer), {})[label] = library.digests[layer][label]
    return held


def rounded_state(
    state: Mapping[str, Tensor], form: str | None, inputs: MatrixInputs, kept: KeptRounding | None
) -> dict[str, Tensor]:
    """A subblock's tensors as an engine computes with them: matrices rounded by what holds their rows in that format,
    or in each one's own.

    None: as they are stored. Matrices whose inputs are not told are rounded number by number.
    """
    if form is None:
        return dict(state)
    found = dict(state)
    for name, tensor in state.items():
        if tensor.ndim == 2:
            row = tensor.shape[1]
            found[name] = rounded(tensor, FORMATS[form_of(form, name)].holding(row), inputs.get(name, row), kept)
    return found


@lru_cache(maxsize=2)
def parent_of(place: str) -> Parent:
    """The parent of this worker, in a folder or at `hub id@commit` through this node's own cache; once a process."""
    name, _, revision = place.rpartition("@")
    return open_parent(name, revision) if has_hub_form(name) else open_parent(place)


@dataclass
class WorkerSource:
    """The sweep's source in a worker.

    Args:
        parent: the open parent.
        library: trained variants.
        store: the workspace's store.
        dtype: the compute type.
        device: where modules and hidden states live.
        inputs: the digest of what the parent's matrices read, by which rounding is fitted; "" without.
        kept: where what was rounded before lies; None: every subblock is rounded anew.
    """

    parent: Parent
    library: Library
    store: Store
    dtype: torch.dtype
    device: torch.device
    inputs: str = ""
    kept: KeptRounding | None = None
    _contexts: dict[tuple[int, int], Any] = field(default_factory=dict)
    _entries: dict[Any, dict[str, Any]] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """Layers of the parent, and so of every child."""
        return self.parent.shape.num_layers

    def context(self, batch: int, sequence: int) -> Any:
        """Positions and masks for full sequences without a cache, made once a shape, for all attention used so far."""
        key = (batch, sequence)
        if key not in self._contexts:
            entries = list(self._entries.values())
            self._contexts[key] = make_context(self.parent.config, batch, sequence, self.dtype, self.device, entries)
        return self._contexts[key]

    def use(self, entry: dict[str, Any]) -> None:
        """Makes contexts serve this attention entry too."""
        masks = SUBBLOCKS.of(entry).masks(entry)
        if masks not in self._entries:
            self._entries[masks] = entry
            self._contexts.clear()

    def subblock(self, index: int, slot: Slot, choice: str) -> InlayLayer | None:
        """A layer that has only this slot; None where nothing stands in it."""
        variant = parse_variant(choice)
        if variant.is_absent(self.parent.shape, index):
            return None
        entry = variant.entry(self.parent.shape, index)
        if variant.is_own:
            state = self.parent.slot_state(index, slot)
        elif self.library.has(index, variant.bare.label):
            state = self.store_state(self.library.digests[index][variant.bare.label])
        else:
            raise KeyError(f"layer {index}: {choice} is not in the block library")
        if slot == "attention":
            self.use(entry)
        attention, ffn = (entry, None) if slot == "attention" else (None, entry)
        state = rounded_state(state, variant.form, self.matrix_inputs.within(index, variant), self.kept)
        layer = build_layer(self.parent.config, index, attention, ffn, state, self.dtype)
        return layer.to(self.device)

    @property
    def matrix_inputs(self) -> MatrixInputs:
        """What matrices read, by their whole-model names."""
        return MatrixInputs.of(self.store, self.inputs)

    def store_state(self, digest: str) -> dict[str, Tensor]:
        """The tensors of one blob of the library."""
        from safetensors.torch import load_file

        return dict(load_file(self.store.blob_path(digest)))

    def ends(self, form: str | None = None) -> Ends:
        """Embedding, final norm and head in the compute type, rounded where a format is given."""
        state = self.rounded_ends(self.parent.ends_state(), form)
        return Ends(self.parent.config, state, self.dtype).to(self.device)

    def rounded_ends(self, state: Mapping[str, Tensor], form: str | None) -> dict[str, Tensor]:
        """Their tensors as an engine computes with them."""
        return rounded_state(state, form, self.matrix_inputs, self.kept)
