"""What vLLM cannot run of a child, and why; asked before a search as well as when a child is served, so without vLLM.

Read in the source of vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from inlay.nas.families.shape import Shape
from inlay.nas.modeling.full_inlay import FullAttention
from inlay.nas.modeling.gated_inlay import GatedFfn
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.linear_inlay import Linear
from inlay.nas.modeling.no_op_inlay import NoOp
from inlay.nas.modeling.window_inlay import WindowAttention

KINDS: Final = (FullAttention.name, WindowAttention.name, GatedFfn.name, Linear.name, NoOp.name)
"""The kinds of subblocks that the plugin builds; subblocks.py has the module of each."""

FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose layers the plugin builds."""

CPU_HEAD_SIZES: Final = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that vLLM's attention on a CPU has code for."""

ROPE_TYPES: Final = ("default", "linear", "llama3", "yarn")
"""Rotary scalings that vLLM and Transformers compute alike."""


def problem(entry: Mapping[str, Any], slot: str, shape: Shape) -> str | None:
    """Why vLLM cannot run this subblock, one sentence with the way out; None when it can.

    Args:
        entry: the subblock as it stands in config.json, checked.
        slot: `attention` or `ffn`.
        shape: of the model that it is part of.
    """
    kind = SUBBLOCKS.of(entry)
    if kind.name not in KINDS:
        return (
            f"vLLM has no {slot} of kind `{kind.name}`; search without that kind, or run the child with Transformers."
        )
    for window, sinks in filter(None, kind.masks(entry)):
        if sinks:
            return (
                f"vLLM has windows but keeps no first tokens beside them (window {window}, sinks {sinks}); "
                "search with `sinks: 0`, or run the child with Transformers."
            )
    return None


def model_problem(shape: Shape, device: str) -> str | None:
    """Why vLLM cannot run any model of these sizes on `device`, one sentence with the way out; None when it can.

    Args:
        shape: of the parent, before a search, or of the child.
        device: as torch writes it, `cpu` or `cuda`, with or without a number. A GPU has code for every head size.
    """
    if device.split(":")[0] == "cpu" and shape.head_dim not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        return (
            f"vLLM on a CPU has attention for heads of {sizes} numbers, and this model's have {shape.head_dim}; "
            "run it with vLLM on a GPU, or with Transformers."
        )
    if shape.rotation not in ROPE_TYPES:
        return (
            f"vLLM rotates positions otherwise than Transformers where `rope_type` is {shape.rotation}, and alike for "
            f"{', '.join(ROPE_TYPES)}; run it with Transformers."
        )
    return None
