"""The tensors of a GGUF file by the names that Transformers gives them, turned back into numbers as they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from inlay.nas.errors import UserError
from inlay.nas.families.checkpoint import Checkpoint, StoredTensor
from inlay.nas.families.gguf.header import Header, Place, gguf_package
from inlay.nas.families.shape import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    SLOTS,
    Shape,
    ends_tensors,
    layer_prefix,
    subblock_tensors,
)

if TYPE_CHECKING:
    import torch

EMBEDDING_HERE: Final = "token_embd.weight"
HEAD_HERE: Final = "output.weight"
ROTATION: Final = "rope_freqs.weight"
"""What the rotation's frequencies are divided by: not a weight, config.json says it."""
INTERLEAVED: Final = ("llama",)
"""Architectures whose queries and keys hold the two numbers of a rotated pair side by side, unlike Transformers'."""

_ENDS: Final = {EMBEDDING: EMBEDDING_HERE, FINAL_NORM: "output_norm.weight", HEAD: HEAD_HERE}
_IN_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_KEPT: Final = {"F32": "float32", "F16": "float16"}
_ROTATED: Final = ("self_attn.q_proj", "self_attn.k_proj")


@dataclass(frozen=True)
class PackedTensor(StoredTensor):
    """A tensor in a GGUF file; `dtype` is what it is unpacked to, `num_bytes` what it takes in the file."""

    format: str
    interleaved_heads: int
    """So many heads hold their rotated pairs side by side; 0 for every other tensor."""

    def read(self) -> "torch.Tensor":
        """The tensor as Transformers has it, in `dtype`. Raises `UserError` for a format that cannot be turned back."""
        import numpy as np
        import torch

        gguf = gguf_package()
        data = np.fromfile(self.file, dtype=np.uint8, count=self.num_bytes, offset=self.offset)
        try:
            numbers = gguf.quants.dequantize(
                data.reshape(prod(self.shape[:-1]), -1), gguf.GGMLQuantizationType[self.format]
            )
        except NotImplementedError:
            raise UserError(
                f"parent: the file `{self.file}` has tensors in the format {self.format}, which the package gguf does "
                "not turn into numbers; give a file in another format, such as Q8_0."
            ) from None
        tensor = torch.from_numpy(np.array(numbers, np.float32)).view(self.shape)
        if self.interleaved_heads:
            tensor = _halves(tensor, self.interleaved_heads)
        return tensor.to(getattr(torch, self.dtype))


def unpacked_dtype(header: Header) -> str:
    """What a file's numbers are unpacked to: float32 or float16 where most numbers of its matrices are stored so.

    bfloat16 for every other: a quantised model's error is far larger than its rounding, and float16 trains badly.
    """
    numbers: dict[str, int] = {}
    for place in header.tensors.values():
        if len(place.shape) > 1:
            numbers[place.format] = numbers.get(place.format, 0) + prod(place.shape)
    return _KEPT.get(max(numbers, key=lambda name: numbers[name], default="BF16"), "bfloat16")


def packed_checkpoint(header: Header, shape: Shape) -> Checkpoint:
    """The tensors that such a model has, by their names in Transformers; nothing is read.

    Raises `UserError` naming a tensor that is missing, misshapen, or that such a model does not have.
    """
    interleaved = header.fields["general.architecture"] in INTERLEAVED
    wanted = _wanted(shape)
    for name, size in wanted.items():
        here = _name_here(name)
        if here not in header.tensors:
            raise header.damaged(
                f"it lacks the tensor `{here}`, which a {shape.family} of {shape.num_layers} layers has"
            )
        if header.tensors[here].shape != size:
            found = list(header.tensors[here].shape)
            raise header.damaged(f"its tensor `{here}` has the shape {found} where its sizes ask for {list(size)}")
    if foreign := header.tensors.keys() - {_name_here(name) for name in wanted} - {ROTATION}:
        raise UserError(
            f"parent: the file `{header.path}` holds the tensor `{min(foreign)}`, which a {shape.family} "
            "does not have; give a model of a supported family."
        )
    tensors = {name: _packed(header, shape, name, header.tensors[_name_here(name)], interleaved) for name in wanted}
    return Checkpoint(header.path, tensors)


def _wanted(shape: Shape) -> Mapping[str, tuple[int, ...]]:
    wanted = dict(ends_tensors(shape))
    for layer in range(shape.num_layers):
        for slot in SLOTS:
            tensors = subblock_tensors(shape, slot, shape.parent_entry(layer, slot))
            wanted |= {layer_prefix(layer) + name: size for name, size in tensors.items()}
    return wanted


def _name_here(name: str) -> str:
    if name in _ENDS:
        return _ENDS[name]
    layer, local = name.removeprefix("model.layers.").split(".", 1)
    module, kind = local.rsplit(".", 1)
    return f"blk.{layer}.{_IN_LAYER[module]}.{kind}"


def _packed(header: Header, shape: Shape, name: str, place: Place, interleaved: bool) -> PackedTensor:
    rotated = any(part in name for part in _ROTATED)
    heads = place.shape[0] // shape.head_dim if interleaved and rotated else 0
    return PackedTensor(
        header.path, shape.dtype, place.shape, place.offset, place.num_bytes, place.format, interleaved_heads=heads
    )


def _halves(rows: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Rows of heads whose rotated pairs stand side by side, with the first of every pair before the second ones."""
    pairs = rows.view(heads, -1, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
