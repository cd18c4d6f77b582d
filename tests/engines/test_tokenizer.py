"""Tokenizers as GGUF metadata: llama.cpp and Transformers give the same ids, and refusals say why."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hard_texts import texts
from sentencepieces import like_sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inlay.nas.embedded import embedded_parent
from inlay.nas.engines.gguf import tokenizer_metadata
from inlay.nas.errors import UserError

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
CLEANED = ("llama-bpe", "gpt-2")
"""Where `llama_detokenize` leaves spaces out, whatever the file says; a server prints token by token."""

Folder = Callable[..., Path]


@pytest.fixture
def trained(tmp_path: Path) -> Folder:
    """`trained(steps)`: a folder with a byte-level tokenizer that cuts by these steps, learned from this file."""

    def train(*steps: Any, normalizer: Any = None, ignore_merges: bool = False, bos: bool = False) -> Path:
        tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
        tokenizer.decoder = decoders.ByteLevel()
        special = ["<unk>", "<s>", "</s>", "<|im_end|>"]
        trainer = trainers.BpeTrainer(
            vocab_size=900,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator([Path(__file__).read_text(), *texts(1)], trainer)
        tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
        if bos:
            tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        return saved(tmp_path / "trained", tokenizer, bos_token="<s>", eos_token="</s>")

    return train


@pytest.fixture(scope="module")
def sentencepiece() -> dict[str, Any]:
    """A tokenizer.json that falls back to bytes."""
    return like_sentencepiece()


def saved(folder: Path, tokenizer: Tokenizer, **names: str) -> Path:
    """A folder with that tokenizer."""
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names).save_pretrained(
        folder
    )
    return folder


def values(folder: Path, vocab: int = 1024) -> dict[str, Any]:
    """What is written, by key."""
    return {field.key.removeprefix("tokenizer."): field.value for field in tokenizer_metadata(folder, vocab)}


def check_equal(folder: Path, answers: list[Any], given: list[str], cleaned: bool) -> None:
    """Ids of every text, and the texts of the ids."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, (ids, detokenized) in zip(given, answers, strict=True):
        assert ids == tokenizer(text).input_ids, repr(text)
        decoded = tokenizer.decode([tokenizer.eos_token_id, *ids])
        if not cleaned or tokenizer.clean_up_tokenization(decoded) == decoded:
            assert detokenized == decoded, repr(text)


def test_trained_parents_have_the_same_ids(parents_dir: Path, llama_tokens: Any, vocabulary_file: Any) -> None:
    folders = sorted(path.parent for path in parents_dir.glob("*/config.json"))
    for folder in {*folders, embedded_parent("pystdlib")}:
        file = vocabulary_file(folder, json.loads((folder / "config.json").read_text())["vocab_size"])
        cleaned = values(folder, 10_000)["ggml.pre"] in CLEANED
        check_equal(folder, llama_tokens(file, texts())["answers"], texts(), cleaned)


@pytest.mark.parametrize(
    ("name", "steps", "settings"),
    [
        ("llama-bpe", [pre_tokenizers.Split(Regex(LLAMA3), "isolated")], {"ignore_merges": True, "bos": True}),
        ("qwen2", [pre_tokenizers.Split(Regex(QWEN2), "isolated")], {"normalizer": normalizers.NFC()}),
        ("qwen2", [pre_tokenizers.Split(Regex(QWEN2), "removed", invert=True)], {}),
        ("smollm", [pre_tokenizers.Digits(individual_digits=True)], {}),
        ("gpt-2", [], {"bos": True}),
    ],
)
def test_byte_level_tokenizers_have_the_same_ids(
    name: str, steps: list[Any], settings: dict[str, Any], trained: Folder, llama_tokens: Any, vocabulary_file: Any
) -> None:
    own_pattern = name in ("smollm", "gpt-2")
    folder = trained(*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own_pattern), **settings)
    assert values(folder)["ggml.pre"] == name
    given = [*texts(), "a<tool> b", "<|im_end|>\n<s>x"]
    if "normalizer" in settings:  # llama.cpp does not compose characters
        given = [unicodedata.normalize("NFC", text) for text in given]
    answered = llama_tokens(vocabulary_file(folder, 1024), given)
    check_equal(folder, answered["answers"], given, name in CLEANED)
    assert answered["stops"] == [2, 3]


