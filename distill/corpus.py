"""A source of text, however large: its documents found once, then read in any order by their places.

What stays in memory is 40 bytes for each part of a document, and what is read at once.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inlay.distill.lines import Place, Tell, json_documents, json_texts, plain_documents, plain_texts
from inlay.distill.records import Records, parts_of
from inlay.distill.tables import table_documents, table_texts

SUFFIXES = (".txt", ".jsonl", ".parquet", ".arrow")
_FIRST_BATCH, _LARGEST_BATCH_BYTES = 512, 1 << 26
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Index:
    """The documents of a source, D of them in N parts.

    Args:
        places_N4: the file, the byte or row in it, the length in bytes, and the part within what is there.
        documents_N: the document of each part, ascending from 0.
        num_empty: documents without text, which are left out.
        digest: sha256 of the files read; with files that were not read to their end it is of what was read.
    """

    places_N4: NDArray[np.int64]
    documents_N: NDArray[np.int64]
    num_empty: int
    digest: str

    @property
    def num_documents(self) -> int:
        """D."""
        return int(self.documents_N[-1]) + 1 if len(self.documents_N) else 0

    def shuffled(self, seed: int) -> NDArray[np.int64]:
        """All parts in an order drawn by `seed`, so that the first of them stand for the whole source."""
        return np.random.default_rng(seed).permutation(len(self.places_N4))

    def split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The parts of three quarters of the documents, that score and rank, and of every fourth, for the report.

        Raises:
            ValueError: fewer than two documents.
        """
        count = self.num_documents
        if count < 2:
            raise ValueError(
                f"the validation text has {count} document(s) but is cut by documents in two parts: "
                "give at least two; in a .txt file a line that is only the separator parts them"
            )
        kept = self.documents_N == count - 1 if count < 4 else self.documents_N % 4 == 3
        return np.flatnonzero(~kept), np.flatnonzero(kept)


class Corpus:
    """One source: a file, a folder of files of one kind by their names, or a dataset that `datasets` saved."""

    def __init__(self, path: Path, separator: str, records: Records) -> None:
        """Raises ValueError when there is nothing to read at `path`."""
        self.files = files_of(path)
        self._separator, self._records = separator, records
        self._path = path
        self._seen: list[tuple[int, int]] = []

    def index(self, at_most_bytes: int | None = None) -> Index:
        """Finds the documents, of the first bytes of each file where that is asked.

        Raises:
            ValueError: a file is damaged, or there is no text.
        """
        places, documents = array("q"), array("q")
        count = num_empty = 0
        digest = hashlib.sha256()
        self._seen = [_stamp(file) for file in self.files]
        for number, file in enumerate(self.files):
            own, looked_at = hashlib.sha256(), 0
            for parts in self._documents(file, own):
                for place in parts:
                    places.extend((number, *place))
                    documents.append(count)
                    looked_at += place[1]
                count += bool(parts)
                num_empty += not parts
                if at_most_bytes is not None and looked_at > at_most_bytes:
                    break
            digest.update(own.digest())
        if not count:
            raise ValueError(f"{self._path}: no text in it")
        held = np.frombuffer(places, np.int64).reshape(-1, 4)
        return Index(held, np.frombuffer(documents, np.int64), num_empty, digest.hexdigest())

    def texts(self, index: Index, order: NDArray[np.int64]) -> Iterator[str]:
        """The parts of the index in this order, read in batches that grow, each file once a batch.

        Raises:
            ValueError: a file is not what it was when the index was made, or a conversation does not fit its template.
        """
        first, size = 0, _FIRST_BATCH
        while first < len(order):
            batch = index.places_N4[order[first : first + size]]
            fits = int(np.searchsorted(np.cumsum(batch[:, 2]), _LARGEST_BATCH_BYTES, side="right"))
            batch = batch[: max(1, fits)]
            yield from self._read(batch)
            first, size = first + len(batch), 2 * size

    def _read(self, batch_N4: NDArray[np.int64]) -> list[str]:
        by_place = np.lexsort((batch_N4[:, 3], batch_N4[:, 1], batch_N4[:, 0]))
        texts = [""] * len(batch_N4)
        for number in np.unique(batch_N4[:, 0]):
            if _stamp(self.files[number]) != self._seen[number]:
                raise ValueError(f"{self.files[number]}: changed while it was read; run again once it is whole")
            own = by_place[batch_N4[by_place, 0] == number]
            places: list[Place] = [tuple(place) for place in batch_N4[own, 1:].tolist()]
            for row, text in zip(own.tolist(), self._texts(self.files[number], places), strict=True):
                texts[row] = text
        return texts

    def _documents(self, file: Path, tell: Tell) -> Iterator[list[Place]]:
        if file.suffix == ".txt":
            return plain_documents(file, self._separator, tell)
        if file.suffix == ".jsonl":
            return json_documents(file, self._records, tell)
        return _told(file, tell, table_documents(file, self._records))

    def _texts(self, file: Path, places: Sequence[Place]) -> Iterator[str]:
        if file.suffix == ".txt":
            return plain_texts(file, places)
        if file.suffix == ".jsonl":
            return json_texts(file, self._records, places)
        return table_texts(file, self._records, places)


