"""Text becomes packed token ids, once: five arrays in the store, named by their digest.

`distill` starts and trains variants, `recover` trains whole models; what these read is drawn from the whole file.
`held_out` is drawn with them and judges whole models while they train; `score` ranks; `report` is the quarter of the
validation text that nothing else sees. Sequences that score and report are as long as what the child will serve.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inlay.cluster.pieces import piece_seed
from inlay.cluster.store import Store
from inlay.distill.settings import LocalSettings
from inlay.distill.text import pack, read_documents, shuffled_documents, split_documents
from inlay.nas.embedded.corpus import documents as embedded_documents
from inlay.nas.errors import UserError
from inlay.nas.job import Job
from inlay.nas.job.judged import judged_length
from inlay.nas.pieces.texts import Ids, Texts
from inlay.nas.workspace import Workspace

HELD_OUT_TOKENS = 2048
"""Tokens that judge a whole model in training, where these are no more than a sixteenth of what it trains on."""

UNTRAINED_TOKENS = 32_768
"""Tokens from which statistics are gathered where no variant trains."""

Packed = dict[str, NDArray[np.int32]]


def pack_texts(job: Job, tokenizer: Any) -> Packed:
    """Reads, splits, tokenises and packs the job's texts; writes nothing.

    Raises:
        UserError: a text is missing, not UTF-8, or shorter than one sequence, named by its field.
    """
    length, judged = job.data.distill.sequence_length, judged_length(job)
    local_held_out = LocalSettings.held_out * job.distill.batch_size if job.distill.tokens else 0
    local = (job.distill.tokens or UNTRAINED_TOKENS) // length + local_held_out
    whole = max(1, job.recover.tokens // length)
    batch = job.recover.batch_size if job.recover.tokens else 1
    judging = held_out_batches(job, job.recover.tokens)
    held = documents_of(job, "validate")
    if len(held) < 2:
        raise UserError(
            f"data.validate.path: {job.data.validate.path} has {len(held)} document; the score and the report need "
            f"at least 2, separated by lines that are only {job.data.validate.separator}"
        )
    score, report = split_documents(held)
    tokens = job.data.validate.tokens
    drawn = shuffled_documents(documents_of(job, "distill"), piece_seed(job.seed, "documents"))
    packed = _pack("data.distill", drawn, tokenizer, length, (max(local, whole) + judging * batch) * length)
    # The last ones: neither the variants nor whole models train on them.
    held_out = min(judging, max(1, len(packed) // batch // 16)) * batch
    if len(packed) <= local_held_out + held_out:
        raise UserError(
            f"data.distill.path: the text gives {len(packed)} sequences of {length} tokens; {local_held_out} and "
            f"{held_out} are held out and at least one is trained on, so give more text, a smaller "
            "data.distill.sequence_length, or a smaller distill.batch_size and recover.batch_size"
        )
    train = packed[:-held_out]
    return {
        "distill": train[: max(1, local)],
        "recover": train[:whole],
        "held_out": packed[-held_out:],
        "score": _pack("data.validate", score, tokenizer, judged, tokens * 3 // 4),
        "report": _pack("data.validate", report, tokenizer, judged, tokens // 4),
    }


def store_texts(packed: Packed, workspace: Workspace) -> Texts:
    """Puts packed texts into the store."""
    return Texts(**{name: _put(workspace.store, ids) for name, ids in packed.items()})


def held_out_batches(job: Job, tokens: int) -> int:
    """How many of recovery's batches judge a whole model that trains on so many tokens, where the text has them.

    A 128th of what it trains on, for short trainings `HELD_OUT_TOKENS`, at most a sixteenth, and one at least.
    """
    batch_tokens = job.recover.batch_size * job.data.distill.sequence_length
    steps = tokens // batch_tokens
    return max(1, min(steps // 16, max(steps // 128, -(-HELD_OUT_TOKENS // batch_tokens))))


def documents_of(job: Job, field: str) -> list[str]:
    """The documents of `data.<field>`; UserError with the field when they cannot be read."""
    source = getattr(job.data, field)
    if source.path.startswith("inlay:"):
        return embedded_documents(source.path.rsplit("/", 1)[1])
    try:
        return read_documents(Path(job.resolve(source.path)), separator=source.separator, field=source.field)
    except (ValueError, OSError) as error:
        raise UserError(f"data.{field}.path: {error}") from error


def _pack(field: str, documents: list[str], tokenizer: Any, length: int, tokens: int) -> NDArray[np.int32]:
    try:
        return pack(documents, tokenizer, length, tokens=max(tokens, length))
    except ValueError as error:
        raise UserError(f"{field}.path: {error} ({field}.sequence_length)") from error


def _put(store: Store, ids: NDArray[np.int32]) -> Ids:
    buffer = io.BytesIO()
    np.save(buffer, ids, allow_pickle=False)
    return Ids(store.put_blob(buffer.getvalue()), (ids.shape[0], ids.shape[1]))
