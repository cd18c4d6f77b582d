"""The part of benchmarks/gpu.py on kernels: errors against float64, time and memory beside plain torch.

Shapes: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
from gpu_report import Report, measured, short
from torch import Tensor
from torch.nn import functional

from inlay.kernels import compare_next_token, kl_loss, update_mse

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}
"""Of a kernel: the error's norm over the reference's; logits in bfloat16 are rounded by a hundredth of what differs."""


def kernels(report: Report, parent: str) -> None:
    """kl_loss, compare_next_token and update_mse: errors against float64, times and memory beside plain torch."""
    width, tokens = (1024, 4096) if report.full else (64, 256)
    report.table("kernel", "type", "V", "error", "error of gradients", "ms", "plain, ms", "MiB", "plain, MiB")
    for dtype in (torch.float32, torch.bfloat16):
        for vocab in (2048, 131072 if report.full else 8192):
            _kl(report, dtype, vocab, width, tokens)
            _comparison(report, dtype, vocab, width, tokens)
        _update(report, dtype)


def _kl(report: Report, dtype: torch.dtype, vocab: int, width: int, tokens: int) -> None:
    given = hidden_and_heads(256, width, vocab, dtype)
    wide = [tensor.double().requires_grad_() for tensor in given]
    truth = plain_kl(*wide)
    truths = torch.autograd.grad(truth, [wide[1], wide[3]])
    moved = [tensor.to(report.device).requires_grad_() for tensor in given]
    ours = kl_loss(*moved)
    gradients = torch.autograd.grad(ours, [moved[1], moved[3]])
    error = relative(ours, truth)
    worst = max(relative(mine, other) for mine, other in zip(gradients, truths, strict=True))
    given = [t.to(report.device) for t in hidden_and_heads(tokens, width, vocab, dtype)]
    for tensor in (given[1], given[3]):
        tensor.requires_grad_()
    costs = [
        measured(report.device, lambda loss=loss: torch.autograd.grad(loss(*given), [given[1], given[3]]))
        for loss in (kl_loss, plain_kl)
    ]
    row(report, "KL, both gradients", dtype, vocab, error, worst, costs)


def _comparison(report: Report, dtype: torch.dtype, vocab: int, width: int, tokens: int) -> None:
    parent_ND, child_ND, head_VD, _ = hidden_and_heads(256, width, vocab, dtype)
    labels_N = torch.arange(256) % vocab
    there_ND, other_ND, there_VD, there_N = (t.to(report.device) for t in (parent_ND, child_ND, head_VD, labels_N))
    found = compare_next_token(there_ND, [other_ND], there_VD, there_N)
    parent_NV, child_NV = ((t.double() @ head_VD.double().T).log_softmax(-1) for t in (parent_ND, child_ND))
    truth = (parent_NV.exp() * (parent_NV - child_NV)).sum(-1)
    nll = -child_NV.gather(1, labels_N[:, None])[:, 0]
    same = (parent_NV.argmax(-1) == child_NV.argmax(-1)).double().mean()
    error = max(relative(found.kl[0], truth), relative(found.child_nll[0], nll))
    agreed = abs(float(found.agree[0].double().mean()) - float(same))
    # A rounded logit may tie the first choice: bfloat16 has 8 bits.
    report.check(f"agreement of first choices, {short(dtype)}, V {vocab}: within 5 %, is {agreed:.3f}", agreed <= 0.05)
    parent_ND, child_ND, head_VD, _ = (t.to(report.device) for t in hidden_and_heads(tokens, width, vocab, dtype))
    labels_N = torch.arange(tokens, device=report.device) % vocab
    children = [child_ND + 0.01 * number for number in range(4)]

    @torch.no_grad()
    def plain() -> None:
        parent_NV = (parent_ND @ head_VD.T).float().log_softmax(-1)
        choice_N, probability_NV = parent_NV.argmax(-1), parent_NV.exp()
        for one_ND in children:
            child_NV = (one_ND @ head_VD.T).float().log_softmax(-1)
            (probability_NV * (parent_NV - child_NV)).sum(-1), child_NV.argmax(-1) == choice_N
            child_NV.gather(1, labels_N[:, None])

    ours = measured(report.device, lambda: compare_next_token(parent_ND, children, head_VD, labels_N))
    row(report, "comparison of 4 children", dtype, vocab, error, None, [ours, measured(report.device, plain)])


def _update(report: Report, dtype: torch.dtype) -> None:
    shape = (8, 1024, 2048) if report.full else (2, 64, 64)
    random = torch.Generator().manual_seed(0)
    answer = torch.randn(shape, generator=random).to(dtype)
    update = (answer.float() + 0.3 * torch.randn(shape, generator=random)).to(dtype)
    wide = update.double().requires_grad_()
    truth = plain_mse(wide, answer.double())
    (truth_gradient,) = torch.autograd.grad(truth, wide)
    update, answer = update.to(report.device).requires_grad_(), answer.to(report.device)
    ours = update_mse(update, answer)
    (gradient,) = torch.autograd.grad(ours, update)
    costs = [
        measured(report.device, lambda loss=loss: torch.autograd.grad(loss(update, answer), update))
        for loss in (update_mse, plain_mse)
    ]
    row(
        report,
        "update_mse and its gradient",
        dtype,
        "",
        relative(ours, truth),
        relative(gradient, truth_gradient),
        costs,
    )


def row(
    report: Report, name: str, dtype: torch.dtype, vocab: object, error: float, worst: float | None, costs: list[Any]
) -> None:
    """A kernel's row and its check."""
    (ms, mib), (plain_ms, plain_mib) = costs
    report.row(name, short(dtype), vocab, error, "" if worst is None else worst, ms, plain_ms, mib, plain_mib)
    largest, limit = max(error, worst or 0.0), TOLERANCE[dtype]
    report.check(f"{name}, {short(dtype)}, V {vocab}: {largest:.2g} <= {limit:g} from float64", largest <= limit)


