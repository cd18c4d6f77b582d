"""Next-token divergences straight from hidden states and the head, without ever storing tokens x vocabulary.

Shapes: N tokens, D model width, V vocabulary, C children; n tokens of one chunk.

Both functions rest on one form of the divergence. With p the parent's distribution and d = child logits - parent
logits, less its mean under p,

    KL(parent || child) = log sum p e^d = log1p(sum p (e^d - 1 - d))

whose terms are all >= 0: no large numbers cancel, and equal logits give exactly 0.

Logits are never narrower than float32, whatever the models compute in: rounded to bfloat16 they tie, and a KL of 7e-4
nats comes out half as large again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

CPU_CHUNK_ELEMENTS = 1 << 18
"""Logits held at once on a CPU: 1 MiB in float32, so that the passes over a chunk stay in cache."""
DEVICE_CHUNK_ELEMENTS = 1 << 26
"""Logits held at once elsewhere: 256 MiB in float32."""
_LARGEST_EXPONENT = 30.0
"""Above this e^d is summed as a log-sum-exp, which cannot overflow."""


class NextTokenComparison(NamedTuple):
    """What compare_next_token returns, token by token."""

    kl: Tensor
    """[C, N] float32, nats."""
    child_nll: Tensor
    """[C, N] float32, nats: -log of what the child gives to the label."""
    agree: Tensor
    """[C, N] bool: no token is more likely to the child than the parent's first choice."""
    parent_nll: Tensor
    """[N] float32, nats."""


def kl_loss(
    parent_hidden_ND: Tensor,
    child_hidden_ND: Tensor,
    parent_head_VD: Tensor,
    child_head_VD: Tensor,
    chunk: int | None = None,
) -> Tensor:
    """Mean KL(parent || child) of the next-token distributions, nats per token, as a scalar.

    Gradients go to `child_hidden_ND` and `child_head_VD`; they are formed chunk by chunk in the forward, so that at
    most `chunk` x V logits of each model exist at a time. `chunk` defaults to what fits the device (a function of V
    alone, so results do not depend on who computes them).

    Raises:
        ValueError: shapes that do not match, no tokens, or a chunk below 1.
    """
    _check(parent_hidden_ND, parent_head_VD, "parent_hidden_ND", "parent_head_VD")
    _check(child_hidden_ND, child_head_VD, "child_hidden_ND", "child_head_VD")
    if len(parent_hidden_ND) != len(child_hidden_ND) or len(parent_head_VD) != len(child_head_VD):
        raise ValueError(
            f"parent has {len(parent_hidden_ND)} tokens and a vocabulary of {len(parent_head_VD)}, "
            f"child has {len(child_hidden_ND)} and {len(child_head_VD)}: both must agree"
        )
    size = _chunk_size(chunk, child_head_VD)
    loss: Tensor = _KlLoss.apply(parent_hidden_ND, child_hidden_ND, parent_head_VD, child_head_VD, size)  # type: ignore[no-untyped-call]
    return loss


def compare_next_token(
    parent_hidden_ND: Tensor,
    children: Sequence[Tensor],
    head_VD: Tensor,
    labels_N: Tensor,
    child_heads: Sequence[Tensor] | None = None,
    chunk: int | None = None,
) -> NextTokenComparison:
    """Compares children with their parent token by token: KL, loss on the labels, agreement of the first choice.

    `children` are final normed hidden states [N, D]; they use `head_VD` too unless `child_heads` gives one each. The
    parent's logits are made once per chunk for all children. No gradients.

    Raises:
        ValueError: shapes that do not match, no tokens, or a chunk below 1.
    """
    heads = [head_VD] * len(children) if child_heads is None else list(child_heads)
    if len(heads) != len(children):
        raise ValueError(f"{len(children)} children but {len(heads)} child heads: give one a child or none")
    _check(parent_hidden_ND, head_VD, "parent_hidden_ND", "head_VD")
    num_tokens = len(parent_hidden_ND)
    for index, (child_ND, child_head_VD) in enumerate(zip(children, heads, strict=True)):
        _check(child_ND, child_head_VD, f"children[{index}]", f"child_heads[{index}]")
        if len(child_ND) != num_tokens or len(child_head_VD) != len(head_VD):
            raise ValueError(f"children[{index}] has {len(child_ND)} tokens, its parent {num_tokens}: both must agree")
    if labels_N.shape != (num_tokens,):
        raise ValueError(f"`labels_N` has shape {tuple(labels_N.shape)} for {num_tokens} tokens")
    size = _chunk_size(chunk, head_VD)
    device = parent_hidden_ND.device
    kl_CN = torch.empty(len(children), num_tokens, device=device)
    child_nll_CN = torch.empty_like(kl_CN)
    agree_CN = torch.empty(len(children), num_tokens, dtype=torch.bool, device=device)
    parent_nll_N = torch.empty(num_tokens, device=device)
    with torch.no_grad():
        for first in range(0, num_tokens, size):
            span = slice(first, min(first + size, num_tokens))
            labels_n1 = labels_N[span, None]
            parent_nV = _logits(parent_hidden_ND[span], head_VD)
            choice_n1 = parent_nV.argmax(-1, keepdim=True)
            probability_nV = parent_nV.softmax(-1)
            normaliser_n = (parent_nV.gather(1, choice_n1) - probability_nV.gather(1, choice_n1).log())[:, 0]
            parent_nll_N[span] = normaliser_n - parent_nV.gather(1, labels_n1)[:, 0]
            for index, (child_ND, child_head_VD) in enumerate(zip(children, heads, strict=True)):
                child_nV = _logits(child_ND[span], child_head_VD)
                agree_CN[index, span] = child_nV.gather(1, choice_n1)[:, 0] == child_nV.amax(-1)
                label_n = child_nV.gather(1, labels_n1)[:, 0]
                kl_n, mean_n = _divergence_(probability_nV, child_nV, parent_nV)
                kl_CN[index, span] = kl_n
                child_nll_CN[index, span] = normaliser_n + mean_n + kl_n - label_n
    return NextTokenComparison(kl_CN, child_nll_CN, agree_CN, parent_nll_N)


