"""Low-rank adapters (LoRA, arXiv 2106.09685) on every linear layer, by PEFT, and the weights that they come to.

An adapted matrix is W + s B A, and only A and B are trained: gradients, moments and checkpoints are theirs alone. They
are merged where weights are stored, so that nothing behind a training knows of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inlay.distill.parallel import local, whole
from inlay.distill.settings import NO_PEFT

RANK = 16
SCALE = 6.0
"""What B A is multiplied by. An optimizer that knows no scale moves W by as much more, so that the rates which suit
whole matrices suit these."""
_NAME = "default"
_DOWN, _UP, _BASE = f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight", ".base_layer."


def add_adapters(module: nn.Module, seed: int, rank: int = RANK) -> None:
    """Puts an adapter on every linear layer in a module, in place; nothing else of it requires a gradient then.

    It computes what it did before: B is zeros. A is drawn from the seed alone.

    Raises:
        ImportError: PEFT is not installed.
    """
    module.requires_grad_(False)
    names = [name for name, each in module.named_modules() if isinstance(each, nn.Linear)]
    if not names:
        return
    peft = _peft()
    config = peft.LoraConfig(r=rank, lora_alpha=SCALE * rank, lora_dropout=0.0, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        peft.inject_adapter_in_model(config, module, _NAME)


class Merged(Mapping[str, Tensor]):
    """The tensors of an adapted model by their plain names, each matrix with its adapter in it, in float32.

    What has no adapter is as it was given. A matrix is merged when it is asked for; where the model is sharded, what is
    given are this process's rows, and all processes ask for the same. Matrices may go by the names that they have under
    an adapter, or by their own.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._plain = {name.replace(_BASE, "."): name for name in tensors if not name.endswith((_DOWN, _UP))}

    def __getitem__(self, name: str) -> Tensor:
        own, place = local(self.under(name)), name.removesuffix(".weight")
        if f"{place}{_DOWN}" not in self._tensors:
            return own
        up_OR, down_RI = local(self._tensors[f"{place}{_UP}"]), whole(self._tensors[f"{place}{_DOWN}"])
        return own.float() + SCALE * (up_OR.float() @ down_RI.float())

    def under(self, name: str) -> Tensor:
        """The tensor as the model has it, without its adapter."""
        return self._tensors[self._plain[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._plain

    def __iter__(self) -> Iterator[str]:
        return iter(self._plain)

    def __len__(self) -> int:
        return len(self._plain)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ImportError(f"adapters need {NO_PEFT}") from None
    return peft
