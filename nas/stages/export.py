"""export: a child of a finished search as a folder for those who run it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from inlay.nas.engines.llama_cpp import NAME as LLAMA_CPP
from inlay.nas.engines.registry import format_of
from inlay.nas.errors import UserError
from inlay.nas.export.deci_consumers import CONSUMERS
from inlay.nas.formats.compressed import COMPRESSED
from inlay.nas.formats.gguf import GGUF
from inlay.nas.tables.architecture import blocks_of

if TYPE_CHECKING:
    from inlay.nas.families import Parent
    from inlay.nas.job import Job
    from inlay.nas.pieces.assembled import TrainedModel
    from inlay.nas.tables.architecture import Blocks
    from inlay.nas.workspace import Workspace

Options = Mapping[str, str]
"""What was asked for beside the format, by the option's name without its dashes."""


@dataclass(frozen=True)
class Exported:
    """One child on its way into a folder."""

    workspace: Workspace
    parent: Parent
    model: TrainedModel
    output: Path
    evaluation: Mapping[str, Any]
    """Figures by model, and which of them is `chosen`: what the card tells."""
    job: Job
    options: Options


@dataclass(frozen=True)
class Format:
    """One form that a child is written in."""

    write: Callable[[Exported], Path]
    check: Callable[[Parent, Blocks, Options], None] = field(default=lambda parent, architecture, options: None)
    """Raises UserError for a child that the form cannot hold, before anything is computed or written."""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """The options that this form has and no other takes, and the values of each."""
    usual: Callable[[Job, Parent], Options] = field(default=lambda job, parent: {})
    """Values of options that may be left out."""
    why: str = ""
    """What an option that is missing is needed for, where it has no usual value."""


def _write_hf(exported: Exported) -> Path:
    from inlay.nas.export.hf import hf_card, write_folder

    text = hf_card(exported.evaluation, exported.job)
    return write_folder(exported.workspace, exported.parent, exported.model, exported.output, text, exported.job)


def _check_deci(parent: Parent, architecture: Blocks, options: Options) -> None:
    from inlay.nas.export.deci import check_deci

    check_deci(parent, architecture, options["for"])


def _write_deci(exported: Exported) -> Path:
    from inlay.nas.export.deci import write_deci_folder

    return _write_with(write_deci_folder, exported, "for")


def _usual_type(job: Job, parent: Parent) -> Options:
    """What the search was judged by, where llama.cpp did, else its usual format."""
    asked = job.hardware.format if job.hardware.engine == LLAMA_CPP else "auto"
    return {"type": format_of(LLAMA_CPP, asked, parent.shape)}


def _check_gguf(parent: Parent, architecture: Blocks, options: Options) -> None:
    from inlay.nas.export.gguf import check_gguf

    check_gguf(parent, architecture, options["type"])


def _write_gguf(exported: Exported) -> Path:
    from inlay.nas.export.gguf import write_gguf_folder

    return _write_with(write_gguf_folder, exported, "type")


def _check_compressed(parent: Parent, architecture: Blocks, options: Options) -> None:
    from inlay.nas.export.compressed import check_compressed

    check_compressed(parent, architecture, options["type"])


def _write_compressed(exported: Exported) -> Path:
    from inlay.nas.export.compressed import write_compressed_folder

    return _write_with(write_compressed_folder, exported, "type")


def _check_packed(parent: Parent, architecture: Blocks, options: Options) -> None:
    from inlay.nas.export.packed import check_packed

    check_packed(parent, architecture)


def _write_packed(exported: Exported) -> Path:
    from inlay.nas.export.packed import write_packed_folder

    place, parent, model, output = exported.workspace, exported.parent, exported.model, exported.output
    return write_packed_folder(place, parent, model, output, exported.evaluation, exported.job)


def _write_with(write: Callable[..., Path], exported: Exported, option: str) -> Path:
    """By a writer whose last argument is the value of the form's option."""
    place, parent, model, output = exported.workspace, exported.parent, exported.model, exported.output
    return write(place, parent, model, output, exported.evaluation, exported.job, exported.options[option])


FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "hf": Format(_write_hf),
        "deci": Format(
            _write_deci, _check_deci, {"for": tuple(CONSUMERS)}, why="each program reads a DeciLM folder of its own"
        ),
        "gguf": Format(_write_gguf, _check_gguf, {"type": tuple(GGUF)}, usual=_usual_type),
        "compressed-tensors": Format(
            _write_compressed, _check_compressed, {"type": tuple(COMPRESSED)}, usual=lambda job, parent: {"type": ""}
        ),
        "packed": Format(_write_packed, _check_packed),
    }
)
"""Every form by the value of `--format`, in the order messages list them."""


def export_child(
    workspace: Workspace,
    form: str,
    output: Path,
    solution: str | None = None,
    options: Mapping[str, str | None] | None = None,
) -> Path:
    """Writes a child of a finished search as a folder.

    Args:
        workspace: the search.
        form: one of FORMATS.
        output: a folder that is empty or not there.
        solution: `child`, `uniform` or `depth` as recovered, or the id of a solution of `inlay solve`, as assembled; by
            default the one that was chosen.
        options: what belongs to single forms, such as `for` to `deci`; None is what was not given.

    Raises:
        UserError: an unknown format or solution, an option that the format needs or does not take, a child that it
            cannot hold, a folder that is taken, or a search that has not come so far.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    known = _format(form, given)
    from inlay.nas.export.folder import check_output
    from inlay.nas.pieces.assembled import TrainedModel
    from inlay.nas.stages.solutions import blob_of_solution, evaluate_solution, find_solution, job_of, recovered_model

    check_output(output)
    job, parent = job_of(workspace)
    given = {**known.usual(job, parent), **given}
    # evaluation.json may be of a later job, one that did not come to its end.
    run = workspace.read_json("run.json")
    evaluation, models = run["evaluation"], run["models"]
    name = solution or str(evaluation["chosen"])
    if name in models:
        model = recovered_model(run, name)
        known.check(parent, model.architecture, given)
        return known.write(Exported(workspace, parent, model, output, {**evaluation, "chosen": name}, job, given))
    stored = find_solution(workspace, name)
    architecture = blocks_of(stored["architecture"])
    known.check(parent, architecture, given)
    figures = stored.get("evaluation") or evaluate_solution(workspace, name)
    model = TrainedModel(architecture, blob_of_solution(workspace, parent, architecture))
    return known.write(Exported(workspace, parent, model, output, figures, job, given))


def export_registered(name: str, form: str, output: Path, asked: Mapping[str, str | None]) -> Path:
    """Writes a version of MLflow's registry, which is a child as it was chosen, as a Transformers folder.

    Args:
        name: as `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in the store of MLFLOW_TRACKING_URI.
        form: `hf`.
        output: a folder that is empty or not there.
        asked: other options by their names, all of them None: a version is one model in one form.

    Raises:
        UserError: there is no such version, something was asked that a version does not have, or a folder is taken.
    """
    from inlay.nas.export.folder import check_output, written_whole
    from inlay.nas.families.registered import registered_folder

    for option, value in {"format": None if form == "hf" else form, **asked}.items():
        if value is not None:
            raise UserError(
                f"--{option} {value}: `{name}` is one model, written as it was registered; leave it out, or give the "
                "workspace that it came from, which MLflow has as the version's tag inlay.workspace"
            )
    check_output(output)
    folder = registered_folder(name, None, "WORKSPACE")
    with written_whole(output) as written:
        shutil.copytree(folder, written, dirs_exist_ok=True)
    return output


def _format(form: str, given: Options) -> Format:
    """The form of that name; UserError when it is not known, or the options given are not those that it needs."""
    if form not in FORMATS:
        raise UserError(f"--format: {form} is not known; the formats are {', '.join(FORMATS)}")
    known = FORMATS[form]
    for name, value in given.items():
        if name not in known.options:
            takers = " or ".join(other for other in FORMATS if name in FORMATS[other].options)
            raise UserError(
                f"--{name} {value}: --format {form} does not take it; leave it out, or add --format {takers}"
            )
        if value not in known.options[name]:
            raise UserError(f"--{name}: {value} is not known; there are {', '.join(known.options[name])}")
    for name, values in known.options.items():
        if name not in given and known.why:
            raise UserError(f"--format {form} needs --{name} with one of {', '.join(values)}, since {known.why}")
    return known
