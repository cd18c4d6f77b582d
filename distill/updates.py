"""The updates of a layer's subblocks as local distillation computes them: the modules' own functions, rearranged.

All variants of a slot read the same hidden states, so these are normalised once for all of them, and a variant's norm
weight g goes into the matrices behind it: W·(g * x) = (W * g)·x. Then nothing asks for a gradient of the input, which
autograd would otherwise form for every variant only to get g's, and g's is exact by the product rule. What a layer
is made of is recognised by its modules; anything unknown runs as its own method says.

Shapes: B batch, S sequence, D model width, H query heads, G key-value heads, K head size, O outputs of a projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation

from inlay.kernels import (
    AttentionShape,
    attention_error,
    banded_attention,
    banded_elements,
    gated_ffn,
    gated_ffn_error,
    linear_error,
    rotate,
    update_mse,
)

Slot = Literal["attention", "ffn"]
NORMS = {"attention": "input_layernorm", "ffn": "post_attention_layernorm"}
MIXERS = {"attention": "self_attn", "ffn": "mlp"}
LARGEST_BAND_BYTES = 1 << 28
"""Probabilities that banded attention may keep for its backward; beyond it the modules' own flash attention runs."""


@dataclass(frozen=True)
class SlotInput:
    """What all variants of one slot read."""

    slot: Slot
    """The subblock that reads it."""
    hidden_BSD: Tensor
    """The residual stream before the subblock."""
    context: Any
    """Positions and masks of the batch, for attention."""
    norm_epsilon: float | None
    """Of the parent's norm, which every variant has; None where the parent has no such subblock."""

    @cached_property
    def normed_BSD(self) -> Tensor:
        """x / rms(x), without any norm's weight."""
        return functional.rms_norm(self.hidden_BSD, self.hidden_BSD.shape[-1:], eps=self.norm_epsilon)


def slot_input(parent_layer: Any, slot: Slot, hidden_BSD: Tensor, context: Any) -> SlotInput:
    """The input of a slot, read off the parent's layer."""
    norm = getattr(parent_layer, NORMS[slot], None)
    return SlotInput(slot, hidden_BSD, context, None if norm is None else norm.variance_epsilon)


def update_of(layer: Any, given: SlotInput) -> Tensor:
    """What the layer's subblock adds to its input, [B, S, D]."""
    form = _form(layer, given, len(given.hidden_BSD) if torch.is_grad_enabled() else 1)
    if form == "own":
        return _own_update(layer, given)
    mixer, norm_D = _modules(layer, given.slot)
    if form == "linear":
        return functional.linear(given.normed_BSD, mixer.weight * norm_D)
    if form != "gated":
        return _attention(mixer, norm_D, given, layer.window)
    if mixer.down_proj.weight.requires_grad:
        return _own_update(layer, given)
    gate_FD, up_FD = mixer.gate_proj.weight * norm_D, mixer.up_proj.weight * norm_D
    normed_ND = given.normed_BSD.flatten(0, 1)
    return gated_ffn(normed_ND, gate_FD, up_FD, mixer.down_proj.weight).view_as(given.hidden_BSD)


def error_of(layer: Any, given: SlotInput, answer_BSD: Tensor, scale: Tensor) -> Tensor:
    """update_mse of the layer's update against `answer_BSD`, with gradients for the layer's weights."""
    form = _form(layer, given, 1)
    if form in ("own", "normed attention"):
        return update_mse(update_of(layer, given), answer_BSD, scale)
    mixer, norm_D = _modules(layer, given.slot)
    normed_ND, answer_ND = (tensor.flatten(0, 1) for tensor in (given.normed_BSD, answer_BSD))
    if form == "linear":
        return linear_error(normed_ND, mixer.weight * norm_D, answer_ND, scale)
    if form == "gated":
        gate_FD, up_FD = mixer.gate_proj.weight * norm_D, mixer.up_proj.weight * norm_D
        return gated_ffn_error(normed_ND, gate_FD, up_FD, mixer.down_proj.weight, answer_ND, scale)
    joint_OD, bias_O = _joint_projection(mixer, norm_D)
    shape = AttentionShape(mixer.head_dim, mixer.scaling, *(layer.window or (None, 0)))
    rotary = given.context.position_embeddings
    return attention_error(given.normed_BSD, joint_OD, bias_O, mixer.o_proj.weight, rotary, shape, answer_BSD, scale)


