"""Texts as workers see them: packed token ids in the store, named by their digest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inlay.cluster.store import Store
from inlay.nas.pieces.shards import shard_ranges

TEXTS = ("distill", "recover", "held_out", "score", "report")


@dataclass(frozen=True)
class Ids:
    """Packed ids [N, S] in the store.

    Args:
        digest: the blob.
        shape: (N, S).
    """

    digest: str
    shape: tuple[int, int]

    @property
    def tokens(self) -> int:
        """N·S."""
        return self.shape[0] * self.shape[1]

    @property
    def shards(self) -> list[tuple[int, int]]:
        """Runs of sequences, the same for any cluster."""
        return shard_ranges(*self.shape)

    def load(self, store: Store) -> NDArray[np.int32]:
        """The ids, [N, S] int32."""
        return load_ids(store, self.digest)


@dataclass(frozen=True)
class Texts:
    """The texts of a search."""

    distill: Ids
    recover: Ids
    held_out: Ids
    score: Ids
    report: Ids


def load_ids(store: Store, digest: str) -> NDArray[np.int32]:
    """The packed ids of a blob, [N, S] int32, mapped from disk where the store is a folder."""
    ids: NDArray[np.int32] = np.load(store.blob_path(digest), mmap_mode="r", allow_pickle=False)
    return ids
