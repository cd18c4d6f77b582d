"""Planes: linear underestimates of what the rest of a path must cost, one for each set of prices learnt."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from inlay.solver._graph import Graph
from inlay.solver._relax import Prices

WINDOW = 32
"""So many planes, those learnt nearest to a node, are looked at there."""

KEPT = 300
"""Planes that are carried on to the next search."""


@dataclass(frozen=True)
class Plane:
    """For a state x at node d, any completion costs at least `weights`·x + `offset[d]`; a proof is dead above 0.

    Several at once where all arrays have one more dimension, the first.
    """

    weights: np.ndarray
    offset: np.ndarray
    error: np.ndarray
    is_proof: np.ndarray

    def at(self, values: np.ndarray, node: int) -> np.ndarray:
        """That cost for a state of `values` [m + 2]."""
        cost: np.ndarray = self.weights @ values[:-1] + self.offset[..., node]
        return cost

    def reduced(self, graph: Graph, edges: np.ndarray | None = None) -> np.ndarray:
        """What each of these `edges` (default: all) adds to the cost when taken, at least 0 but for rounding."""
        edges = np.arange(len(graph.edge)) if edges is None else edges
        node = np.searchsorted(graph.first, edges, side="right") - 1
        weight = self.weights @ graph.values[:-1, edges]
        added: np.ndarray = weight + self.offset[..., graph.to[edges]] - self.offset[..., node]
        return added

    def take(self, which: np.ndarray) -> Plane:
        """Some of several."""
        return Plane(self.weights[which], self.offset[which], self.error[which], self.is_proof[which])


def plane_of(graph: Graph, most: np.ndarray, prices: np.ndarray, is_proof: np.ndarray | None = None) -> Plane:
    """The plane of these row `prices` [..., m]; `offset` has the right-hand sides and the rounding error taken off."""
    is_proof = np.zeros(prices.shape[:-1], dtype=bool) if is_proof is None else is_proof
    weights = np.concatenate([np.where(is_proof, 0.0, 1.0)[..., None], prices], axis=-1)
    size = np.abs(weights) @ np.abs(graph.values[:-1])
    largest = size.max(axis=-1) if len(graph.edge) else np.zeros(prices.shape[:-1])
    constant = np.abs(weights[..., 1:]) @ np.abs(most) + np.abs(weights) @ np.abs(graph.base[:-1])
    error = 4 * (graph.num_nodes + weights.shape[-1]) * np.finfo(float).eps * (largest * graph.num_nodes + constant)
    offset = graph.rest(weights @ graph.values[:-1]) - (weights[..., 1:] @ most + error)[..., None]
    return Plane(weights, offset, np.asarray(error), is_proof)


class Planes:
    """Planes: those of weight 1 on the score bound the objective, those of weight 0 are proofs of infeasibility."""

    def __init__(self, graph: Graph, most: np.ndarray) -> None:
        self._graph, self._most = graph, most.astype(float)
        self._weights = np.zeros((0, len(most) + 1))
        self._offset = np.zeros((0, graph.num_nodes + 1))
        self._is_proof = np.zeros(0, dtype=bool)
        self._learnt_at = np.zeros(0, dtype=np.int64)
        self.error = 0.0

    def learn(self, prices: np.ndarray, node: int, *, proof: bool = False) -> int:
        """Add the plane of these row `prices` [m], learnt at `node`; returns its index."""
        plane = plane_of(self._graph, self._most, prices, np.array(proof))
        if not len(self._weights):
            self.error, self.first = float(plane.error), plane
        self._weights = np.vstack([self._weights, plane.weights])
        self._offset = np.vstack([self._offset, plane.offset])
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


@dataclass
class Learnt:
    """Prices of planes from earlier searches, and how many nodes were left where each was learnt."""

    planes: list[tuple[Prices, int]] = field(default_factory=list)

    def add(self, prices: Prices, nodes_left: int) -> None:
        """Keep these, and forget the oldest where they are too many."""
        self.planes = [*self.planes[-KEPT + 1 :], (prices, nodes_left)]
