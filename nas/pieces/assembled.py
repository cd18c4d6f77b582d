"""Whole models in a worker: assembled from parent and library, trained as one, kept as one blob."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.distill.adapters import add_adapters, merged
from inlay.distill.parallel import shard, world_mesh
from inlay.distill.sweep import Slot
from inlay.nas.families import Shape, ends_tensors, layer_prefix, subblock_tensors
from inlay.nas.modeling import Ends, InlayForCausalLM, InlayLayer, build_layer
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.weights import Library, WorkerSource, rounded_state
from inlay.nas.tables.architecture import Block, Blocks, ends_form
from inlay.nas.tables.configs import config_of
from inlay.nas.variants import Variant, parse_variant

HEAD = "lm_head.weight"
Trained = Literal["none", "replaced", "adapters", "all"]
"""What a training changes of a model; `replaced`: the subblocks that are not the parent's own; `adapters`: all linear
layers of all subblocks, by low-rank adapters."""


@dataclass(frozen=True)
class TrainedModel:
    """An architecture with its trained weights."""

    architecture: Blocks
    blob: str


def assemble_state(source: WorkerSource, architecture: Sequence[Block]) -> dict[str, Tensor]:
    """Whole-model tensors of an architecture, from the parent and the library, as they are stored."""
    state = dict(source.parent.ends_state())
    for index, block in enumerate(architecture):
        own = layer_state(source, index, block)
        state.update({f"model.layers.{index}.{name}": tensor for name, tensor in own.items()})
    return state


def store_assembled(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece: the weights of an architecture as they are assembled, as one blob `model`."""
    library = Library({int(layer): held for layer, held in arguments["library"].items()})
    source = worker_source(arguments, library)
    dtype = getattr(torch, source.parent.shape.dtype)
    state = assemble_state(source, [tuple(block) for block in arguments["architecture"]])
    return PieceOutput(values={}, blobs={"model": {name: tensor.to(dtype) for name, tensor in state.items()}})


def layer_state(source: WorkerSource, index: int, block: Block) -> dict[str, Tensor]:
    """The tensors of one layer of an architecture by layer-local names, as they are stored."""
    state: dict[str, Tensor] = {}
    for variant in map(parse_variant, block[:2]):
        if variant.is_own:
            state.update(source.parent.slot_state(index, variant.slot))
        elif not variant.is_absent(source.parent.shape, index):
            state.update(source.store_state(source.library.digests[index][variant.bare.label]))
    return state


def build_whole(source: WorkerSource, architecture: Blocks, dtype: torch.dtype) -> InlayForCausalLM:
    """The assembled model with weights of `dtype` on the source's device."""
    return _built(source, architecture, assemble_state(source, architecture), dtype)


def build_stored(stored: StoredModel) -> InlayForCausalLM:
    """A stored model as a whole, with weights as they are computed with, on its source's device."""
    source = stored.source
    state = stored.ends_state()
    for index, block in enumerate(stored.architecture):
        for variant in map(parse_variant, block[:2]):
            if not variant.is_absent(source.parent.shape, index):
                own = stored.slot_state(index, variant)
                state |= {layer_prefix(index) + name: tensor for name, tensor in own.items()}
    return _built(source, stored.architecture, state, source.dtype)


def _built(
    source: WorkerSource, architecture: Blocks, state: Mapping[str, Tensor], dtype: torch.dtype
) -> InlayForCausalLM:
    config = config_of(source.parent.config, source.parent.shape, architecture)
    cast = {name: tensor.to(dtype) for name, tensor in state.items()}
    model: Any = InlayForCausalLM.from_pretrained(None, config=config, state_dict=cast, dtype=dtype)
    built: InlayForCausalLM = model.to(source.device)
    return built


def set_trained(model: InlayForCausalLM, shape: Shape, architecture: Blocks, trained: Trained, seed: int = 0) -> None:
    """Says which of a model's weights a training changes; adapters are added, drawn from the seed.

    Raises:
        ImportError: adapters are wanted, and PEFT is not installed.
    """
    model.requires_grad_(trained == "all")
    if trained == "adapters":
        for index, layer in enumerate(model.model.layers):
            add_adapters(layer, seed + index)
    if trained != "replaced":
        return
    for index, (layer, block) in enumerate(zip(model.model.layers, architecture, strict=True)):
        for variant in map(parse_variant, block[:2]):
            if not variant.is_own:
                for name in subblock_tensors(shape, variant.slot, variant.entry(shape, index)):
                    layer.get_parameter(name).requires_grad_(True)


