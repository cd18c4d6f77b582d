"""Logged models and the registry on real MLflow: an sqlite file, and a server that puts artifacts where it likes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlflow
import pandas
import pytest
from mlflow import MlflowClient

from inlay.cluster.registry import RegistryError, fetch_version, find_version
from inlay.cluster.store import Store
from inlay.cluster.tracking import Tracker
from inlay.cluster.tracking_model import ServedModel
from inlay.cluster.tracking_send import Entry, Sender, TrackerDownError

CODE = """
from pathlib import Path

import pandas
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Model(PythonModel):
    def load_context(self, context):
        self.weights = (Path(context.artifacts["child"]) / "model.safetensors").read_text()

    def predict(self, context, model_input: pandas.DataFrame, params=None):
        return pandas.DataFrame({"text": [self.weights + each * params["times"] for each in model_input["prompt"]]})


set_model(Model())
"""
SIGNATURE = {
    "inputs": json.dumps([{"type": "string", "name": "prompt", "required": True}]),
    "outputs": json.dumps([{"type": "string", "name": "text", "required": True}]),
    "params": json.dumps([{"name": "times", "type": "integer", "default": 2, "shape": None}]),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def uri(tmp_path: Path, mlflow_db: Callable[[Path], str]) -> Iterator[str]:
    yield mlflow_db(tmp_path)
    mlflow.set_tracking_uri(None)


def served(folder: Path, **changes: Any) -> ServedModel:
    """A folder that stands for an exported child."""
    store = Store(folder)
    store.put("child/config.json", b"{}")
    store.put("child/tokens/t.json", b"[]")
    store.put("child/recipe.json", b'{"seed": 0}')
    store.put("child/model.safetensors", b"weights")
    model = ServedModel(
        name="stories-child",
        creation="one",
        store=store.url,
        folder="child",
        mark=("child/recipe.json", hashlib.sha256(b'{"seed": 0}').hexdigest()),
        weights=[("model.safetensors", store.put_blob(b"weights"))],
        weights_bytes=7,
        uploaded=True,
        code=CODE,
        signature=SIGNATURE,
        example={"prompt": ["Once"]},
        requirements=["mlflow"],
        params={"parent": "stories"},
        tags={"inlay.parent": "stories"},
        dataset=("report", "a" * 36),
        group="evaluate/",
    )
    return replace(model, **changes)


def send(uri: str, model: ServedModel, spool: Path) -> tuple[Tracker, list[str]]:
    """A search with one model, told and ended; what was warned of."""
    warnings: list[str] = []
    tracker = Tracker(uri, "models", warnings.append, spool=spool)
    tracker.start("stories")
    child = tracker.child("solution a", "child")
    child.metrics({"evaluate/kl_nats": 0.25, "assembled/kl_nats": 0.5})
    child.model(model)
    child.end()
    tracker.end()
    return tracker, warnings


def only_model(uri: str) -> Any:
    client = MlflowClient(uri)
    (model,) = client.search_logged_models([client.get_experiment_by_name("models").experiment_id])
    return model


def test_a_folder_becomes_a_model_that_mlflow_runs(uri: str, tmp_path: Path) -> None:
    tracker, warnings = send(uri, served(tmp_path / "w", register="stories", alias="champion"), tmp_path / "spool")
    assert warnings == []
    model = only_model(uri)
    assert (model.name, str(model.status), model.params) == ("stories-child", "READY", {"parent": "stories"})
    assert model.tags["inlay.parent"] == "stories"
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.dataset_name) == ("evaluate/kl_nats", 0.25, "report")
    client = MlflowClient(uri)
    for ref in ("search", "solution a"):
        run = client.get_run(str(tracker.run_id(ref)))
        assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert model.source_run_id == tracker.run_id("solution a")
    (version,) = client.search_model_versions("name = 'stories'")
    assert version.run_id == tracker.run_id()
    assert len(client.get_metric_history(str(tracker.run_id("solution a")), "evaluate/kl_nats")) == 1
    mlflow.set_tracking_uri(uri)
    asked = pandas.DataFrame({"prompt": ["ab"]})
    for name in (f"models:/{model.model_id}", "models:/stories@champion", "models:/stories/1"):
        loaded = mlflow.pyfunc.load_model(name)
        assert loaded.predict(asked)["text"].tolist() == ["weightsabab"]
        assert loaded.predict(asked, params={"times": 1})["text"].tolist() == ["weightsab"]
    assert loaded.input_example.to_dict("list") == {"prompt": ["Once"]}
    files = {path.name for path in Path(mlflow.artifacts.download_artifacts(name)).rglob("*")}
    assert {"MLmodel", "model.py", "requirements.txt", "model.safetensors", "t.json"} <= files
    assert not any(file.endswith(".pkl") for file in files)


def test_told_twice_it_is_one_model_one_version_and_people_may_have_moved_the_alias(uri: str, tmp_path: Path) -> None:
    model = served(tmp_path / "w", register="stories", alias="champion")
    send(uri, model, tmp_path / "spool")
    client = MlflowClient(uri)
    client.delete_registered_model_alias("stories", "champion")
    tracker, warnings = send(uri, model, tmp_path / "spool")
    assert warnings == []
    only_model(uri)
    assert len(client.search_model_versions("name = 'stories'")) == 1
    assert client.get_registered_model("stories").aliases == {}
    run = client.get_run(str(tracker.run_id()))
    assert len(run.outputs.model_outputs) == 1
    tracker, _ = send(uri, replace(model, creation="two"), tmp_path / "spool")
    assert {key: str(value) for key, value in client.get_registered_model("stories").aliases.items()} == {
        "champion": "2"
    }


def test_a_folder_that_is_another_one_by_now_is_not_sent_in_its_place(uri: str, tmp_path: Path) -> None:
    model = served(tmp_path / "w", register="stories")
    Store(tmp_path / "w").put("child/recipe.json", b'{"seed": 1}')
    _, warnings = send(uri, model, tmp_path / "spool")
    assert warnings == [
        f"the model stories-child is not put into the tracker: {tmp_path}/w/child is another one by now"
    ]
    assert str(only_model(uri).status) == "FAILED"
    assert MlflowClient(uri).search_registered_models() == []


def test_a_store_that_cannot_be_read_now_is_asked_again(uri: str, tmp_path: Path) -> None:
    model = served(tmp_path / "w")
    sender = Sender(uri, "models", tmp_path / "spool")
    made = {"name": "stories", "tags": {}, "parent": None, "resume": None, "creation": None, "at": 0}
    sender.send([Entry("search", "run", made)])
    recipe = tmp_path / "w" / "child" / "recipe.json"
    content = recipe.read_bytes()
    recipe.unlink()
    recipe.mkdir()
    entry = Entry("search", "model", asdict(model))
    with pytest.raises(TrackerDownError, match=r"recipe\.json cannot be read"):
        sender.send([entry])
    assert str(only_model(uri).status) == "PENDING"
    recipe.rmdir()
    recipe.write_bytes(content)
    assert sender.send([entry]) == 1
    assert sender.take_warnings() == []
    assert str(only_model(uri).status) == "READY"
    recipe.unlink()
    sender.send([Entry("search", "model", asdict(replace(model, creation="two")))])
    (warning,) = sender.take_warnings()
    assert warning.endswith("child/recipe.json does not exist")


def test_weights_that_are_too_large_stay_where_they_are(uri: str, tmp_path: Path) -> None:
    _, warnings = send(uri, served(tmp_path / "w", uploaded=False), tmp_path / "spool")
    assert warnings == []
    mlflow.set_tracking_uri(uri)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{only_model(uri).model_id}"))
    assert not (folder / "artifacts" / "child" / "model.safetensors").exists()
    assert f"kept_in: {tmp_path}/w/child" in (folder / "MLmodel").read_text()


def test_a_version_is_found_and_fetched_once(uri: str, tmp_path: Path) -> None:
    send(uri, served(tmp_path / "w", register="stories", alias="champion"), tmp_path / "spool")
    version = find_version(uri, "stories", "champion", None)
    assert version == find_version(uri, "stories", None, "1")
    folder = fetch_version(version)
    assert folder.is_relative_to(tmp_path / "cache")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    stamp = os.stat(folder).st_mtime_ns
    assert fetch_version(version) == folder
    assert os.stat(folder).st_mtime_ns == stamp


def test_what_the_registry_does_not_have_is_said(uri: str, tmp_path: Path) -> None:
    def refused(*words: str | None) -> str:
        with pytest.raises(RegistryError) as caught:
            fetch_version(find_version(uri, *words))
        return str(caught.value)

    (tmp_path / "mlflow.db").rename(tmp_path / "away.db")
    assert refused("stories", "champion", None) == (
        f"cannot be looked up: there is no {tmp_path}/mlflow.db; set tracking.uri or MLFLOW_TRACKING_URI"
    )
    (tmp_path / "away.db").rename(tmp_path / "mlflow.db")
    send(uri, served(tmp_path / "w", register="stories", alias="champion"), tmp_path / "spool")
    assert refused("others", "champion", None) == f"is not there: {uri} has no registered model `others`"
    assert refused("stories", "best", None) == (
        "is not there: the model `stories` has no alias `best`; its aliases are champion"
    )
    assert refused("stories", None, "7").startswith(f"cannot be looked up in {uri}: ")
    client = MlflowClient(uri)
    client.create_model_version("stories", str(tmp_path / "w"))
    assert refused("stories", None, "2").startswith("cannot be downloaded, or is no child: ")
    large = served(tmp_path / "w", uploaded=False, creation="large")
    send(uri, large, tmp_path / "spool")
    found = client.search_logged_models([client.get_experiment_by_name("models").experiment_id])
    (place,) = (model.artifact_location for model in found if model.tags["inlay.creation"] == "large")
    client.create_model_version("stories", place)
    assert refused("stories", None, "3") == (
        "has no weights in MLflow's store, since they were too large when it was recorded; export it from its "
        "workspace, or search with tracking.register, which stores them"
    )
