"""Keys and values as a cache in blocks has them, for the KL of whole models that run with such a cache.

Each is rounded as it is made, as if it went through the cache at once: what llama.cpp reads back, but for the order of
the numbers within a head where a file rotates them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from inlay.distill.sweep import Slot
from inlay.nas.formats import FORMATS, Format
from inlay.nas.formats.tensors import rounded


def as_run(source: Any, kv_format: str) -> Any:
    """A sweep's source whose models run with a cache in a format; "" as they are."""
    return _WithCache(source, _RoundedCache(FORMATS[kv_format])) if kv_format else source


@dataclass(frozen=True)
class _RoundedCache:
    """Stands where a cache does in one forward of whole sequences, and keeps nothing."""

    form: Format

    def update(self, keys_BHSK: Tensor, values_BHSK: Tensor, *told: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """The same, rounded."""
        return self._rounded(keys_BHSK), self._rounded(values_BHSK)

    def _rounded(self, states: Tensor) -> Tensor:
        return rounded(states, self.form).to(states.dtype)


@dataclass(frozen=True)
class _WithCache:
    source: Any
    cache: _RoundedCache

    @property
    def num_layers(self) -> int:
        return int(self.source.num_layers)

    def context(self, batch: int, sequence: int) -> Any:
        return replace(self.source.context(batch, sequence), cache=self.cache)

    def subblock(self, index: int, slot: Slot, choice: str) -> Any:
        return self.source.subblock(index, slot, choice)