class HeldCorpus:
    """A source whose documents are in memory."""

    def __init__(self, documents: Sequence[str]) -> None:
        self._parts = [list(parts_of(document)) for document in documents]

    def index(self, at_most_bytes: int | None = None) -> Index:
        """As a Corpus has it; all is looked at."""
        places = [(0, at, len(text), part) for at, parts in enumerate(self._parts) for part, text in enumerate(parts)]
        held = np.array(places, np.int64)
        content = json.dumps(self._parts).encode()
        return Index(held, held[:, 1].copy(), 0, hashlib.sha256(content).hexdigest())

    def texts(self, index: Index, order: NDArray[np.int64]) -> Iterator[str]:
        """The parts of the index in this order."""
        for _, at, _, part in index.places_N4[order].tolist():
            yield self._parts[at][part]


def files_of(path: Path) -> list[Path]:
    """The files of a source, in the order in which they are read.

    Raises:
        ValueError: nothing is there, a file of another kind, or a folder that is no one source.
    """
    if path.is_dir():
        return _files_in(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: text is read from {', '.join(SUFFIXES)} files or a folder of them, "
            f"not `{path.suffix or path.name}`"
        )
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    return [path]


def _files_in(folder: Path) -> list[Path]:
    several, saved = folder / "dataset_dict.json", folder / "state.json"
    try:
        if several.is_file():
            names = list(json.loads(several.read_text(encoding="utf-8"))["splits"])
            raise ValueError(f"{folder}: holds the splits {', '.join(names)}; name one, such as {folder / names[0]}")
        if saved.is_file():
            state = json.loads(saved.read_text(encoding="utf-8"))
            if state.get("_indices_data_files"):
                raise ValueError(f"{folder}: a selection of a dataset; save its flatten_indices() instead")
            files = [folder / str(file["filename"]) for file in state["_data_files"]]
            if missing := next((file for file in files if not file.is_file()), None):
                raise ValueError(f"{folder}: ends early, {missing.name} is missing; copy the folder again")
            return files
    except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: no dataset that `datasets` saved ({error}); copy the folder again") from None
    found = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    kinds = sorted({file.suffix for file in found})
    if len(kinds) != 1:
        told = f"holds {', '.join(kinds)} files" if kinds else f"is a folder without {', '.join(SUFFIXES)} files"
        raise ValueError(f"{folder}: {told}; name a file, or a folder with files of one kind")
    return found


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _told(file: Path, tell: Tell, documents: Iterator[list[Place]]) -> Iterator[list[Place]]:
    """These documents, and all bytes of the file once they are through."""
    yield from documents
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            tell.update(chunk)
