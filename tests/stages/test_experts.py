"""A whole search of a parent whose layers have experts, from the job file to what the child writes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay.nas.workspace import Workspace

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_from_the_job_file_to_generation(
    family: str, tiny_parent: Callable[..., Path], texts: tuple[Path, Path], tmp_path: Path, inlay_here: Run
) -> None:
    values: dict[str, Any] = {
        "parent": str(tiny_parent(family)),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 64},
            "validate": {"path": str(texts[1]), "tokens": "2k"},
        },
        "space": {
            "ffn": [{"experts": 3}, {"experts": 2}, {"active": 1}, {"active": 1, "experts": 1}, {"expert_width": 16}]
        },
        "distill": {"tokens": "2k"},
        "score": {"pairs": 2},
        "solve": {"pool": 2},
        "hardware": {"scenarios": [{"prefill": 16, "generate": 8}]},
        "budget": {"parameters": "0.8x"},
        "recover": {"tokens": "4k", "probes": 1},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    done = inlay_here("run", "job.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    place = Workspace(tmp_path / "job.search")

    offered = {row["ffn"] for row in place.read_table("scores")}
    counts = {"ffn:experts=3", "ffn:experts=2", "ffn:active=1", "ffn:active=1+experts=1"}
    assert offered >= counts | {"ffn:expert_width=16"}
    losses = [row for row in place.read_table("losses") if "ffn:experts=2" in row.values()]
    assert losses
    evaluation = place.read_json("evaluation.json")
    child = evaluation[evaluation["chosen"]]
    assert child["parameters"] <= 0.8 * evaluation["parent"]["parameters"]

    folder = tmp_path / "job.search" / "child"
    blocks = json.loads((folder / "config.json").read_text())["blocks"]
    kept = [block["ffn"]["experts"] for block in blocks if "experts" in block["ffn"]]
    assert kept
    assert min(kept) < 4
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert sum(tensor.numel() for tensor in model.parameters()) == child["parameters"]
    ids_1P = torch.tensor([AutoTokenizer.from_pretrained(folder)("Once").input_ids])
    assert model.generate(ids_1P, max_new_tokens=5, do_sample=False).shape[1] == ids_1P.shape[1] + 5

    # A child is a parent like any other.
    values |= {"parent": str(folder), "budget": {"parameters": "0.95x"}, "space": {"ffn": ["no_op"]}}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(values))
    assert inlay_here("validate", "again.yaml", cwd=tmp_path).returncode == 0
    for form, sentence in (("gguf", f"does not run the family {family}"), ("deci", "ffn: experts (experts=")):
        words = ("--for", "vllm") if form == "deci" else ()
        refused = inlay_here("export", "job.search", "--format", form, "-o", "out", *words, cwd=tmp_path)
        assert refused.returncode == 2
        assert sentence in " ".join(refused.stderr.split())
        assert not (tmp_path / "out").exists()
