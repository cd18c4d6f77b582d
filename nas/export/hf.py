"""The Transformers folder: weights, config with per-layer choices, our modeling files, tokenizer, model card, recipe.

It loads after `import inlay`, and without inlay by `trust_remote_code=True`: the modeling files import only torch and
transformers.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inlay.nas import modeling
from inlay.nas.errors import UserError
from inlay.nas.families import Parent
from inlay.nas.families.remote_code import tokenizer_code
from inlay.nas.job import Job
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.variants.entries import entries_of
from inlay.nas.workspace import Workspace
from inlay.version import __version__

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
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
AUTO_MAP = {
    "AutoConfig": "configuration_inlay.InlayConfig",
    "AutoModelForCausalLM": "modeling_inlay.InlayForCausalLM",
}


def write_model_folder(
    place: Workspace, parent: Parent, model: TrainedModel, evaluation: Mapping[str, Any], job: Job, name: str
) -> None:
    """Writes the recovered child into the workspace, folder or URL, as `<name>/`; an older one is replaced.

    Under a URL there is no renaming a folder: its config, without which nothing loads it, goes first and comes last.
    The weights are copied where they lie.
    """
    text = card(evaluation, job)
    if place.folder is not None:
        write_folder(place, parent, model, place.folder / name, text, job)
        return
    place.store.delete(f"{name}/{CONFIG}")
    with tempfile.TemporaryDirectory(prefix="inlay-") as folder:
        _write_all_but_weights(Path(folder), parent, model, text, job)
        files = sorted((path.name for path in Path(folder).iterdir()), key=lambda file: (file == CONFIG, file))
        for key in place.store.list(f"{name}/"):
            if key.removeprefix(f"{name}/") not in {WEIGHTS, *files}:
                place.store.delete(key)
        place.store.copy_blob(model.blob, f"{name}/{WEIGHTS}")
        for file in files:
            place.store.put(f"{name}/{file}", (Path(folder) / file).read_bytes())


def write_folder(place: Workspace, parent: Parent, model: TrainedModel, output: Path, text: str, job: Job) -> Path:
    """Writes a model folder whole: beside first, then renamed into place; an older one is replaced."""
    beside = output.with_name(f".{output.name}.{uuid.uuid4().hex}.part")
    beside.mkdir(parents=True)
    try:
        _write_all_but_weights(beside, parent, model, text, job)
        shutil.copyfile(place.store.blob_path(model.blob), beside / WEIGHTS)
        if output.exists():
            shutil.rmtree(output)
        os.replace(beside, output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return output


def _write_all_but_weights(folder: Path, parent: Parent, model: TrainedModel, text: str, job: Job) -> None:
    config = parent.config.with_blocks(entries_of(parent.shape, model.architecture))
    config.architectures = ["InlayForCausalLM"]
    config.auto_map = AUTO_MAP
    config.save_pretrained(folder)
    for file in COPIED:
        if (parent.folder / file).is_file():
            shutil.copyfile(parent.folder / file, folder / file)
    for code in tokenizer_code(parent.folder):
        shutil.copyfile(code, folder / code.name)
    for file in modeling.MODELING_FILES:
        shutil.copyfile(Path(modeling.__file__).parent / file, folder / file)
    (folder / "README.md").write_text(text)
    recipe = {"inlay": __version__, "job": job.to_dict(), "architecture": [list(b) for b in model.architecture]}
    (folder / "inlay_recipe.json").write_text(json.dumps(recipe, indent=1, sort_keys=True) + "\n")


def check_output(output: Path) -> None:
    """Raises UserError when the folder to write is taken."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output: {output} exists and is not an empty folder; name another")


def card(evaluation: Mapping[str, Any], job: Job) -> str:
    """The model card: what it is, how good and how fast beside its parent and the baselines, and how to load it."""
    chosen = str(evaluation["chosen"])
    names = ["parent", *(n for n in ("child", "uniform", "depth") if n in evaluation)]
    rows = [evaluation[name] for name in names]
    table = [
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        _line("KL to the parent, nats per token", rows, lambda r: f"{r['kl_nats']:.4f}"),
        _line("perplexity", rows, lambda r: f"{r['perplexity']:.2f}"),
        _line("same first choice as the parent", rows, lambda r: f"{100 * r['top1_agreement']:.1f} %"),
        _line("parameters", rows, lambda r: f"{r['parameters']:,}"),
        _line("weights, bytes", rows, lambda r: f"{r['weights_bytes']:,}"),
        _line("prefill, tokens per second", rows, lambda r: f"{r['prefill_tokens_per_second']:,.0f}"),
        _line("decode, tokens per second", rows, lambda r: f"{r['decode_tokens_per_second']:,.0f}"),
    ]
    architecture = [f"| {i} | `{a}` | `{f}` |" for i, (a, f) in enumerate(evaluation[chosen]["architecture"])]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [inlay, neural-architecture-search, distillation]",
            "---",
            "",
            f"# A faster {Path(job.parent).name}",
            "",
            f"Made by inlay {__version__} from `{job.parent}` under the budget "
            f"`{json.dumps(job.budget.to_dict())}` (this folder holds `{chosen}`). "
            "Figures are of held-out text and of the machine of the search.",
            "",
            *table,
            "",
            "## Load it",
            "",
            "```python",
            "import inlay  # or pass trust_remote_code=True to both calls",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            "```",
            "",
            "## Layer by layer",
            "",
            "| layer | attention | ffn |",
            "|---|---|---|",
            *architecture,
            "",
            "The whole job and the architecture are in `inlay_recipe.json`.",
            "",
        ]
    )


def _line(title: str, rows: list[Mapping[str, Any]], show: Any) -> str:
    return f"| {title} | " + " | ".join(show(row) for row in rows) + " |"
