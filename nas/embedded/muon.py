"""Muon for the matrices of a small model, Adam for the rest, with a state that is only named tensors.

PyTorch's own Muon orthogonalises one matrix at a time in bfloat16, which is slow on processors without bfloat16
arithmetic. Here matrices of one shape go through the Newton-Schulz steps together, in float32.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, "Muon": the quintic's coefficients


@dataclass(frozen=True)
class Rates:
    """Settings of one optimizer: peak rates are scaled by the schedule at every step."""

    muon: float = 0.02
    """Learning rate of the matrices, > 0."""
    adam: float = 0.004
    """Learning rate of the embedding and of the norms, > 0."""
    muon_decay: float = 0.1
    """Decoupled weight decay of the matrices, times the rate, >= 0."""
    momentum: float = 0.95
    """Nesterov momentum of Muon, in [0, 1)."""
    beta1: float = 0.9
    """Decay of Adam's first moment, in [0, 1)."""
    beta2: float = 0.95
    """Decay of Adam's second moment, in [0, 1)."""


class Optimizer:
    """Updates `parameters` in place: those named in `matrices` with Muon, the others with Adam without weight decay."""

    def __init__(self, parameters: Mapping[str, Tensor], matrices: frozenset[str], rates: Rates) -> None:
        self._parameters = dict(parameters)
        self._rates = rates
        self._groups: dict[torch.Size, list[str]] = defaultdict(list)
        for name in sorted(matrices):
            self._groups[self._parameters[name].shape].append(name)
        self._adam = sorted(set(self._parameters) - matrices)
        self.state: dict[str, Tensor] = {f"momentum.{name}": torch.zeros_like(parameters[name]) for name in matrices}
        for name in self._adam:
            self.state[f"first.{name}"] = torch.zeros_like(parameters[name])
            self.state[f"second.{name}"] = torch.zeros_like(parameters[name])

    @torch.no_grad()
    def step(self, number: int, scale: float) -> None:
        """One update, the `number`-th counted from 1, with all rates times `scale`. Clears the gradients."""
        for names in self._groups.values():
            self._step_muon(names, scale)
        for name in self._adam:
            self._step_adam(name, number, scale)
        for parameter in self._parameters.values():
            parameter.grad = None

    def _step_muon(self, names: list[str], scale: float) -> None:
        rates = self._rates
        directions = []
        for name in names:
            gradient = _gradient(self._parameters[name], name)
            momentum = self.state[f"momentum.{name}"]
            momentum.lerp_(gradient, 1 - rates.momentum)
            directions.append(gradient.lerp(momentum, rates.momentum))
        updates = orthogonalise(torch.stack(directions))
        rows, columns = updates.shape[-2:]
        rate = rates.muon * scale
        for name, update in zip(names, updates, strict=True):
            self._parameters[name].mul_(1 - rate * rates.muon_decay)
            self._parameters[name].add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)

    def _step_adam(self, name: str, number: int, scale: float) -> None:
        rates = self._rates
        gradient = _gradient(self._parameters[name], name)
        first, second = self.state[f"first.{name}"], self.state[f"second.{name}"]
        first.lerp_(gradient, 1 - rates.beta1)
        second.lerp_(gradient.square(), 1 - rates.beta2)
        spread = (second / (1 - rates.beta2**number)).sqrt_().add_(1e-10)
        self._parameters[name].addcdiv_(first, spread, value=-rates.adam * scale / (1 - rates.beta1**number))


def orthogonalise(matrices_NRC: Tensor, steps: int = 5) -> Tensor:
    """The matrices, shape (N, rows, columns), with singular values near 1 (Jordan et al. 2024; about 0.7 to 1.2)."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices_NRC.shape[-2] > matrices_NRC.shape[-1]
    x: Tensor = matrices_NRC.mT if tall else matrices_NRC
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if tall else x


def _gradient(parameter: Tensor, name: str) -> Tensor:
    if parameter.grad is None:
        raise ValueError(f"The parameter `{name}` has no gradient: the loss does not depend on it.")
    return parameter.grad