def _modules(layer: Any, slot: Slot) -> tuple[Any, Tensor]:
    """The mixer of a subblock and the weight of the norm before it, [D]."""
    return getattr(layer, MIXERS[slot]), getattr(layer, NORMS[slot]).weight


def _own_update(layer: Any, given: SlotInput) -> Tensor:
    if given.slot == "ffn":
        update_BSD: Tensor = layer.ffn_update(given.hidden_BSD)
    else:
        update_BSD = layer.attention_update(given.hidden_BSD, given.context)
    return update_BSD


def _attention(mixer: Any, norm_D: Tensor, given: SlotInput, window: tuple[int, int] | None) -> Tensor:
    joint_OD, bias_O = _joint_projection(mixer, norm_D)
    joint_BSO = functional.linear(given.normed_BSD, joint_OD, bias_O)
    joint_BSCK = joint_BSO.view(*joint_BSO.shape[:2], -1, mixer.head_dim)
    num_heads, num_groups = (len(projection.weight) // mixer.head_dim for projection in (mixer.q_proj, mixer.k_proj))
    query_BSHK, key_BSGK, value_BSGK = torch.split(joint_BSCK, [num_heads, num_groups, num_groups], dim=2)
    if hasattr(mixer, "q_norm"):
        query_BSHK, key_BSGK = mixer.q_norm(query_BSHK), mixer.k_norm(key_BSGK)
    cos_BSK, sin_BSK = given.context.position_embeddings
    mixed_BSHK = banded_attention(
        rotate(query_BSHK, cos_BSK, sin_BSK),
        rotate(key_BSGK, cos_BSK, sin_BSK),
        value_BSGK.transpose(1, 2),
        mixer.scaling,
        *(window or (None, 0)),
    )
    update_BSD: Tensor = mixer.o_proj(mixed_BSHK.flatten(2))
    return update_BSD


def _joint_projection(mixer: Any, norm_D: Tensor) -> tuple[Tensor, Tensor | None]:
    """Query, key and value projections below each other, the norm's weight in them, [O, D]; and their bias [O]."""
    projections = (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    weight_OD = torch.cat([projection.weight for projection in projections]) * norm_D
    if mixer.q_proj.bias is None:
        return weight_OD, None
    return weight_OD, torch.cat([projection.bias for projection in projections])


def _form(layer: Any, given: SlotInput, kept_sequences: int) -> str:
    """How a subblock is computed here: by what its modules are, or "own", as its own method says.

    Only subblocks that say that they are nothing but their modules are looked into. Attention is recognised where its
    band fits, for as many sequences as are kept for a backward at once.
    """
    if not layer.is_plain(given.slot):
        return "own"
    mixer, norm_D = _modules(layer, given.slot)
    is_plain_float32 = given.hidden_BSD.dtype == norm_D.dtype == torch.float32
    if not is_plain_float32 or torch.is_autocast_enabled(given.hidden_BSD.device.type):
        return "own"
    if isinstance(mixer, nn.Linear):
        return "linear" if mixer.bias is None else "own"
    if given.slot == "ffn":
        is_gated = isinstance(getattr(mixer, "act_fn", None), nn.SiLU | SiLUActivation)
        return "gated" if is_gated and _have_no_bias(mixer, "gate_proj", "up_proj", "down_proj") else "own"
    if given.hidden_BSD.device.type != "cpu" or not _is_grouped_attention(mixer):
        return "own"
    num_heads = len(mixer.q_proj.weight) // mixer.head_dim
    band_bytes = 4 * num_heads * banded_elements(given.hidden_BSD.shape[1], *(layer.window or (None, 0)))
    if band_bytes * kept_sequences > LARGEST_BAND_BYTES:
        return "own"
    is_plain = not hasattr(mixer, "q_norm") and len(given.context.position_embeddings[0]) == 1
    return "attention" if is_plain and mixer.o_proj.bias is None else "normed attention"


def _is_grouped_attention(mixer: Any) -> bool:
    projections = [getattr(mixer, f"{name}_proj", None) for name in "qkvo"]
    if not all(isinstance(projection, nn.Linear) for projection in projections):
        return False
    return len({projection.bias is None for projection in projections[:3] if projection is not None}) == 1


def _have_no_bias(mixer: Any, *names: str) -> bool:
    projections = [getattr(mixer, name, None) for name in names]
    return all(isinstance(projection, nn.Linear) and projection.bias is None for projection in projections)