class _KlLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, parent_ND: Tensor, child_ND: Tensor, parent_head_VD: Tensor, child_head_VD: Tensor, chunk: int
    ) -> Tensor:
        num_tokens = len(child_ND)
        wants_hidden, wants_head = ctx.needs_input_grad[1], ctx.needs_input_grad[3]
        wide = torch.promote_types(torch.float32, child_ND.dtype)
        total = torch.zeros((), dtype=wide, device=child_ND.device)
        grad_child_ND = torch.empty_like(child_ND) if wants_hidden else None
        grad_head_VD = torch.zeros_like(child_head_VD, dtype=wide) if wants_head else None
        for first in range(0, num_tokens, chunk):
            span = slice(first, min(first + chunk, num_tokens))
            parent_nV = _logits(parent_ND[span], parent_head_VD)
            probability_nV = parent_nV.softmax(-1)
            child_nV = _logits(child_ND[span], child_head_VD)
            gradient_nV = child_nV.softmax(-1) if wants_hidden or wants_head else None
            total += _divergence_(probability_nV, child_nV, parent_nV)[0].sum()
            if gradient_nV is None:
                continue
            # Factors as narrow as the model's; divided by the tokens only afterwards, since float16 has no room below.
            factor_nV = gradient_nV.sub_(probability_nV).to(child_ND.dtype)
            if grad_child_ND is not None:
                grad_child_ND[span] = _product(factor_nV, child_head_VD.to(child_ND.dtype)).div_(num_tokens)
            if grad_head_VD is not None:
                grad_head_VD += _product(factor_nV.T, child_ND[span])
        if grad_head_VD is not None:
            grad_head_VD /= num_tokens
        ctx.save_for_backward(grad_child_ND, grad_head_VD)
        ctx.head_dtype = child_head_VD.dtype
        return total / num_tokens

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor | None, None, Tensor | None, None]:
        grad_child_ND, grad_head_VD = ctx.saved_tensors
        scale = grad_outputs[0]
        hidden = None if grad_child_ND is None else grad_child_ND * scale.to(grad_child_ND.dtype)
        head = None if grad_head_VD is None else (grad_head_VD * scale).to(ctx.head_dtype)
        return None, hidden, None, head, None


def _logits(hidden_nD: Tensor, head_VD: Tensor) -> Tensor:
    """Logits [n, V] of factors in the model's dtype, in at least float32."""
    return _product(hidden_nD, head_VD.to(hidden_nD.dtype).T)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in at least float32: what is summed is never rounded to the narrower type of the factors."""
    with torch.autocast(left.device.type, enabled=False):
        if left.dtype not in (torch.bfloat16, torch.float16):
            return left @ right
        if left.device.type == "cuda":
            return torch.mm(left, right, out_dtype=torch.float32)
        # Nothing multiplies narrow factors into float32 here: they are widened, a part of the product at a time.
        wide = torch.empty(len(left), right.shape[1], device=left.device)
        columns = max(1, CPU_CHUNK_ELEMENTS // len(right))
        widened = left.float()
        for first in range(0, right.shape[1], columns):
            part = slice(first, first + columns)
            torch.mm(widened, right[:, part].float(), out=wide[:, part])
        return wide


def _divergence_(probability_nV: Tensor, child_nV: Tensor, parent_nV: Tensor) -> tuple[Tensor, Tensor]:
    """KL [n] and the mean [n] of d under the parent, as in the file's docstring; overwrites `child_nV`."""
    difference_nV = child_nV.sub_(parent_nV)
    mean_n = (probability_nV * difference_nV).sum(-1)
    difference_nV -= mean_n[:, None]
    largest_n = difference_nV.amax(-1)
    excess_nV = torch.exp(difference_nV).sub_(1.0).sub_(difference_nV)  # expm1 is six times slower
    kl_n = excess_nV.mul_(probability_nV).sum(-1).log1p()
    far_n = largest_n > _LARGEST_EXPONENT
    if bool(far_n.any()):
        kl_n[far_n] = (probability_nV[far_n].log() + difference_nV[far_n]).logsumexp(-1)
    return kl_n, mean_n


def _chunk_size(chunk: int | None, head_VD: Tensor) -> int:
    if chunk is None:
        elements = CPU_CHUNK_ELEMENTS if head_VD.device.type == "cpu" else DEVICE_CHUNK_ELEMENTS
        return max(elements // len(head_VD), 16)
    if chunk < 1:
        raise ValueError(f"`chunk` is {chunk}: it counts tokens and must be at least 1")
    return chunk


def _check(hidden_ND: Tensor, head_VD: Tensor, hidden_name: str, head_name: str) -> None:
    if hidden_ND.ndim != 2 or head_VD.ndim != 2 or hidden_ND.shape[1] != head_VD.shape[1]:
        raise ValueError(
            f"`{hidden_name}` has shape {tuple(hidden_ND.shape)} and `{head_name}` {tuple(head_VD.shape)}: "
            "wanted [tokens, width] and [vocabulary, width] of the same width"
        )
    if len(hidden_ND) == 0:
        raise ValueError(f"`{hidden_name}` has no tokens")
