"""What calibrate gathers of a layer: the sums that training-free starts are computed from.

B batch, S sequence, N = B S tokens of a chunk, D model width, F ffn width. Sums are float32: each chunk's product is a
float32 matrix product, and its rounding (about 1e-7 of the diagonal) would stay if chunks were added in float64, at
twice the memory (four sums of 64 MB each at D = 4096). The ridge penalty is D/tokens of the mean diagonal, far above
it; a test holds the solution against one from float64 sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from inlay.nas.families.shape import Slot
from inlay.nas.modeling.modeling_inlay import ForwardContext, InlayLayer

_PRODUCTS = ("attention_xx", "attention_xy", "ffn_xx", "ffn_xy")


@dataclass(frozen=True)
class CalibrationSums:
    """Sums over tokens of one layer of the parent; `+` joins those of two chunks of text.

    X is a subblock's normed input, Y its update. Products are `None` where no `linear` is in the search space.
    """

    tokens: int
    channel_abs: Tensor
    """Sum of |act(gate) * up| of every ffn channel, [F]."""
    attention_xx: Tensor | None = None
    """X'X of attention, [D, D]."""
    attention_xy: Tensor | None = None
    """X'Y of attention, [D, D]."""
    ffn_xx: Tensor | None = None
    """X'X of the ffn, [D, D]."""
    ffn_xy: Tensor | None = None
    """X'Y of the ffn, [D, D]."""

    @staticmethod
    @torch.no_grad()
    def of(
        layer: InlayLayer, hidden_BSD: Tensor, context: ForwardContext, want_products: bool
    ) -> "tuple[CalibrationSums, Tensor]":
        """The sums of one chunk, and the layer's output [B, S, D], from one pass of the parent's layer.

        The output is what `layer(hidden_BSD, context)` gives. Y is taken before the residual is added.
        """
        seen: dict[str, Tensor] = {}
        hooks = [
            layer.input_layernorm.register_forward_hook(_keep_output(seen, "attention_x")),
            layer.post_attention_layernorm.register_forward_hook(_keep_output(seen, "ffn_x")),
            layer.get_submodule("mlp.down_proj").register_forward_pre_hook(_keep_input(seen, "channels")),
        ]
        try:
            attention_y = layer.attention_update(hidden_BSD, context)
            middle_BSD = hidden_BSD + attention_y
            ffn_y = layer.ffn_update(middle_BSD)
        finally:
            for hook in hooks:
                hook.remove()
        channels_NF = seen["channels"].flatten(0, -2)
        channel_abs_F = torch.linalg.vector_norm(channels_NF, ord=1, dim=0, dtype=torch.float32)
        products: dict[str, Tensor] = {}
        if want_products:
            attention_x, ffn_x = _rows(seen["attention_x"]), _rows(seen["ffn_x"])
            products["attention_xx"] = attention_x.T @ attention_x
            products["attention_xy"] = attention_x.T @ _rows(attention_y)
            products["ffn_xx"] = ffn_x.T @ ffn_x
            products["ffn_xy"] = ffn_x.T @ _rows(ffn_y)
        return CalibrationSums(len(channels_NF), channel_abs_F, **products), middle_BSD + ffn_y

    def __add__(self, other: "CalibrationSums") -> "CalibrationSums":
        joined: dict[str, Any] = {}
        for name in ("tokens", "channel_abs", *_PRODUCTS):
            ours, theirs = getattr(self, name), getattr(other, name)
            if (ours is None) != (theirs is None):
                raise ValueError(f"Only one of the two sums has `{name}`; gather both with the same `want_products`.")
            joined[name] = None if ours is None else ours + theirs
        return CalibrationSums(**joined)

    def products(self, slot: Slot) -> tuple[Tensor, Tensor] | None:
        """X'X and X'Y of one subblock, or `None` where they were not gathered."""
        xx, xy = getattr(self, f"{slot}_xx"), getattr(self, f"{slot}_xy")
        return None if xx is None or xy is None else (xx, xy)

    def to_dict(self) -> dict[str, Tensor]:
        """The tensors that are there, on the CPU, for safetensors."""
        tensors = {"tokens": torch.tensor([self.tokens], dtype=torch.int64), "channel_abs": self.channel_abs}
        tensors |= {name: getattr(self, name) for name in _PRODUCTS if getattr(self, name) is not None}
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor]) -> "CalibrationSums":
        """From what `to_dict` gave."""
        known = {field.name: tensors[field.name] for field in fields(cls) if field.name in tensors}
        values: dict[str, Any] = {**known, "tokens": int(tensors["tokens"])}
        return cls(**values)


def _keep_output(seen: dict[str, Tensor], name: str) -> Any:
    def hook(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        seen[name] = output

    return hook


def _keep_input(seen: dict[str, Tensor], name: str) -> Any:
    def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[0]

    return hook


def _rows(tensor_BSD: Tensor) -> Tensor:
    return tensor_BSD.flatten(0, -2).float()
