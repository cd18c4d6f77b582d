"""A good answer fast: round the relaxation, repair it, then swap one choice or two while that helps."""

from __future__ import annotations

import numpy as np

from inlay.solver._relax import Edges

NEAR = 400
"""So many edges of the least reduced cost are tried two at a time."""

MOST_STEPS = 2000


def round_and_swap(edges: Edges, most: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Edges, one a layer, that meet the rows, or None when no repair was found.

    For edges of one layer each, sorted by layer. `weight` [E] is the score plus the rows at the relaxation's prices.
    """
    first = np.flatnonzero(np.diff(edges.start, prepend=-1))
    scale = np.abs(edges.rows).max(axis=1, initial=1).astype(float)
    cheapest = np.lexsort((weight, edges.start))[first]
    taken = _repair(edges, most, weight, cheapest, scale)
    return None if taken is None else _swap(edges, most, weight, taken)


def _repair(
    edges: Edges, most: np.ndarray, weight: np.ndarray, taken: np.ndarray, scale: np.ndarray
) -> np.ndarray | None:
    """Exchange the edge that mends most excess for its weight, until the rows are met."""
    taken = taken.copy()
    for _ in range(MOST_STEPS):
        total = edges.rows[:, taken].sum(axis=1)
        excess = np.maximum(total - most, 0) / scale
        if not excess.any():
            return taken
        change = edges.rows - edges.rows[:, taken[edges.start]]
        mended = excess.sum() - (np.maximum(total[:, None] + change - most[:, None], 0) / scale[:, None]).sum(axis=0)
        dearer = np.maximum(weight - weight[taken[edges.start]], 1e-9)
        value = np.where(mended > 1e-12, dearer / np.maximum(mended, 1e-12), np.inf)
        best = int(value.argmin())
        if not np.isfinite(value[best]):
            return None
        taken[edges.start[best]] = best
    return None


def _swap(edges: Edges, most: np.ndarray, weight: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Exchange one edge, else two at once, for the largest gain in score that keeps the rows."""
    taken = taken.copy()
    for _ in range(MOST_STEPS):
        room = most - edges.rows[:, taken].sum(axis=1)
        gain = edges.score - edges.score[taken[edges.start]]
        change = edges.rows - edges.rows[:, taken[edges.start]]
        one = np.where((change <= room[:, None]).all(axis=0), gain, 0)
        best = int(one.argmin())
        if one[best] < 0:
            taken[edges.start[best]] = best
            continue
        dearer = weight - weight[taken[edges.start]]
        near = np.argpartition(dearer, NEAR)[:NEAR] if len(dearer) > NEAR else np.arange(len(dearer))
        both = gain[near][:, None] + gain[near][None]
        fits = (both < 0) & (edges.start[near][:, None] != edges.start[near][None])
        for row, left in zip(change[:, near], room, strict=True):
            fits &= row[:, None] + row[None] <= left
        both = np.where(fits, both, 0)
        left_one, right_one = np.unravel_index(int(both.argmin()), both.shape)
        if both[left_one, right_one] >= 0:
            return taken
        for edge in (near[left_one], near[right_one]):
            taken[edges.start[edge]] = edge
    return taken
