"""Tiles of tokens: how much of a batch is worked on at once, so that what is computed last is still in cache."""

from __future__ import annotations

from torch import Tensor

_CPU_ELEMENTS = 1 << 17
"""Elements of the widest [tokens, width] array of a tile on a CPU: half a MiB in float32, a handful of them live."""
_LEAST_TOKENS = 256
"""Fewer would pass over wide weights and their gradients too often."""
_MULTIPLE = 64


def token_tiles(input_ND: Tensor, width: int) -> list[slice]:
    """Cuts N tokens into runs that suit `width` columns; one run on anything but a CPU."""
    num_tokens = len(input_ND)
    size = num_tokens
    if input_ND.device.type == "cpu":
        size = max(_LEAST_TOKENS, _CPU_ELEMENTS // width // _MULTIPLE * _MULTIPLE)
    return [slice(first, min(first + size, num_tokens)) for first in range(0, num_tokens, size)]
