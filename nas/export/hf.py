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
from inlay.nas.variants.entries import structures_of
from inlay.nas.workspace import Workspace

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
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
    text = hf_card(evaluation, job)
    if place.folder is not None:
        write_folder(place, parent, model, place.folder / name, text, job)
        return
    place.check_held()
    place.store.delete(f"{name}/{CONFIG}")
    with tempfile.TemporaryDirectory(prefix="inlay-") as folder:
        write_all_but_weights(Path(folder), parent, model, text, job)
        files = sorted((path.name for path in Path(folder).iterdir()), key=lambda file: (file == CONFIG, file))
        for key in place.store.list(f"{name}/"):
            if key.removeprefix(f"{name}/") not in {WEIGHTS, *files}:
                place.store.delete(key)
        place.store.copy_blob(model.blob, f"{name}/{WEIGHTS}")
        for file in files:
            place.check_held()
            place.store.put(f"{name}/{file}", (Path(folder) / file).read_bytes())


def write_folder(place: Workspace, parent: Parent, model: TrainedModel, output: Path, text: str, job: Job) -> Path:
    """Writes a model folder whole: beside first, then renamed into place; an older one is replaced."""
    with written_whole(output) as folder:
        write_all_but_weights(folder, parent, model, text, job)
        shutil.copyfile(place.store.blob_path(model.blob), folder / WEIGHTS)
        place.check_held()
    return output


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
