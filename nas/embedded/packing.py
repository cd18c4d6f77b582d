"""Documents packed into sequences, in an order that is new at every pass and a function of the seed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from inlay.nas.embedded.tokenizer import BOS_ID
from inlay.nas.errors import UserError


class Packer:
    """An endless list of sequences of `length` tokens: pass after pass over the documents.

    Every pass has its own order of documents and its own place of the first cut, so that no two passes pack alike.
    `document_tokens` are int64 ids, each document ending in EOS. Raises `UserError` when the text is shorter than two
    sequences.
    """

    def __init__(self, document_tokens: Sequence[Tensor], length: int, seed: int) -> None:
        self._documents = list(document_tokens)
        self._length = length
        self._seed = seed
        self.windows = sum(len(tokens) for tokens in document_tokens) // length - 1
        """Sequences of one pass."""
        if self.windows < 1:
            raise UserError(f"The text is too short: it must hold at least two sequences of {length} tokens.")
        self._epoch = -1
        self._epoch_windows = torch.empty(0)

    def targets(self, first: int, count: int) -> Tensor:
        """The tokens to predict in the sequences `first` to `first + count - 1`, shape (count, length), int64."""
        rows = []
        for index in range(first, first + count):
            epoch, place = divmod(index, self.windows)
            if epoch != self._epoch:
                self._epoch, self._epoch_windows = epoch, self._pack(epoch)
            rows.append(self._epoch_windows[place])
        return torch.stack(rows)

    def _pack(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._documents), generator=generator)
        cut = int(torch.randint(self._length, (1,), generator=generator))
        stream = torch.cat([self._documents[i] for i in order.tolist()])
        windows = stream[cut : cut + self.windows * self._length].view(self.windows, self._length)
        return windows[torch.randperm(self.windows, generator=generator)]


def inputs_of(targets_BS: Tensor) -> Tensor:
    """What the model reads to predict `targets_BS`: BOS, then all targets but the last."""
    return torch.cat((torch.full_like(targets_BS[:, :1], BOS_ID), targets_BS[:, :-1]), dim=1)
