"""A search whose engine is vLLM, from the job to texts: the real one, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from searched import child_meets_its_budget, costs_are_those_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay.nas.engines.registry import ENGINES

Run = Callable[..., "subprocess.CompletedProcess[str]"]

PYTHON = "INLAY_VLLM_PYTHON"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


Search = Callable[..., Path]


@pytest.fixture(scope="module")
def search(
    tiny_parent: Callable[..., Path],
    texts: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    inlay_command: Run,
) -> Search:
    """`search(changes, format="f32")`: the folder of a finished search in vLLM: a small job with these sections."""
    if not os.environ.get(PYTHON):
        pytest.skip(f"{PYTHON} names no interpreter that has vLLM (docs/vllm.md)")
    parent = tiny_parent("llama", hidden_size=128, intermediate_size=512, max_position_embeddings=128)

    def run(changes: dict[str, Any], format: str = "f32") -> Path:
        folder = tmp_path_factory.mktemp("vllm")
        job = {**values(parent, texts), **changes}
        job["hardware"]["format"] = format
        (folder / "job.yaml").write_text(yaml.safe_dump(job))
        done = inlay_command("run", "job.yaml", cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / "stdout").write_text(done.stdout)
        return folder

    return run


def values(parent: Path, texts: tuple[Path, Path]) -> dict[str, Any]:
    return {
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
            "python": os.environ[PYTHON],
            "scenarios": [{"name": "chat", "batch_size": 2, "prefill": 32, "generate": 16}],
        },
        "budget": {"runtime": "0.85x", "memory": "0.95x"},
        "recover": {"tokens": "4k", "probes": 0},
        "cluster": {"max_workers": 1},
    }


@pytest.fixture(scope="module")
def folder(search: Search) -> Path:
    return search({})


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


@pytest.fixture(scope="module")
def in_formats(search: Search) -> Path:
    """Nothing is trained: what is solved, timed and exported are the parent's own weights, rounded."""
    nothing = {"tokens": 0}
    return search(
        {
            "space": {"formats": ["int4_g32", "int4_g128"]},
            "distill": nothing,
            "recover": nothing,
            "budget": {"weights": "0.35x"},
        },
        format="f16",
    )


def test_costs_of_formats_are_bytes_of_codes_and_scales(in_formats: Path) -> None:
    costs_are_those_of(in_formats, ENGINES["vllm"].storage("f16", "cpu"))
    told = json.loads((in_formats / "job.search" / "evaluation.json").read_text())
    assert told["child"]["weights_bytes"] <= 0.35 * told["parent"]["weights_bytes"]
    assert told["child"]["times"] == "measured"


def test_the_exported_folder_gives_the_tokens_of_the_rounded_child(in_formats: Path, inlay_command: Run) -> None:
    """The child's own choices as far as half precision tells, in vLLM as it is served and in `inlay chat`."""
    done = inlay_command("export", "job.search", "--format", "compressed-tensors", "-o", "packed", cwd=in_formats)
    assert done.returncode == 0, done.stderr
    packed = in_formats / "packed"
    tokenizer: Any = AutoTokenizer.from_pretrained(packed)
    prompts = [tokenizer(text)["input_ids"] for text in ("Once upon a time", "The little dog was", "Lily and Tom")]
    request = {"folders": [str(packed)], "prompts": prompts, "tokens": 24, "dtype": "float16"}
    ran = subprocess.run(
        [os.environ[PYTHON], str(Path(__file__).parent.parent / "engines" / "vllm_generate.py")],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    (found,) = json.loads(ran.stdout.splitlines()[-1])
    parent = yaml.safe_load((in_formats / "job.yaml").read_text())["parent"]
    rounded, before = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (packed, parent))
    told = list(zip(prompts, found, strict=True))
    assert max(behind(rounded, *each) for each in told) < 0.02
    assert max(behind(before, *each) for each in told) > 0.1
    done = inlay_command(
        "chat", "job.search", "--prompt", "Once upon a time", "--tokens", "12", "--json", cwd=in_formats
    )
    assert done.returncode == 0, done.stderr
    first, after = prompts[0], prompts[0] + found[0][:12]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (first, after)]
    assert json.loads(done.stdout)["child"]["text"] == texts[1].removeprefix(texts[0])


def behind(model: Any, ids: list[int], told: list[int]) -> float:
    """How far the logits of these tokens are from the largest at most, given all before them, by logits' deviation."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids + told])).logits[0, len(ids) - 1 : -1]
    own_T = logits_TV.gather(1, torch.tensor(told)[:, None])[:, 0]
    return float(((logits_TV.max(1).values - own_T) / logits_TV.std(1)).max())
