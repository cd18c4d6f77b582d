"""The byte-level BPE tokenizer: exact on any text, BOS first, the same again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inlay.nas.embedded import embedded_parent
from inlay.nas.embedded.tokenizer import BOS_ID, EOS_ID, encode, tokenize, train_tokenizer

TEXTS = ["def f(x):\n    return x + 1\n" * 20, "class A:\n\n    def g(self):\n        pass\n" * 20]
SHIPPED = Tokenizer.from_file(str(embedded_parent("pystdlib") / "tokenizer.json"))


@given(st.text())
def test_any_text_decodes_to_itself(text: str) -> None:
    for add_special_tokens in (False, True):
        ids = SHIPPED.encode(text, add_special_tokens=add_special_tokens).ids
        decoded = SHIPPED.decode(ids, skip_special_tokens=False)
        assert decoded == ("<s>" if add_special_tokens else "") + text


@given(st.text(alphabet="</s>unk \n\té"))
def test_documents_decode_to_themselves_even_with_special_tokens_inside(text: str) -> None:
    *ids, last = encode(SHIPPED, text)
    assert last == EOS_ID
    assert not {0, BOS_ID, EOS_ID} & set(ids)
    assert SHIPPED.decode(ids) == text


def test_special_tokens_come_first_and_bos_opens() -> None:
    assert [SHIPPED.id_to_token(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert SHIPPED.encode("import os").ids[0] == BOS_ID
    assert SHIPPED.get_vocab_size() == 3072


def test_training_is_deterministic() -> None:
    assert train_tokenizer(TEXTS, 300).to_str() == train_tokenizer(TEXTS, 300).to_str()


def test_documents_end_in_eos() -> None:
    ids = tokenize(train_tokenizer(TEXTS, 300), TEXTS)
    assert [int(document[-1]) for document in ids] == [EOS_ID, EOS_ID]
    assert all(BOS_ID not in document.tolist() for document in ids)


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^`vocabulary` must be at least 259 .*, not 258\.$"):
        train_tokenizer(TEXTS, 258)
