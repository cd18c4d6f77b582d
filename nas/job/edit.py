"""Other values in a job file, and all else in it as it was: comments, order, units.

Values are replaced where YAML says that they stand; a key or a section that is not there is added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from inlay.nas.job.load import parse_yaml


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """The text of a job file with other values, by dotted fields such as `recover.learning_rate`.

    A file whose sections are aliases of others cannot be changed in place: it is written anew, without its comments.

    Raises:
        UserError: the text is no job file.
    """
    wanted = parse_yaml(text, "the job file")
    for name, value in values.items():
        section, field = name.split(".")
        wanted[section] = {**(wanted.get(section) or {}), field: yaml.safe_load(_written(value))}
    changed = text
    for name, value in values.items():
        section, field = name.split(".")
        changed = _with_value(changed, section, field, _written(value))
    return changed if yaml.safe_load(changed) == wanted else yaml.safe_dump(wanted, sort_keys=False)


def _with_value(text: str, section: str, field: str, value: str) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "a job file is a mapping"
    pair = _find(root, section)
    if pair is None:
        if root.flow_style:
            return _in_braces(text, root, f"{section}: {{{field}: {value}}}")
        return f"{text.rstrip()}\n{section}:\n  {field}: {value}\n"
    key, held = pair
    if not isinstance(held, yaml.MappingNode):  # nothing, which means the defaults
        return _replaced(text, key, held, f"{{{field}: {value}}}")
    if (old := _find(held, field)) is not None:
        return _replaced(text, *old, value)
    if held.flow_style:
        return _in_braces(text, held, f"{field}: {value}")
    first = held.value[0][0].start_mark
    start = first.index - first.column
    return f"{text[:start]}{' ' * first.column}{field}: {value}\n{text[start:]}"


def _find(node: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    return next(((key, value) for key, value in node.value if key.value == name), None)


def _replaced(text: str, key: yaml.Node, node: yaml.Node, value: str) -> str:
    """The text with another scalar; one that is empty has no place of its own, but behind its key's colon."""
    start, end = node.start_mark.index, node.end_mark.index
    if start == end:
        start = end = text.index(":", key.end_mark.index) + 1
        value = f" {value}"
    return text[:start] + value + text[end:]


def _in_braces(text: str, node: yaml.MappingNode, entry: str) -> str:
    """The text with one more entry at the end of a mapping in braces."""
    end = node.end_mark.index - 1
    before = text[:end].rstrip()
    mark = "" if before.endswith("{") else " " if before.endswith(",") else ", "
    return f"{before}{mark}{entry}{text[end:]}"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
