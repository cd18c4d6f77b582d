"""Tasks of lm-evaluation-harness from a folder, for parent and child; without the harness, one sentence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from inlay.nas.api import load_child

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MISSING = "lm-evaluation-harness is not installed (pip install 'inlay[tasks]')"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The harness, with no cache of data sets but one that is dropped."""
    pytest.importorskip("lm_eval", reason=MISSING)
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path, texts: tuple[Path, Path]) -> Path:
    """A folder with a task: which of two words ends a sentence of the text."""
    made = tmp_path / "tasks"
    made.mkdir()
    task = {
        "task": "endings",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": "endings.jsonl"}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "{{begin}}",
        "doc_to_choice": "{{ends}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (made / "endings.yaml").write_text(yaml.safe_dump(task))
    rows = []
    for document in texts[1].read_text().split("<|endoftext|>\n")[:60]:
        words = document.split()
        if len(words) > 24:
            begin, end, other = " ".join(words[:12]), " ".join(words[12:16]), " ".join(words[20:24])
            gold = len(rows) % 2
            rows.append({"begin": begin, "ends": [end, other] if gold == 0 else [other, end], "gold": gold})
    (made / "endings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.mark.usefixtures("harness")
def test_both_models_are_given_the_task_and_their_answers_are_those_of_the_exported_child(
    finished: Path, folder: Path, inlay_here: Run, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient
    from transformers import AutoTokenizer

    searched = Path(shutil.copytree(finished, tmp_path / "copy"))
    words = ("evaluate", "job.search", "--tasks", "endings", "--task-folder", folder)
    done = inlay_here(*words, cwd=searched)
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((searched / "job.search" / "evaluation.json").read_text())
    (row,) = evaluation["tasks"]
    assert (row["task"], row["metric"]) == ("endings", "acc")
    examples = [json.loads(line) for line in (folder / "endings.jsonl").read_text().splitlines()]
    assert row["samples"] == len(examples) > 20
    model = load_child(searched / "job.search", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(searched / "job.search" / "child")
    right = sum(chosen(model, tokenizer, example) == example["gold"] for example in examples)
    assert row["child"] == pytest.approx(right / len(examples))
    assert 0 < row["child_standard_error"] < 0.15
    assert row["difference"] == pytest.approx(row["child"] - row["parent"])
    assert row["difference_standard_error"] < 1.5 * row["child_standard_error"]
    assert "endings" in done.stdout
    shown = inlay_here("evaluate", "job.search", "--markdown", cwd=searched).stdout
    assert "| task | metric | samples | parent | child | difference |" in shown
    run_id = json.loads((searched / "job.search" / "run.json").read_text())["mlflow_run_id"]
    metrics = MlflowClient(tracking_uri=f"sqlite:///{searched / 'mlflow.db'}").get_run(run_id).data.metrics
    assert metrics["child/endings/acc"] == row["child"]
    assert inlay_here("report", "job.search", cwd=searched).returncode == 0
    assert "<td>endings</td>" in (searched / "job.search" / "report.html").read_text()


def chosen(model: Any, tokenizer: Any, example: dict[str, Any]) -> int:
    """The likelier of both ends, one at a time."""

    def log_probability(end: str) -> float:
        begin = tokenizer(example["begin"])["input_ids"]
        ids = tokenizer(f"{example['begin']} {end}")["input_ids"]
        with torch.inference_mode():
            logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(float(logs[place - 1, ids[place]]) for place in range(len(begin), len(ids)))

    scores = [log_probability(end) for end in example["ends"]]
    return scores.index(max(scores))


@pytest.mark.usefixtures("harness")
def test_a_task_that_is_not_there_is_told_with_those_that_are(finished: Path, folder: Path, inlay_here: Run) -> None:
    done = inlay_here("evaluate", "job.search", "--tasks", "ending", "--task-folder", folder, cwd=finished)
    assert done.returncode == 2
    assert done.stderr == "inlay: --tasks: there is no task `ending`; did you mean `endings`? there are endings\n"
    (folder / "endings.yaml").unlink()
    done = inlay_here("evaluate", "job.search", "--tasks", "endings", "--task-folder", folder, cwd=finished)
    assert done.returncode == 2
    assert done.stderr == (
        f"inlay: --task-folder: {folder} has no task files; each is a .yaml file that names its `task`\n"
    )
    done = inlay_here("evaluate", "job.search", "--tasks", "endings", "--task-folder", folder / "no", cwd=finished)
    assert done.returncode == 2
    assert done.stderr == (
        f"inlay: --task-folder: {folder / 'no'} is not a folder; name the one that holds the task files (.yaml)\n"
    )


@pytest.mark.usefixtures("harness")
def test_a_task_without_its_data_is_one_sentence(finished: Path, folder: Path, inlay_here: Run) -> None:
    (folder / "endings.jsonl").unlink()
    before = (finished / "job.search" / "evaluation.json").read_bytes()
    done = inlay_here("evaluate", "job.search", "--tasks", "endings", "--task-folder", folder, cwd=finished)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"inlay: --tasks: endings in {re.escape(str(folder))} cannot be run \(.+\); mend the task, or its data\n",
        done.stderr,
    )
    assert (finished / "job.search" / "evaluation.json").read_bytes() == before


def test_without_the_harness_the_extra_is_named(
    finished: Path, folder: Path, inlay_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = inlay_here("evaluate", "job.search", "--tasks", "endings", "--task-folder", folder, cwd=finished)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "inlay: --tasks: lm-evaluation-harness is not installed here; install inlay with its extra: "
        "pip install 'inlay[tasks]'"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("--tasks", " , "), ("--task-folder", ".")])
def test_no_task_is_named(finished: Path, inlay_here: Run, words: tuple[str, str]) -> None:
    done = inlay_here("evaluate", "job.search", *words, cwd=finished)
    assert done.returncode == 2
    assert done.stderr == (
        "inlay: --tasks: names no task; write some with commas between them, such as --tasks arc_easy,piqa\n"
    )
