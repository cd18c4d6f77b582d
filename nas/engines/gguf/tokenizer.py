"""A model folder's tokenizer as GGUF metadata, so that llama.cpp turns texts into the same ids.

What is written is what Transformers makes of the folder, since that is what a search trained on: the tokens before and
after a text are tried out rather than read from a flag. Two kinds can be rebuilt, SentencePiece's BPE with byte
fallback and byte-level BPE with a known way of cutting; every other is refused, since a guess would be a model that
reads other text than it was trained on.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import product
from pathlib import Path
from typing import Any, Final

from inlay.nas.engines.gguf.fields import Field, Kind
from inlay.nas.engines.gguf.sentencepiece import BYTES, MERGED_LAST, has_space_before, scores_of
from inlay.nas.errors import UserError
from inlay.nas.families.byte_bpe import cutting_of, is_byte_level
from inlay.nas.families.tokenizer import load_tokenizer

NO_MERGES: Final = "-"
"""Stands for an empty list of merges, which the writer does not take; without a space it merges nothing."""
_TURN_ENDS: Final = ("<|eot_id|>", "<|im_end|>", "<|end_of_turn|>", "<end_of_turn>")
"""Tokens that end a turn of a conversation."""


class TokenType(IntEnum):
    """What a token is, by llama.cpp's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class _Vocabulary:
    tokens: list[str]
    types: list[TokenType]


