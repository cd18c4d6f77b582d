"""Planes: linear underestimates of what the rest of a path must cost, one for each set of prices learnt."""

from __future__ import annotations

import numpy as np

from inlay.solver._graph import Graph

WINDOW = 32
"""So many planes, those learnt nearest to a node, are looked at there."""


class Planes:
    """For a state x at node d, every plane k says: any completion costs at least `weights[k]·x + offset[k, d]`.

    A plane of weight 1 on the score bounds the objective; one of weight 0 is a proof of infeasibility above 0. All are
    valid at every node; `offset` already has the right-hand sides and the rounding error of doubles taken off.
    """

    def __init__(self, graph: Graph, most: np.ndarray) -> None:
        self._graph, self._most = graph, most.astype(float)
        self._weights = np.zeros((0, len(most) + 1))
        self._offset = np.zeros((0, graph.num_nodes + 1))
        self._is_proof = np.zeros(0, dtype=bool)
        self._learnt_at = np.zeros(0, dtype=np.int64)
        self.error = 0.0

    def learn(self, prices: np.ndarray, node: int, *, proof: bool = False) -> int:
        """Add the plane of these row `prices` [m], learnt at `node`; returns its index."""
        weights = np.concatenate([[0.0 if proof else 1.0], prices])
        edge_weights = weights @ self._graph.values[:-1]
        terms = len(self._graph.edge) and np.abs(weights[:, None] * self._graph.values[:-1]).sum(axis=0).max()
        size = float(terms) * self._graph.num_nodes + float(np.abs(weights[1:] * self._most).sum())
        size += float(np.abs(weights * self._graph.base[:-1]).sum())
        error = 4 * (self._graph.num_nodes + len(weights)) * np.finfo(float).eps * size
        offset = self._graph.rest(edge_weights) - weights[1:] @ self._most - error
        if not len(self._weights):
            self.error = error
        self._weights = np.vstack([self._weights, weights])
        self._offset = np.vstack([self._offset, offset])
        self._is_proof = np.append(self._is_proof, proof)
        self._learnt_at = np.append(self._learnt_at, node)
        return len(self._weights) - 1

    def bound(self, values: np.ndarray, node: int) -> np.ndarray:
        """The highest bound on the objective of each state (`values` [m + 2, n]) at `node`; inf where proven dead."""
        near = np.argsort(np.abs(self._learnt_at[1:] - node), kind="stable")[: WINDOW - 1] + 1
        near = np.concatenate([[0], near])
        bound = self._weights[near] @ values[:-1]
        bound += self._offset[near, node][:, None]
        proofs = self._is_proof[near]
        if proofs.any():
            bound[proofs] = np.where(bound[proofs] > 0, np.inf, -np.inf)
        highest: np.ndarray = bound.max(axis=0)
        return highest

    def one(self, plane: int, values: np.ndarray, node: int) -> np.ndarray:
        """The bound of one plane."""
        bound: np.ndarray = self._weights[plane] @ values[:-1] + self._offset[plane, node]
        return np.where(bound > 0, np.inf, -np.inf) if self._is_proof[plane] else bound

    def reduced(self) -> np.ndarray:
        """What each edge adds to the first plane's bound when it is taken [E'], at least 0 but for rounding."""
        weights = self._weights[0] @ self._graph.values[:-1]
        rest = self._offset[0]
        node = np.repeat(np.arange(self._graph.num_nodes), np.diff(self._graph.first))
        added: np.ndarray = weights + rest[self._graph.to] - rest[node]
        return added
