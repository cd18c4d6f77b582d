"""The chosen child in MLflow: run by MLflow itself, registered, exported by its name, and searched on from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from inlay import load_child
from inlay.cluster.http import is_healthy, request_json
from inlay.cluster.processes import end, free_port, spawn
from inlay.nas.families import open_parent
from inlay.nas.job import Job
from inlay.nas.stages.run import open_job_parent

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def registered(searched_again: Callable[[Callable[[Path, dict[str, Any]], None]], Path]) -> Path:
    """The folder of a search whose child is the champion of `stories`."""

    def change(folder: Path, values: dict[str, Any]) -> None:
        values["tracking"] = {"register": "stories", "alias": "champion"}

    return searched_again(change)


@pytest.fixture(autouse=True)
def here(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered}/mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mlflow.set_tracking_uri(None)
    yield
    mlflow.set_tracking_uri(None)


def continued(folder: Path, tokens: int) -> str:
    """What the exported child adds to the prompt."""
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = load_child(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    found = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.slow
def test_mlflow_runs_the_child_as_it_was_exported(registered: Path) -> None:
    import mlflow
    import pandas

    model = mlflow.pyfunc.load_model("models:/stories@champion")
    asked = pandas.DataFrame({"prompt": [PROMPT, PROMPT]})
    found = model.predict(asked, params={"max_new_tokens": 12})["text"].tolist()
    assert found == [continued(registered / "job.search" / "child", 12)] * 2
    assert len(found[0]) > 5
    assert model.predict({"prompt": PROMPT}, params={"max_new_tokens": 12})["text"].tolist() == found[:1]


@pytest.mark.slow
def test_the_logged_model_says_where_it_comes_from(registered: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    run_json = json.loads((registered / "job.search" / "run.json").read_text())
    run = client.get_run(run_json["mlflow_run_id"])
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    parent = json.loads((registered / "job.search" / "workspace.json").read_text())
    assert (model.name, str(model.status)) == ("job-child", "READY")
    assert model.params["parent_digest"] == parent["parent_digest"]
    assert model.tags["inlay.workspace"] == str((registered / "job.search").resolve())
    figures = run_json["evaluation"][run_json["chosen"]]
    linked = {metric.key: metric.value for metric in model.metrics}
    assert linked["evaluate/kl_nats"] == figures["kl_nats"]
    (report,) = {(metric.dataset_name, metric.dataset_digest) for metric in model.metrics}
    datasets = {each.dataset.name: each.dataset.digest for each in run.inputs.dataset_inputs}
    assert report == ("report", datasets["report"])
    made_by = client.get_run(model.source_run_id)
    assert made_by.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert run_json["chosen"] in made_by.info.run_name.split(", ")
    (version,) = client.search_model_versions("name = 'stories'")
    assert version.tags["inlay.workspace"] == model.tags["inlay.workspace"]


@pytest.mark.slow
def test_it_is_exported_by_its_name(registered: Path, inlay_here: Run, tmp_path: Path) -> None:
    for name in ("models:/stories@champion", "models:/stories/1"):
        output = tmp_path / name[-8:]
        done = inlay_here("export", name, "--output", output, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"{output}\n"), done.stderr
        child = registered / "job.search" / "child"
        assert {path.name for path in output.iterdir()} == {path.name for path in child.iterdir()}
        assert all((output / path.name).read_bytes() == path.read_bytes() for path in child.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["models:/stories@best"], "`models:/stories@best` is not there: the model `stories` has no alias `best`; its"),
        (["models:/tales@champion"], "`models:/tales@champion` is not there: sqlite:///"),
        (["models:/stories"], "`models:/stories` names no version of a registered model; write models:/NAME@ALIAS"),
        (["models:/stories/7"], "`models:/stories/7` cannot be looked up in sqlite:///"),
        (
            ["models:/stories@champion", "--format", "gguf"],
            "--format gguf: `models:/stories@champion` is one model, written as it was registered; leave it out, or",
        ),
        (
            ["models:/stories@champion", "--solution", "depth"],
            "--solution depth: `models:/stories@champion` is one model, written as it was registered; leave it out, or",
        ),
    ],
)
def test_what_cannot_be_exported_is_said(inlay_here: Run, tmp_path: Path, words: list[str], sentence: str) -> None:
    done = inlay_here("export", *words, "--output", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_search_goes_on_from_it(registered: Path, inlay_here: Run, tmp_path: Path) -> None:
    values = yaml.safe_load((registered / "job.yaml").read_text())
    values["parent"] = "models:/stories@champion"
    values["space"] = {"attention": ["no_op"]}
    values["budget"] = {"parameters": "0.95x"}
    values["distill"], values["recover"] = {"tokens": 0}, {"tokens": 0}
    values["tracking"] = {"experiment": "onwards"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    job = Job.load(tmp_path / "job.yaml")
    assert open_job_parent(job).digest == open_parent(registered / "job.search" / "child").digest
    done = inlay_here("run", "job.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((tmp_path / "job.search" / "evaluation.json").read_text())
    before = json.loads((registered / "job.search" / "run.json").read_text())
    assert evaluation["parent"]["parameters"] == before["evaluation"][before["chosen"]]["parameters"]
    assert evaluation["child"]["parameters"] < evaluation["parent"]["parameters"]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**values, "parent": "models:/stories@best"}))
    refused = inlay_here("validate", "job.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert "parent: `models:/stories@best` is not there: the model `stories` has no alias `best`" in " ".join(
        refused.stderr.split()
    )


@pytest.mark.slow
def test_mlflow_serves_it(registered: Path, tmp_path: Path) -> None:
    port = free_port(0)
    words = ["models", "serve", "-m", "models:/stories@champion", "--env-manager", "local", "--port", str(port)]
    server = spawn([sys.executable, "-m", "mlflow", *words], os.environ | {"PATH": _with_python()}, tmp_path / "log")
    try:
        deadline = time.monotonic() + 300
        while not is_healthy(f"http://127.0.0.1:{port}/health"):
            assert server.alive, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        asked = {"inputs": {"prompt": [PROMPT]}, "params": {"max_new_tokens": 12}}
        answer = request_json("POST", f"http://127.0.0.1:{port}/invocations", asked)
        assert answer["predictions"] == [{"text": continued(registered / "job.search" / "child", 12)}]
    finally:
        end(server)


def _with_python() -> str:
    """MLflow starts its server by a command of this environment."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"
