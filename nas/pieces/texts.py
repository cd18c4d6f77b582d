"""Texts as workers see them: packed token ids in the store, named by their digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from inlay.cluster.store import Store
from inlay.nas.pieces.shards import shard_ranges

TEXTS = ("distill", "recover", "held_out", "score", "report")
TAIL = "tail"


@dataclass(frozen=True)
class Ids:
    """Packed ids [N, S] in the store.

    Args:
        digest: the blob.
        shape: (N, S).
        documents: the blob that says which document each token is of; "" where nobody asks.
    """

    digest: str
    shape: tuple[int, int]
    documents: str = ""

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
    """The texts of a search.

    Args:
        sources: the names of the sources of the text that judges, by the place that its documents tell.
        tail: what recovery ends with; None without a tail.
    """

    distill: Ids
    recover: Ids
    held_out: Ids
    score: Ids
    report: Ids
    sources: tuple[str, ...]
    tail: Ids | None = None

    @property
    def by_name(self) -> dict[str, Ids]:
        """All that there are."""
        found = {name: getattr(self, name) for name in TEXTS}
        return found if self.tail is None else {**found, TAIL: self.tail}

    def to_dict(self) -> dict[str, Any]:
        """What texts.json holds."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Texts:
        """From texts.json."""
        names = [name for name in (*TEXTS, TAIL) if values.get(name) is not None]
        ids = {name: Ids(**{**values[name], "shape": tuple(values[name]["shape"])}) for name in names}
        return cls(**ids, sources=tuple(values["sources"]))


def load_ids(store: Store, digest: str) -> NDArray[np.int32]:
    """The packed ids of a blob, [N, S] int32, mapped from disk where the store is a folder."""
    ids: NDArray[np.int32] = np.load(store.blob_path(digest), mmap_mode="r", allow_pickle=False)
    return ids


def load_documents(store: Store, digest: str) -> tuple[NDArray[np.int32], list[int]]:
    """Which document each token of a text is of, [N, S], and the source of each document by its place."""
    held = load_file(store.blob_path(digest))
    return held["documents"], held["sources"].tolist()