def hidden_and_heads(tokens: int, width: int, vocab: int, dtype: torch.dtype) -> list[Tensor]:
    """Hidden states of parent and child and their heads; logits have a standard deviation of 2."""
    random = torch.Generator().manual_seed(tokens)
    parent_ND, head_VD = (torch.randn(n, width, generator=random) for n in (tokens, vocab))
    child_ND = parent_ND + 0.3 * torch.randn(tokens, width, generator=random)
    head_VD *= 2 * width**-0.5
    child_head_VD = head_VD * (1 + 0.1 * torch.randn(vocab, 1, generator=random))
    return [tensor.to(dtype) for tensor in (parent_ND, child_ND, head_VD, child_head_VD)]


def plain_kl(parent_ND: Tensor, child_ND: Tensor, parent_head_VD: Tensor, child_head_VD: Tensor) -> Tensor:
    """kl_loss by its definition; parents get no gradients."""
    at_least = torch.promote_types(torch.float32, parent_ND.dtype)
    with torch.no_grad():
        parent_NV = (parent_ND @ parent_head_VD.T).to(at_least).log_softmax(-1)
    child_NV = (child_ND @ child_head_VD.T).to(at_least).log_softmax(-1)
    return (parent_NV.exp() * (parent_NV - child_NV)).sum(-1).mean()


def plain_mse(update: Tensor, answer: Tensor) -> Tensor:
    """update_mse by its definition."""
    wide = torch.promote_types(torch.float32, update.dtype)
    update, answer = update.to(wide), answer.to(wide)
    return functional.mse_loss(update, answer, reduction="sum") / answer.square().sum()


def relative(found: Tensor, truth: Tensor) -> float:
    """The error's norm over the reference's."""
    there = truth.detach().cpu().double()
    return float((found.detach().cpu().double() - there).norm() / there.norm())
