"""The byte-level BPE tokenizer of the embedded parent.

Text is cut before merging as Llama 3 does it, and a piece that is a token as a whole is not merged (`ignore_merges`):
runtimes know this scheme by name (llama.cpp: `llama-bpe`), so an export needs no pre-tokenizer of its own.
"""

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from typing import Final

import torch
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor

UNK: Final = "<unk>"
BOS: Final = "<s>"
EOS: Final = "</s>"
SPECIAL_TOKENS: Final = (UNK, BOS, EOS)
BOS_ID: Final = 1
EOS_ID: Final = 2

_LLAMA3_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(documents: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of `vocabulary` tokens (specials and the 256 bytes included) learned from `documents`.

    Any text can be encoded and decodes to itself. With `add_special_tokens` the ids open with BOS. The same documents
    give the same tokenizer. Raises `ValueError` when `vocabulary` cannot hold the bytes and the specials.
    """
    alphabet = sorted(ByteLevel.alphabet())
    if vocabulary < len(alphabet) + len(SPECIAL_TOKENS):
        least = len(alphabet) + len(SPECIAL_TOKENS)
        raise ValueError(f"`vocabulary` must be at least {least} (bytes and special tokens), not {vocabulary}.")
    tokenizer = Tokenizer(BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, document: str) -> list[int]:
    """Ids of one document as trained on: no BOS, EOS at the end; `</s>` inside the text is plain text."""
    tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.encode(document, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = False
    return [*ids, EOS_ID]


def tokenize(tokenizer: Tokenizer, texts: SequenceOf[str]) -> list[Tensor]:
    """Ids of every document, int64, without BOS and with EOS at the end."""
    return [torch.tensor(encode(tokenizer, text)) for text in texts]
