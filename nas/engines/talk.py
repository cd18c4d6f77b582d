"""Trained models that continue texts in an engine: what it is given, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.formats.format import Bytes, Format
    from inlay.nas.modeling import InlayConfig


@dataclass(frozen=True)
class Trained:
    """A model with its weights.

    Args:
        key: hex digits that no other model has: an engine may keep what it makes of this one under them.
        config: its shape.
        folder: the model folder with its tokenizer.
        tensors: its weights by whole-model name in the type they are stored in, each read when it is asked for.
        rows: a tensor's bytes in a format, by its name; None: every number is rounded by itself.
    """

    key: str
    config: InlayConfig
    folder: Path
    tensors: Mapping[str, Tensor]
    rows: Callable[[str, Format], Bytes] | None = None


@dataclass(frozen=True)
class Continuation:
    """What a model added to a prompt, and how long it took.

    Args:
        ids: the greedy tokens, without the stop.
        stopped: whether a stop ended it, and not the limit.
        prefill_ns: reading the prompt, up to the first token.
        decode_ns: one step for each of `ids`.
    """

    ids: tuple[int, ...]
    stopped: bool
    prefill_ns: int
    decode_ns: int


class Talk(ABC):
    """Models that an engine holds, warm."""

    @abstractmethod
    def continuations(self, ids: Sequence[int], most: int, stops: Collection[int]) -> dict[str, Continuation]:
        """What every model makes of a prompt, in turns at every token.

        Args:
            ids: the prompt's tokens, at least one.
            most: new tokens at most.
            stops: tokens that end a text.

        Raises:
            UserError: the engine died or hangs.
        """
