"""The chosen child as a logged model of MLflow: which files it is, what it takes and gives, what made it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inlay.cluster.tracking_model import ServedModel
from inlay.nas import export
from inlay.nas.export.folder import RECIPE
from inlay.nas.job import Job
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.model_files import ModelFiles
from inlay.nas.pieces.texts import Texts
from inlay.nas.tables.architecture import identify
from inlay.nas.workspace import Workspace
from inlay.version import __version__

CHILD = "child"
"""The folder of a workspace with the exported child."""
UPLOADED_BYTES = 2 * 2**30
"""The most that is put into MLflow's store unasked; a model that is registered is put there whatever its size."""
SIGNATURE = {
    "inputs": json.dumps([{"type": "string", "name": "prompt", "required": True}]),
    "outputs": json.dumps([{"type": "string", "name": "text", "required": True}]),
    "params": json.dumps([{"name": "max_new_tokens", "type": "integer", "default": 64, "shape": None}]),
}
_EXAMPLE = {"prompt": ["Once upon a time"]}
_REQUIRED = ("mlflow", "pandas", "safetensors", "torch", "transformers")
_NOT_IN_NAMES = re.compile(r"""[/:.%"']""")
"""What MLflow takes in no logged model's name."""


def logged_model(
    job: Job, place: Workspace, model: TrainedModel, evaluation: Mapping[str, Any], texts: Texts, name: str, run: str
) -> ServedModel:
    """What the tracker is told of the child that lies in the workspace.

    Args:
        model: the chosen one, whose folder is written.
        name: of the search.
        run: names the search's MLflow run.
    """
    recipe = f"{CHILD}/{RECIPE}"
    weights = ModelFiles(place.store, model.blob)
    size = weights.file_bytes
    solution = identify(model.architecture)
    return ServedModel(
        name=_NOT_IN_NAMES.sub("_", f"{name}-child"),
        creation=f"{run}-{model.blob[:16]}",
        store=place.url,
        folder=CHILD,
        mark=(recipe, hashlib.sha256(place.store.get(recipe)).hexdigest()),
        weights=list(weights.in_folder.items()),
        weights_bytes=size,
        uploaded=size <= UPLOADED_BYTES or job.tracking.register is not None,
        code=(Path(export.__file__).parent / "mlflow_model.py").read_text(),
        signature=SIGNATURE,
        example=_EXAMPLE,
        requirements=[
            f"inlay=={__version__}",
            *(f"{each}=={importlib.metadata.version(each).partition('+')[0]}" for each in _REQUIRED),
        ],
        params={
            "parent": job.parent,
            "parent_digest": str(place.read_json("workspace.json")["parent_digest"]),
            "solution": solution,
            "budget": json.dumps(job.to_dict()["budget"], sort_keys=True),
            "parameters": str(evaluation[str(evaluation["chosen"])]["parameters"]),
        },
        tags={"inlay.parent": job.parent, "inlay.digest": job.search_digest(), "inlay.workspace": place.url},
        dataset=("report", texts.report.digest[:36]),
        group="evaluate/",
        register=job.tracking.register or "",
        alias=job.tracking.alias or "",
    )
