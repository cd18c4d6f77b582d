"""The `space` section: which alternatives the search may use for a subblock.

Checked here is what needs no parent: forms, units, signs, duplicates. What needs the parent's shape (does `kv_heads`
divide, is `width` smaller) is checked by `inlay.nas.variants`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from inlay.nas.job.fields import Count, Section
from inlay.nas.job.problems import FieldProblems, did_you_mean, plain_key, show
from inlay.nas.job.quantities import parse_count, parse_number

Alternative = str | dict[str, int | float]
"""`"linear"`, `"no_op"`, `{"kv_heads": 2}`, `{"window": 128}`, `{"width": 256}` or `{"width": 0.5}`."""

WORDS = ("linear", "no_op")
PARAMETERS = {"attention": ("kv_heads", "window"), "ffn": ("width",)}


def parse_alternatives(slot: str, value: object) -> tuple[Alternative, ...]:
    """Checks one list of alternatives; raises FieldProblems naming every bad item by its place."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise FieldProblems([("", f"{show(value)} is not a list; write for example {_example(slot)}")])
    problems: list[tuple[str, str]] = []
    parsed: list[Alternative] = []
    for index, item in enumerate(value):
        try:
            alternative = _parse(slot, item)
        except FieldProblems as error:
            problems += [(f"[{index}]{path}", text) for path, text in error.problems]
            continue
        if alternative in parsed:
            problems.append((f"[{index}]", f"{show(item)} is there twice; leave one out"))
        parsed.append(alternative)
    if problems:
        raise FieldProblems(problems)
    return tuple(parsed)


def _attention(value: object) -> tuple[Alternative, ...]:
    return parse_alternatives("attention", value)


def _ffn(value: object) -> tuple[Alternative, ...]:
    return parse_alternatives("ffn", value)


class Space(Section):
    """The alternatives allowed at every layer; the parent's own subblock is always among them."""

    attention: Annotated[tuple[Alternative, ...], BeforeValidator(_attention)] = Field(
        default=(), description="Alternatives to attention: {kv_heads: N}, {window: N}, linear, no_op."
    )
    ffn: Annotated[tuple[Alternative, ...], BeforeValidator(_ffn)] = Field(
        default=(), description="Alternatives to the ffn: {width: 0.5} or {width: 256}, linear, no_op."
    )
    multiple: Count = Field(default=8, ge=1, le=4096, description="FFN widths are rounded to a multiple of this.")
    sinks: Count = Field(
        default=4, ge=0, le=4096, description="First tokens a window always sees; stock engines know 0."
    )

    @model_validator(mode="after")
    def _something_to_choose(self) -> Self:
        if not self.attention and not self.ffn:
            raise ValueError("offers no alternative; give `attention` or `ffn` a list such as [linear, no_op]")
        return self


def _parse(slot: str, item: object) -> Alternative:
    if isinstance(item, str):
        if item in WORDS:
            return item
        raise FieldProblems([("", _unknown_word(slot, item))])
    if not isinstance(item, Mapping) or len(item) != 1:
        raise FieldProblems([("", f"{show(item)} is not one alternative; write one of {_example(slot)}")])
    (key, value), known = next(iter(item.items())), PARAMETERS[slot]
    if key not in known:
        raise FieldProblems([("", _unknown_parameter(slot, plain_key(str(key))))])
    try:
        return {key: _width(value) if key == "width" else _positive(key, value)}
    except ValueError as error:
        raise FieldProblems([(f".{key}", f"{show(value)} {error}")]) from None


def _unknown_word(slot: str, word: str) -> str:
    if word == "parent":
        return "'parent' is always among the alternatives; leave it out"
    hint = did_you_mean(word.split("=")[0].split(":")[0], (*WORDS, *PARAMETERS[slot]))
    return f"{show(word)} is no {slot} alternative; {hint}write one of {_example(slot)}"


def _unknown_parameter(slot: str, key: str) -> str:
    other = "ffn" if slot == "attention" else "attention"
    if key in PARAMETERS[other]:
        return f"`{key}` belongs to {other}, not {slot}; move it to `space.{other}`"
    if key in WORDS:
        return f"`{key}` takes no value; write {key} alone"
    return f"`{key}` is no {slot} alternative; {did_you_mean(key, PARAMETERS[slot])}write one of {_example(slot)}"


def _width(value: object) -> int | float:
    number = parse_number(value) if isinstance(value, float) or "." in str(value) else parse_count(value)
    if number <= 0:
        raise ValueError("is not a width; write a fraction of the parent's such as 0.5, or channels such as 256")
    if number == 1:
        raise ValueError("is the parent's own width or a single channel; write a fraction below 1, or 2 or more")
    if isinstance(number, float) and number > 1:
        if Fraction(number).denominator == 1:
            return int(number)
        raise ValueError("is more than the parent has; write a fraction below 1 such as 0.5, or whole channels")
    return number


def _positive(key: str, value: object) -> int:
    number = parse_count(value)
    if number < 1:
        hint = " (no attention at all is no_op)" if key == "kv_heads" else ""
        raise ValueError(f"is out of range; it must be at least 1{hint}")
    return number


def _example(slot: str) -> str:
    return "[kv_heads: 1, window: 128, linear, no_op]" if slot == "attention" else "[width: 0.5, linear, no_op]"
