"""Every problem of a job file at once: where it is, what was written, and the way out.

pydantic finds the problems; this module puts them into inlay's words, one line each, with a did-you-mean for keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from inlay.nas.problems import FieldProblems, Problem, closest, did_you_mean, path_of, show

MOST_LISTED = 100
"""Problems that are told in words; keys that are unknown beyond them are not compared with the known ones."""


def list_problems(problems: Sequence[Problem], source: str) -> str:
    """The problems as text: a single line for one, else a headline and one line each, up to `MOST_LISTED`."""
    if len(problems) == 1:
        return f"{source}: {problems[0]}"
    lines = [f"{source} has {len(problems):,} problems:", *(f"  {problem}" for problem in problems[:MOST_LISTED])]
    if len(problems) > MOST_LISTED:
        lines.append(f"  and {len(problems) - MOST_LISTED:,} more")
    return "\n".join(lines)


def problems_of(error: ValidationError, model: type[BaseModel], values: Any) -> list[Problem]:
    """Translates what pydantic found in `values` into problems, in the order of the file's fields."""
    found: list[Problem] = []
    forgiven: set[str] = set()
    details = error.errors(include_url=False)
    for detail in details:
        if detail["type"] == "too_short" and any(_is_below(other, detail) for other in details):
            continue
        if detail["type"] == "extra_forbidden":
            if len(found) < MOST_LISTED:
                problem, meant = _unknown_key(detail, model)
                forgiven.add(meant)
            else:
                problem = Problem(path_of(detail["loc"]), "unknown key")
            found.append(problem)
        elif isinstance(cause := detail.get("ctx", {}).get("error"), FieldProblems):
            found += [Problem(path_of(detail["loc"]) + path, text) for path, text in cause.problems]
        else:
            found.append(Problem(path_of(detail["loc"]), _sentence(detail, _written(values, detail))))
    return [problem for problem in found if not (problem.field in forgiven and problem.text.startswith("is missing"))]


def _is_below(inner: ErrorDetails, outer: ErrorDetails) -> bool:
    depth = len(outer["loc"])
    return len(inner["loc"]) > depth and inner["loc"][:depth] == outer["loc"]


def _unknown_key(detail: ErrorDetails, model: type[BaseModel]) -> tuple[Problem, str]:
    *parents, key = detail["loc"]
    known = list(_model_at(model, parents).model_fields)
    text = f"unknown key; {did_you_mean(str(key), known)}Known keys: {', '.join(known)}"
    meant = path_of([*parents, closest(str(key), known)])
    return Problem(path_of(detail["loc"]), text.replace("; Known", "; known")), meant


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _inner_model(model.model_fields[part].annotation) or model
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) in (Union, UnionType, Annotated, tuple, list):
        return next((inner for part in get_args(annotation) if (inner := _inner_model(part))), None)
    return None


def _written(values: Any, detail: ErrorDetails) -> str:
    """The value as the user wrote it; pydantic shows what a field made of it."""
    try:
        for part in detail["loc"]:
            values = values[part]
    except (KeyError, IndexError, TypeError):
        return show(detail["input"])
    return show(values)


def _sentence(detail: ErrorDetails, value: str) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return "is missing; this key has no default"
    if kind == "value_error":
        text = str(context["error"])
        return text if text.startswith("is missing") else f"{value} {text}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        return f"{value} is out of range; it must be {words} {int(bound) if bound == int(bound) else bound}"
    if kind in ("literal_error", "enum"):
        return f"{value} is not known here; write {context['expected']}"
    if kind in ("too_short", "string_too_short"):
        return f"{value} is empty; give at least {context['min_length']}"
    if kind == "string_too_long":
        return f"{value} is too long; at most {context['max_length']} characters are read"
    if kind == "string_pattern_mismatch":
        return f"{value} does not have the right form; {_FORMS.get(context['pattern'], context['pattern'])}"
    if kind in _KINDS:
        return f"{value} is not {_KINDS[kind]}"
    return f"{value}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


_FORMS = {
    r"^[A-Za-z][A-Za-z0-9_-]{0,63}$": "write a name of letters, digits, _ and -, at most 64, a letter first",
    r"^[0-9a-f]{64}$": "write the 64 digits of a sha256, 0-9 and a-f",
    r"^(cpu|cuda|cuda:\d{1,3})$": "write cpu, cuda or cuda:0",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_KINDS = {
    "string_type": "a text; put it in quotes",
    "tuple_type": "a list; write [a, b]",
    "list_type": "a list; write [a, b]",
    "dict_type": "a mapping; write {key: value}",
    "model_type": "a mapping; write {key: value}",
    "model_attributes_type": "a mapping; write {key: value}",
    "bool_type": "true or false",
}