def tokenizer_metadata(folder: Path, vocab: int) -> list[Field]:
    """The `tokenizer.*` fields of the tokenizer in `folder` for a model whose embedding has `vocab` rows.

    llama.cpp then gives the ids of Transformers, special tokens inside the text included, with two exceptions that it
    has for the original models too: texts are not brought into Unicode's composed form (Qwen's tokenizers do so), and
    SentencePiece's space before a text is added to a text that begins with a space, and after each special token, where
    Transformers' `Metaspace` does not. Rows without a token become unused ones.

    Raises `UserError` for a tokenizer that cannot be rebuilt (Unigram, WordPiece, an unknown way of cutting), cannot be
    loaded, or has ids that the embedding lacks.
    """
    tokenizer = load_tokenizer(folder, vocab)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _cannot(folder, "is not one of the tokenizers library")
    described = json.loads(backend.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise _cannot(folder, f"is of the type {model['type']}")
    _check_plain(folder, described)
    own = _byte_level(folder, described) if is_byte_level(described["pre_tokenizer"]) else _fallback(folder, described)
    vocabulary = _vocabulary(folder, described, vocab, tokenizer.unk_token_id)
    fields = [*own, *_tokens(vocabulary), *_special_ids(folder, tokenizer), *_around(folder, tokenizer)]
    if own[0].value == "llama":
        fields.append(_scores(vocabulary, scores_of(described)))
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    return [*fields, Field("tokenizer.chat_template", template, Kind.STRING)] if template else fields


def _check_plain(folder: Path, described: Mapping[str, Any]) -> None:
    """Nothing that llama.cpp has no word for."""
    model = described["model"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _cannot(folder, f"has `{key}`")
    for token in described["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _cannot(folder, f"has the token `{token['content']}`, which takes the text around it into account")


def _byte_level(folder: Path, described: Mapping[str, Any]) -> list[Field]:
    normalizer, model = described["normalizer"], described["model"]
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _cannot(folder, f"changes the text before it cuts it ({normalizer['type']})")
    cutting = cutting_of(described["pre_tokenizer"])
    if cutting is None:
        raise _cannot(folder, "cuts the text in a way of its own (`pre_tokenizer` in tokenizer.json)")
    if model["ignore_merges"] != cutting.ignore_merges and (token := _not_merged(described)) is not None:
        raise _cannot(folder, f"has the token `{token}`, which the merges of its parts do not give")
    merges = [" ".join(pair) for pair in model["merges"]] or [NO_MERGES]
    return [
        Field("tokenizer.ggml.model", "gpt2", Kind.STRING),
        Field("tokenizer.ggml.pre", cutting.name, Kind.STRING),
        Field("tokenizer.ggml.merges", merges, Kind.ARRAY, Kind.STRING),
    ]


def _not_merged(described: Mapping[str, Any]) -> str | None:
    """A token that is taken as a whole or not, depending on whether a whole piece is merged."""
    from tokenizers.models import BPE

    model = described["model"]
    merging = BPE(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    added = {token["content"] for token in described["added_tokens"]}
    return next((each for each in model["vocab"] if each not in added and len(merging.tokenize(each)) != 1), None)


def _fallback(folder: Path, described: Mapping[str, Any]) -> list[Field]:
    model = described["model"]
    if not model["byte_fallback"] or not model["vocab"].keys() >= BYTES:
        raise _cannot(folder, "is neither byte-level nor falls back to bytes")
    space_before = has_space_before(described)
    if space_before is None:
        raise _cannot(folder, "changes or cuts the text in a way of its own (`normalizer`, `pre_tokenizer`)")
    if described["normalizer"] is not None and any(token["normalized"] for token in described["added_tokens"]):
        raise _cannot(folder, "looks for its special tokens in changed text (`normalized` in tokenizer.json)")
    if scores_of(described) is None:
        raise _cannot(folder, "merges in an order that no scores of its tokens give")
    return [
        Field("tokenizer.ggml.model", "llama", Kind.STRING),
        Field("tokenizer.ggml.pre", "default", Kind.STRING),
        Field("tokenizer.ggml.add_space_prefix", space_before, Kind.BOOL),
    ]


def _vocabulary(folder: Path, described: Mapping[str, Any], vocab: int, unknown: int | None) -> _Vocabulary:
    tokens = [f"[PAD{place}]" for place in range(vocab)]
    types = [TokenType.UNUSED] * vocab
    byte_fallback = described["model"]["byte_fallback"]
    for token, place in described["model"]["vocab"].items():
        tokens[place] = token
        types[place] = TokenType.BYTE if byte_fallback and token in BYTES else TokenType.NORMAL
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    # A byte-level tokenizer has no unknown text: its `unk_token` is a token like bos.
    if byte_fallback and unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    if any("\0" in token for token in tokens):
        raise _cannot(folder, "has a token with the character NUL")
    if len(set(tokens)) != vocab:
        raise _cannot(folder, "has one token at two ids")
    return _Vocabulary(tokens, types)


def _tokens(vocabulary: _Vocabulary) -> Iterator[Field]:
    yield Field("tokenizer.ggml.tokens", vocabulary.tokens, Kind.ARRAY, Kind.STRING)
    yield Field("tokenizer.ggml.token_type", [int(each) for each in vocabulary.types], Kind.ARRAY, Kind.INT32)


def _scores(vocabulary: _Vocabulary, scores: Mapping[str, float] | None) -> Field:
    known = scores or {}
    values = [
        known.get(token, MERGED_LAST) if kind == TokenType.NORMAL else MERGED_LAST
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
    ]
    return Field("tokenizer.ggml.scores", values, Kind.ARRAY, Kind.FLOAT32)


def _special_ids(folder: Path, tokenizer: Any) -> Iterator[Field]:
    stops = _stops(folder)
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else next(iter(stops), None)
    if eos is None:
        # llama.cpp would take an arbitrary token for it, and end texts there.
        raise _cannot(folder, "names no token that ends a text (`eos_token` in tokenizer_config.json)")
    bos = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    turn_end = next(
        (tokenizer.convert_tokens_to_ids(each) for each in _TURN_ENDS if each in tokenizer.get_vocab()), None
    )
    other = next((stop for stop in stops if stop != eos), None)
    ids = {
        "bos": bos,
        "eos": eos,
        "eot": other if turn_end is None else turn_end,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    for name, place in ids.items():
        if place is not None:
            yield Field(f"tokenizer.ggml.{name}_token_id", place, Kind.UINT32)


def _stops(folder: Path) -> list[int]:
    """The tokens that end a generation by generation_config.json, which may be more than the tokenizer names."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    stops = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    return stops if isinstance(stops, list) else [] if stops is None else [stops]


def _around(folder: Path, tokenizer: Any) -> list[Field]:
    """Whether bos stands before a text and eos behind it."""
    bare: list[int] = tokenizer("a", add_special_tokens=False).input_ids
    whole: list[int] = tokenizer("a").input_ids
    for bos, eos in product((False, True), repeat=2):
        if whole == [tokenizer.bos_token_id] * bos + bare + [tokenizer.eos_token_id] * eos:
            return [
                Field("tokenizer.ggml.add_bos_token", bos, Kind.BOOL),
                Field("tokenizer.ggml.add_eos_token", eos, Kind.BOOL),
            ]
    raise _cannot(folder, "puts other tokens around a text than bos and eos")


def _cannot(folder: Path, what: str) -> UserError:
    return UserError(
        f"gguf: the tokenizer in `{folder}` {what}, and llama.cpp could not give its ids; "
        "use the model's Transformers folder instead of a GGUF file."
    )