def test_a_tokenizer_that_only_knows_bytes(tiny_parent: Any, llama_tokens: Any, vocabulary_file: Any) -> None:
    folder = tiny_parent("llama")
    check_equal(folder, llama_tokens(vocabulary_file(folder, 288), texts())["answers"], texts(), cleaned=True)
    assert values(folder, 288)["ggml.tokens"][-1] == "[PAD287]"
    assert values(folder, 288)["ggml.token_type"][-29:] == [5] * 29


def test_sentencepiece_has_the_same_ids(
    sentencepiece: dict[str, Any], tmp_path: Path, llama_tokens: Any, vocabulary_file: Any
) -> None:
    folder = saved(tmp_path / "s", Tokenizer.from_str(json.dumps(sentencepiece)), bos_token="<s>", eos_token="</s>")
    check_equal(folder, llama_tokens(vocabulary_file(folder, 1024), texts())["answers"], texts(), cleaned=False)


@pytest.mark.parametrize(("scheme", "prefix"), [("first", True), ("never", False)])
def test_metaspace_is_a_space_before_the_text(
    scheme: str, prefix: bool, sentencepiece: dict[str, Any], tmp_path: Path, llama_tokens: Any, vocabulary_file: Any
) -> None:
    cut = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    described = sentencepiece | {"normalizer": None, "pre_tokenizer": cut}
    folder = saved(tmp_path / "m", Tokenizer.from_str(json.dumps(described)), bos_token="<s>", eos_token="</s>")
    assert values(folder)["ggml.add_space_prefix"] is prefix
    special = ("<s>", "</s>", "<unk>")
    # Of these two llama.cpp adds a space where Transformers does not.
    given = [
        text for text in texts() if not prefix or not (text[:1] in (" ", "▁") or any(each in text for each in special))
    ]
    answers = llama_tokens(vocabulary_file(folder, 1024), given)["answers"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [ids for ids, _ in answers] == [tokenizer(text).input_ids for text in given]


def test_what_stands_around_a_text_is_tried_out(trained: Folder) -> None:
    folder = trained(pre_tokenizers.ByteLevel(add_prefix_space=False), bos=True)
    told = values(folder)
    assert (told["ggml.add_bos_token"], told["ggml.add_eos_token"]) == (True, False)
    assert (told["ggml.bos_token_id"], told["ggml.eos_token_id"]) == (1, 2)
    described = json.loads((folder / "tokenizer.json").read_text())
    described["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(described))
    assert values(folder)["ggml.add_bos_token"] is False


def test_every_token_that_ends_a_generation_is_told(trained: Folder, llama_tokens: Any, vocabulary_file: Any) -> None:
    folder = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert values(folder)["ggml.eot_token_id"] == 3
    described = (folder / "tokenizer.json").read_text().replace("<|im_end|>", "<|stop|>")
    (folder / "tokenizer.json").write_text(described)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    assert values(folder)["ggml.eot_token_id"] == 3
    assert llama_tokens(vocabulary_file(folder, 1024), [])["stops"] == [2, 3]


def test_a_chat_template_comes_along(trained: Folder) -> None:
    folder = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert "chat_template" not in values(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert values(folder)["chat_template"] == "{{ messages[0].content }}"


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(
    ("steps", "settings", "what"),
    [
        (
            [pre_tokenizers.Punctuation(), BYTE_LEVEL],
            {},
            "cuts the text in a way of its own (`pre_tokenizer` in tokenizer.json)",
        ),
        ([pre_tokenizers.ByteLevel(add_prefix_space=True)], {}, "cuts the text in a way of its own"),
        ([BYTE_LEVEL], {"normalizer": normalizers.Lowercase()}, "changes the text before it cuts it (Lowercase)"),
        ([pre_tokenizers.Whitespace()], {}, "is neither byte-level nor falls back to bytes"),
    ],
)
def test_other_ways_of_cutting_are_refused(
    steps: list[Any], settings: dict[str, Any], what: str, trained: Folder
) -> None:
    refused(trained(*steps, **settings), what)


def refused(folder: Path, what: str, vocab: int = 4096) -> None:
    """One sentence with what it is and the way out."""
    with pytest.raises(UserError) as caught:
        tokenizer_metadata(folder, vocab)
    assert str(caught.value).startswith(f"gguf: the tokenizer in `{folder}` {what}")
    assert str(caught.value).endswith(
        ", and llama.cpp could not give its ids; use the model's Transformers folder instead of a GGUF file."
    )


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0)], unk_id=0), "Unigram"),
        (models.WordPiece({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"), "WordPiece"),
    ],
)
def test_other_kinds_are_refused(model: Any, name: str, tmp_path: Path) -> None:
    refused(saved(tmp_path / "other", Tokenizer(model), eos_token="</s>"), f"is of the type {name}")


def change(described: dict[str, Any], path: str, value: Any) -> None:
    """Set what lies at `path`."""
    *parts, last = path.split(".")
    for part in parts:
        described = described[int(part)] if part.isdigit() else described[part]  # type: ignore[index]
    described[last] = value


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("model.dropout", 0.1, "has `dropout`"),
        ("added_tokens.0.lstrip", True, "has the token `<unk>`, which takes the text around it into account"),
        ("model.ignore_merges", True, "has the token `"),
        (
            "post_processor",
            {"type": "BertProcessing", "sep": ["<unk>", 0], "cls": ["<s>", 1]},
            "puts other tokens around",
        ),
    ],
)
def test_what_llama_cpp_has_no_word_for_is_refused(path: str, value: Any, what: str, trained: Folder) -> None:
    folder = trained(BYTE_LEVEL)
    described = json.loads((folder / "tokenizer.json").read_text())
    change(described, path, value)
    if path == "model.ignore_merges":  # a token that its parts' merges do not give
        described["model"]["vocab"]["Ġxq"] = 1000
    (folder / "tokenizer.json").write_text(json.dumps(described))
    refused(folder, what)


