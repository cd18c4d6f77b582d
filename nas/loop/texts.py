"""Text becomes packed token ids, once: arrays in the store, named by their digest.

`distill` starts and trains variants, `recover` trains whole models; what these read is drawn from the whole file.
`held_out` is drawn with them and judges whole models while they train; `score` ranks; `report` is the quarter of the
validation text that nothing else sees. Sequences that score and report are as long as what the child will serve.
Where recovery has a tail, `tail` is what `recover` is of, in longer sequences, and `held_out` has such sequences too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from inlay.cluster.pieces import piece_seed
from inlay.cluster.store import Store
from inlay.distill.settings import LocalSettings
from inlay.distill.text import pack
from inlay.nas.errors import UserError
from inlay.nas.job import Job, sources_by_field
from inlay.nas.job.judged import judged_length
from inlay.nas.loop.sources import OpenedSource, PartRead, mixed, open_sources
from inlay.nas.pieces.texts import Ids, Texts
from inlay.nas.workspace import Workspace

HELD_OUT_TOKENS = 2048
"""Tokens that judge a whole model in training, where these are no more than a sixteenth of what it trains on."""

UNTRAINED_TOKENS = 32_768
"""Tokens from which statistics are gathered where no variant trains."""

WRITTEN = "written by the parent"
"""The name of the source of a text that no file holds."""

_NOTHING: NDArray[np.int32] = np.zeros((0, 0), np.int32)


@dataclass(frozen=True)
class Documents:
    """Which documents a packed text is of.

    Args:
        documents_NS: of each token, int32, from 0.
        sources_D: of each document its source, by the place in `names`, int32.
        names: of the sources.
    """

    documents_NS: NDArray[np.int32]
    sources_D: NDArray[np.int32]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Packed:
    """The texts of a search in memory.

    Args:
        ids: packed ids [N, S] by name, one for each of `TEXTS`, and `tail` where there is one.
        sources: what was found and read of each source, by its field in the job; JSON-able.
        notes: what the user should know of the text, a sentence each.
        report: the documents of the text that is reported.
    """

    ids: dict[str, NDArray[np.int32]]
    sources: dict[str, dict[str, Any]]
    notes: list[str]
    report: Documents | None = None


def pack_texts(job: Job, tokenizer: Any, written: Mapping[str, NDArray[np.int32]] | None = None) -> Packed:
    """Reads, splits, tokenises and packs the job's texts; writes nothing.

    `written` holds, by the part of `data`, the sequences that the parent wrote where the job names no text.

    Raises:
        UserError: a text is missing, not UTF-8, or shorter than one sequence, named by its field.
    """
    length, judged = job.data.distill.sequence_length, judged_length(job)
    local_held_out = LocalSettings.held_out * job.distill.batch_size if job.distill.tokens else 0
    local = (job.distill.tokens or UNTRAINED_TOKENS) // length + local_held_out
    whole = max(1, job.recover.tokens // length)
    batch = job.recover_batch if job.recover.tokens else 1
    judging = held_out_batches(job, job.recover.tokens)
    written = written or {}
    held = open_sources(job, "validate", tokenizer)
    parts = [_split(one) for one in held]
    tokens = job.data.validate.tokens
    drawn = open_sources(job, "distill", tokenizer)
    seed = piece_seed(job.seed, "documents")
    orders = [one.index.shuffled(seed) for one in drawn]
    wanted = max(local, whole) + judging * batch
    packed, note = written.get("distill", _NOTHING)[:wanted], ""
    if drawn:
        packed, note = _pack("distill", drawn, orders, tokenizer, length, wanted * length)
    # The last ones: neither the variants nor whole models train on them.
    held_out = min(judging, max(1, len(packed) // batch // 16)) * batch
    if len(packed) <= local_held_out + held_out:
        field = "data.distill.path" if drawn else "data.distill.sample"
        raise UserError(
            f"{field}: the text gives {len(packed)} sequences of {length} tokens; {local_held_out} and {held_out} are "
            "held out and at least one is trained on, so give more text, a smaller data.distill.sequence_length, or a "
            "smaller distill.batch_size and recover.batch_size"
        )
    train = packed[:-held_out]
    if held:
        score, _ = _pack("validate", held, [score for score, _ in parts], tokenizer, judged, tokens * 3 // 4)
        read: list[PartRead] = []
        report, _ = _pack("validate", held, [report for _, report in parts], tokenizer, judged, tokens // 4, read)
        documents = _documents(read, _names(job), report.shape)
    else:
        reports = np.arange(len(written["validate"])) % 4 == 3
        score = written["validate"][~reports][: -(-tokens * 3 // 4 // judged)]
        report = written["validate"][reports][: -(-tokens // 4 // judged)]
        # The parent wrote each sequence by itself.
        rows = np.arange(len(report), dtype=np.int32)
        documents = Documents(np.repeat(rows[:, None], judged, axis=1), np.zeros_like(rows), (WRITTEN,))
    ids = {
        "distill": train[: max(1, local)],
        "recover": train[:whole],
        "held_out": packed[-held_out:],
        "score": score,
        "report": report,
    }
    if job.recover.tail.tokens:
        ids["tail"], ids["held_out"] = _longer(job, drawn, orders, tokenizer, len(train), len(packed))
    told = [f"{one.field}: {'; '.join(found)}" for one in drawn if (found := one.told.told(length))]
    told += [f"{one.field}: {'; '.join(found)}" for one in held if (found := one.told.told(judged))]
    sources = {one.field: one.told.to_dict() for one in (*drawn, *held)}
    return Packed(ids, sources, told + ([note] if note else []), documents)


def store_texts(packed: Packed, workspace: Workspace) -> Texts:
    """Puts packed texts into the store."""
    stored = {name: _put(workspace.store, ids) for name, ids in packed.ids.items()}
    if packed.report is None:
        return Texts(**stored, sources=())
    told = save({"documents": packed.report.documents_NS, "sources": packed.report.sources_D})
    stored["report"] = replace(stored["report"], documents=workspace.store.put_blob(told))
    return Texts(**stored, sources=packed.report.names)


def first_of(ids: Ids, sequences: int, store: Store) -> Ids:
    """The first sequences of a text, as a text of its own."""
    return ids if sequences >= ids.shape[0] else _put(store, ids.load(store)[:sequences])


def _longer(
    job: Job,
    drawn: Sequence[OpenedSource],
    orders: Sequence[NDArray[np.int64]],
    tokenizer: Any,
    trained: int,
    packed: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The same documents in the same order as sequences of the tail: of what is trained on, and of what is held out.

    `trained` of `packed` sequences were the first. A sequence of S tokens opens with one that may be no document's, so
    it holds S - 1 tokens of the text at least, which leaves a gap between the two.
    """
    length, longer, batch = job.data.distill.sequence_length, job.recover.tail.sequence_length, tail_batch(job)
    again = [replace(one, told=replace(one.told)) for one in drawn]  # they count what was read, which is not more
    ids, _ = _pack("distill", again, orders, tokenizer, longer, packed * length * longer // (longer - 1) + longer)
    train, held_out = ids[: trained * (length - 1) // longer], ids[-(-trained * length // (longer - 1)) :]
    held_out = held_out[: len(held_out) // batch * batch]
    if not (len(train) and len(held_out)):
        raise UserError(
            f"data.distill.path: the text gives {len(train)} sequences of {longer} tokens to train on and "
            f"{len(held_out)} to hold out, and recover.tail needs {batch} of each; give more text, or a smaller "
            "recover.tail.sequence_length"
        )
    return train, held_out


def tail_batch(job: Job) -> int:
    """Sequences of the tail in a step: as many tokens as in any other, in whole sequences."""
    return job.recover.tail_batch(job.data.distill.sequence_length)


def held_out_batches(job: Job, tokens: int) -> int:
    """How many of recovery's batches judge a whole model that trains on so many tokens, where the text has them.

    A 128th of what it trains on, for short trainings `HELD_OUT_TOKENS`, at most a sixteenth, and one at least.
    """
    batch_tokens = job.recover_batch * job.data.distill.sequence_length
    steps = tokens // batch_tokens
    return max(1, min(steps // 16, max(steps // 128, -(-HELD_OUT_TOKENS // batch_tokens))))


def _split(one: OpenedSource) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    try:
        return one.index.split()
    except ValueError as error:
        raise UserError(f"{one.field}: {one.told.path}: {error}") from error


def _pack(
    part: str,
    opened: Sequence[OpenedSource],
    orders: Sequence[NDArray[np.int64]],
    tokenizer: Any,
    length: int,
    tokens: int,
    read: list[PartRead] | None = None,
) -> tuple[NDArray[np.int32], str]:
    """The packed ids, and a sentence where the text ends before so many tokens; `read` as `mixed` has it."""
    stream = mixed(opened, orders, tokenizer, length, read)
    try:
        ids = pack(stream, length, tokens=max(tokens, length))
    except ValueError as error:
        raise UserError(f"data.{part}.path: {error} (data.{part}.sequence_length)") from error
    if stream.ended is None or len(opened) == 1:
        return ids, ""
    first = opened[stream.ended]
    told = f"{first.told.path} ends after {stream.taken[stream.ended]:,} tokens, and the whole text with it"
    return ids, (
        f"{first.field}: {told}, after {ids.size:,} of {tokens:,}, since the weights would not hold without it; give "
        "more of it, or lower its weight"
    )


def _documents(read: Sequence[PartRead], names: tuple[str, ...], shape: tuple[int, ...]) -> Documents:
    """Of the tokens that `pack` made of these parts: it asks only how long a part is, so numbers are cut as ids are."""
    numbers: dict[tuple[int, int], int] = {}
    for part in read:
        numbers.setdefault((part.source, part.document), len(numbers))
    parts = ([numbers[part.source, part.document]] * part.tokens for part in read)
    packed_NS = pack(parts, shape[1], tokens=shape[0] * shape[1])
    return Documents(packed_NS, np.array([source for source, _ in numbers], np.int32), names)


def _names(job: Job) -> tuple[str, ...]:
    """What the sources of the text that judges are called: the last part of their paths, or all of it, numbered where
    one is read twice."""
    paths = [source.path for source in sources_by_field(job.data.validate, "validate").values()]
    names = [Path(path).name for path in paths]
    if len(set(names)) == len(names):
        return tuple(names)
    return tuple(
        path if paths.count(path) == 1 else f"{path} #{paths[: place + 1].count(path)}"
        for place, path in enumerate(paths)
    )


def _put(store: Store, ids: NDArray[np.int32]) -> Ids:
    buffer = io.BytesIO()
    np.save(buffer, ids, allow_pickle=False)
    return Ids(store.put_blob(buffer.getvalue()), (ids.shape[0], ids.shape[1]))
