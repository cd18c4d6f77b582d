"""Texts that judge are packed as long as what the child will serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.errors import UserError
from inlay.nas.families import open_parent
from inlay.nas.job import Job
from inlay.nas.loop.texts import pack_texts


def job_of(folder: Path, parent: Path, validate: dict[str, Any]) -> Job:
    for name in ("train", "held_out"):
        (folder / f"{name}.txt").write_text("".join(f"{name} story {n}\n<|endoftext|>\n" for n in range(60)))
    text = {"path": "held_out.txt", "tokens": 256, **validate}
    values = {
        "parent": str(parent),
        "data": {"distill": {"path": "train.txt", "sequence_length": 16}, "validate": text},
        "space": {"attention": ["no_op"]},
        "distill": {"tokens": 64, "batch_size": 2},
        "recover": {"tokens": 64, "batch_size": 2},
        "hardware": {"scenarios": [{"prefill": 32, "generate": 16}]},
        "budget": {"parameters": "0.9x"},
    }
    return Job.from_dict(values, folder=folder)


def test_lengths(tmp_path: Path, tiny_parent: Callable[..., Path]) -> None:
    parent = tiny_parent("llama")
    packed = pack_texts(job_of(tmp_path, parent, {}), open_parent(parent).tokenizer()).ids
    assert {name: ids.shape[1] for name, ids in packed.items()} == {
        "distill": 16,
        "recover": 16,
        "held_out": 16,
        "score": 48,
        "report": 48,
    }
    assert len(packed["score"]) == 4, "192 tokens"
    assert len(packed["report"]) == 2, "64 tokens, a whole number of sequences"


def test_too_short_for_what_is_served_names_the_field(tmp_path: Path, tiny_parent: Callable[..., Path]) -> None:
    parent = tiny_parent("llama")
    job = job_of(tmp_path, parent, {})
    (tmp_path / "held_out.txt").write_text("one two\n<|endoftext|>\nthree four\n")
    with pytest.raises(UserError, match=r"^data\.validate\.path: the text has \d+ tokens, shorter than one .* of 48"):
        pack_texts(job, open_parent(parent).tokenizer())
