"""`mean`: a kind of attention for tests, one matrix behind the mean of the last `tokens` normed inputs.

It has a field with a bound, and holds inputs between tokens instead of keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from inlay.nas.modeling.subblock_inlay import MIXERS, NORMS, Entry, Sizes, Slot, SubblockKind, Tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from inlay.nas.modeling import ForwardContext, InlayConfig, InlayLayer


class Mean(SubblockKind):
    """W mean(norm(x) of the last tokens)."""

    name = "mean"
    slots = ("attention",)
    fields: ClassVar[Mapping[str, int]] = {"tokens": 2}

    def tensors(self, entry: Entry, slot: Slot, sizes: Sizes) -> Tensors:
        hidden = sizes.hidden
        return {f"{NORMS[slot]}.weight": (hidden,), f"{MIXERS[slot]}.weight": (hidden, hidden)}

    def state(self, entry: Entry, sizes: Sizes, tokens: int) -> Tensors:
        return {"inputs": (min(tokens, entry["tokens"] - 1), sizes.hidden)}

    def cache_layer(self, entry: Entry) -> Any:
        from transformers.cache_utils import DynamicLayer

        class LastInputs(DynamicLayer):
            inputs_BKD: Tensor | None = None

            def extend(self, new_BQD: Tensor) -> Tensor:
                import torch

                seen = new_BQD if self.inputs_BKD is None else torch.cat((self.inputs_BKD, new_BQD), dim=1)
                self.inputs_BKD = seen[:, 1 - entry["tokens"] :].clone()
                return seen

        return LastInputs()

    def mixer(self, config: InlayConfig, layer_index: int, entry: Entry) -> nn.Module:
        from torch import nn

        return nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def update(self, layer: InlayLayer, slot: Slot, hidden_BSD: Tensor, context: ForwardContext | None) -> Tensor:
        assert context is not None
        seen = layer.input_layernorm(hidden_BSD)
        if context.cache is not None:
            held: Any = context.cache.layers[layer.layer_index]
            seen = held.extend(seen)
        means_BSD = mean_of_last(seen, layer.entries[slot]["tokens"])[:, -hidden_BSD.shape[1] :]
        update_BSD: Tensor = layer.self_attn(means_BSD)
        return update_BSD


def mean_of_last(seen_BSD: Tensor, tokens: int) -> Tensor:
    """Of every token and those before it, `tokens` at most."""
    import torch

    total_BSD = seen_BSD.double().cumsum(1)
    before_BSD = torch.nn.functional.pad(total_BSD, (0, 0, tokens, 0))[:, : seen_BSD.shape[1]]
    counts_S1 = torch.arange(1, seen_BSD.shape[1] + 1, device=seen_BSD.device).clamp(max=tokens)[:, None]
    return ((total_BSD - before_BSD) / counts_S1).to(seen_BSD.dtype)
