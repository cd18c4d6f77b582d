"""Documents to packed sequences, sources to one text, sequences to a training order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from inlay.distill.text import Mix, token_lists, training_order
from inlay.distill.text import pack as pack_lists

BOS = 1


def tokenizer(adds_bos: bool = True, bos: str | None = "<s>") -> Any:
    """Words `w3` .. `w99` are tokens 3 .. 99."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 100)}}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    if adds_bos:
        inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token="</s>")


def words(first: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(first, first + count))


def pack(documents: Sequence[str], tokenizer: Any, length: int, tokens: int | None = None) -> Any:
    return pack_lists(token_lists(documents, tokenizer), length, tokens)


def test_documents_are_packed_and_tails_open_the_next_sequence_after_bos() -> None:
    packed = pack([words(10, 3), words(20, 6), words(30, 3)], tokenizer(), 6)
    assert packed.dtype == np.int32
    assert packed.tolist() == [[BOS, 10, 11, 12, BOS, 20], [BOS, 21, 22, 23, 24, 25]]  # the partial last one is dropped


def test_a_long_document_opens_each_sequence_with_bos_and_loses_nothing() -> None:
    packed = pack([words(3, 90)], tokenizer(), 10)
    assert (packed[:, 0] == BOS).all()
    assert packed[:, 1:].ravel().tolist() == list(range(3, 93))


def test_a_document_that_ends_with_the_sequence_leaves_no_tail() -> None:
    packed = pack([words(3, 3), words(10, 3)], tokenizer(), 4)
    assert packed.tolist() == [[BOS, 3, 4, 5], [BOS, 10, 11, 12]]


def test_bos_is_put_where_the_tokenizer_forgets_it_and_eos_stands_in_where_there_is_none() -> None:
    assert pack([words(3, 3)], tokenizer(adds_bos=False), 4).tolist() == [[BOS, 3, 4, 5]]
    assert pack([words(3, 3)], tokenizer(adds_bos=False, bos=None), 4).tolist() == [[2, 3, 4, 5]]


def test_packing_stops_when_there_are_enough_tokens() -> None:
    given = tokenizer()
    seen: list[str] = []

    class Watched(PreTrainedTokenizerFast):  # type: ignore[misc]
        def __call__(self, batch: list[str], **options: Any) -> Any:
            seen.extend(batch)
            return super().__call__(batch, **options)

    watched = Watched(tokenizer_object=given.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    assert pack(["w3 w4 w5"] * 5000, watched, 4, tokens=9).shape == (3, 4)
    assert len(seen) < 1000


def test_less_text_than_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="the text has 4 tokens, shorter than one sequence of 8"):
        pack([words(3, 3)], tokenizer(), 8)
    with pytest.raises(ValueError, match="`sequence_length` is 1"):
        pack([words(3, 3)], tokenizer(), 1)
    with pytest.raises(ValueError, match="`tokens` is 0"):
        pack([words(3, 3)], tokenizer(), 4, tokens=0)


def test_several_sources_give_tokens_by_their_weights_until_one_ends() -> None:
    sources = [[[BOS, 10]] * 1000, [[BOS, 20, 21, 22]] * 1000, [[BOS, 30]] * 5]
    mix = Mix(sources, [3.0, 1.0, 0.01])
    lists = list(mix)
    assert mix.ended == 0
    assert mix.taken == [sum(len(ids) for ids in lists if ids[1] // 10 == place) for place in (1, 2, 3)]
    assert mix.taken[0] == 2000
    assert mix.taken[1] == pytest.approx(2000 / 3, abs=4)
    for some in (20, 200, 900):  # from the start, and not only in the end
        first = [len(ids) for ids in lists[:some] if ids[1] == 10]
        assert sum(first) == pytest.approx(0.75 * sum(map(len, lists[:some])), abs=6)
    assert list(Mix(sources, [3.0, 1.0, 0.01])) == lists


def test_training_order_is_whole_shuffled_epochs() -> None:
    order = training_order(10, tokens=25 * 8, sequence_length=8, seed=3)
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10].tolist() != order[10:20].tolist()
    assert (order == training_order(10, 25 * 8, 8, seed=3)).all()
    assert (order != training_order(10, 25 * 8, 8, seed=4)).any()


def test_held_out_sequences_are_never_trained_on() -> None:
    order = training_order(10, tokens=40 * 8, sequence_length=8, seed=0, held_out=3)
    assert len(order) == 43
    assert not set(order[:40]) & set(order[40:])
    assert len(set(order[40:])) == 3
    with pytest.raises(ValueError, match="leave none to train on"):
        training_order(3, 8, 8, 0, held_out=3)
