"""The texts of a search: drawn from the whole file, and what judges whole models is trained on by nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from inlay.nas.errors import UserError
from inlay.nas.job import Job
from inlay.nas.loop.texts import held_out_batches, pack_texts
from inlay.nas.loop.training import held_out_for, tail_for
from inlay.nas.pieces.texts import Ids, Texts

DOCUMENTS = 4000


def tokenizer() -> Any:
    """Word `wN` is token N + 3."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number + 3 for number in range(DOCUMENTS)}}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """`job(tokens, documents, seed)`: a job that trains on so many tokens of a file whose words tell their place."""

    def make(tokens: int, documents: int = DOCUMENTS, seed: int = 0) -> Job:
        text = "\n<|endoftext|>\n".join(" ".join([f"w{number}"] * 31) for number in range(documents))
        (tmp_path / "train.txt").write_text(text)
        (tmp_path / "judge.txt").write_text("\n<|endoftext|>\n".join(["w1 " * 100] * 8))
        return Job.from_dict(
            {
                "parent": str(tmp_path),
                "seed": seed,
                "data": {
                    "distill": {"path": str(tmp_path / "train.txt"), "sequence_length": 32},
                    "validate": {"path": str(tmp_path / "judge.txt"), "tokens": 256},
                },
                "space": {"ffn": ["no_op"]},
                "distill": {"tokens": tokens, "batch_size": 2},
                "recover": {"tokens": tokens, "batch_size": 2},
                "hardware": {"scenarios": [{"name": "short", "prefill": 16, "generate": 16}]},
                "budget": {"parameters": "0.9x"},
            }
        )

    return make


def test_training_reads_the_whole_file_and_the_same_text_for_the_same_job(job: Callable[..., Job]) -> None:
    packed = pack_texts(job(12_800), tokenizer()).ids
    for name in ("distill", "recover"):
        places = np.unique(packed[name][packed[name] >= 3])
        assert 350 <= len(places) <= 450
        assert places.mean() == pytest.approx(DOCUMENTS / 2, rel=0.1)
        assert places.max() > 0.98 * DOCUMENTS
    again, other = (pack_texts(job(12_800, seed=seed), tokenizer()).ids for seed in (0, 1))
    assert all((packed[name] == again[name]).all() for name in packed)
    assert not np.array_equal(packed["recover"], other["recover"])


@pytest.mark.parametrize("tokens", [12_800, 10**9])
def test_what_judges_while_training_is_never_trained_on(job: Callable[..., Job], tokens: int) -> None:
    packed = pack_texts(job(tokens, documents=400), tokenizer()).ids
    judging = set(packed["held_out"].ravel().tolist()) - {1}
    assert len(packed["held_out"]) % 2 == 0
    assert 2 <= len(packed["held_out"]) <= 400 / 16
    for name in ("distill", "recover"):
        assert not judging & set(packed[name].ravel().tolist())
    if tokens == 10**9:  # more than there is: all of the text is used
        assert len(packed["recover"]) + len(packed["held_out"]) == 400


@pytest.mark.parametrize(("tokens", "batches"), [(64, 1), (64 * 160, 10), (64 * 1024, 32), (64 * 12_800, 100)])
def test_short_trainings_are_judged_on_few_batches(job: Callable[..., Job], tokens: int, batches: int) -> None:
    assert held_out_batches(job(64), tokens) == batches


def test_a_text_without_enough_to_hold_back_is_refused(job: Callable[..., Job]) -> None:
    with pytest.raises(UserError) as caught:
        pack_texts(job(64, documents=6), tokenizer())
    assert str(caught.value) == (
        "data.distill.path: the text gives 6 sequences of 32 tokens; 4 and 2 are held out and at least one is trained "
        "on, so give more text, a smaller data.distill.sequence_length, or a smaller distill.batch_size and "
        "recover.batch_size"
    )


def with_tail(job: Job, tokens: int = 3_200, length: int = 128) -> Job:
    tail = job.recover.tail.model_copy(update={"tokens": tokens, "sequence_length": length})
    return job.model_copy(update={"recover": job.recover.model_copy(update={"tail": tail, "batch_size": 8})})


@pytest.mark.parametrize("tokens", [12_800, 51_200, 10**9])
def test_a_tail_reads_what_recovery_does_and_is_judged_on_what_it_does_not(
    job: Callable[..., Job], tokens: int
) -> None:
    given = job(tokens)
    short, packed = pack_texts(given, tokenizer()), pack_texts(with_tail(given), tokenizer())
    ids = packed.ids
    assert ids["tail"].shape[1] == ids["held_out"].shape[1] == 128
    trained, judging = (set(ids[name].ravel().tolist()) - {1} for name in ("tail", "held_out"))
    recovered = set(ids["recover"].ravel().tolist()) - {1}
    assert trained <= recovered
    assert len(trained) > 0.9 * len(recovered)
    assert not judging & recovered
    assert not judging & set(ids["distill"].ravel().tolist())
    assert len(ids["held_out"]) % 2 == 0
    assert (ids["tail"][:, 0] == 1).all()
    assert packed.sources.keys() == short.sources.keys()
    assert {name: array.shape for name, array in ids.items() if name in ("score", "report")} == {
        name: short.ids[name].shape for name in ("score", "report")
    }


def test_a_text_too_short_for_a_tail_is_refused(job: Callable[..., Job]) -> None:
    with pytest.raises(UserError) as caught:
        pack_texts(with_tail(job(640, documents=40), 640, 512), tokenizer())
    assert str(caught.value).startswith("data.distill.path: the text gives 1 sequences of 512 tokens to train on and 0")


def test_a_tail_is_the_end_of_a_training_and_of_a_probe(job: Callable[..., Job]) -> None:
    given = with_tail(job(12_800))
    ids = Ids("a", (10, 32))
    texts = Texts(ids, ids, Ids("h", (4, 128)), ids, ids, (), Ids("t", (100, 128)))
    assert Texts.of(texts.to_dict()) == texts
    assert tail_for(given, texts, 12_800) == {"ids": "t", "batch_size": 2, "steps": 12}  # a quarter of 50
    assert tail_for(given, texts, 1_280) == {"ids": "t", "batch_size": 2, "steps": 1}
    assert held_out_for(given, texts, 12_800) == {"ids": "h", "batches": 3, "batch_size": 2}
    assert tail_for(job(12_800), replace(texts, tail=None), 12_800) is None
    assert held_out_for(job(12_800), replace(texts, tail=None), 12_800)["batch_size"] == 2
