"""Whole models in a worker: assembled from parent and library, trained as one, kept as one blob."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.distill.adapters import Merged, add_adapters
from inlay.distill.parallel import shard, shard_ends, world_mesh
from inlay.distill.sweep import Slot
from inlay.distill.tensor_files import Rows
from inlay.nas.families import Shape, ends_tensors, layer_prefix, subblock_tensors
from inlay.nas.formats.by_tensor import form_of
from inlay.nas.modeling import Ends, InlayForCausalLM, InlayLayer, build_layer
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.matrix_inputs import MatrixInputs
from inlay.nas.pieces.model_files import ModelFiles, store_tensors
from inlay.nas.pieces.rounding import MODEL, PACKED, numbers_of
from inlay.nas.pieces.weights import Library, WorkerSource, rounded_state
from inlay.nas.tables.architecture import Block, Blocks, blocks_of, ends_form
from inlay.nas.tables.configs import config_of
from inlay.nas.variants import Variant, parse_variant

HEAD = "lm_head.weight"
Trained = Literal["none", "replaced", "adapters", "all"]
"""What a training changes of a model; `replaced`: the subblocks that are not the parent's own; `adapters`: all linear
layers of all subblocks, by low-rank adapters."""


@dataclass(frozen=True)
class TrainedModel:
    """An architecture with its trained weights.

    Args:
        architecture: its blocks.
        blob: all tensors in the parent's dtype.
        packed: the rows of those that were rounded while they were trained; "" where none were.
    """

    architecture: Blocks
    blob: str
    packed: str = ""

    @staticmethod
    def of(architecture: Blocks, blobs: Mapping[str, str]) -> TrainedModel:
        """From the digests of what was stored of it."""
        return TrainedModel(architecture, blobs[MODEL], blobs.get(PACKED, ""))

    @staticmethod
    def from_told(told: Mapping[str, Any]) -> TrainedModel:
        """What `told` says."""
        return TrainedModel(blocks_of(told["architecture"]), told["blob"], told["packed"])

    @property
    def told(self) -> dict[str, Any]:
        """What a worker is told of it."""
        return {"blob": self.blob, "packed": self.packed, "architecture": [list(block) for block in self.architecture]}


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
    blob = assembled_blob(worker_source(arguments, library), [tuple(block) for block in arguments["architecture"]])
    return PieceOutput(values={}, stored={MODEL: blob})


def assembled_blob(source: WorkerSource, architecture: Sequence[Block]) -> str:
    """The digest of the weights of an architecture as they are assembled, put into the store one tensor at a time."""
    shape, dtype = source.parent.shape, getattr(torch, source.parent.shape.dtype)
    rows: dict[str, Rows] = {}

    def add(read: Callable[[str], Tensor], prefix: str, sizes: Mapping[str, tuple[int, ...]]) -> None:
        for name, size in sizes.items():
            rows[prefix + name] = Rows(size, dtype, partial(_read_as, dtype, read, name))

    add(source.parent.tensor, "", ends_tensors(shape))
    for index, block in enumerate(architecture):
        for variant in map(parse_variant, block[:2]):
            if variant.is_absent(shape, index):
                continue
            sizes = subblock_tensors(shape, variant.slot, variant.entry(shape, index))
            if variant.is_own:
                add(source.parent.tensor, "", {layer_prefix(index) + name: size for name, size in sizes.items()})
            else:
                held = ModelFiles(source.store, source.library.digests[index][variant.bare.label])
                add(held.__getitem__, layer_prefix(index), sizes)
    return store_tensors(source.store, rows, source.device)


def _read_as(dtype: torch.dtype, read: Callable[[str], Tensor], name: str) -> Tensor:
    return read(name).to(dtype)


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
    source, architecture = stored.source, stored.model.architecture
    state = stored.ends_state()
    for index, block in enumerate(architecture):
        for variant in map(parse_variant, block[:2]):
            if not variant.is_absent(source.parent.shape, index):
                own = stored.slot_state(index, variant)
                state |= {layer_prefix(index) + name: tensor for name, tensor in own.items()}
    return _built(source, architecture, state, source.dtype)


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
    source: WorkerSource,
    architecture: Blocks,
    dtype: torch.dtype,
    trained: Trained,
    seed: int = 0,
    compute: torch.dtype | None = None,
) -> InlayForCausalLM:
    """The same model sharded with FSDP2 among the processes of torch.distributed's group; `seed` as of `set_trained`.

    `compute` is the type that weights are gathered in, None their own.

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
        shard(layer, mesh, compute)
    model.load_state_dict(_moved(source.parent.ends_state(), dtype, source.device), strict=False, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    shard_ends(model, mesh, compute)
    built: InlayForCausalLM = model
    return built


def _moved(state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, dtype) for name, tensor in state.items()}


def own_state(model: InlayForCausalLM) -> Merged:
    """The model's tensors, adapters merged, a tied head left out; of a sharded model this process's rows."""
    tied = model.config.tie_word_embeddings
    return Merged({name: own.detach() for name, own in model.state_dict().items() if not (tied and name == HEAD)})


@dataclass
class StoredModel:
    """A sweep source over one stored whole model, read subblock by subblock; every choice means its own subblock.

    Args:
        source: what is true of every model.
        model: the one that is stored.
    """

    source: WorkerSource
    model: TrainedModel

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.model.architecture)

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
        shape, told = self.source.parent.shape, self.source.matrix_inputs.within(index, variant)
        names = subblock_tensors(shape, variant.slot, variant.entry(shape, index))
        return self._computed(layer_prefix(index), names, variant.form, told)

    def ends_state(self) -> dict[str, Tensor]:
        """The tensors of embedding, final norm and head, as they are computed with."""
        names, form = ends_tensors(self.source.parent.shape), ends_form(self.model.architecture)
        return self._computed("", names, form, self.source.matrix_inputs)

    def ends(self) -> Ends:
        """The model's own embedding, final norm and head, as they are computed with."""
        return Ends(self.source.parent.config, self.ends_state(), self.source.dtype).to(self.device)

    def _computed(self, prefix: str, names: Iterable[str], form: str | None, told: MatrixInputs) -> dict[str, Tensor]:
        """Rounded anew, but for what was rounded while it was trained."""
        state = self._tensors(self.model.blob, prefix, names)
        if form is None:
            return state
        rows = self._tensors(self.model.packed, prefix, names) if self.model.packed else {}
        rest = {name: tensor for name, tensor in state.items() if name not in rows}
        trained = {name: numbers_of(own, form_of(form, name), state[name].shape[1]) for name, own in rows.items()}
        return rounded_state(rest, form, told, self.source.kept) | trained

    def _tensors(self, blob: str, prefix: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of the names that are stored."""
        files = ModelFiles(self.source.store, blob)
        return {name: files[prefix + name] for name in names if prefix + name in files}
