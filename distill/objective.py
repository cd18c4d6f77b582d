"""What a whole child is trained for, and what it is judged by.

Loss (Puzzle, arXiv 2411.19146, section 5, without the LM loss): a weight times the mean over layers and tokens of
(1 - cosine of the layer outputs) + KL(parent || child) of the next-token distributions, nats per token. The paper adds
layers up; a mean with a weight of its own does not grow with depth.
Shapes: B batch, S sequence, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from inlay.distill.optimize import precision, training_dtype
from inlay.distill.parallel import Ranks, local, whole_head, whole_number
from inlay.distill.rounding import UNROUNDED, Rounding, rounded
from inlay.distill.settings import GlobalSettings
from inlay.kernels import kl_loss

Losses = dict[str, float]
Parameters = Mapping[str, nn.Parameter]


def gradients(
    parent: Any,
    child: Any,
    parameters: Parameters,
    ids_BS: Tensor,
    settings: GlobalSettings,
    ranks: Ranks,
    rounding: Rounding = UNROUNDED,
) -> Losses | None:
    """Leaves the clipped gradients of a whole batch in the child, the same for any number of ranks.

    They are those of the child as `rounding` has it compute.

    Returns:
        `loss`, `cosine` (weighted) and `kl_nats` of the batch; None where they, or the gradients, are not finite.
    """
    for parameter in parameters.values():
        parameter.grad = None
    cosine_sum, kl_sum, once = 0.0, 0.0, ranks.adds_once(list(parameters.values()))
    with rounded(child, rounding):
        parts = list(parts_of(ids_BS, settings, ranks))
        for number, (part_BS, share) in enumerate(parts, 1):
            if ranks.sharded:
                child.set_requires_gradient_sync(number == len(parts) or not once)
            cosine, kl = _losses(parent, child, part_BS, settings.cosine)
            ((cosine + kl) * share).backward()  # type: ignore[no-untyped-call]
            cosine_sum += float(cosine.detach()) * share
            kl_sum += float(kl.detach()) * share
    cosine_sum, kl_sum = ranks.add([cosine_sum, kl_sum], ids_BS.device)
    ranks.add_gradients(parameters.values())
    norm = whole_number(nn.utils.clip_grad_norm_(list(parameters.values()), settings.clip))
    if not math.isfinite(cosine_sum + kl_sum + norm):
        return None
    return {"loss": cosine_sum + kl_sum, "cosine": cosine_sum, "kl_nats": kl_sum}


def copied(parameters: Parameters) -> dict[str, Tensor]:
    """What this process holds of the weights, copied to the host."""
    return {name: local(parameter.detach()).to("cpu", copy=True) for name, parameter in parameters.items()}


def put_back(parameters: Parameters, copies: Mapping[str, Tensor]) -> None:
    """Gives the weights the values that `copied` took."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            local(parameter).copy_(copies[name])


def parts_of(ids_BS: Tensor, settings: GlobalSettings, ranks: Ranks) -> Iterator[tuple[Tensor, float]]:
    """This rank's rows of a batch, as many as are worked on at once, each with its share of the whole batch.

    A part's mean counts by this share, so that sums over parts and ranks are the batch's mean however it is cut.
    """
    own_BS = ranks.part(ids_BS)
    size = settings.micro_batch or len(own_BS)
    for start in range(0, len(own_BS), size):
        part_BS = own_BS[start : start + size]
        yield part_BS, len(part_BS) / len(ids_BS)


def _losses(parent: Any, child: Any, ids_BS: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        parent_layers, parent_hidden_BSD = parent.forward_hidden(ids_BS)
    with precision(parent_hidden_BSD):
        child_layers, child_hidden_BSD = child.forward_hidden(ids_BS)
        cosine = torch.stack(
            [
                (1.0 - functional.cosine_similarity(ours.float(), theirs.float(), dim=-1)).mean()
                for ours, theirs in zip(child_layers, parent_layers, strict=True)
            ]
        ).mean()
        return weight * cosine, kl_of(parent, child, parent_hidden_BSD, child_hidden_BSD)


def kl_of(parent: Any, child: Any, parent_hidden_BSD: Tensor, child_hidden_BSD: Tensor) -> Tensor:
    """Mean KL(parent || child) of the next-token distributions, nats per token, from the last hidden states."""
    # The child's last norm has float32 weights, and gives float32 under autocast.
    child_hidden_BSD = child_hidden_BSD.to(training_dtype(parent_hidden_BSD.dtype))
    with whole_head(parent) as parent_VD, whole_head(child) as child_VD:
        own_VD = child_VD if torch.is_grad_enabled() else child_VD.detach()
        return kl_loss(parent_hidden_BSD.flatten(0, 1), child_hidden_BSD.flatten(0, 1), parent_VD, own_VD)
