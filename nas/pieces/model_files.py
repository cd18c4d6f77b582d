"""The tensors of a stored model: one blob, or several that are no larger than files of weights should be, and an index.

A model is named by the digest of its blob or of its index, which is a blob of JSON: what has which tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from inlay.cluster.errors import StoreError
from inlay.cluster.files import write_error
from inlay.cluster.store import Store, json_bytes
from inlay.distill.parallel import Ranks
from inlay.distill.tensor_files import MOST_FILE_BYTES, Rows, write_files
from inlay.nas.families.checkpoint import INDEX, SINGLE

SCHEMA: Final = 1


def store_tensors(
    store: Store,
    rows: Mapping[str, Rows],
    device: torch.device,
    ranks: Ranks | None = None,
    most_bytes: int = MOST_FILE_BYTES,
) -> str:
    """Puts tensors into the store, and gives the digest that names them all; every rank calls it, and gets the same.

    Args:
        store: where to.
        rows: by name, what this rank has of each.
        device: where the ranks' group works.
        ranks: all that have rows; they write in turn, and none holds more of a tensor than one rank's rows.
        most_bytes: in one blob.

    Raises:
        StoreError: no space is left.
    """
    ranks, digests = ranks or Ranks(), []
    try:
        files = write_files(rows, store.temporary_path, ranks, most_bytes)
    except OSError as error:
        raise write_error(f"{store.url}/blobs", sum(each.num_bytes for each in rows.values()), error) from error
    for file in files:
        own = bytes(32) if file.path is None else bytes.fromhex(store.take_blob(file.path))
        digests.append(bytes(int(byte) for byte in ranks.add([float(byte) for byte in own], device)).hex())
    if len(files) == 1:
        return digests[0]
    weight_map = {name: digest for file, digest in zip(files, digests, strict=True) for name in file.names}
    total = sum(each.num_bytes for each in rows.values())
    index = {"schema": SCHEMA, "metadata": {"total_size": total}, "weight_map": weight_map}
    return store.put_blob(json_bytes(index))


class ModelFiles(Mapping[str, Tensor]):
    """The tensors of a stored model by name; each is read when it is asked for, and nothing stays mapped behind it.

    Args:
        store: has the blobs.
        digest: names the model.

    Raises:
        StoreError: an index that this version cannot read.
    """

    def __init__(self, store: Store, digest: str) -> None:
        self.store = store
        self._index = _index(store.url, digest)
        self._single = digest

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.store.blob_path(self._places[name]), framework="pt") as file:
            found: Tensor = file.get_tensor(name)
            return found

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def part(self, name: str) -> tuple[str, tuple[int, ...]]:
        """What the file says of a tensor: the name of its type, and its shape."""
        with safe_open(self.store.blob_path(self._places[name]), framework="pt") as file:
            found = file.get_slice(name)
            return found.get_dtype(), tuple(found.get_shape())

    @property
    def in_folder(self) -> dict[str, str]:
        """The blobs by the names that their files have in a folder of Transformers."""
        if self._index is None:
            return {SINGLE: self._single}
        blobs = list(dict.fromkeys(self._places.values()))
        return {f"model-{n:05}-of-{len(blobs):05}.safetensors": blob for n, blob in enumerate(blobs, 1)}

    @property
    def index(self) -> dict[str, bytes]:
        """What such a folder has beside several: which has what, by that file's name; nothing beside a single one."""
        if self._index is None:
            return {}
        files = {blob: file for file, blob in self.in_folder.items()}
        weight_map = {name: files[blob] for name, blob in self._places.items()}
        return {INDEX: json_bytes({"metadata": self._index["metadata"], "weight_map": weight_map})}

    @property
    def file_bytes(self) -> int:
        """Of all its files."""
        return sum(self.store.size(f"blobs/{blob}") for blob in self.in_folder.values())

    @cached_property
    def _places(self) -> dict[str, str]:
        """The blob that has each tensor, sorted by name."""
        if self._index is not None:
            return dict(sorted(self._index["weight_map"].items()))
        with safe_open(self.store.blob_path(self._single), framework="pt") as file:
            return dict.fromkeys(sorted(file.keys()), self._single)


@lru_cache(maxsize=64)
def _index(url: str, digest: str) -> dict[str, Any] | None:
    """Of a model that has several blobs; a blob never changes."""
    store = Store(url)
    if not store.is_json_blob(digest):
        return None
    index: dict[str, Any] = json.loads(store.get_blob(digest))
    if index.get("schema") != SCHEMA:
        raise StoreError(f"the index {digest} has schema {index.get('schema')}; this version reads {SCHEMA}")
    return index
