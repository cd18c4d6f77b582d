"""Everything about a job that can be known before anything runs: its file, its parent's shape, its texts.

Neither torch nor transformers is needed, and nothing is written. Numbers in the parent's weights are looked at when a
run opens it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from inlay.distill.corpus import SUFFIXES, Corpus
from inlay.distill.records import NO_TEMPLATE, Message, Records, contents
from inlay.distill.settings import NO_PEFT
from inlay.nas.embedded import embedded_parent
from inlay.nas.engines.fitting import budget_problems, hardware_problems, shape_problems
from inlay.nas.engines.registry import format_of, kv_formats_of, storage_of
from inlay.nas.errors import UserError
from inlay.nas.families import (
    Described,
    GgufFile,
    Shape,
    describe_folder,
    describe_hub_parent,
    described,
    open_source,
)
from inlay.nas.families.gguf import is_gguf
from inlay.nas.families.registered import is_registered, registered_folder
from inlay.nas.job import Data, Job, JobError, Problem, Scenario, sources_by_field
from inlay.nas.job.budget import PEAK
from inlay.nas.job.judged import JUDGED_FIELD
from inlay.nas.job.locations import EMBEDDED, is_hub_id, resolve
from inlay.nas.problems import show
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.given_costs import given_costs
from inlay.nas.tables.idle_limits import idle_limits, parent_sizes
from inlay.nas.tables.problem import UNKNOWN_PEAK, compute_bytes
from inlay.nas.variants import space_problems, unseen_problems

_TOKENIZER = "tokenizer.json"
_LOOKED_AT_BYTES = 1 << 26
"""Of each file of a text; a run reads all of it before it trains anything."""
_KNOWN = f"a {', '.join(SUFFIXES)} file or a folder of them"
_FIELD = re.compile(r"`?([a-z_]+(?:\.[a-z_]+|\[\d+\])*)`?: (.+)", re.DOTALL)


@dataclass(frozen=True)
class Checked:
    """What is wrong with a job, and what its author should look at though it can run."""

    problems: list[Problem]
    warnings: list[str]


def check_job(job: Job) -> list[str]:
    """Raises JobError with every problem of the job against its parent and its texts; returns its warnings."""
    sections = {name: getattr(job, name) for name in type(job).model_fields}
    checked = check_sections(sections, job.folder)
    if checked.problems:
        raise JobError.of(checked.problems, sections, str(job.file or "job"))
    return checked.warnings


def check_file(path: str | os.PathLike[str]) -> Checked:
    """Every problem of a job file; where fields are wrong, the others are still checked against parent and texts.

    Raises UserError for a file that is not a YAML mapping.
    """
    try:
        job = Job.load(path)
    except JobError as error:
        checked = check_sections(error.sections, Path(path).absolute().parent)
        return Checked([*error.problems, *checked.problems], checked.warnings)
    return check_sections({name: getattr(job, name) for name in Job.model_fields}, job.folder)


def check_measured(job: Job) -> Described:
    """The parent of a job that is only measured: its weights and the texts may be elsewhere.

    Raises JobError with every problem of what timing depends on: the parent's shape, the space and the hardware. A
    given cost table is not looked at, since it may be the one that is going to be written.
    """
    sections = {name: getattr(job, name) for name in ("space", "hardware")}
    found = list(hardware_problems(job.hardware))
    try:
        if is_hub_id(job.parent, job.folder) and job.revision is not None:
            parent = describe_hub_parent(job.parent, job.revision)
        else:
            parent = _describe_shape(_folder_of(job.parent, job.folder, job.tracking.uri))
    except UserError as error:
        raise JobError.of([*found, _problem(error, "parent")], sections, str(job.file or "job")) from None
    found += _against_shape(sections, parent.shape)
    if found:
        raise JobError.of(found, sections, str(job.file or "job"))
    return parent


def _describe_shape(place: Path) -> Described:
    """A folder's shape and config, or a GGUF file's, which stand in no folder for longer than it takes to read them."""
    if not is_gguf(place):
        return describe_folder(place)
    with described(open_source(place)) as opened:
        held = Described(opened.folder, opened.shape)
        _ = held.config
    return held


def check_sections(sections: Mapping[str, Any], folder: Path) -> Checked:
    """Those sections of a job that are there, against its parent and its texts."""
    found: list[Problem] = []
    warnings: list[str] = []
    parent: _Described | None = None
    if "parent" in sections:
        try:
            parent = _describe(sections["parent"], sections.get("revision"), folder, _tracking(sections))
        except UserError as error:
            found.append(_problem(error, "parent"))
    scenarios = sections["hardware"].scenarios if "hardware" in sections else ()
    if "hardware" in sections:
        found += _hardware(sections)
    if parent is not None:
        found += _against_shape(sections, parent.shape)
        reference, problems = _original(sections, parent.shape, folder)
        found += problems
        warnings = _idle_limits(sections, reference)
    if "data" in sections:
        found += _texts(sections["data"], scenarios, parent, folder)
    if "hardware" in sections and sections["hardware"].costs is not None:
        found += _costs(sections, parent, folder)
    if "recover" in sections and sections["recover"].train == "adapters" and find_spec("peft") is None:
        found.append(Problem("recover.train", f"'adapters' needs {NO_PEFT}"))
    return Checked(found, warnings)


def _tracking(sections: Mapping[str, Any]) -> str | None:
    return sections["tracking"].uri if "tracking" in sections else None


def _original(sections: Mapping[str, Any], shape: Shape, folder: Path) -> tuple[Shape, list[Problem]]:
    """The shape of what children are compared with, and what is wrong with an original of a parent of this shape."""
    if (name := sections.get("original")) is None:
        return shape, []
    try:
        original = _describe(name, sections.get("revision"), folder, _tracking(sections))
    except UserError as error:
        return shape, [Problem("original", str(error).removeprefix("parent: "))]
    if original is None:
        return shape, []
    ours, theirs = ((each.num_layers, each.hidden, each.vocab) for each in (shape, original.shape))
    if ours == theirs:
        return original.shape, []
    told = "{} layers of width {} and {} tokens"
    text = f"{show(name)} has {told.format(*theirs)}, and the parent {told.format(*ours)}"
    return shape, [Problem("original", f"{text}; name the model that the parent is a child of, or leave it out")]


def _hardware(sections: Mapping[str, Any]) -> list[Problem]:
    hardware = sections["hardware"]
    found = list(hardware_problems(hardware))
    return found or list(budget_problems(hardware, sections.get("budget", ()) if hardware.costs is None else ()))


def _idle_limits(sections: Mapping[str, Any], shape: Shape) -> list[str]:
    if "hardware" not in sections or any(shape_problems(sections["hardware"], shape, None)):
        return []
    hardware = sections["hardware"]
    storage = storage_of(hardware, shape)
    sizes = {scenario.name: parent_sizes(shape, scenario, storage) for scenario in hardware.scenarios}
    return idle_limits(sections.get("budget", ()), sizes)


@dataclass(frozen=True)
class _Described:
    """What is known of a parent without its weights."""

    shape: Shape
    tokenizer_file: Path
    tokenizer: Mapping[str, Any] | None = None
    """What stands in that file, where it is not there yet."""


def _describe(parent: str, revision: str | None, folder: Path, tracking: str | None) -> _Described | None:
    """A folder is opened as a run would, a GGUF file up to its weights; of a hub id config and tokenizer are read, None
    where its revision lacks."""
    if is_hub_id(parent, folder):
        if revision is None:
            return None
        held = describe_hub_parent(parent, revision)
        return _Described(held.shape, held.folder / _TOKENIZER)
    opened = open_source(_folder_of(parent, folder, tracking))
    if isinstance(opened, GgufFile):
        return _Described(opened.shape, opened.header.path, opened.tokenizer)
    return _Described(opened.shape, opened.folder / _TOKENIZER)


def _folder_of(parent: str, folder: Path, tracking: str | None) -> Path:
    if is_registered(parent):
        return registered_folder(parent, tracking, "parent")
    if parent.startswith(EMBEDDED):
        return embedded_parent(parent.removeprefix(EMBEDDED))
    return Path(resolve(parent, folder))


def _judged_length(sections: Mapping[str, Any]) -> int | None:
    """How long the sequences are that judge; None where a section that says so is wrong itself."""
    if "data" not in sections or "hardware" not in sections:
        return None
    return int(sections["data"].judged_length(sections["hardware"].scenarios))


def _against_shape(sections: Mapping[str, Any], shape: Shape) -> Iterator[Problem]:
    context = shape.max_positions
    if "space" in sections:
        problems = space_problems(sections["space"], shape)
        length = _judged_length(sections)
        if not problems and length is not None:
            problems = unseen_problems(sections["space"], shape, length, JUDGED_FIELD)
        yield from problems
    if "hardware" in sections and not any(hardware_problems(sections["hardware"])):
        yield from shape_problems(sections["hardware"], shape, sections.get("space"))
    for part in ("distill", "validate") if "data" in sections else ():
        if (length := getattr(sections["data"], part).sequence_length) is not None and length > context:
            text = f"{length} is longer than the parent's context; it must be at most {context}"
            yield Problem(f"data.{part}.sequence_length", text)
    tail = sections["recover"].tail if "recover" in sections else None
    if tail is not None and tail.tokens and tail.sequence_length > context:
        text = f"{tail.sequence_length} is longer than the parent's context; it must be at most {context}"
        yield Problem("recover.tail.sequence_length", text)
    for place, scenario in enumerate(sections["hardware"].scenarios if "hardware" in sections else ()):
        if (total := scenario.prefill + scenario.generate) > context:
            text = f"prefill {scenario.prefill} and generate {scenario.generate} make {total} tokens; the parent's"
            yield Problem(f"hardware.scenarios[{place}]", f"{text} context is {context}, so make one of them smaller")


def _costs(sections: Mapping[str, Any], parent: _Described | None, folder: Path) -> Iterator[Problem]:
    hardware, space = sections["hardware"], sections.get("space")
    known = parent is not None and space is not None and not space_problems(space, parent.shape)
    shape = parent.shape if parent is not None and known else None
    form = storage = None
    if parent is not None and not any(hardware_problems(hardware)):
        form = format_of(hardware.engine, hardware.format, parent.shape)
        storage = storage_of(hardware, parent.shape)
    try:
        caches = kv_formats_of(hardware)[1:]
        rows = given_costs(resolve(hardware.costs, folder), hardware, form, shape, space, storage, caches)
    except UserError as error:
        yield _problem(error, "hardware.costs")
        return
    for limit in sections.get("budget", ()):
        if limit.name == PEAK and not compute_bytes(CostTable(rows)):
            yield Problem(limit.field, UNKNOWN_PEAK)


def _texts(data: Data, scenarios: Sequence[Scenario], parent: _Described | None, folder: Path) -> Iterator[Problem]:
    lengths_asked = {"distill": data.distill.sequence_length, "validate": data.judged_length(scenarios)}
    for part, length in lengths_asked.items():
        text = getattr(data, part)
        sources = sources_by_field(text, part)
        counts: list[list[int]] = []
        for field, source in sources.items():
            if source.path.startswith(EMBEDDED):
                counts.append([length])
                continue
            path = Path(resolve(source.path, folder))
            if not path.exists():
                yield Problem(field, f"there is no file {path}; name {_KNOWN}, relative to the job file")
                continue
            records = Records(source.field or text.field, contents if _has_template(parent) else _refused)
            try:
                corpus = Corpus(path, text.separator, records)
                index = corpus.index(at_most_bytes=_LOOKED_AT_BYTES)
                parts = index.split() if part == "validate" else (np.arange(len(index.places_N4)),)
                counts.append([_count_tokens(corpus.texts(index, each), _tokenizer(parent), length) for each in parts])
            except (ValueError, OSError) as error:
                yield Problem(field, " ".join(str(error).split()))
        if not counts or len(counts) < len(sources):
            continue
        if (least := min(map(sum, zip(*counts, strict=False)))) < length:
            cut = "a part of the validation text (it is cut by documents, 3 to 1)" if part == "validate" else "the text"
            told = f"{', '.join(show(source.path) for source in sources.values())}: {cut} has {least} tokens"
            lower = "validate" if length > data.distill.sequence_length else "distill"
            way_out = f"give more text, or lower data.{lower}.sequence_length"
            yield Problem(f"data.{part}.path", f"{told}, less than one sequence of {length}; {way_out}")


def _has_template(parent: _Described | None) -> bool:
    """Whether conversations have a chat template, as far as a look at the parent's folder tells."""
    if parent is None or parent.tokenizer is not None or not parent.tokenizer_file.is_file():
        return True
    folder = parent.tokenizer_file.parent
    if any((folder / name).exists() for name in ("chat_template.jinja", "additional_chat_templates")):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and "chat_template" in json.loads(settings.read_text(encoding="utf-8"))


def _refused(messages: Sequence[Message]) -> str:
    raise ValueError(NO_TEMPLATE)


def _tokenizer(parent: _Described | None) -> Any | None:
    """The parent's fast tokenizer, without the transformers library around it; None where there is no such file."""
    if parent is None or not parent.tokenizer_file.is_file():
        return None
    from tokenizers import Tokenizer

    if parent.tokenizer is not None:
        return Tokenizer.from_str(json.dumps(parent.tokenizer))
    return Tokenizer.from_file(str(parent.tokenizer_file))


def _count_tokens(documents: Iterable[str], tokenizer: Any | None, enough: int) -> int:
    """Tokens of the documents, counted until there are `enough`; without a tokenizer as many as bytes could give."""
    total = 0
    for document in documents:
        held = document[: 64 * enough]
        total += len(held.encode()) + 1 if tokenizer is None else len(tokenizer.encode(held).ids)
        if total >= enough:
            break
    return total


def _problem(error: UserError, field: str) -> Problem:
    match = _FIELD.fullmatch(str(error))
    return Problem(match[1], match[2]) if match else Problem(field, str(error))
