"""What computes an ffn of experts; experts_inlay.py says what it is.

N tokens, E experts, K of them taken by each token, D model width.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class RoutedExperts(nn.Module):
    """A router and its experts.

    Args:
        experts: modules from [N, D] to [N, D].
        hidden: model width.
        active: experts that each token takes.
        shares_of_taken: whether the probabilities of the experts taken are divided by their sum.
    """

    def __init__(self, experts: Sequence[nn.Module], hidden: int, active: int, *, shares_of_taken: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, len(experts), bias=False)
        self.experts = nn.ModuleList(experts)
        self.active = active
        self.shares_of_taken = shares_of_taken

    def taken(self, logits_NE: Tensor) -> tuple[Tensor, Tensor]:
        """The experts that each token takes, largest probability first, and their shares, float32: [N, K] each."""
        probability_NE = torch.softmax(logits_NE, dim=-1, dtype=torch.float32)
        share_NK, expert_NK = probability_NE.topk(self.active, dim=-1)
        if self.shares_of_taken:
            share_NK = share_NK / share_NK.sum(dim=-1, keepdim=True)
        return expert_NK, share_NK

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        """The sum of each token's experts by their shares, [B, S, D]."""
        hidden_ND = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
        expert_NK, share_NK = self.taken(self.gate(hidden_ND))
        share_NK = share_NK.to(hidden_BSD.dtype)
        update_ND = torch.zeros_like(hidden_ND)
        for number, expert in enumerate(self.experts):
            tokens_T, places_T = torch.where(expert_NK == number)
            # In training an expert without a token has gradients too, zeros: ranks add up those of the same tensors.
            if not len(tokens_T) and not torch.is_grad_enabled():
                continue
            given_TD = expert(hidden_ND[tokens_T]) * share_NK[tokens_T, places_T, None]
            update_ND = update_ND.index_add(0, tokens_T, given_TD.to(update_ND.dtype))
        return update_ND.view_as(hidden_BSD)
