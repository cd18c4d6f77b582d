"""The `space` section: which alternatives the search may use for a subblock.

Checked here is what needs no parent: forms, units, signs, duplicates, by the syntax of each kind of variant. What needs
the parent's shape (does `kv_heads` divide, is `width` smaller) is checked by `inlay.nas.variants`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from inlay.nas.formats import FORMATS
from inlay.nas.job.fields import Count, Section
from inlay.nas.modeling.subblock_inlay import Slot
from inlay.nas.problems import FieldProblems, did_you_mean, plain_key, show
from inlay.nas.variants.kind import LAYERS, LISTS, Kind
from inlay.nas.variants.registry import KINDS, kind_with, kinds_in

Alternative = str | dict[str, int | float]
"""`"linear"`, `"no_op"`, `{"kv_heads": 2}`, `{"window": 128}`, both in one, `{"width": 256}` or `{"width": 0.5}`."""

MOST_ALTERNATIVES = 500
"""Of a list: each is compared with all others."""


def parse_alternatives(listed: str, value: object) -> tuple[Alternative, ...]:
    """Checks one list of alternatives; raises FieldProblems naming every bad item by its place."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise FieldProblems([("", f"{show(value)} is not a list; write for example {_example(listed)}")])
    _check_length(value)
    problems: list[tuple[str, str]] = []
    parsed: list[Alternative] = []
    for index, item in enumerate(value):
        try:
            alternative = _parse(listed, item)
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


def _layers(value: object) -> tuple[Alternative, ...]:
    return parse_alternatives(LAYERS, value)


By = Literal["subblock", "tensor"]
_BY: Final[tuple[By, ...]] = get_args(By)


@dataclass(frozen=True)
class Formats:
    """Formats that may be chosen, and of what: `[q8_0, q4_K]`, or `{choices: [q8_0, q4_K], by: tensor}`.

    Args:
        choices: beside that of the whole file.
        by: `subblock`: all its matrices alike; `tensor`: those may differ that a kind may store apart.
    """

    choices: tuple[str, ...] = ()
    by: By = "subblock"

    def __bool__(self) -> bool:
        return bool(self.choices)


