"""From the fields of a GGUF file to the tokenizer files of the same model."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from inlay.nas.errors import UserError
from inlay.nas.families.byte_bpe import cutting_named, pre_tokenizer_of
from inlay.nas.families.gguf.header import Header

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
"""What a token is, by llama.cpp's numbers."""
_SPACE: Final = "▁"
_BYTES: Final = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_NAMES: Final = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Special tokens by their names in Transformers and in a file."""


def tokenizer_of(header: Header) -> dict[str, Any]:
    """The tokenizer.json of the tokenizer in a file.

    Its ids are those of llama.cpp, except that Qwen's tokenizers bring a text into Unicode's composed form first, as
    they did when the model was trained. Raises `UserError` for a tokenizer that cannot be rebuilt.
    """
    kind = header.fields.get("tokenizer.ggml.model")
    tokens = header.tokens
    if kind not in ("llama", "gpt2"):
        raise _cannot(header, f"is of the kind `{kind}`")
    if len(set(tokens)) != len(tokens) or not tokens:
        raise header.damaged("it has no list of tokens in which each stands once")
    for name in (*_NAMES.values(), "eot"):
        header.token_id(name)
    types = header.get("tokenizer.ggml.token_type", list, [_NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise header.damaged(f"it has {len(tokens):,} tokens and the types of {len(types):,}")
    added = [
        {
            "id": place,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[place] != _USER_DEFINED,
        }
        for place, token in enumerate(tokens)
        if types[place] in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    rebuilt = _sentencepiece(header, tokens, types) if kind == "llama" else _byte_level(header)
    vocab = {token: place for place, token in enumerate(tokens) if types[place] != _UNUSED}
    rebuilt["model"] = _PLAIN_BPE | rebuilt["model"] | {"vocab": vocab}
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": _around(header, tokens),
        **rebuilt,
    }
    _check(header, described)
    return described


def write_tokenizer(folder: Path, header: Header, described: Mapping[str, Any], context: int) -> None:
    """Write tokenizer.json, tokenizer_config.json, generation_config.json and the chat template of a file.

    `context` is the longest sequence that the model was made for, in tokens.
    """
    tokens = header.tokens
    ids = {name: place for name, here in _NAMES.items() if (place := header.token_id(here)) is not None}
    stops = [place for place in (ids.get("eos"), header.token_id("eot")) if place is not None]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        **{f"{name}_token": tokens[place] for name, place in ids.items()},
    }
    generation: dict[str, Any] = {f"{name}_token_id": ids[name] for name in ("bos", "pad") if name in ids}
    if stops:
        generation["eos_token_id"] = sorted(set(stops), key=stops.index)
    _write_json(folder / "tokenizer.json", described)
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "generation_config.json", generation)
    if template := header.get("tokenizer.chat_template", str, ""):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


_PLAIN_BPE: Final = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def _byte_level(header: Header) -> dict[str, Any]:
    name = header.get("tokenizer.ggml.pre", str, "")
    cutting = cutting_named(name)
    if cutting is None:
        raise _cannot(header, f"cuts texts in the way `{name}` (`tokenizer.ggml.pre`)")
    merges = [_parts(merge) for merge in header.texts("tokenizer.ggml.merges")]
    return {
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": pre_tokenizer_of(cutting),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"merges": [parts for parts in merges if parts], "ignore_merges": cutting.ignore_merges},
    }


def _parts(merge: str) -> list[str]:
    """Its two parts; none for a text without a space, which stands for an empty list."""
    cut = merge.find(" ", 1)
    return [merge[:cut], merge[cut + 1 :]] if cut > 0 else []


def _sentencepiece(header: Header, tokens: list[str], types: list[int]) -> dict[str, Any]:
    scores = header.get("tokenizer.ggml.scores", list, [])
    if len(scores) != len(tokens):
        raise header.damaged(f"it has {len(tokens):,} tokens and the scores of {len(scores):,}")
    if not _BYTES.issubset(tokens):
        raise _cannot(header, "lacks tokens of single bytes")
    unknown = header.token_id("unknown")
    if unknown is None:
        unknown = 0
    prefix = header.get("tokenizer.ggml.add_space_prefix", bool, True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    before = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    merges = list(_merges({token: scores[i] for i, token in enumerate(tokens) if types[i] == _NORMAL}))
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *after]},
        "model": {"merges": merges, "byte_fallback": True, "unk_token": tokens[unknown]},
    }


def _merges(scores: Mapping[str, float]) -> Iterator[list[str]]:
    """Every pair that makes a token, the token of the highest score first, as llama.cpp joins them."""
    for token in sorted(scores, key=lambda token: -scores[token]):
        for cut in range(1, len(token)):
            if token[:cut] in scores and token[cut:] in scores:
                yield [token[:cut], token[cut:]]


def _around(header: Header, tokens: list[str]) -> dict[str, Any] | None:
    """What stands before and after a text."""
    cutting = cutting_named(header.get("tokenizer.ggml.pre", str, ""))
    # Where a file does not say, llama.cpp decides by the kind.
    by_kind = header.fields["tokenizer.ggml.model"] == "llama" or (cutting is not None and cutting.name == "llama-bpe")
    asked = {
        "bos": header.get("tokenizer.ggml.add_bos_token", bool, by_kind),
        "eos": header.get("tokenizer.ggml.add_eos_token", bool, False),
    }
    put = {each: tokens[place] for each in asked if asked[each] and (place := header.token_id(each)) is not None}
    if not put:
        return None

    def template(*parts: str) -> list[dict[str, Any]]:
        given: list[dict[str, Any]] = []
        for kind, part in enumerate(parts):
            given += [{"SpecialToken": {"id": put["bos"], "type_id": kind}}] if "bos" in put else []
            given += [{"Sequence": {"id": part, "type_id": kind}}]
            given += [{"SpecialToken": {"id": put["eos"], "type_id": kind}}] if "eos" in put else []
        return given

    special = {token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]} for token in put.values()}
    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("A", "B"),
        "special_tokens": special,
    }


def _check(header: Header, described: Mapping[str, Any]) -> None:
    """That the tokenizers library takes it."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(json.dumps(described))
    except Exception as error:  # the library raises bare `Exception`
        raise header.damaged(f"its tokenizer cannot be rebuilt ({' '.join(str(error).split())})") from None


def _cannot(header: Header, what: str) -> UserError:
    return UserError(
        f"parent: the tokenizer in `{header.path}` {what}, and cannot be rebuilt; "
        "give the model as a Transformers folder instead."
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
