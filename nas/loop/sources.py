"""The sources of a job's texts: opened, checked against their digests, and read as one stream of tokens by weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inlay.distill.corpus import Corpus, HeldCorpus, Index
from inlay.distill.records import Records, in_template
from inlay.distill.text import Mix, token_lists
from inlay.nas.embedded.corpus import Split
from inlay.nas.embedded.corpus import documents as embedded_documents
from inlay.nas.errors import UserError
from inlay.nas.job import DistillText, Job, Source, ValidateText, sources_by_field
from inlay.nas.job.locations import EMBEDDED


@dataclass
class SourceRead:
    """What was found in a source and read of it.

    Args:
        documents: with text, in all.
        empty: without text, left out.
        read: documents and parts of long ones that were read.
        longer: of these, how many are longer than a sequence and go on in the next one.
        tokens: that were read.
    """

    path: str
    digest: str
    documents: int
    empty: int
    read: int = 0
    longer: int = 0
    tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def told(self, length: int) -> list[str]:
        """What a user should know of it, in words."""
        found = []
        if self.empty:
            found.append(f"{self.empty:,} of {self.documents + self.empty:,} documents are empty and left out")
        if self.longer:
            longer = "1 is" if self.longer == 1 else f"{self.longer:,} are"
            text = f"of {self.read:,} documents read {longer} longer than a sequence of {length:,} tokens"
            found.append(f"{text} and continued in the next")
        return found


@dataclass(frozen=True)
class OpenedSource:
    """One source that is read."""

    field: str
    weight: float
    corpus: Corpus | HeldCorpus
    index: Index
    told: SourceRead


def open_sources(job: Job, part: str, tokenizer: Any) -> list[OpenedSource]:
    """The sources of `data.<part>`; each file is read once, to its end.

    Raises:
        UserError: one cannot be read, has no text, or has not the digest that it must have; named by its field.
    """
    text: DistillText | ValidateText = getattr(job.data, part)
    opened = []
    for field, source in sources_by_field(text, part).items():
        try:
            corpus = _corpus(job, text, source, tokenizer)
            index = corpus.index()
        except (ValueError, OSError) as error:
            raise UserError(f"{field}: {error}") from error
        if source.digest not in (None, index.digest):
            raise UserError(
                f"{field}: {source.path} is not the text that was meant: its sha256 is {index.digest}, and `digest` "
                "says another; put the text back, or write the new digest to train on this one"
            )
        told = SourceRead(source.path, index.digest, index.num_documents, index.num_empty)
        opened.append(OpenedSource(field, source.weight, corpus, index, told))
    return opened


@dataclass(frozen=True)
class PartRead:
    """A document, or a part of a long one, as it was read: its source by place, its number there, its tokens."""

    source: int
    document: int
    tokens: int


def mixed(
    opened: Sequence[OpenedSource],
    orders: Sequence[NDArray[np.int64]],
    tokenizer: Any,
    length: int,
    read: list[PartRead] | None = None,
) -> Mix:
    """The tokens of the sources' documents in these orders, by weight; each source counts what is read of it.

    What is read is added to `read`, in the order in which it comes.

    Raises, while it is read:
        UserError: a source changed meanwhile, or a conversation does not fit the chat template; named by its field.
    """
    streams = [
        _stream(one, order, tokenizer, length, place, read)
        for place, (one, order) in enumerate(zip(opened, orders, strict=True))
    ]
    return Mix(streams, [one.weight for one in opened])


def changed_sources(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each source that holds another text than in the last run, by what both read."""
    for field, source in now.items():
        known = before.get(field, source)
        if known["path"] == source["path"] and known["digest"] != source["digest"]:
            yield (
                f"{field}: {source['path']} changed since the last run here; what was trained or judged on other "
                "documents than are drawn from it now is done again (to have that refused, write its `digest` beside "
                "the path)"
            )


def _corpus(job: Job, text: DistillText | ValidateText, source: Source, tokenizer: Any) -> Corpus | HeldCorpus:
    if source.path.startswith(EMBEDDED):
        split: Split = "train" if source.path.endswith("/train") else "held_out"
        return HeldCorpus(embedded_documents(split))
    records = Records(source.field or text.field, in_template(tokenizer))
    return Corpus(Path(job.resolve(source.path)), text.separator, records)


def _stream(
    one: OpenedSource, order: NDArray[np.int64], tokenizer: Any, length: int, place: int, read: list[PartRead] | None
) -> Iterator[list[int]]:
    try:
        for part, ids in zip(order, token_lists(one.corpus.texts(one.index, order), tokenizer), strict=True):
            one.told.read += 1
            one.told.longer += len(ids) > length
            one.told.tokens += len(ids)
            if read is not None:
                read.append(PartRead(place, int(one.index.documents_N[part]), len(ids)))
            yield ids
    except (ValueError, OSError) as error:
        raise UserError(f"{one.field}: {error}") from error
