"""Text that the parent writes, for a job that names none: openings, the pieces, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from inlay.distill.text import opening_token
from inlay.nas.errors import UserError
from inlay.nas.job import Job
from inlay.nas.job.judged import judged_length
from inlay.nas.loop.search import Search
from inlay.nas.pieces.comparison import tensors_of
from inlay.nas.pieces.sampling import sample_sequences
from inlay.nas.pieces.stage import Stage

SAMPLE = Stage("sample", 1, sample_sequences)
TOKENS_A_PIECE = 1 << 14
"""What one worker writes at once; the job's text follows from it, so it is the same on any cluster."""
MOST_REPEATED = 0.5
"""Of the tokens written: where more than this share repeat the token before them, nothing can be learned."""
_MARK = "\x00"


def sampled(search: Search, tokenizer: Any) -> dict[str, NDArray[np.int32]]:
    """The text of each part of `data` that names no path, [N, S] int32, kept in the workspace.

    Raises:
        UserError: the parent repeats one token, or its chat template cannot be taken apart.
    """
    return {
        part: _sampled(search, part, length, tokenizer) for part, (_, length) in sampled_lengths(search.job).items()
    }


def sampled_lengths(job: Job) -> dict[str, tuple[int, int]]:
    """Tokens that the parent writes and those of a sequence, by the part of `data` that names no path."""
    lengths = {"distill": job.data.distill.sequence_length, "validate": judged_length(job)}
    samples: dict[str, int | None] = {part: getattr(job.data, part).sample for part in lengths}
    return {part: (tokens, lengths[part]) for part, tokens in samples.items() if tokens is not None}


def rows_written(tokens: int, length: int) -> tuple[int, int]:
    """Sequences of a length that are written for so many tokens, and how many of them one worker writes at once."""
    return max(4, -(-tokens // length)), max(1, TOKENS_A_PIECE // length)


def openings(tokenizer: Any) -> list[list[int]]:
    """What each turn opens with: BOS alone, or of a chat what stands before the user's words and before the answer.

    Raises:
        ValueError: the chat template fails, or does not hold the user's words as they are.
    """
    opening = opening_token(tokenizer)
    if not tokenizer.chat_template:
        return [[opening]]
    asked = [{"role": "user", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of its author's, and raises what it likes
        raise ValueError(f"the parent's chat template fails ({' '.join(str(error).split())})") from None
    before, mark, behind = text.removeprefix(tokenizer.bos_token or "").partition(_MARK)
    if not mark:
        raise ValueError("the parent's chat template does not hold what the user says as it is")
    first, second = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, behind))
    return [[opening, *first], second or [opening]]


def _sampled(search: Search, part: str, length: int, tokenizer: Any) -> NDArray[np.int32]:
    text = getattr(search.job.data, part)
    try:
        turns = openings(tokenizer)
    except ValueError as error:
        raise UserError(f"data.{part}.sample: {error}; give text in data.{part}.path") from None
    num_rows, at_once = rows_written(text.sample, length)
    pieces = []
    for first in range(0, num_rows, at_once):
        depends = {
            "seed": search.job.seed,
            "rows": min(at_once, num_rows - first),
            "length": length,
            "temperature": text.temperature,
            "openings": turns,
            "end": tokenizer.eos_token_id,
            "vocabulary": min(len(tokenizer), search.parent.shape.vocab),
        }
        label = f"{part} {first // at_once:05d}"
        handles = {"store": search.workspace.url, "parent": search.reference_place}
        pieces.append(search.piece(SAMPLE, label, {**depends, **handles}, depends))
    records = search.run(pieces, f"text that the parent writes to {part}")
    store = search.workspace.store
    ids = np.concatenate([tensors_of(store.blob_path(record.blobs["ids"]))["ids"].numpy() for record in records])
    _check_varied(ids, part, text.temperature, tokenizer)
    return ids


def _check_varied(ids_NS: NDArray[np.int32], part: str, temperature: float, tokenizer: Any) -> None:
    repeats = ids_NS[:, 1:] == ids_NS[:, :-1]
    share = float(repeats.mean())
    if share > MOST_REPEATED:
        token = int(np.bincount(ids_NS[:, 1:][repeats]).argmax())
        higher = 1.0 if temperature < 1 else 1.5 * temperature
        word = tokenizer.convert_ids_to_tokens(token)
        told = f"{share:.0%} of what it writes at temperature {temperature:g} is the token before"
        raise UserError(
            f"data.{part}.sample: the parent repeats itself, most often the token {word!r}: {told}; set "
            f"data.{part}.temperature to {higher:g}, or give text in data.{part}.path"
        )
