"""Text files to packed token sequences: documents, BOS, tails, and the order in which sequences are trained on.

Shapes: N sequences, S sequence length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_DOCUMENTS_A_BATCH = 512
_PART_CHARACTERS = 1 << 16
"""Longer documents are drawn in parts of about so many."""


def read_documents(path: str | Path, separator: str = "<|endoftext|>", field: str = "text") -> list[str]:
    """Reads the documents of a text file; empty ones are dropped.

    In a `.txt` file a line that is only `separator` ends a document; a `.jsonl` file has one JSON object a line, whose
    `field` is the document.

    Raises:
        ValueError: the file is missing, is neither of the two kinds, is not UTF-8, has a bad line or no document.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path}: text is read from .txt and .jsonl files, not `{path.suffix or path.name}`")
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; name one text file") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 at byte offset {error.start} ({error.reason}); convert the file to UTF-8"
        ) from None
    documents = _json_documents(path, text, field) if path.suffix == ".jsonl" else _plain_documents(text, separator)
    kept = [document for document in documents if document.strip()]
    if not kept:
        raise ValueError(f"{path}: no text in it")
    return kept


def shuffled_documents(documents: Sequence[str], seed: int) -> list[str]:
    """The documents in an order drawn by `seed`, so that the first tokens of them stand for the whole text.

    Long documents are cut after a line, and their parts drawn like documents: else a file that is one document would
    still be read from its start.
    """
    parts = [part for document in documents for part in _parts(document)]
    return [parts[index] for index in np.random.default_rng(seed).permutation(len(parts))]


def split_documents(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits documents in two: three quarters that score and rank, and every fourth for the figures reported.

    Raises:
        ValueError: fewer than two documents.
    """
    if len(documents) < 2:
        raise ValueError(
            f"the validation text has {len(documents)} document(s) but is cut by documents in two parts: "
            "give at least two, parted by the separator line"
        )
    if len(documents) < 4:
        return list(documents[:-1]), list(documents[-1:])
    return [document for i, document in enumerate(documents) if i % 4 != 3], list(documents[3::4])


def pack(
    documents: Sequence[str], tokenizer: Any, sequence_length: int, tokens: int | None = None
) -> npt.NDArray[np.int32]:
    """Packs documents into token sequences [N, S], int32, each opening with BOS.

    Documents follow each other without padding; the tail that does not fit opens the next sequence after BOS; the
    last, partial sequence is dropped. With `tokens`, stops at the first N with N x S >= tokens and tokenises no
    further. A tokenizer without BOS opens with its end-of-text token.

    Raises:
        ValueError: a length below 2, no opening token, or text shorter than one sequence.
    """
    if sequence_length < 2:
        raise ValueError(f"`sequence_length` is {sequence_length}: a sequence needs BOS and at least one token more")
    if tokens is not None and tokens < 1:
        raise ValueError(f"`tokens` is {tokens}: at least 1 is needed")
    wanted = None if tokens is None else -(-tokens // sequence_length)
    opening = opening_token(tokenizer)
    sequences: list[npt.NDArray[np.int32]] = []
    current: list[int] = []
    for ids in _token_lists(documents, tokenizer, opening):
        current.extend(ids)
        start = 0
        while len(current) - start >= sequence_length:
            end = start + sequence_length
            sequences.append(np.asarray(current[start:end], dtype=np.int32))
            if len(sequences) == wanted:
                return np.stack(sequences)
            start = end
            if len(current) > end:
                start = end - 1
                current[start] = opening
        del current[:start]
    if not sequences:
        raise ValueError(
            f"the text has {len(current)} tokens, shorter than one sequence of {sequence_length}: "
            "give more text or a smaller sequence_length"
        )
    return np.stack(sequences)


def training_order(
    num_sequences: int, tokens: int, sequence_length: int, seed: int, held_out: int = 0
) -> npt.NDArray[np.int64]:
    """Indices of the sequences to train on, one after the other: whole epochs, each shuffled anew.

    The result has ceil(tokens / sequence_length) + `held_out` entries; the last `held_out` are sequences that occur
    nowhere else in it.

    Raises:
        ValueError: no sequence is left to train on.
    """
    if num_sequences - held_out < 1:
        raise ValueError(f"{num_sequences} sequence(s) with {held_out} held out leave none to train on: give more text")
    random = np.random.default_rng(seed)
    shuffled = random.permutation(num_sequences)
    train, kept_back = shuffled[: num_sequences - held_out], shuffled[num_sequences - held_out :]
    wanted = -(-tokens // sequence_length)
    epochs = [train]
    while len(epochs) * len(train) < wanted:
        epochs.append(random.permutation(train))
    return np.concatenate([np.concatenate(epochs)[:wanted], kept_back])


def opening_token(tokenizer: Any) -> int:
    """The token that opens every sequence: BOS, or the end-of-text token where a family has no BOS.

    Raises:
        ValueError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    raise ValueError("the tokenizer has neither a bos, an eos nor a pad token: one must open each sequence")


def _plain_documents(text: str, separator: str) -> Iterator[str]:
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if line.strip() == separator:
            yield "".join(lines)
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


def _json_documents(path: Path, text: str, field: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg}); one object a line is wanted") from None
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            raise ValueError(f"{path}, line {number}: no text in field `{field}`")
        yield record[field]


def _parts(document: str) -> Iterator[str]:
    """A document in parts that end with a line, or, where a line is as long as a part, anywhere."""
    start = 0
    while len(document) - start > _PART_CHARACTERS:
        end = document.rfind("\n", start, start + _PART_CHARACTERS) + 1 or start + _PART_CHARACTERS
        yield document[start:end]
        start = end
    yield document[start:]


def _token_lists(documents: Sequence[str], tokenizer: Any, opening: int) -> Iterator[list[int]]:
    """The tokens of each document, opening token first."""
    for first in range(0, len(documents), _DOCUMENTS_A_BATCH):
        batch = list(documents[first : first + _DOCUMENTS_A_BATCH])
        for ids in tokenizer(batch, add_special_tokens=True, verbose=False)["input_ids"]:
            yield ids if ids and ids[0] == opening else [opening, *ids]
