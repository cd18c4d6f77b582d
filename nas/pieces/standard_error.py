"""The standard error of a mean over packed sequences: not independent, since documents run on from one to the next."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


def standard_error(values_N: Values) -> float | None:
    """Of the mean of what was seen sequence by sequence, in the order of the text; None of one sequence: unknown.

    The variance of the mean with Bartlett's weights, (c_0 + 2 Σ_{l≤L} (1 - l/(L+1)) c_l) / (N - 1), where c_l are the
    autocovariances (Newey and West 1987, Econometrica 55(3), equation 5), and L = ⌊4 (N/100)^(2/9)⌋ (Newey and West
    1994, Review of Economic Studies 61(4), section 3). Never below that of independent sequences, l = 0 alone: short
    texts show negative autocovariances by chance.
    """
    num = len(values_N)
    if num < 2:
        return None
    off_N = values_N - values_N.mean()
    own = float(off_N @ off_N) / num
    most = min(num - 1, int(4 * (num / 100) ** (2 / 9)))
    shared = sum(2 * (1 - lag / (most + 1)) * float(off_N[lag:] @ off_N[:-lag]) / num for lag in range(1, most + 1))
    return math.sqrt(max(own, own + shared) / (num - 1))
