"""Training through rounding: a model computes with rounded weights, and what is trained are those behind them.

The gradient of a rounded weight is taken for that of the weight behind it (straight-through, Bengio et al., arXiv
1308.3432), so that a weight moves until it is rounded to another number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from inlay.distill.parallel import local

Rounding = Mapping[str, Callable[[Tensor], Tensor]]
"""By a parameter's name: the numbers that are computed with in place of its own. Of one that is sharded, each process
rounds its own rows."""
UNROUNDED: Final[Rounding] = MappingProxyType({})


@contextmanager
def rounded(model: nn.Module, rounding: Rounding) -> Iterator[None]:
    """A model with its weights rounded; afterwards they are what they were, and gradients stay."""
    held = [(local(model.get_parameter(name)), function) for name, function in rounding.items()]
    with torch.no_grad():
        behind = [own.clone() for own, _ in held]
        for own, function in held:
            own.copy_(function(own))
    try:
        yield
    finally:
        with torch.no_grad():
            for (own, _), was in zip(held, behind, strict=True):
                own.copy_(was)
