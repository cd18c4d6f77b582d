"""A search whose engine is vLLM, from the job to texts: the real one, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from searched import child_meets_its_budget, costs_are_those_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay.nas.engines.registry import ENGINES

Run = Callable[..., "subprocess.CompletedProcess[str]"]

PYTHON = "INLAY_VLLM_PYTHON"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def folder(
    tiny_parent: Callable[..., Path],
    texts: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    inlay_command: Run,
) -> Path:
    if not os.environ.get(PYTHON):
        pytest.skip(f"{PYTHON} names no interpreter that has vLLM (docs/vllm.md)")
    folder = tmp_path_factory.mktemp("vllm")
    parent = tiny_parent("llama", hidden_size=128, intermediate_size=512, max_position_embeddings=128)
    values = {
        "parent": str(parent),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 64},
            "validate": {"path": str(texts[1]), "tokens": "2k"},
        },
        "space": {"attention": [{"kv_heads": 1}, "linear", "no_op"], "ffn": [{"width": 0.5}, "no_op"]},
        "distill": {"tokens": "4k"},
        "score": {"pairs": 0},
        "solve": {"pool": 2, "corrections": 0},
        "hardware": {
            "engine": "vllm",
            "format": "f32",
            "python": os.environ[PYTHON],
            "scenarios": [{"name": "chat", "batch_size": 2, "prefill": 32, "generate": 16}],
        },
        "budget": {"runtime": "0.85x", "memory": "0.95x"},
        "recover": {"tokens": "4k", "probes": 0},
        "cluster": {"max_workers": 1},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    done = inlay_command("run", "job.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_costs_are_those_of_its_dtype_and_blocks(folder: Path) -> None:
    costs_are_those_of(folder, ENGINES["vllm"].storage("f32", "cpu"))


def test_the_child_meets_its_budget_there(folder: Path) -> None:
    child_meets_its_budget(folder, 0.9)


def test_its_texts_are_greedy_decoding(folder: Path, tmp_path: Path, inlay_command: Run) -> None:
    done = inlay_command("export", "job.search", "-o", tmp_path / "child", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = inlay_command("chat", "job.search", "--prompt", "Once upon a time", "--tokens", "12", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["engine"] == "vllm"
    parent = Path(yaml.safe_load((folder / "job.yaml").read_text())["parent"])
    for name, place in (("child", tmp_path / "child"), ("parent", parent)):
        tokenizer: Any = AutoTokenizer.from_pretrained(place)
        ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
        model: Any = AutoModelForCausalLM.from_pretrained(place)
        whole = model.float().generate(ids, max_new_tokens=12, do_sample=False)[0]
        before, after = (tokenizer.decode(each, skip_special_tokens=True) for each in (ids[0], whole))
        assert told[name]["text"] == after.removeprefix(before), name
        assert told[name]["prefill_ns"] > 0
