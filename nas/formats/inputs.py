"""What a matrix reads, as rounding asks for it: the Gram matrix of its inputs, and what follows from it.

R rows, C input channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

DAMPING = 0.01
"""Of the mean of G's diagonal, added to all of it: a text of few tokens says nothing of some directions."""


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of a matrix: the mean of X'X over a text.

    Args:
        name: that no other inputs have, for what is kept of their rounding.
        gram_CC: float32.
    """

    name: str
    gram_CC: Tensor

    @cached_property
    def importance_C(self) -> Tensor:
        """The mean square of each channel."""
        return self.gram_CC.diagonal().contiguous()

    @cached_property
    def damped_CC(self) -> Tensor:
        """The Gram matrix with a little more on its diagonal."""
        mean = self.gram_CC.diagonal().mean()
        return self.gram_CC + (DAMPING * mean if mean > 0 else 1.0) * torch.eye(len(self.gram_CC))

    @cached_property
    def factor_CC(self) -> Tensor:
        """The upper factor U of the inverse of `damped_CC`, U'U, float32."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.damped_CC.double()))
        factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
        return factor.float()

    def harm(self, change_RC: Tensor) -> Tensor:
        """The mean square of what a change of a matrix changes of each of its outputs, [R]."""
        return ((change_RC @ self.gram_CC) * change_RC).sum(1)
