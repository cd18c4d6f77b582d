"""The figures of the card: how they are counted, and that what is written can be read back."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inlay.nas.embedded.card import Figures, read_figures, write_card
from inlay.nas.embedded.corpus import modules
from inlay.nas.embedded.evaluate import byte_count, model_bits, ngram_bits
from inlay.nas.embedded.train import Recipe

FIGURES = Figures(
    parameters=3_837_120,
    weights_bytes=7_682_192,
    train_bytes=6_000_000,
    train_tokens=1_700_000,
    held_out_bytes=600_000,
    held_out_tokens=170_000,
    bits_per_byte=1.0,
    ngram_bits_per_byte=1.6,
    slice_bits_per_byte=1.25,
    sample="def f():\n    pass",
)


def test_uniform_model_needs_log2_of_the_vocabulary_per_token() -> None:
    seen: list[Tensor] = []

    def logits_of(tokens_BS: Tensor) -> Tensor:
        seen.append(tokens_BS)
        return torch.zeros(*tokens_BS.shape, 8)

    assert model_bits(logits_of, torch.arange(11) % 8, length=4, sequences=2) == pytest.approx(11 * 3)
    assert [tokens_BS.tolist() for tokens_BS in seen] == [[[1, 0, 1, 2], [1, 4, 5, 6]], [[1, 0, 1]]]


def test_sure_model_needs_nothing() -> None:
    tokens_N = torch.tensor([3, 4, 5, 3, 4, 5])
    next_of = {1: 3, 3: 4, 4: 5, 5: 3}

    def logits_of(tokens_BS: Tensor) -> Tensor:
        following_BS = torch.tensor([[next_of[token] for token in row] for row in tokens_BS.tolist()])
        return 100.0 * torch.nn.functional.one_hot(following_BS, 8)

    assert model_bits(logits_of, tokens_N, length=3) == pytest.approx(0, abs=1e-6)


def test_ngram_bits_of_a_unigram_model() -> None:
    found = ngram_bits([torch.tensor([0, 1]), torch.tensor([2, 3])], [torch.tensor([0, 3, 3])], vocabulary=4, order=1)
    assert found == pytest.approx(3 * math.log2(4))


def test_bytes_are_utf8() -> None:
    assert byte_count(["abc", "é漢"]) == 3 + 5


def test_card_states_recipe_and_figures(tmp_path: Path) -> None:
    write_card(tmp_path, FIGURES, Recipe(), minutes=66.6)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "That is 37.5% below the n-gram model" in card
    assert "8,192,000 tokens (4.8 passes over the text) in 67 minutes" in card
    assert f"| train | {len(modules('train'))} | 6,000,000 | 1,700,000 |" in card
    assert "  muon: 0.02\n" in card
    assert read_figures(tmp_path) == {
        "bits_per_byte": 1.0,
        "ngram_bits_per_byte": 1.6,
        "slice_bits_per_byte": 1.25,
    }
