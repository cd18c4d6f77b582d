"""The judge of a child: its KL on text that it does not train on.

Shapes: B batch, S sequence, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.distill.objective import kl_of, parts_of
from inlay.distill.optimize import precision
from inlay.distill.parallel import Ranks
from inlay.distill.rounding import UNROUNDED, Rounding, rounded
from inlay.distill.settings import GlobalSettings

KEPT_BYTES = 256 << 20
"""What a process keeps at most of the parent's last hidden states; what is beyond is computed at every judgement."""


class ParentHidden:
    """A frozen parent's last hidden states on batches that judge, kept on the host, as many as fit in `KEPT_BYTES`.

    Args:
        parent: as `distill_globally` takes it.
    """

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self._kept: list[Tensor] = []
        self._kept_bytes = 0

    def of(self, number: int, ids_BS: Tensor) -> Tensor:
        """Those of a part of the batches, the same part by the same number."""
        if number < len(self._kept):
            return self._kept[number].to(ids_BS.device)
        _, hidden_BSD = self.parent.forward_hidden(ids_BS)
        size = hidden_BSD.numel() * hidden_BSD.element_size()
        if number == len(self._kept) and self._kept_bytes + size <= KEPT_BYTES:
            self._kept.append(hidden_BSD.cpu())
            self._kept_bytes += size
        computed: Tensor = hidden_BSD
        return computed


class Judge:
    """Judges a child against its frozen parent on batches [B, S], the same on every rank.

    Args:
        parent: as `distill_globally` takes it.
        child: the same.
        batches: token ids.
        settings: say how many sequences are worked on at once.
        ranks: each works on its rows.
        rounding: what the child computes with.
        seen: what is kept of the parent; its own where nobody else judges on these batches.

    Raises:
        ValueError: no batches.
    """

    def __init__(
        self,
        parent: Any,
        child: Any,
        batches: Sequence[Tensor],
        settings: GlobalSettings,
        ranks: Ranks,
        rounding: Rounding = UNROUNDED,
        seen: ParentHidden | None = None,
    ) -> None:
        if not batches:
            raise ValueError("no batch is held out: a child that trains is judged on at least one")
        self.parent, self.child, self.batches, self.settings, self.ranks = parent, child, batches, settings, ranks
        self.rounding = rounding
        self.seen = seen or ParentHidden(parent)

    @torch.no_grad()
    def kl_nats(self) -> float | None:
        """Mean KL(parent || child), nats per token; None if it is not finite."""
        total = 0.0
        with rounded(self.child, self.rounding):
            for number, (ids_BS, share) in enumerate(self._parts()):
                parent_hidden_BSD = self.seen.of(number, ids_BS)
                with precision(parent_hidden_BSD):
                    _, child_hidden_BSD = self.child.forward_hidden(ids_BS)
                    total += float(kl_of(self.parent, self.child, parent_hidden_BSD, child_hidden_BSD)) * share
        if self.ranks.sharded:
            self.child.reshard()  # what a forward gathers, only a backward gives back
        (total,) = self.ranks.add([total], self.batches[0].device)
        return total if math.isfinite(total) else None

    def _parts(self) -> Iterator[tuple[Tensor, float]]:
        for ids_BS in self.batches:
            for part_BS, share in parts_of(ids_BS, self.settings, self.ranks):
                yield part_BS, share / len(self.batches)
