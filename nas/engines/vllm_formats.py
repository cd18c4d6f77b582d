"""Which formats vLLM computes with, where, and in which sizes; asked before a search, so without vLLM.

Read in the source of vLLM 0.32. On a CPU matrices of 4 bits are to have a multiple of 32 inputs and outputs, which
whole groups and the heads that it has attention for come to; on a GPU what its tiles lack is filled up.
"""

from __future__ import annotations

from typing import Final

from inlay.nas.families.shape import Entry, Shape, subblock_tensors
from inlay.nas.formats.compressed import COMPRESSED, INT4_G32, INT4_G128
from inlay.nas.modeling.subblock_inlay import FORMAT, Slot

ON_CPU: Final = (INT4_G32, INT4_G128)
"""What it has code for on a CPU."""
HALF: Final = ("bf16", "f16")
"""What its kernels multiply such weights with."""


def kernel_problem(own: str, form: str, device: str) -> str | None:
    """Why vLLM has no code on a device for weights in the format `own`, what they meet being in `form`, or None."""
    if device.partition(":")[0] == "cpu" and own not in ON_CPU:
        return (
            f"vLLM on a CPU has no code for weights in {own}; take {' or '.join(ON_CPU)}, or search with "
            "`hardware.device: cuda`"
        )
    if form not in HALF:
        return f"vLLM has code for weights in {own} where all else is in {' or '.join(HALF)}; set hardware.format"
    return None


def format_problem(entry: Entry, slot: Slot, shape: Shape) -> str | None:
    """Why it cannot compute with a subblock in the format that its entry names, with what fits, or None."""
    form = COMPRESSED.get(entry[FORMAT])
    if form is None:
        return f"vLLM has no {entry[FORMAT]}; its formats are {', '.join(COMPRESSED)}"
    for name, size in subblock_tensors(shape, slot, entry).items():
        if len(size) == 2 and not form.fits(size[1]):
            other = form.holding(size[1])
            way = other.name if other.name in ON_CPU else "another format"
            return (
                f"{form.name} stores {form.block} numbers together, and {name} has rows of {size[1]}; take a multiple "
                f"of {form.block}, or {way}"
            )
    return None
