"""Several children of one parent trained at once: it runs once for all of them, and each comes out as if it was alone.

The children take turns, one batch each, and whoever is behind goes first: while they are at the same batch its layer
outputs are there already. Nothing else is shared, so the results are those of one training after the other, bit for
bit.
Shapes: B batch, S sequence, D model width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.distill.globally import GlobalResult, Place, Training
from inlay.distill.judge import ParentHidden
from inlay.distill.optimize import tensor_cores

Begin = Callable[[Any, ParentHidden], Training]
"""Begins a training against the parent that it is given, whose states on the held-out text are kept for all."""


@tensor_cores()
def distill_together(parent: Any, begin: Sequence[Begin], parts: int) -> list[GlobalResult]:
    """Trains children side by side, in one process; results in their order.

    Args:
        parent: as `distill_globally` takes it.
        begin: begins each training, all on the same batches.
        parts: in which a batch is worked on; the parent's outputs of so many are held.
    """
    shared = _Shared(parent, parts)
    seen = ParentHidden(parent)
    under_way = {number: each(shared, seen) for number, each in enumerate(begin)}
    places: dict[int, Place] = dict.fromkeys(under_way, (-1, 0))
    results: dict[int, GlobalResult] = {}
    while under_way:
        number = min(under_way, key=lambda each: (places[each], each))
        try:
            places[number] = next(under_way[number])
        except StopIteration as end:
            results[number] = end.value
            del under_way[number]
    return [results[number] for number in sorted(results)]


class _Shared:
    """A frozen parent that remembers what it computed last."""

    def __init__(self, parent: Any, parts: int) -> None:
        self._parent = parent
        self._last: deque[tuple[Tensor, tuple[list[Tensor], Tensor]]] = deque(maxlen=parts)

    @property
    def head_VD(self) -> Tensor:
        head: Tensor = self._parent.head_VD
        return head

    def forward_hidden(self, ids_BS: Tensor) -> tuple[list[Tensor], Tensor]:
        for known_BS, outputs in self._last:
            if torch.equal(known_BS, ids_BS):
                return outputs
        computed: tuple[list[Tensor], Tensor] = self._parent.forward_hidden(ids_BS)
        self._last.append((ids_BS, computed))
        return computed
