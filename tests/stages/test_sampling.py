"""Text that the parent writes where a job names none: seeded, kept, by the chat template, refused when it repeats."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from inlay.cluster.pieces import piece_seed
from inlay.nas.errors import UserError
from inlay.nas.families import open_parent
from inlay.nas.job import Job
from inlay.nas.loop.sampling import openings, sampled
from inlay.nas.loop.texts import pack_texts

MakeSearch = Callable[..., Any]


@pytest.fixture
def parent(tmp_path: Path, tiny_parent: Callable[..., Path]) -> Path:
    """A parent of one's own, to bend."""
    return Path(shutil.copytree(tiny_parent("llama"), tmp_path / "parent"))


def job_of(parent: Path, seed: int = 0, **text: Any) -> Job:
    sizes = {"tokens": 512, "batch_size": 2}
    distill = {"sample": "1k", "sequence_length": 32, **text}
    return Job.from_dict(
        {
            "parent": str(parent),
            "seed": seed,
            "data": {"distill": distill, "validate": {"sample": 320, "tokens": 256}},
            "space": {"ffn": ["no_op"]},
            "distill": sizes,
            "recover": sizes,
            "hardware": {"scenarios": [{"prefill": 16, "generate": 16}]},
            "budget": {"parameters": "0.9x"},
        }
    )


def write(make_search: MakeSearch, job: Job, folder: Path) -> Any:
    search = make_search(job, folder)
    return sampled(search, search.parent.tokenizer())


def test_the_same_seed_writes_the_same_text_and_it_is_kept(
    make_search: MakeSearch, parent: Path, tmp_path: Path
) -> None:
    job = job_of(parent)
    first = write(make_search, job, tmp_path / "a")
    assert {part: ids.shape for part, ids in first.items()} == {"distill": (32, 32), "validate": (10, 32)}
    assert (first["distill"][:, 0] == 1).all(), "BOS"
    assert first["distill"].max() < 259, "ids that the tokenizer lacks are never drawn"
    assert len(np.unique(first["distill"])) > 100
    again = write(make_search, job, tmp_path / "b")
    other = write(make_search, job_of(parent, seed=1), tmp_path / "b")
    assert all((first[part] == again[part]).all() for part in first)
    assert not (first["distill"] == other["distill"]).all()
    # What is kept is read, not written again.
    records = sorted((tmp_path / "a").rglob("*.json"))
    before = [record.stat().st_mtime_ns for record in records]
    write(make_search, job, tmp_path / "a")
    assert [record.stat().st_mtime_ns for record in records] == before != []

    told = pack_texts(job, open_parent(parent).tokenizer(), first)
    assert {name: len(ids) for name, ids in told.ids.items()} == {
        "distill": 20, "recover": 16, "held_out": 2, "score": 6, "report": 2,
    }  # fmt: skip
    assert told.sources == {}


def test_tokens_are_drawn_from_the_parents_own_distribution(
    make_search: MakeSearch, parent: Path, tmp_path: Path
) -> None:
    """The whole text once more through Transformers' model: each token is where its draw falls in the cumulated sum."""
    ids = write(make_search, job_of(parent, temperature=0.7), tmp_path / "w")["distill"]
    model = AutoModelForCausalLM.from_pretrained(parent)
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids.astype(np.int64))).logits[:, :-1, :259].double().numpy() / 0.7
    cumulated = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
    cumulated /= cumulated[..., -1:]
    draws = np.random.default_rng(piece_seed(0, "distill 00000")).random(ids.shape)[:, 1:]
    expected = (cumulated <= draws[..., None]).sum(-1)
    expected[expected == 2] = 1  # where it ends, BOS follows
    assert (expected == ids[:, 1:]).mean() > 0.999


def test_a_chat_is_written_turn_by_turn(make_search: MakeSearch, parent: Path, tmp_path: Path) -> None:
    (parent / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    weights = load_file(parent / "model.safetensors")
    weights["model.embed_tokens.weight"][2] *= 4  # its tied head ends turns often
    save_file(weights, parent / "model.safetensors", metadata={"format": "pt"})
    tokenizer = open_parent(parent).tokenizer()
    first, second = openings(tokenizer)
    assert (tokenizer.decode(first), tokenizer.decode(second)) == ("<s>[user]", "</s>[assistant]")
    ids = write(make_search, job_of(parent, sequence_length=64), tmp_path / "w")["distill"]
    text = [tokenizer.decode(row.tolist()) for row in ids]
    assert all(row.startswith("<s>[user]") for row in text)
    answered = [row for row in text if "</s>[assistant]" in row]
    assert answered
    assert any("<s>[user]" in row.split("</s>[assistant]")[1] for row in answered), "and another chat follows"


def test_a_text_that_repeats_one_token_is_refused(make_search: MakeSearch, parent: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        write(make_search, job_of(parent, temperature=0.001), tmp_path / "w")
    assert str(caught.value).startswith("data.distill.sample: the parent repeats itself, most often the token '")
    assert "of what it writes at temperature 0.001 is the token before; set data.distill.temperature to 1, or" in str(
        caught.value
    )


def test_a_template_that_hides_the_users_words_is_refused(
    make_search: MakeSearch, parent: Path, tmp_path: Path
) -> None:
    (parent / "chat_template.jinja").write_text("{{ messages[0]['content'] | length }}")
    with pytest.raises(UserError, match=r"^data\.distill\.sample: the parent's chat template does not hold what the"):
        write(make_search, job_of(parent), tmp_path / "w")
