"""How much answers depend on the wording: POSIX as its paper has it, variations that mean the same, and bad files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from inlay.nas.families import open_parent
from inlay.nas.job import Job
from inlay.nas.loop.prompts import model_piece
from inlay.nas.loop.sensitivity import SENSITIVITY, asked
from inlay.nas.loop.variations import MOST, variations
from inlay.nas.pieces.sensitivity import psi

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PROMPT = "Once upon a time there was a little girl who lived near the old river"


@pytest.fixture
def searched(finished: Path, tmp_path: Path) -> Path:
    """The finished search's folder, to add to."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_variations_are_slips_and_form_alone() -> None:
    found = variations(PROMPT, np.random.default_rng(0))
    assert found == variations(PROMPT, np.random.default_rng(0))
    assert found != variations(PROMPT, np.random.default_rng(1))
    assert len(found) == len(set(found)) == MOST
    whole, swapped, left_out, doubled, small, behind_a_line = found
    assert whole == PROMPT
    assert sorted(swapped) == sorted(PROMPT) != sorted(left_out)
    assert len(PROMPT) - len(left_out) == len(doubled) - len(PROMPT) == 2, "two of fifteen words"
    assert (small, behind_a_line) == (PROMPT.lower(), f"\n\n{PROMPT}")
    for text in (swapped, left_out, doubled):
        apart = [(a, b) for a, b in zip(PROMPT.split(), text.split(), strict=True) if a != b]
        assert len(apart) == 2
        assert all((a[0], a[-1]) == (b[0], b[-1]) and len(a) > 3 for a, b in apart)


def test_what_comes_out_the_same_is_asked_once() -> None:
    assert variations("1 + 1 =", np.random.default_rng(0)) == ["1 + 1 =", "\n\n1 + 1 ="]


def test_psi_is_the_mean_over_ordered_pairs() -> None:
    logs = [[-2.0, -9.0, -1.0], [-3.0, -4.0, -1.5], [-2.5, -6.0, -1.0]]
    answers = [[5, 6], [7, 8, 9, 2], [2]]
    by_hand = [1.0 / 2, 0.5 / 2, 5.0 / 4, 2.0 / 4, 0.0, 0.5]
    assert psi(logs, answers) == pytest.approx(sum(by_hand) / 6)


