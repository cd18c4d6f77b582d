"""docs/job.md names every key with its default and its meaning, and its example is a right job."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from pydantic import BaseModel

from inlay.nas.job import LIMIT_NAMES, Job
from inlay.nas.job.sections import Scenario, Source

DOCUMENT = (Path(__file__).parents[2] / "docs" / "job.md").read_text(encoding="utf-8").replace("\\|", "|")


def keys_of(model: type[BaseModel]) -> list[tuple[str, str]]:
    """(key, description) of every field that is no section itself."""
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += keys_of(inner)
        elif name != "budget":
            found.append((name, field.description or ""))
    return found


def test_every_key_is_there() -> None:
    for key, meaning in [*keys_of(Job), *keys_of(Scenario), *keys_of(Source)]:
        assert re.search(rf"^\| `{key}` \|.*\| {re.escape(meaning)} \|$", DOCUMENT, re.MULTILINE), key


def test_every_limit_is_there() -> None:
    for name in LIMIT_NAMES:
        assert f"| `{name}` |" in DOCUMENT


def test_the_example_is_right() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    values = yaml.safe_load(examples[0])
    Job.from_dict(values)
    for example in examples[1:]:
        Job.from_dict(values | yaml.safe_load(example))
