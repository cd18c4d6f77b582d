"""The Transformers folder: weights, config with per-layer choices, our modeling files, tokenizer, model card, recipe.

It loads after `import inlay`, and without inlay by `trust_remote_code=True`: the modeling files import only torch and
transformers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inlay.nas import modeling
from inlay.nas.export.card import card
from inlay.nas.export.folder import write_companions, written_whole
from inlay.nas.families import Parent
from inlay.nas.job import Job
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.model_files import ModelFiles
from inlay.nas.variants.entries import structures_of
from inlay.nas.workspace import Workspace

CONFIG = "config.json"
AUTO_MAP = {
    "AutoConfig": "configuration_inlay.InlayConfig",
    "AutoModelForCausalLM": "modeling_inlay.InlayForCausalLM",
}
_USE = (
    "## Load it",
    "",
    "```python",
    "import inlay  # or pass trust_remote_code=True to both calls",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
    'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
    "```",
)


def write_model_folder(
    place: Workspace, parent: Parent, model: TrainedModel, evaluation: Mapping[str, Any], job: Job, name: str
) -> None:
    """Writes the recovered child into the workspace, folder or URL, as `<name>/`; an older one is replaced.

    Under a URL there is no renaming a folder: its config, without which nothing loads it, goes first and comes last.
    The weights are copied where they lie.
    """
    text, weights = hf_card(evaluation, job), ModelFiles(place.store, model.blob)
    if place.folder is not None:
        write_folder(place, parent, model, place.folder / name, text, job)
        return
    place.check_held()
    place.store.delete(f"{name}/{CONFIG}")
    with tempfile.TemporaryDirectory(prefix="inlay-") as folder:
        write_all_but_weights(Path(folder), parent, model, text, job)
        _write_index(Path(folder), weights)
        files = sorted((path.name for path in Path(folder).iterdir()), key=lambda file: (file == CONFIG, file))
        for key in place.store.list(f"{name}/"):
            if key.removeprefix(f"{name}/") not in {*weights.in_folder, *files}:
                place.store.delete(key)
        for file, blob in weights.in_folder.items():
            place.store.copy_blob(blob, f"{name}/{file}")
        for file in files:
            place.check_held()
            place.store.put(f"{name}/{file}", (Path(folder) / file).read_bytes())


def write_folder(place: Workspace, parent: Parent, model: TrainedModel, output: Path, text: str, job: Job) -> Path:
    """Writes a model folder whole: beside first, then renamed into place; an older one is replaced."""
    with written_whole(output) as folder:
        write_all_but_weights(folder, parent, model, text, job)
        weights = ModelFiles(place.store, model.blob)
        for file, blob in weights.in_folder.items():
            shutil.copyfile(place.store.blob_path(blob), folder / file)
        _write_index(folder, weights)
        place.check_held()
    return output


def _write_index(folder: Path, weights: ModelFiles) -> None:
    for file, content in weights.index.items():
        (folder / file).write_bytes(content)


def hf_card(evaluation: Mapping[str, Any], job: Job) -> str:
    """The model card of such a folder, with how to load it."""
    return card(evaluation, job, "transformers", _USE)


def write_all_but_weights(
    folder: Path, parent: Parent, model: TrainedModel, text: str, job: Job, also: Mapping[str, Any] | None = None
) -> None:
    """Writes all else into a folder; `also` is what its config says beside the usual."""
    config = parent.config.with_blocks(structures_of(parent.shape, model.architecture))
    config.architectures = ["InlayForCausalLM"]
    config.auto_map = AUTO_MAP
    for name, value in (also or {}).items():
        setattr(config, name, value)
    config.save_pretrained(folder)
    write_companions(folder, parent, model, text, job)
    for file in modeling.MODELING_FILES:
        shutil.copyfile(Path(modeling.__file__).parent / file, folder / file)
