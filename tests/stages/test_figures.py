"""The figures of a search: intervals by documents, sources apart, and what both models make of ten prompts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inlay.nas.api import load_child
from inlay.nas.families import open_parent
from inlay.nas.loop.prompts import beginnings
from inlay.nas.pieces.texts import Texts, load_documents
from inlay.nas.workspace import Workspace

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def read(folder: Path) -> dict[str, Any]:
    evaluation: dict[str, Any] = json.loads((folder / "job.search" / "evaluation.json").read_text())
    return evaluation


def test_every_figure_of_quality_has_its_interval(finished: Path) -> None:
    evaluation = read(finished)
    place = Workspace(finished / "job.search")
    report = Texts.of(place.read_json("texts.json")).report
    documents_NS, sources_D = load_documents(place.store, report.documents)
    assert evaluation["report_text"]["tokens"] == report.shape[0] * (report.shape[1] - 1)
    assert 2 < evaluation["report_text"]["documents"] <= len(sources_D) == documents_NS.max() + 1
    assert evaluation["parent"]["kl_low"] == evaluation["parent"]["kl_high"] == 0
    for name in ("child", "uniform", "depth"):
        row = evaluation[name]
        for value, figure in (("kl_nats", "kl"), ("top1_agreement", "top1_agreement")):
            assert row[f"{figure}_low"] < row[value] < row[f"{figure}_high"], (name, figure)
        assert row["perplexity_ratio"] == pytest.approx(row["perplexity"] / evaluation["parent"]["perplexity"])
        assert row["perplexity_ratio_low"] < row["perplexity_ratio"] < row["perplexity_ratio_high"]
        assert 1.96 < (row["kl_high"] - row["kl_nats"]) / row["kl_standard_error"] < 12.8
        assert "sources" not in row
    child = evaluation["child"]
    for name, apart in evaluation["above_child"].items():
        assert apart["nats"] == pytest.approx(evaluation[name]["kl_nats"] - child["kl_nats"])
        assert apart["nats_low"] <= apart["nats"] <= apart["nats_high"]
    assert " ± " in (finished / "stdout").read_text()


def test_the_chosen_and_its_parent_continue_prompts_greedily(finished: Path) -> None:
    evaluation = read(finished)
    place = Workspace(finished / "job.search")
    report = Texts.of(place.read_json("texts.json")).report
    prompts = beginnings(report.load(place.store), *load_documents(place.store, report.documents))
    assert evaluation["report_text"]["documents"] >= len(evaluation["prompts"]) == len(prompts) > 2
    parent = open_parent(json.loads((finished / "job.search" / "run.json").read_text())["job"]["parent"])
    tokenizer = parent.tokenizer()
    child = load_child(finished / "job.search", dtype=torch.float32)
    for row, prompt in zip(evaluation["prompts"], prompts, strict=True):
        assert tokenizer.decode(prompt, skip_special_tokens=True) == row["prompt"] != ""
        with torch.inference_mode():
            whole = child.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False)[0].tolist()
        text = tokenizer.decode(whole, skip_special_tokens=True)
        assert text == row["prompt"] + row["child"]
        assert row["parent"] != ""
        assert 0 <= row["same_tokens"] <= 48
        assert (row["parent"] == row["child"]) or row["same_tokens"] < 48
    assert len({row["child"] for row in evaluation["prompts"]}) > 1


def test_the_prompts_are_in_the_report_and_in_mlflow(finished: Path, inlay_here: Run, tmp_path: Path) -> None:
    done = inlay_here("report", "job.search", "--output", tmp_path, cwd=finished)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Side by side</h2>" in page
    prompts = read(finished)["prompts"]
    assert page.split("<h2>Side by side</h2>")[1].count("<tr><td>") >= len(prompts)
    assert "<mark>" in page
    run_id = json.loads((finished / "job.search" / "run.json").read_text())["mlflow_run_id"]
    text = _artifact(finished, run_id, "prompts.txt")
    assert text.count("prompt:\n") == text.count("parent:\n") == len(prompts)


def _artifact(folder: Path, run_id: str, name: str) -> str:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return Path(client.download_artifacts(run_id, name)).read_text()


def test_prompts_begin_documents_all_over_the_text() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(20, 200, size=100)
    documents_NS = np.repeat(np.arange(100, dtype=np.int32), sizes)[:8192].reshape(-1, 128)
    ids_NS = np.arange(documents_NS.size, dtype=np.int32).reshape(-1, 128)
    starts = np.concatenate([[0], np.cumsum(sizes)])[:100].tolist()
    sources_D = [number % 4 == 3 for number in range(100)]
    found = beginnings(ids_NS, documents_NS, sources_D)
    assert {len(prompt) for prompt in found} == {32}
    places = [starts.index(prompt[0]) for prompt in found]
    assert len(places) == 10
    first, second = ([place for place in places if sources_D[place] == source] for source in (False, True))
    assert (len(first), len(second)) in ((7, 3), (8, 2))
    assert first + second == [*sorted(first), *sorted(second)] == places
    assert first[-1] - first[0] > 50


def test_short_documents_give_short_prompts_and_nothing_gives_none() -> None:
    documents_NS = np.repeat(np.arange(64, dtype=np.int32), 8).reshape(-1, 32)
    ids_NS = np.arange(512, dtype=np.int32).reshape(-1, 32)
    assert {len(prompt) for prompt in beginnings(ids_NS, documents_NS, [0] * 64)} == {4}
    assert beginnings(ids_NS[:, :2], np.arange(32, dtype=np.int32).reshape(-1, 2), [0] * 32) == []


@pytest.mark.slow
def test_several_sources_have_their_own_figures(
    searched_again: Callable[[Callable[[Path, dict[str, Any]], None]], Path], texts: tuple[Path, Path]
) -> None:
    def two_sources(folder: Path, values: dict[str, Any]) -> None:
        documents = texts[1].read_text().split("<|endoftext|>\n")
        upper = [{"text": document.upper()} for document in documents[:200]]
        (folder / "loud.jsonl").write_text("".join(json.dumps(record) + "\n" for record in upper))
        sources = [{"path": str(texts[1]), "weight": 2}, {"path": "loud.jsonl", "weight": 1}]
        values["data"]["validate"] = {"path": sources, "tokens": "8k"}

    folder = searched_again(two_sources)
    evaluation = read(folder)
    for name in ("parent", "child", "uniform", "depth"):
        quiet, loud = (evaluation[name]["sources"][source] for source in ("held_out.txt", "loud.jsonl"))
        tokens = evaluation["report_text"]["tokens"]
        assert quiet["tokens"] + loud["tokens"] == tokens
        assert quiet["tokens"] == pytest.approx(2 * loud["tokens"], rel=0.35)
        assert quiet["documents"] + loud["documents"] == evaluation["report_text"]["documents"]
        whole = (quiet["tokens"] * quiet["kl_nats"] + loud["tokens"] * loud["kl_nats"]) / tokens
        assert whole == pytest.approx(evaluation[name]["kl_nats"])
    assert (
        evaluation["parent"]["sources"]["loud.jsonl"]["perplexity"]
        > 2 * (evaluation["parent"]["sources"]["held_out.txt"]["perplexity"])
    ), "the parent has hardly seen such text"
    assert "KL, loud.jsonl" in (folder / "stdout").read_text()
    assert max(len(line) for line in (folder / "stdout").read_text().splitlines() if str(folder) not in line) <= 80
    recipe = json.loads((folder / "job.search" / "child" / "inlay_recipe.json").read_text())
    assert [source["path"] for source in recipe["job"]["data"]["validate"]["path"]] == ["held_out.txt", "loud.jsonl"]
    card = (folder / "job.search" / "child" / "README.md").read_text()
    assert "| perplexity on `loud.jsonl` |" in card
    run_id = json.loads((folder / "job.search" / "run.json").read_text())["mlflow_run_id"]
    told = json.loads(_artifact(folder, run_id, "evaluation.json"))
    assert told["child"]["sources"] == evaluation["child"]["sources"]
    from mlflow.tracking import MlflowClient

    metrics = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}").get_run(run_id).data.metrics
    assert metrics["child/loud.jsonl/kl_nats"] == evaluation["child"]["sources"]["loud.jsonl"]["kl_nats"]
    assert metrics["child/kl_high"] == evaluation["child"]["kl_high"]
