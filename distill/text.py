"""Documents to packed token sequences: BOS, tails, several sources as one, and the order that is trained in.

Shapes: N sequences, S sequence length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

# Tokenizers are fastest on many documents at once, but whoever wants few tokens reads few documents.
_DOCUMENTS_AT_FIRST, _DOCUMENTS_A_BATCH = 8, 512


def pack(
    token_lists: Iterable[Sequence[int]], sequence_length: int, tokens: int | None = None
) -> npt.NDArray[np.int32]:
    """Packs the tokens of documents into sequences [N, S], int32, each opening as the documents do.

    Documents follow each other without padding; the tail that does not fit opens the next sequence after the opening
    token; the last, partial sequence is dropped. With `tokens`, stops at the first N with N x S >= tokens and asks for
    no more documents.

    Raises:
        ValueError: a length below 2, or text shorter than one sequence.
    """
    if sequence_length < 2:
        raise ValueError(f"`sequence_length` is {sequence_length}: a sequence needs BOS and at least one token more")
    if tokens is not None and tokens < 1:
        raise ValueError(f"`tokens` is {tokens}: at least 1 is needed")
    wanted = None if tokens is None else -(-tokens // sequence_length)
    sequences: list[npt.NDArray[np.int32]] = []
    current: list[int] = []
    for ids in token_lists:
        opening = ids[0]
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


def token_lists(documents: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """The tokens of each document, opening with BOS; a tokenizer without BOS opens with its end-of-text token.

    Raises:
        ValueError: the tokenizer has no token to open with.
    """
    opening = opening_token(tokenizer)
    left, size = iter(documents), _DOCUMENTS_AT_FIRST
    while batch := list(islice(left, size)):
        size = min(2 * size, _DOCUMENTS_A_BATCH)
        for ids in tokenizer(batch, add_special_tokens=True, verbose=False)["input_ids"]:
            yield ids if ids and ids[0] == opening else [opening, *ids]


class Mix:
    """The documents of several sources as one stream, tokens in proportion to the sources' weights.

    The next document is of the source that has given least for its weight. The stream ends with the first source that
    does, so that the proportions hold to the end: `ended` is that source, `taken` the tokens of each.
    """

    def __init__(self, sources: Sequence[Iterable[list[int]]], weights: Sequence[float]) -> None:
        self._sources, self._weights = [iter(source) for source in sources], weights
        self.taken = [0] * len(weights)
        self.ended: int | None = None

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            least = min(range(len(self.taken)), key=lambda place: self.taken[place] / self._weights[place])
            ids = next(self._sources[least], None)
            if ids is None:
                self.ended = least
                return
            self.taken[least] += len(ids)
            yield ids


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
