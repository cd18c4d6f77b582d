"""What every exported folder has in common: written whole or not at all, the parent's tokenizer, the recipe."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inlay.nas.errors import UserError
from inlay.nas.families import Parent
from inlay.nas.families.registered import is_registered
from inlay.nas.families.remote_code import tokenizer_code
from inlay.nas.job import Job
from inlay.nas.job.locations import EMBEDDED, is_hub_id
from inlay.nas.pieces.assembled import TrainedModel
from inlay.version import __version__

RECIPE = "inlay_recipe.json"
COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "added_tokens.json",
)


def check_output(output: Path) -> None:
    """Raises UserError when the folder to write is taken."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output: {output} exists and is not an empty folder; name another")


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write into; renamed into place at the end, where it replaces an older one."""
    beside = output.with_name(f".{output.name}.{uuid.uuid4().hex}.part")
    beside.mkdir(parents=True)
    try:
        yield beside
        if output.exists():
            shutil.rmtree(output)
        os.replace(beside, output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_companions(folder: Path, parent: Parent, model: TrainedModel, text: str, job: Job) -> None:
    """Writes what is neither weights nor config: tokenizer, chat template, generation config, card `text`, recipe."""
    for file in COPIED:
        if (parent.folder / file).is_file():
            shutil.copyfile(parent.folder / file, folder / file)
    for code in tokenizer_code(parent.folder):
        shutil.copyfile(code, folder / code.name)
    (folder / "README.md").write_text(text)
    write_recipe(folder, model, job)


def write_recipe(folder: Path, model: TrainedModel, job: Job) -> None:
    """Writes how the model was made."""
    recipe = {"inlay": __version__, "job": published(job), "architecture": [list(b) for b in model.architecture]}
    (folder / RECIPE).write_text(json.dumps(recipe, indent=1, sort_keys=True) + "\n")


def published(job: Job) -> dict[str, Any]:
    """The job as it may be shown to anybody: files by their names, nothing of this machine, its cluster or tracker."""
    values = job.to_dict()
    for own in ("cluster", "tracking"):
        del values[own]
    values["hardware"]["python"] = None
    values["parent"] = public_name(job.parent, job)
    if job.original is not None:
        values["original"] = public_name(job.original, job)
    for text in values["data"].values():
        if isinstance(text["path"], str):
            text["path"] = public_name(text["path"], job)
        for source in text["path"] if isinstance(text["path"], list) else ():
            source["path"] = public_name(source["path"], job)
    if values["hardware"]["costs"] is not None:
        values["hardware"]["costs"] = public_name(values["hardware"]["costs"], job)
    return values


def public_name(path: str, job: Job) -> str:
    """What ships with inlay, a registered model and a hub id as they are, anything else by its last part."""
    told = path.startswith(EMBEDDED) or is_registered(path) or is_hub_id(path, job.folder)
    return path if told else Path(path).name
