"""Choices as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Table:
    """A problem's choices as arrays, one entry a choice in the order given.

    `layer`, `span`, `score` [N]; `costs` [N, number of cost names]; `first` [L+1] is where each layer's choices start.
    """

    layer: np.ndarray
    span: np.ndarray
    score: np.ndarray
    costs: np.ndarray
    first: np.ndarray

    @property
    def num_layers(self) -> int:
        return len(self.first) - 1