def build_sharded(
    source: WorkerSource, architecture: Blocks, dtype: torch.dtype, trained: Trained, seed: int = 0
) -> InlayForCausalLM:
    """The same model sharded with FSDP2 among the processes of torch.distributed's group; `seed` as of `set_trained`.

    A process reads one layer at a time and keeps its shard of it: it never holds more than its shards, one layer and
    the two ends.
    """
    config = config_of(source.parent.config, source.parent.shape, architecture)
    with torch.device("meta"):
        model: Any = InlayForCausalLM(config)
    # Adapters are added to weights that are there.
    first = "none" if trained == "adapters" else trained
    set_trained(model.eval(), source.parent.shape, architecture, first)
    # Its frequencies are in no checkpoint, and stay in float32.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config.family_config()).to(source.device)
    mesh = world_mesh(source.device)
    for index, (layer, block) in enumerate(zip(model.model.layers, architecture, strict=True)):
        layer.load_state_dict(_moved(layer_state(source, index, block), dtype, source.device), strict=True, assign=True)
        if trained == "adapters":
            add_adapters(layer, seed + index)
        shard(layer, mesh)
    model.load_state_dict(_moved(source.parent.ends_state(), dtype, source.device), strict=False, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    shard(model, mesh)
    built: InlayForCausalLM = model
    return built


def _moved(state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, dtype) for name, tensor in state.items()}


def stored_state(model: InlayForCausalLM, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's tensors as they are stored: in the parent's dtype, adapters merged, a tied head left out."""
    tensors = merged({name: tensor.detach() for name, tensor in model.state_dict().items()})
    state = {name: tensor.to(dtype).cpu().contiguous() for name, tensor in tensors.items()}
    if model.config.tie_word_embeddings:
        state.pop(HEAD, None)
    return state


@dataclass
class StoredModel:
    """A sweep source over one stored whole model, read subblock by subblock; every choice means its own subblock."""

    source: WorkerSource
    blob: str
    architecture: Blocks

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.architecture)

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.source.device

    def context(self, batch: int, sequence: int) -> Any:
        """Positions and masks."""
        return self.source.context(batch, sequence)

    def subblock(self, index: int, slot: Slot, choice: str) -> InlayLayer | None:
        """The model's own subblock; None where nothing stands in it."""
        variant, shape = parse_variant(choice), self.source.parent.shape
        if variant.is_absent(shape, index):
            return None
        entry = variant.entry(shape, index)
        if slot == "attention":
            self.source.use(entry)
        state = self.slot_state(index, variant)
        attention, ffn = (entry, None) if slot == "attention" else (None, entry)
        return build_layer(self.source.parent.config, index, attention, ffn, state, self.source.dtype).to(self.device)

    def slot_state(self, index: int, variant: Variant) -> dict[str, Tensor]:
        """The tensors of a variant that stands in the model by layer-local names, as they are computed with."""
        shape = self.source.parent.shape
        names = subblock_tensors(shape, variant.slot, variant.entry(shape, index))
        stored = self._tensors(layer_prefix(index), names)
        return rounded_state(stored, variant.form, self.source.matrix_inputs.within(index, variant), self.source.kept)

    def ends_state(self) -> dict[str, Tensor]:
        """The tensors of embedding, final norm and head, as they are computed with."""
        state = self._tensors("", ends_tensors(self.source.parent.shape))
        return self.source.rounded_ends(state, ends_form(self.architecture))

    def ends(self) -> Ends:
        """The model's own embedding, final norm and head, as they are computed with."""
        return Ends(self.source.parent.config, self.ends_state(), self.source.dtype).to(self.device)

    def _tensors(self, prefix: str, names: Iterable[str]) -> Mapping[str, Tensor]:
        from safetensors import safe_open

        with safe_open(self.source.store.blob_path(self.blob), framework="pt") as file:
            return {name: file.get_tensor(prefix + name) for name in names}
