"""Dominance: what another does at no more cost in any row need not be looked at."""

from __future__ import annotations

import numpy as np

from inlay.solver._relax import Edges

PAIRWISE = 2048
"""Groups of more choices than this are compared with a sample of their best only."""

SAMPLE = 256


def useful(edges: Edges, optimistic: np.ndarray, pessimistic: np.ndarray, spare: int) -> np.ndarray:
    """Mask of the edges that fewer than `spare` others of the same layer and span dominate.

    `optimistic` [E] is the least and `pessimistic` [E] the most that taking the edge can add to the score (they differ
    by pair terms). Edges equal in all keep their order: the earlier one dominates.
    """
    keep = np.ones(len(edges), dtype=bool)
    key = edges.start * (int(edges.span.max(initial=1)) + 1) + edges.span
    order = np.lexsort((*edges.rows[::-1], optimistic, key))
    bounds = np.flatnonzero(np.diff(key[order], prepend=-1, append=-1))
    sizes = np.diff(bounds)
    for size in np.unique(sizes).tolist():
        if size <= spare:
            continue
        groups = order[bounds[:-1][sizes == size][:, None] + np.arange(size)]
        if size > PAIRWISE:
            for group in groups:
                keep[group] = _beaten_by_sample(edges, group, optimistic, pessimistic) < spare
            continue
        step = max(1, (1 << 23) // (size * size))
        for some in (groups[k : k + step] for k in range(0, len(groups), step)):
            beats = pessimistic[some][:, :, None] <= optimistic[some][:, None, :]
            for row in edges.rows:
                beats &= row[some][:, :, None] <= row[some][:, None, :]
            beats &= np.triu(np.ones((size, size), dtype=bool), 1)
            keep[some] = beats.sum(axis=1) < spare
    return keep


def _beaten_by_sample(edges: Edges, group: np.ndarray, optimistic: np.ndarray, pessimistic: np.ndarray) -> np.ndarray:
    rates = np.maximum(1.0, optimistic[group].std()) / np.maximum(edges.rows[:, group].std(axis=1), 1e-9)
    beaten = np.zeros(len(group), dtype=np.int64)
    weights = [optimistic[group] + multiple * rates @ edges.rows[:, group] for multiple in (0.1, 0.3, 1.0, 3.0)]
    sample = np.unique(np.concatenate([np.argsort(weight, kind="stable")[: SAMPLE // 4] for weight in weights]))
    for place in sample.tolist():
        beats = pessimistic[group[place]] <= optimistic[group]
        for row in edges.rows:
            beats &= row[group[place]] <= row[group]
        beats[: place + 1] = False
        beaten += beats
    return beaten


def undominated(values: np.ndarray, memory: np.ndarray | None) -> np.ndarray:
    """Indices of the states that none with the same memory and the same last rows beats in score and first row.

    `values` [m + 2, n]: score, rows, tie weight. Among equals in score and rows the lowest tie weight stays. Only part
    of all dominance is found: what is cheap to find.
    """
    others = [*values[2:-1]] if memory is None else [*values[2:-1], *memory]
    order = np.lexsort((values[-1], values[0], *values[1:2][: len(values) - 2], *others))
    new_group = np.zeros(values.shape[1], dtype=bool)
    new_group[0] = True
    for key in others:
        new_group[1:] |= np.diff(key[order]) != 0
    if len(values) == 2:
        return order[new_group]
    # One running minimum for all groups: the ranks of each later group are shifted below all earlier ones.
    rank = np.unique(values[0], return_inverse=True)[1][order]
    shifted = rank - np.cumsum(new_group) * len(order)
    stays = new_group.copy()
    stays[1:] |= shifted[1:] < np.minimum.accumulate(shifted)[:-1]
    return order[stays]
