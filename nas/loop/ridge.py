"""What real models teach about the scores: factors on the terms of a sum, by ridge regression.

C models, K terms. The prediction of a model is a sum of terms; its factors are 1 + d, of the least sum over models of
(1 - sum of (1 + d) share)^2 + weight |d|^2, where a share is a term over the model's true value. Solved in the dual,
one unknown a model, since there are more terms than models.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

Term = TypeVar("Term", bound=Hashable)


def fit_factors(
    terms: Sequence[Mapping[Term, float]], true: Sequence[float], weight: float, least: float
) -> dict[Term, float]:
    """One factor a term.

    Args:
        terms: by model, what each of its terms adds to the prediction.
        true: by model, what the sum should have been; above 0.
        weight: of the factors' distance from 1.
        least: the smallest factor given.
    """
    names = list(dict.fromkeys(name for held in terms for name in held))
    if not names:
        return {}
    column = {name: index for index, name in enumerate(names)}
    share_CK = np.zeros((len(terms), len(names)))
    for row, (held, value) in enumerate(zip(terms, true, strict=True)):
        for name, amount in held.items():
            share_CK[row, column[name]] += amount / value
    gram_CC = share_CK @ share_CK.T + weight * np.eye(len(terms))
    change_K = share_CK.T @ np.linalg.solve(gram_CC, 1 - share_CK.sum(1))
    return {name: float(max(least, 1 + change_K[index])) for name, index in column.items()}
