"""Bits per byte of a model and of the n-gram yardstick on the same held-out tokens."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from inlay.nas.embedded.ngram import KneserNey
from inlay.nas.embedded.packing import inputs_of
from inlay.nas.embedded.tokenizer import EOS_ID


@torch.inference_mode()
def model_bits(logits_of: Callable[[Tensor], Tensor], tokens_N: Tensor, length: int, sequences: int = 8) -> float:
    """Bits that a model needs for a stream of ids, cut into sequences of `length` that open with BOS each.

    `logits_of` maps ids, shape (B, S), to logits, shape (B, S, V). Every id of the stream is predicted once, from
    those before it in its own sequence only.
    """
    whole = len(tokens_N) // length * length
    batches = list(torch.split(tokens_N[:whole].view(-1, length), sequences))
    if whole < len(tokens_N):
        batches.append(tokens_N[whole:].view(1, -1))
    nats = 0.0
    for targets_BS in batches:
        logits_BSV = logits_of(inputs_of(targets_BS)).float()
        nats += F.cross_entropy(logits_BSV.flatten(0, 1), targets_BS.flatten(), reduction="sum").item()
    return nats / math.log(2)


def ngram_bits(train_tokens: Sequence[Tensor], held_out_tokens: Sequence[Tensor], vocabulary: int, order: int) -> float:
    """Bits that the Kneser-Ney model of `train_tokens` needs for `held_out_tokens`, with contexts across all cuts."""
    yardstick = KneserNey.fit(torch.cat(list(train_tokens)).numpy(), vocabulary, order)
    return yardstick.bits(torch.cat(list(held_out_tokens)).numpy(), before=EOS_ID)


def byte_count(texts: Sequence[str]) -> int:
    """Length of the texts in UTF-8, ends of documents not counted."""
    return sum(len(text.encode()) for text in texts)
