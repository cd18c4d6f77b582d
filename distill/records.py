"""What a record of a JSONL, Parquet or Arrow file is as a document: a text, or a conversation in the chat template."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PART_CHARACTERS = 1 << 16
"""Longer documents are drawn in parts of at most so many."""
FIELDS = ("text", "messages")
"""Where a document is looked for when nothing names its field."""

NO_TEMPLATE = (
    "a conversation, and the parent's tokenizer has no chat template; put the model's own chat_template.jinja beside "
    "the tokenizer, or give plain text"
)

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]
"""A conversation as the text that a model reads."""


@dataclass(frozen=True)
class Records:
    """How records become documents.

    Args:
        field: holds the text, or the conversation as a list of {role, content}; None: the first of `FIELDS` there.
        render: makes a text of a conversation; a ValueError says why it does not.
    """

    field: str | None
    render: Render

    def field_of(self, names: Collection[str], where: str) -> str:
        """The field that holds the document; `where` opens the ValueError when there is none."""
        wanted = (self.field,) if self.field else FIELDS
        for name in wanted:
            if name in names:
                return name
        there = ", ".join(f"`{name}`" for name in sorted(names)[:8]) or "none"
        raise ValueError(f"{where}: no field `{'` or `'.join(wanted)}`; there are {there}; name one in `field`")

    def num_parts(self, value: object, where: str) -> int:
        """In how many parts a document is drawn, 0 where it is empty; ValueError when it is neither kind."""
        if value is None:
            return 0
        if isinstance(value, str):
            return sum(1 for _ in parts_of(value)) if value.strip() else 0
        return int(any((message.get("content") or "").strip() for message in _messages(value, where)))

    def part(self, value: object, number: int, where: str) -> str:
        """One part of a document that is not empty; a conversation is one part, however long."""
        if isinstance(value, str):
            return next(part for place, part in enumerate(parts_of(value)) if place == number)
        try:
            return self.render(_messages(value, where))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def parts_of(document: str) -> Iterator[str]:
    """A document in parts that end with a line, or, where a line is as long as a part, anywhere."""
    start = 0
    while len(document) - start > PART_CHARACTERS:
        end = document.rfind("\n", start, start + PART_CHARACTERS) + 1 or start + PART_CHARACTERS
        yield document[start:end]
        start = end
    yield document[start:]


def contents(messages: Sequence[Message]) -> str:
    """A conversation without the template, which only the transformers library can write: to count by."""
    return "\n".join(message.get("content") or "" for message in messages)


def in_template(tokenizer: Any) -> Render:
    """Renders by the tokenizer's chat template; the opening token that the template writes is left to packing."""

    def render(messages: Sequence[Message]) -> str:
        if not tokenizer.chat_template:
            raise ValueError(NO_TEMPLATE)
        try:
            text: str = tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False)
        except Exception as error:  # a template is a program of its author's, and raises what it likes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"the parent's chat template fails on this conversation ({reason}); correct it or leave it out"
            ) from None
        return text.removeprefix(tokenizer.bos_token or "")

    return render


def _messages(value: object, where: str) -> Sequence[Message]:
    fits = isinstance(value, Sequence) and all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str | None)
        for message in value
    )
    if not fits:
        raise ValueError(f"{where}: neither a text nor a conversation, which is a list of {{role, content}}")
    return value  # type: ignore[return-value]
