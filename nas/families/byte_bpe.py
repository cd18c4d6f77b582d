"""How byte-level BPE tokenizers cut a text before they merge, by the names that llama.cpp gives the ways of cutting.

A GGUF file holds such a name, a tokenizer.json the patterns; both directions read this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern inside the tokenizers library's `ByteLevel`."""
_DIGIT: Final = r"\p{N}"
_QWEN2: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Cutting:
    """One way of cutting."""

    name: str
    """The value of `tokenizer.ggml.pre`."""
    patterns: tuple[str, ...]
    """Each cuts every piece of the one before into its matches and what is between them."""
    ignore_merges: bool = False
    """Whether llama.cpp takes a piece that is a token as a whole without merging it."""


CUTTINGS: Final = (
    Cutting("llama-bpe", (_LLAMA3,), ignore_merges=True),
    Cutting("qwen2", (_QWEN2,)),
    Cutting("smollm", (_DIGIT, _GPT2)),
    Cutting("gpt-2", (_GPT2,)),
)
_OTHER_NAMES: Final = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
"""Names in files that mean one of the above."""


def cutting_named(name: str) -> Cutting | None:
    """The way of cutting that a GGUF file names, None for one that is not known."""
    return next((each for each in CUTTINGS if each.name == _OTHER_NAMES.get(name, name)), None)


def cutting_of(pre_tokenizer: Mapping[str, Any] | None) -> Cutting | None:
    """The way of cutting that a tokenizer.json's `pre_tokenizer` describes, None for one that is not known."""
    patterns = _patterns(pre_tokenizer)
    return next((each for each in CUTTINGS if each.patterns == patterns), None)


def is_byte_level(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether it ends by writing bytes as printable characters."""
    steps = _steps(pre_tokenizer)
    return bool(steps) and steps[-1].get("type") == "ByteLevel"


def pre_tokenizer_of(cutting: Cutting) -> dict[str, Any]:
    """What `cutting_of` reads, as it stands in a tokenizer.json."""
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in cutting.patterns
    ]
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*splits, to_bytes]}


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer["pretokenizers"]) if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _patterns(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    *before, last = _steps(pre_tokenizer) or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    patterns = [_pattern(step) for step in before]
    if last.get("use_regex", True):
        patterns.append(_GPT2)
    return tuple(pattern for pattern in patterns if pattern) if None not in patterns else None


def _pattern(step: Mapping[str, Any]) -> str | None:
    if step["type"] == "Digits" and step["individual_digits"]:
        return _DIGIT
    if step["type"] == "Split" and (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True)):
        return str(step["pattern"]["Regex"]) if "Regex" in step["pattern"] else None
    return None