def test_a_piece_finds_what_the_formula_says_of_transformers_own_model(
    make_search: Callable[..., Any], tiny_parent: Callable[..., Path], texts: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tiny_parent("llama")
    job = Job.from_dict(
        {
            "parent": str(folder),
            "data": {"distill": {"path": str(texts[0]), "sequence_length": 32}, "validate": {"path": str(texts[1])}},
            "space": {"ffn": ["no_op"]},
            "budget": {"parameters": "0.9x"},
        }
    )
    search = make_search(job, tmp_path / "w")
    prompts = ["a girl sang", "Two boys RAN off"]
    what = asked(job, open_parent(folder), [("", prompt) for prompt in prompts])
    assert what.tokens == 24
    told = {"sets": what.sets, "tokens": what.tokens, "stops": [2]}
    (record,) = search.run([model_piece(search, SENSITIVITY, "the parent's", told, None)])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(prompt: list[int]) -> list[int]:
        ids = list(prompt)
        while len(ids) < len(prompt) + 24 and (len(ids) == len(prompt) or ids[-1] != 2):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    def log_probability(prompt: list[int], said: list[int]) -> float:
        logs = model(torch.tensor([prompt + said])).logits[0].double().log_softmax(-1)
        return sum(float(logs[len(prompt) + place - 1, token]) for place, token in enumerate(said))

    with torch.inference_mode():
        for own, found in zip(what.sets, record.values["psi"], strict=True):
            said = [answer(prompt) for prompt in own]
            apart = [
                abs(log_probability(x, y) - log_probability(own[j], y)) / len(y)
                for i, x in enumerate(own)
                for j, y in enumerate(said)
                if i != j
            ]
            assert found == pytest.approx(sum(apart) / len(apart), rel=1e-4)
            assert found > 0


def test_evaluate_adds_it_to_the_search_and_to_its_run(searched: Path, inlay_here: Run) -> None:
    from mlflow.tracking import MlflowClient

    (searched / "prompts.txt").write_text(f"{PROMPT}\n\nTom and his dog went out to play in the rain\n")
    done = inlay_here("evaluate", "job.search", "--prompts", "prompts.txt", cwd=searched)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("prompt sensitivity: 2 prompts in 12 ways; each model writes 288 tokens at most and ")
    assert "2 prompts, 12 ways, nats" in " ".join(done.stdout.split())
    evaluation = json.loads((searched / "job.search" / "evaluation.json").read_text())
    found = evaluation["sensitivity"]
    assert (found["prompts"], found["variations"], found["answer_tokens"]) == (2, 12, 24)
    for name in ("parent", "child"):
        assert 0 <= found[name]["nats_low"] < found[name]["nats"] < found[name]["nats_high"]
    apart = found["child_above_parent"]["nats"]
    assert apart == pytest.approx(found["child"]["nats"] - found["parent"]["nats"])
    run_id = json.loads((searched / "job.search" / "run.json").read_text())["mlflow_run_id"]
    client = MlflowClient(tracking_uri=f"sqlite:///{searched / 'mlflow.db'}")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["child/prompt_sensitivity"] == found["child"]["nats"]
    assert len(client.search_runs([run.info.experiment_id], "tags.`inlay.run` = 'search'")) == 1
    assert inlay_here("report", "job.search", cwd=searched).returncode == 0
    assert "<h2>Prompt sensitivity</h2>" in (searched / "job.search" / "report.html").read_text()


@pytest.mark.slow
def test_the_prompts_of_the_report_will_do(searched: Path, inlay_here: Run) -> None:
    done = inlay_here("evaluate", "job.search", "--prompts", "report", "--json", cwd=searched)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sensitivity"]["prompts"] == len(found["prompts"]) > 2


@pytest.mark.slow
def test_a_solution_as_assembled_has_its_intervals_and_is_asked_too(searched: Path, inlay_here: Run) -> None:
    solved = inlay_here("solve", "job.search", "--limit", "parameters=0.7x", cwd=searched)
    assert solved.returncode == 0, solved.stderr
    (file,) = (searched / "job.search" / "solutions").glob("*.json")
    before = (searched / "job.search" / "evaluation.json").read_bytes()
    done = inlay_here("evaluate", "job.search", "--solution", file.stem, "--prompts", "report", "--json", cwd=searched)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["child"]["kl_low"] < found["child"]["kl_nats"] < found["child"]["kl_high"]
    assert found["sensitivity"]["child"]["nats"] > 0
    assert json.loads(file.read_text())["evaluation"] == found
    assert (searched / "job.search" / "evaluation.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"cannot be read \(No such file or directory\); give a file with a prompt on each line"),
        (b"\n  \n", "has no prompts; write one on each line"),
        (b"\xff\xfe\n", r"cannot be read \(it is not UTF-8\); give a file with a prompt on each line"),
        (b"again and again\n" * 101, "has 101 prompts; give 100 at most"),
    ],
)
def test_files_without_prompts_are_refused(
    finished: Path, inlay_here: Run, tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "p.txt"
    if content is not None:
        file.write_bytes(content)
    done = inlay_here("evaluate", "job.search", "--prompts", file, cwd=finished)
    assert done.returncode == 2
    assert re.fullmatch(f"inlay: --prompts: {re.escape(str(file))} {said}\n", done.stderr)


def test_a_prompt_longer_than_the_context_is_refused_with_its_line(
    finished: Path, inlay_here: Run, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text(f"short\n{'word ' * 2000}\n")
    done = inlay_here("evaluate", "job.search", "--prompts", tmp_path / "p.txt", cwd=finished)
    assert done.returncode == 2
    told = r"inlay: --prompts: line 2 of .*p\.txt: \d+ tokens, and the model has \d+ positions; give a shorter prompt\n"
    assert re.fullmatch(told, done.stderr)
    assert "sensitivity" not in json.loads((finished / "job.search" / "evaluation.json").read_text())