def test_merges_that_no_scores_give_are_refused(sentencepiece: dict[str, Any], tmp_path: Path) -> None:
    described = sentencepiece | {"model": sentencepiece["model"] | {"merges": sentencepiece["model"]["merges"][:-40]}}
    folder = saved(tmp_path / "m", Tokenizer.from_str(json.dumps(described)), bos_token="<s>", eos_token="</s>")
    refused(folder, "merges in an order that no scores of its tokens give")


def test_a_nul_is_refused(sentencepiece: dict[str, Any], tmp_path: Path) -> None:
    vocab = sentencepiece["model"]["vocab"] | {"\0": len(sentencepiece["model"]["vocab"])}
    described = sentencepiece | {"model": sentencepiece["model"] | {"vocab": vocab}}
    folder = saved(tmp_path / "n", Tokenizer.from_str(json.dumps(described)), bos_token="<s>", eos_token="</s>")
    refused(folder, "has a token with the character NUL")


def test_a_text_without_an_end_is_refused(trained: Folder) -> None:
    folder = trained(BYTE_LEVEL)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    refused(folder, "names no token that ends a text (`eos_token` in tokenizer_config.json)")


def test_ids_beyond_the_embedding_are_refused(trained: Folder) -> None:
    with pytest.raises(UserError, match="the embedding has 100 rows"):
        tokenizer_metadata(trained(BYTE_LEVEL), 100)
