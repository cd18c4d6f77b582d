"""The job: one frozen value that says everything a search depends on.

`Job.load(path)` reads a file, `Job(...)` and `Job.from_dict` do the same from Python; each raises one JobError (a
UserError) that lists every problem found.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from inlay.nas.errors import UserError
from inlay.nas.job.budget import Budget, parse_budget
from inlay.nas.job.cross import cross_problems
from inlay.nas.job.fields import Count, Section
from inlay.nas.job.load import parse_yaml, read_text
from inlay.nas.job.locations import resolve
from inlay.nas.job.problems import list_problems, problems_of
from inlay.nas.job.sections import (
    LONGEST_PATH,
    Cluster,
    Data,
    Distill,
    Hardware,
    Recover,
    Score,
    Solve,
    Tracking,
)
from inlay.nas.job.space import Space
from inlay.nas.problems import Problem, show


class JobError(UserError):
    """A job that is wrong: `problems` lists all of it, `sections` holds the fields that are right on their own."""

    problems: tuple[Problem, ...] = ()
    sections: dict[str, Any]

    @classmethod
    def of(cls, problems: list[Problem], sections: dict[str, Any], source: str) -> JobError:
        """The error of these problems."""
        error = cls(list_problems(problems, source))
        error.problems, error.sections = tuple(problems), sections
        return error


class Job(Section):
    """What to search: parent, text, space, hardware, budget, and how much to spend on each stage."""

    parent: str = Field(
        min_length=1,
        max_length=LONGEST_PATH,
        description="The model to start from: a folder, a GGUF file, a hub id, models:/NAME@ALIAS, or inlay:pystdlib.",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Commit of a hub parent; needed for hub ids, so that it stays the same.",
    )
    original: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_PATH,
        description="The model that the parent is a child of, if it is to teach and to be compared with.",
    )
    rounds: Count = Field(
        default=1, ge=1, le=16, description="Searches under budgets that tighten, each from the last one's child."
    )
    data: Data = Field(description="The text to train and to judge on.")
    space: Space = Field(description="The alternatives to search.")
    distill: Distill = Field(default=Distill(), description="Local distillation.")
    score: Score = Field(default=Score(), description="The score table.")
    solve: Solve = Field(default=Solve(), description="The choice of the architecture.")
    hardware: Hardware = Field(default=Hardware(), description="Where the child is going to run.")
    budget: Annotated[Budget, PlainValidator(parse_budget), PlainSerializer(Budget.to_dict)] = Field(
        description="What the child may cost."
    )
    recover: Recover = Field(default=Recover(), description="Global distillation.")
    tracking: Tracking = Field(default=Tracking(), description="MLflow.")
    cluster: Cluster = Field(default=Cluster(), description="What Ray may use.")
    seed: Count = Field(default=0, ge=0, lt=2**63, description="Everything random follows from this.")

    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _file: Path | None = PrivateAttr(default=None)
    _text: str | None = PrivateAttr(default=None)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a YAML job file; raises UserError with all its problems."""
        file, text = Path(path).absolute(), read_text(path)
        return cls.model_validate(parse_yaml(text, str(path)), context=_Origin(file.parent, file, str(path), text))

    @classmethod
    def parse(cls, text: str, folder: str | os.PathLike[str], name: str = "job") -> Self:
        """The job of a YAML text as `text` gives it; relative paths start at `folder`, errors call it `name`."""
        return cls.model_validate(
            parse_yaml(text, name), context=_Origin(Path(folder).absolute(), name=name, text=text)
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any], folder: str | os.PathLike[str] | None = None) -> Self:
        """The job of a mapping such as `to_dict` gives; relative paths start at `folder` (default: the current one)."""
        return cls.model_validate(values, context=_Origin(Path(folder).absolute()) if folder is not None else None)

    @property
    def file(self) -> Path | None:
        """The file that it was read from, if it was."""
        return self._file

    @property
    def text(self) -> str:
        """Its YAML: word for word what it was read from, all fields where that was none or is no longer this job."""
        if self._text is not None and type(self).parse(self._text, self._folder).to_dict() == self.to_dict():
            return self._text
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        return self._folder

    def resolve(self, path: str) -> str:
        """The absolute form of a path of the job; `inlay:...`, URLs and hub ids stay as they are."""
        return resolve(path, self._folder)

    @property
    def python(self) -> str | None:
        """`hardware.python`: a path relative to the job file, or a bare name to be looked up where it is started."""
        python = self.hardware.python
        return self.resolve(python) if python is not None and "/" in python else python

    @property
    def recover_batch(self) -> int:
        """Sequences in a step of recovery."""
        return self.recover.step_sequences(self.data.distill.sequence_length)

    def default_workspace(self) -> Path:
        """`<job stem>.search` beside the job file; `inlay.search` in the current folder for a job made in Python."""
        return self._file.with_suffix(".search") if self._file else self._folder / "inlay.search"

    def to_dict(self) -> dict[str, Any]:
        """All fields, defaults included, as JSON-able values; `from_dict` gives the same job back."""
        return self.model_dump(mode="json")

    def section(self, name: str) -> Any:
        """One top-level field in its canonical JSON-able form, for keys and records; KeyError for other names."""
        return self.to_dict()[name]

    def digest(self) -> str:
        """sha256 of the canonical form of the whole job."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def search_digest(self) -> str:
        """sha256 of what makes it this search: all but `cluster` and the ranks of `recover`, which change no result."""
        values = self.to_dict()
        del values["cluster"], values["recover"]["workers"], values["recover"]["sharding"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @model_validator(mode="wrap")
    @classmethod
    def _all_problems_at_once(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if isinstance(values, cls):
            return values
        origin = info.context or _Origin(Path.cwd())
        if not isinstance(values, dict):
            raise UserError(f"{origin.name}: {show(values)} is not a mapping of keys; `inlay init` writes a job file")
        defaults = {name for name, field in cls.model_fields.items() if not field.is_required()}
        values = {name: value for name, value in values.items() if value is not None or name not in defaults}
        problems: list[Problem] = []
        job: Self | None = None
        try:
            job = handler(values)
        except ValidationError as error:
            problems = problems_of(error, cls, values)
        sections = _right_sections(cls, values) if job is None else _sections(job)
        problems += cross_problems(sections, origin.folder)
        if job is None or problems:
            raise JobError.of(problems, sections, origin.name)
        job._folder, job._file, job._text = origin.folder, origin.file, origin.text
        return job


@dataclass(frozen=True)
class _Origin:
    """Where a job comes from: relative paths start at `folder`, errors name `name`."""

    folder: Path
    file: Path | None = None
    name: str = "job"
    text: str | None = None


def _sections(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in type(job).model_fields}


def _right_sections(model: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    right: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name in values:
            try:
                right[name] = _adapter(model, name).validate_python(values[name])
            except ValidationError:
                continue
        elif not field.is_required():
            right[name] = field.default
    return right


@cache
def _adapter(model: type[Section], name: str) -> TypeAdapter[Any]:
    field: Any = model.model_fields[name]
    annotated: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotated)
