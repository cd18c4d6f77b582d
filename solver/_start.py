"""A good answer fast: round the relaxation, repair it, swap one choice or two while that helps; shake, and again."""

from __future__ import annotations

import numpy as np

from inlay.solver._relax import Edges

NEAR = 400
"""So many edges of the least reduced cost are tried two at a time."""

NEAR_SHAKEN = 150
"""The same after a shake, when there are many."""

SHAKEN = 4
"""Edges that a shake takes at random among the near ones."""

MOST_STEPS = 2000


def round_and_swap(edges: Edges, most: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Edges, one a layer, that meet the rows, or None when no repair was found.

    For edges of one layer each, sorted by layer. `weight` [E] is the score plus the rows at the relaxation's prices.
    """
    first = np.flatnonzero(np.diff(edges.start, prepend=-1))
    cheapest = np.lexsort((weight, edges.start))[first]
    taken = _repair(edges, most, weight, cheapest)
    return None if taken is None else _swap(edges, most, weight, taken, NEAR)


def shake_and_swap(
    edges: Edges, most: np.ndarray, weight: np.ndarray, taken: np.ndarray, generator: np.random.Generator
) -> np.ndarray | None:
    """The same from `taken` [L], an answer, with some of its edges exchanged at random."""
    near = _nearest(weight - weight[taken[edges.start]], NEAR_SHAKEN)
    taken = taken.copy()
    for edge in generator.choice(near, size=min(SHAKEN, len(near)), replace=False).tolist():
        taken[edges.start[edge]] = edge
    repaired = _repair(edges, most, weight, taken)
    return None if repaired is None else _swap(edges, most, weight, repaired, NEAR_SHAKEN)


def _nearest(dearer: np.ndarray, count: int) -> np.ndarray:
    return np.argpartition(dearer, count)[:count] if len(dearer) > count else np.arange(len(dearer))


def _repair(edges: Edges, most: np.ndarray, weight: np.ndarray, taken: np.ndarray) -> np.ndarray | None:
    """Exchange the edge that mends most excess for its weight, until the rows are met."""
    scale = np.abs(edges.rows).max(axis=1, initial=1).astype(float)
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


def _swap(edges: Edges, most: np.ndarray, weight: np.ndarray, taken: np.ndarray, num_near: int) -> np.ndarray:
    """Exchange one edge, else two of the nearest at once, for the largest gain in score that keeps the rows."""
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
        near = _nearest(weight - weight[taken[edges.start]], num_near)
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
