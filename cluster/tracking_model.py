"""A folder of a store as a logged model of MLflow: what loads it, its signature, metrics and registered version."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.cluster.errors import AbsentError, StoreError
from inlay.cluster.store import Store

FOLDER = "child"
"""What the code that loads it calls the folder, among its artifacts."""
KEPT_IN = "kept_in"
"""Where the weights are, in the model's config, when they were not put into MLflow's store."""
CREATION_TAG = "inlay.creation"
_ALIASED = "inlay.alias"
"""Tag of a version that got its alias."""
SLOWEST_BYTES_PER_SECOND = 10_000_000
"""How fast weights are sent at least, before the tracker is given up."""


class _ChangedError(StoreError):
    """The folder is not the one that was to be sent."""


@dataclass(frozen=True)
class ServedModel:
    """What becomes a logged model.

    Args:
        name: of the logged model.
        creation: names it for those who may have made it before: what they made is used.
        store: URL of the store.
        folder: the prefix of its files there, such as `child`.
        mark: one of these files; sha256 of its content. Another content says that the folder is another one by now.
        weights: names of the files of weights, each with the blob of the store that has it.
        weights_bytes: their size.
        uploaded: whether they are put into MLflow's store; else the model says where they are.
        code: text of a Python file that ends by `mlflow.models.set_model`; nothing is pickled.
        signature: inputs, outputs and params, each as JSON, as MLflow has them.
        example: an input, values by column.
        requirements: lines for pip.
        params: what made it.
        tags: what it is called by.
        dataset: name and digest of the data that judged it.
        group: the run's metrics that begin so are the model's too.
        register: a registered model that it becomes a version of; "" for none.
        alias: of that version; "" for none.
    """

    name: str
    creation: str
    store: str
    folder: str
    mark: tuple[str, str]
    weights: Sequence[tuple[str, str]]
    weights_bytes: int
    uploaded: bool
    code: str
    signature: Mapping[str, str]
    example: Mapping[str, Any]
    requirements: Sequence[str]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    dataset: tuple[str, str]
    group: str
    register: str = ""
    alias: str = ""


def send_model(
    client: Any, experiment_id: str, run_ids: Sequence[str], model: ServedModel, warn: Callable[[str], None]
) -> None:
    """Make the logged model and its version; harmless when repeated, and what was done is not done again.

    `run_ids`: the run that made it, then others that show it; the last one is the version's.
    """
    logged = _made(client, experiment_id, run_ids[0], model)
    if str(logged.status) != "READY":
        with tempfile.TemporaryDirectory(prefix="inlay-") as folder, _patient(model):
            try:
                _write(Path(folder), logged.model_id, run_ids[0], model)
            except (AbsentError, _ChangedError) as error:  # of all else the store may think better the next time
                client.finalize_logged_model(logged.model_id, "FAILED")
                warn(f"the model {model.name} is not put into the tracker: {error}")
                return
            client.log_model_artifacts(logged.model_id, folder)
        client.finalize_logged_model(logged.model_id, "READY")
    for run_id in run_ids:
        _link(client, run_id, logged.model_id)
    _link_metrics(client, run_ids[0], logged.model_id, model)
    if model.register:
        _register(client, run_ids[-1], logged, model)


def _made(client: Any, experiment_id: str, run_id: str, model: ServedModel) -> Any:
    found = client.search_logged_models([experiment_id], f"tags.`{CREATION_TAG}` = '{model.creation}'")
    if found:
        return found[0]
    tags = {**model.tags, CREATION_TAG: model.creation}
    return client.create_logged_model(experiment_id, model.name, run_id, tags, dict(model.params))


def _write(folder: Path, model_id: str, run_id: str, model: ServedModel) -> None:
    """All files of the logged model, the weights as a link to where they lie: what sends them reads them in pieces."""
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import FLAVOR_NAME, save_model
    from pandas import DataFrame

    store = Store(model.store)
    key, digest = model.mark
    if hashlib.sha256(store.get(key)).hexdigest() != digest:
        raise _ChangedError(f"{model.store}/{model.folder} is another one by now")
    written = folder / "written"
    with tempfile.TemporaryDirectory(prefix="inlay-") as place:
        code = Path(place) / "model.py"
        code.write_text(model.code)
        save_model(
            str(written),
            python_model=str(code),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=ModelSignature.from_dict(dict(model.signature)),
            input_example=DataFrame(dict(model.example)),
            pip_requirements=list(model.requirements),
            model_config={} if model.uploaded else {KEPT_IN: f"{model.store}/{model.folder}"},
        )
    described = Model.load(str(written))
    place_of_folder = f"artifacts/{FOLDER}"
    described.flavors[FLAVOR_NAME]["artifacts"] = {FOLDER: {"path": place_of_folder, "uri": place_of_folder}}
    described.model_size_bytes = model.weights_bytes if model.uploaded else None
    described.save(str(written / "MLmodel"))
    files = written / place_of_folder
    files.mkdir(parents=True)
    weights = dict(model.weights)
    for each in store.list(f"{model.folder}/"):
        if (file := each.removeprefix(f"{model.folder}/")) not in weights:
            (files / file).parent.mkdir(parents=True, exist_ok=True)
            (files / file).write_bytes(store.get(each))
    for name, blob in weights.items() if model.uploaded else ():
        (files / name).symlink_to(store.blob_path(blob))
    for path in written.iterdir():
        path.rename(folder / path.name)
    written.rmdir()


def _link(client: Any, run_id: str, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    if outputs is None or all(output.model_id != model_id for output in outputs.model_outputs):
        client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])


def _link_metrics(client: Any, run_id: str, model_id: str, model: ServedModel) -> None:
    """The run's own points once more, as the model's on its data: MLflow keeps equal points once."""
    from mlflow.entities import Metric

    name, digest = model.dataset
    names = [key for key in client.get_run(run_id).data.metrics if key.startswith(model.group)]
    points = [client.get_metric_history(run_id, key)[-1] for key in names]
    metrics = [Metric(p.key, p.value, p.timestamp, p.step, model_id, name, digest, run_id) for p in points]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def _register(client: Any, run_id: str, logged: Any, model: ServedModel) -> None:
    """One version, and the alias with it, once: people may move the alias afterwards."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model.register)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{model.register}'")
    # By place: `models:/<id>` would be looked up in the store that the process has as its own, which is another's.
    place = logged.artifact_location
    version = next((each for each in versions if each.source == place), None) or client.create_model_version(
        model.register, place, run_id, tags=dict(model.tags), model_id=logged.model_id
    )
    if model.alias and version.tags.get(_ALIASED) != model.alias:
        client.set_registered_model_alias(model.register, model.alias, version.version)
        client.set_model_version_tag(model.register, version.version, _ALIASED, model.alias)


@contextlib.contextmanager
def _patient(model: ServedModel) -> Iterator[None]:
    """Lets a server take its time for the weights: it answers once it has put them where it keeps them."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[name]
    if model.uploaded:
        os.environ[name] = str(int(before) + model.weights_bytes // SLOWEST_BYTES_PER_SECOND)
    try:
        yield
    finally:
        os.environ[name] = before
