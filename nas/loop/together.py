"""Questions whose pieces run side by side: what each is told is read from the records of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from inlay.cluster.pieces import Piece, Record
from inlay.nas.loop.search import Search

T = TypeVar("T")
Records = Mapping[str, Record]
"""By the keys of their pieces."""


@dataclass(frozen=True)
class Question(Generic[T]):
    """Pieces, and what their records say.

    Args:
        pieces: may run beside any others.
        read: what they say together.
        alone: pieces beside which nothing may run on their node.
    """

    pieces: Sequence[Piece]
    read: Callable[[Records], T]
    alone: Sequence[Piece] = ()


class Answer(Generic[T]):
    """What a question of a batch gets; there once the batch has run."""

    def __init__(self, question: Question[T]) -> None:
        self._question = question
        self._records: Records | None = None

    @property
    def value(self) -> T:
        """What the records say."""
        assert self._records is not None
        return self._question.read(self._records)

    def told(self, records: Records) -> None:
        """Takes the records of its batch."""
        self._records = records


@dataclass
class Together:
    """A batch of questions: workers that one of them leaves idle work on the next."""

    search: Search
    _asked: list[tuple[Question[Any], Answer[Any]]] = field(default_factory=list)

    def ask(self, question: Question[T]) -> Answer[T]:
        """Adds a question; its answer has a value once the batch has run."""
        answer = Answer(question)
        self._asked.append((question, answer))
        return answer

    def run(self, what: str, unit: str) -> None:
        """Runs all pieces, those that must be alone after the others; `what` and `unit` as `Search.run` has them."""
        records: dict[str, Record] = {}
        questions = [question for question, _ in self._asked]
        for pieces, exclusive in (
            ([piece for question in questions for piece in question.pieces], False),
            ([piece for question in questions for piece in question.alone], True),
        ):
            distinct = list({piece.key: piece for piece in pieces}.values())
            if distinct:
                found = self.search.run(distinct, what, unit, exclusive=exclusive)
                records |= {record.key: record for record in found}
        for _, answer in self._asked:
            answer.told(records)


def answer_of(search: Search, question: Question[T], what: str, unit: str) -> T:
    """The answer of one question that is asked alone."""
    together = Together(search)
    answer = together.ask(question)
    together.run(what, unit)
    return answer.value