def _formats(value: object) -> Formats:
    if isinstance(value, Formats):
        return value
    if isinstance(value, Mapping):
        return _formats_by(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise FieldProblems([("", f"{show(value)} is not a list; write for example [q8_0, q4_K]")])
    _check_length(value)
    problems = []
    for index, form in enumerate(value):
        if not isinstance(form, str) or form not in FORMATS:
            hint = did_you_mean(str(form), FORMATS)
            problems.append((f"[{index}]", f"{show(form)} is not a format; {hint}there are {', '.join(FORMATS)}"))
        elif form in value[:index]:
            problems.append((f"[{index}]", f"{show(form)} is there twice; leave one out"))
    if problems:
        raise FieldProblems(problems)
    return Formats(tuple(value))


def _formats_by(value: Mapping[Any, Any]) -> Formats:
    keys = ("choices", "by")
    problems = [
        (
            f".{plain_key(str(key))}",
            f"is no key of formats; {did_you_mean(str(key), keys)}they have {' and '.join(keys)}",
        )
        for key in value
        if key not in keys
    ]
    by = value.get("by", _BY[0])
    if by not in _BY:
        problems.append((".by", f"{show(by)} is neither {' nor '.join(_BY)}; write one of them"))
    if not value.get("choices"):
        problems.append((".choices", "is missing; write for example {choices: [q8_0, q4_K], by: tensor}"))
    try:
        found = _formats(value.get("choices") or ())
    except FieldProblems as error:
        problems += [(f".choices{path}", text) for path, text in error.problems]
    if problems:
        raise FieldProblems(problems)
    return replace(found, by=by)


def _as_written(formats: Formats) -> object:
    """A list where one format is a whole subblock's."""
    return list(formats.choices) if formats.by == _BY[0] else {"choices": list(formats.choices), "by": formats.by}


def _check_length(value: Sequence[object]) -> None:
    if len(value) > MOST_ALTERNATIVES:
        raise FieldProblems([("", f"has {len(value):,} entries; at most {MOST_ALTERNATIVES} are searched")])


def _kinds(listed: str) -> list[Kind]:
    """The kinds that a job may name in a list."""
    return [kind for kind in kinds_in(listed) if not kind.is_parent]


def _forms(listed: str) -> str:
    return ", ".join(kind.forms or kind.name for kind in _single(listed))


def _single(listed: str) -> list[Kind]:
    """Those that are not two in one."""
    return [kind for kind in _kinds(listed) if len(kind.keys) == 1]


def _both(listed: str) -> str:
    """Those that are, as they may stand beside the others."""
    pairs = [kind for kind in _kinds(listed) if len(kind.keys) > 1]
    return "".join(f", or {{{', '.join(str(KINDS[key].example) for key in kind.keys)}}}" for kind in pairs)


class Space(Section):
    """The alternatives allowed at every layer; the parent's own subblock is always among them."""

    attention: Annotated[tuple[Alternative, ...], BeforeValidator(_attention)] = Field(
        default=(), description=f"Alternatives: {_forms('attention')}; also {{kv_heads: N, window: N}}."
    )
    ffn: Annotated[tuple[Alternative, ...], BeforeValidator(_ffn)] = Field(
        default=(), description=f"Alternatives: {_forms('ffn')}."
    )
    layers: Annotated[tuple[Alternative, ...], BeforeValidator(_layers)] = Field(
        default=(), description=f"Alternatives to neighbouring layers together: {_forms(LAYERS)}."
    )
    formats: Annotated[Formats, BeforeValidator(_formats), PlainSerializer(_as_written)] = Field(
        default=Formats(),
        description="Formats of a subblock beside hardware.format; {choices: …, by: tensor}: of tensors.",
    )
    multiple: Count = Field(default=8, ge=1, le=4096, description="FFN widths are rounded to a multiple of this.")
    sinks: Count = Field(
        default=4, ge=0, le=4096, description="First tokens a window always sees; stock engines know 0."
    )

    @property
    def forms(self) -> tuple[str, ...]:
        """The formats."""
        return self.formats.choices

    @property
    def mixes_forms(self) -> bool:
        """Whether the matrices of one subblock may be in different ones."""
        return self.formats.by == "tensor"

    def stored_as(self, layer: int, slot: Slot) -> tuple[str, ...]:
        """What a subblock may be stored in, all its matrices alike: which of them may differ is known in a search."""
        return self.formats.choices

    @property
    def formats_alone(self) -> bool:
        """Whether every child's subblocks are the parent's own, whatever they are stored in."""
        return not self.attention and not self.ffn and not self.layers

    @model_validator(mode="after")
    def _something_to_choose(self) -> Self:
        if self.formats_alone and not self.formats:
            raise ValueError("offers no alternative; give `attention` or `ffn` a list such as [linear, no_op]")
        return self


def _parse(listed: str, item: object) -> Alternative:
    words, valued = _names(listed)
    if isinstance(item, str):
        if item in words:
            return item
        raise FieldProblems([("", _unknown_word(listed, item))])
    if not isinstance(item, Mapping) or not item:
        raise FieldProblems([("", f"{show(item)} is not one alternative; write one of {_example(listed)}")])
    for key in item:
        if key not in valued:
            raise FieldProblems([("", _unknown_parameter(listed, plain_key(str(key))))])
    kind = kind_with(item, listed)
    if kind is None:
        raise FieldProblems(
            [("", f"{show(item)} is not one alternative; write one of {_example(listed)}{_both(listed)}")]
        )
    return {key: _read(key, item[key]) for key in kind.keys}


def _read(key: str, value: object) -> int | float:
    try:
        return KINDS[key].read(value)
    except ValueError as error:
        raise FieldProblems([(f".{key}", f"{show(value)} {error}")]) from None


def _names(listed: str) -> tuple[list[str], list[str]]:
    """The kinds whose name alone is an item, and those that take a value."""
    kinds = _single(listed)
    words = [kind.name for kind in kinds if kind.example is None]
    return words, [kind.name for kind in kinds if kind.example is not None]


def _unknown_word(listed: str, word: str) -> str:
    if word in KINDS and KINDS[word].is_parent:
        return f"{word!r} is always among the alternatives; leave it out"
    words, valued = _names(listed)
    hint = did_you_mean(word.split("=")[0].split(":")[0], (*words, *valued))
    return f"{show(word)} is no {listed} alternative; {hint}write one of {_example(listed)}"


def _unknown_parameter(listed: str, key: str) -> str:
    words, valued = _names(listed)
    for other in LISTS:
        if other != listed and key in _names(other)[1]:
            return f"`{key}` belongs to {other}, not {listed}; move it to `space.{other}`"
    if key in words:
        return f"`{key}` takes no value; write {key} alone"
    return f"`{key}` is no {listed} alternative; {did_you_mean(key, valued)}write one of {_example(listed)}"


def _example(listed: str) -> str:
    return f"[{', '.join(kind.example or kind.name for kind in _single(listed))}]"
