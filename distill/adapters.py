"""Low-rank adapters (LoRA, arXiv 2106.09685) on every linear layer, by PEFT, and the weights that they come to.

An adapted matrix is W + s B A, and only A and B are trained: gradients, moments and checkpoints are theirs alone. They
are merged where weights are stored, so that nothing behind a training knows of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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


def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapted model by their plain names, each matrix with its adapter in it, in float32.

    What has no adapter is as it was given. Matrices may go by the names that they have under an adapter, or by their
    own.
    """
    found = {name.replace(_BASE, "."): tensor for name, tensor in tensors.items() if not name.endswith((_DOWN, _UP))}
    for name in [name for name in tensors if name.endswith(_DOWN)]:
        place = name.removesuffix(_DOWN)
        down_RI, up_OR = tensors[name], tensors[f"{place}{_UP}"]
        found[f"{place}.weight"] = found[f"{place}.weight"].float() + SCALE * (up_OR.float() @ down_RI.float())
    return found


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ImportError(f"adapters need {NO_PEFT}") from None
    return peft
