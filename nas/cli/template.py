"""An annotated job file as text, made from the job model's own field descriptions, so that the two cannot drift."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from inlay.nas.job import Job, Space
from inlay.nas.job.sections import Scenario

COMMENT_COLUMN = 34
HEADER = """\
# A search by inlay: `inlay validate` checks this file, `inlay plan` says what it will take, `inlay run` runs it.
# Counts: 64k, 4M. Bytes: 512MiB, 24GiB. Times: 20ms, 1.5s. 0.6x is 0.6 of the parent's value.
# Paths are relative to this file; a key that is left out has the value that `inlay init` writes.
"""


def job_text(values: Mapping[str, Any]) -> str:
    """The YAML of a job: every key that the model has, described; `values` nests as the file does, and fills it.

    Keys without a value show their default; those that have none stay commented out.
    """
    lines = [HEADER]
    for name, field in Job.model_fields.items():
        lines.append(f"# {field.description}")
        if name == "space":
            lines += _space(values["space"])
        elif name == "budget":
            lines += ["budget:", *(f"  {key}: {value}" for key, value in values["budget"].items())]
        elif model := _model_of(field.annotation):
            lines += [f"{name}:", *_fields(model, values.get(name, {}), "  ")]
        else:
            lines.append(_line(name, values.get(name, field.default), "", ""))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _fields(model: type[BaseModel], values: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        if inner := _model_of(field.annotation):
            lines += [_heading(name, indent, field.description), *_fields(inner, values.get(name, {}), indent + "  ")]
        elif name == "scenarios":
            lines.append(_heading(name, indent, field.description))
            for scenario in values.get("scenarios", [{}]):
                inner_lines = _fields(Scenario, scenario, indent + "    ")
                lines += [f"{indent}  - {inner_lines[0].strip()}", *inner_lines[1:]]
        else:
            lines.append(_line(name, values.get(name, field.default), indent, field.description or ""))
    return lines


def _heading(name: str, indent: str, comment: str | None) -> str:
    return f"{f'{indent}{name}:':<{COMMENT_COLUMN - 1}} # {comment}"


def _space(values: Mapping[str, Any]) -> list[str]:
    lines = ["space:"]
    for name, field in Space.model_fields.items():
        if name == "formats":
            lines += [f"  # {field.description}", f"  {name}: [{', '.join(values.get(name, ()))}]"]
        elif isinstance(field.default, tuple):
            items = ", ".join(_alternative(item) for item in values.get(name, field.default))
            lines += [f"  # {field.description}", f"  {name}: [{items}]"]
        else:
            lines.append(_line(name, values.get(name, field.default), "  ", field.description or ""))
    return lines


def _alternative(item: str | dict[str, Any]) -> str:
    return item if isinstance(item, str) else ", ".join(f"{key}: {value}" for key, value in item.items())


def _line(name: str, value: Any, indent: str, comment: str) -> str:
    text = f"{indent}# {name}:" if value is None else f"{indent}{name}: {_scalar(name, value)}"
    return f"{text:<{COMMENT_COLUMN - 1}} # {comment}" if comment else text


def _scalar(name: str, value: Any) -> str:
    if name == "time_limit":
        return f"{value:g}s"
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", r"e\1", f"{value:g}") if value == 0 or value >= 1e-2 else _exponent(value)
    if isinstance(value, int):
        unit = next((unit for size, unit in ((10**6, "M"), (10**3, "k")) if value >= size and value % size == 0), "")
        return f"{value // {'M': 10**6, 'k': 10**3, '': 1}[unit]}{unit}"
    plain = re.fullmatch(r"[A-Za-z0-9_./~][\w./~<>|:+ -]*", value) and not re.search(r": |\s#|\s$", value)
    known = value.lower() in ("true", "false", "yes", "no", "on", "off", "null", "~") or re.fullmatch(r"[\d._]+", value)
    return value if plain and not known else json.dumps(value, ensure_ascii=False)


def _exponent(value: float) -> str:
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
