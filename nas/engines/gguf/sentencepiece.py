"""SentencePiece's BPE as tokenizer.json writes it, and the scores that llama.cpp merges by.

llama.cpp joins two neighbours whenever their text is a token, the token of the highest score first; a tokenizer.json
lists pairs in the order in which they are joined. The two agree where a token's pairs stand together in the list and
every pair that makes a token is in it, which is how lists made from a SentencePiece model look.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, Final

BYTES: Final = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""The tokens of single bytes, which stand for characters that are no token."""
MERGED_LAST: Final = -1e9
"""The score of tokens that no merge gives: special ones, bytes, single characters."""

_SPACE: Final = "▁"
_REPLACE: Final = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND: Final = {"type": "Prepend", "prepend": _SPACE}


def has_space_before(described: Mapping[str, Any]) -> bool | None:
    """Whether a text gets a space before it; None where it is changed or cut otherwise than SentencePiece does.

    `described` is a tokenizer.json. Newer files say so by a pre-tokenizer, older ones by normalizers.
    """
    normalizer, pre_tokenizer = described["normalizer"], described["pre_tokenizer"]
    if normalizer is None:
        pre_tokenizer = pre_tokenizer or {}
        if pre_tokenizer.get("type") != "Metaspace" or pre_tokenizer["replacement"] != _SPACE or pre_tokenizer["split"]:
            return None
        return bool(pre_tokenizer["prepend_scheme"] != "never")
    if pre_tokenizer is not None:
        return None
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    if steps == [_REPLACE]:
        return False
    return True if steps == [_PREPEND, _REPLACE] else None


def scores_of(described: Mapping[str, Any]) -> dict[str, float] | None:
    """A score for every token that merges give, the first the highest; None where no scores give the same merges.

    `described` is a tokenizer.json. Added tokens are cut out of a text before it is merged, so none of them counts.
    """
    vocab, merges = described["model"]["vocab"], [tuple(pair) for pair in described["model"]["merges"]]
    runs = [token for token, _ in groupby(left + right for left, right in merges)]
    pairs = set(merges)
    if len(set(runs)) != len(runs) or len(pairs) != len(merges):
        return None
    listed = all((token[:cut], token[cut:]) in pairs for token in runs for cut in _cuts(token, vocab))
    apart = {*runs, *BYTES, *(token["content"] for token in described["added_tokens"])}
    unlisted = (token for token in vocab if token not in apart)
    if not listed or any(_cuts(token, vocab) for token in unlisted):
        return None
    return {token: -float(rank) for rank, token in enumerate(runs)}


def _cuts(token: str, vocab: Mapping[str, int]) -> list[int]:
    """Where a token falls into two others."""
    return [cut for cut in range(1, len(token)) if token[:cut] in vocab and token[cut:] in vocab]
