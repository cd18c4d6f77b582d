"""Reads YAML that may come from anybody: plain values only, bounded in size, in aliases and in depth."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from inlay.nas.errors import UserError
from inlay.nas.problems import show

LARGEST_BYTES = 500_000
MOST_VALUES = 10_000
DEEPEST = 50


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a job file; raises UserError for a file that is missing, too large or not UTF-8."""
    file = Path(path)
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_BYTES + 1)
    except IsADirectoryError:
        raise UserError(f"{file} is a folder, not a job file; name the .yaml file in it") from None
    except FileNotFoundError:
        raise UserError(f"there is no job file {file}; `inlay init {file}` writes one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"the job file {show(str(file))} cannot be read: {_reason(error)}") from None
    if len(content) > LARGEST_BYTES:
        raise UserError(f"{file} is larger than {LARGEST_BYTES} bytes; a job file is a page, name texts by their path")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 at byte {error.start}; save it as UTF-8") from None


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text; `source` names it in errors."""
    try:
        loader = _Loader(text, source)
        try:
            node = loader.get_single_node()
            _count(node, {}, source)
            value = loader.construct_document(node) if node else {}
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = (error.problem or error.context or "it cannot be parsed").replace("\n", " ")
        raise UserError(f"{source} is not valid YAML{where}: {problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{source} is not valid YAML: {_reason(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{source} holds {show(value)}, not a mapping of keys; `inlay init` writes a job file")
    if odd := next((key for key in value if not isinstance(key, str)), None):
        raise UserError(f"{source} has the key {show(odd)}, which is not a name; put it in quotes or remove it")
    return value


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, leaves dates and numbers in base 60 as text (the format 2:4 is none),
    and stops at too many values."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.source = source
        self.values_left = MOST_VALUES
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.values_left -= 1
        if self.values_left < 0:
            raise UserError(_too_many(self.source))
        self.depth += 1
        if self.depth > DEEPEST:
            raise UserError(f"{self.source} is nested too deeply; a job file has three levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key `{key.value}` is there twice; leave one out", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """SafeLoader's, but for what is left as text: all that it takes for a number with a colon is one in base 60."""
    own = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    text = ("tag:yaml.org,2002:str", re.compile(r"[-+]?[0-9][0-9_]*(?::[0-9.]+)+"))
    return {first: [text, *found] if first in "-+0123456789" else found for first, found in own.items()}


_Loader.yaml_implicit_resolvers = _resolvers()


def _count(node: yaml.Node | None, known: dict[int, int], source: str) -> int:
    """How many values a node stands for once its aliases are written out; refuses cycles and bombs."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if known[id(node)] == 0:
            raise UserError(f"{source} has an alias that contains itself; write the value out")
        return known[id(node)]
    known[id(node)] = 0
    pairs = node.value
    children = [part for pair in pairs for part in pair] if isinstance(node, yaml.MappingNode) else pairs
    total = 1 + sum(_count(child, known, source) for child in children)
    if total > MOST_VALUES:
        raise UserError(_too_many(source))
    known[id(node)] = total
    return total


def _too_many(source: str) -> str:
    return f"{source} stands for more than {MOST_VALUES} values; a job file has a hundred, aliases written out"


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200]
