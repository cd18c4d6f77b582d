"""The core as a graph in the order it is searched: nodes in a line, edges forward, a path is an architecture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inlay.solver._relax import Edges

CHANGE = 1e-6
"""An edge that adds less than this share of the largest addition to the bound is on a best path itself."""


@dataclass(frozen=True)
class Graph:
    """One node a layer that is still undecided; the edges of node d are `first[d]:first[d + 1]` and lead to `to`.

    `values` [m + 2, E'] has score, rows and tie weight of each edge as whole floats below 2**53, `edge` [E'] its index
    in the edges the graph was made of, `layer` [n] the layer of each node. Node n is the end. `settled` are the edges
    of the layers that have no alternative, `base` [m + 2] the sum of their values.
    """

    first: np.ndarray
    to: np.ndarray
    values: np.ndarray
    edge: np.ndarray
    layer: np.ndarray
    settled: np.ndarray
    base: np.ndarray

    @property
    def num_nodes(self) -> int:
        return len(self.layer)

    @property
    def is_line(self) -> bool:
        """Whether each edge leads to the next node."""
        return bool((np.diff(self.first) > 0).all()) and bool(
            (self.to == np.repeat(np.arange(self.num_nodes), np.diff(self.first)) + 1).all()
        )

    def rest(self, weights: np.ndarray) -> np.ndarray:
        """The least weight of a path from each node to the end [..., n + 1], for edge `weights` [..., E']."""
        rest = np.zeros((*weights.shape[:-1], self.num_nodes + 1))
        if self.is_line:
            least = np.minimum.reduceat(weights, self.first[:-1], axis=-1) if self.num_nodes else weights[..., :0]
            rest[..., :-1] = np.cumsum(least[..., ::-1], axis=-1)[..., ::-1]
            return rest
        for node in range(self.num_nodes - 1, -1, -1):
            edges = slice(self.first[node], self.first[node + 1])
            rest[..., node] = (weights[..., edges] + rest[..., self.to[edges]]).min(axis=-1, initial=np.inf)
        return rest


def build_graph(num_layers: int, edges: Edges, tie: np.ndarray, reduced: np.ndarray, keep_open: np.ndarray) -> Graph:
    """The graph of `edges`, the segments first whose every change costs most, so that bounds bite early.

    A segment is a run of layers that no choice enters or leaves midway; segments come in any order. `reduced` [E] is
    what taking an edge adds to the bound. `keep_open` (edges) are never settled, because a pair term asks about them.
    """
    values = np.vstack([edges.score, edges.rows, tie]).astype(float)
    inside = np.zeros(num_layers + 1, dtype=np.int64)
    np.add.at(inside, edges.start + 1, 1)
    np.add.at(inside, edges.start + edges.span, -1)
    segment = np.cumsum(np.cumsum(inside[:-1]) == 0) - 1
    of_edge = segment[edges.start]
    count = np.bincount(of_edge)
    asked = np.zeros(len(count), dtype=bool)
    asked[of_edge[keep_open]] = True
    is_settled = (count == 1) & ~asked
    settled = np.flatnonzero(is_settled[of_edge])

    change = np.full(len(count), np.inf)
    changes = reduced > CHANGE * reduced.max(initial=0)
    np.minimum.at(change, of_edge[changes], reduced[changes])
    rank = np.empty(len(count), dtype=np.int64)
    rank[np.argsort(-change, kind="stable")] = np.arange(len(count))

    layers = np.flatnonzero(~is_settled[segment])
    layers = layers[np.lexsort((layers, rank[segment[layers]]))]
    node_of = np.full(num_layers, -1, dtype=np.int64)
    node_of[layers] = np.arange(len(layers))
    live = np.flatnonzero(~is_settled[of_edge])
    node = node_of[edges.start[live]]
    order = np.argsort(node, kind="stable")
    live, node = live[order], node[order]
    first = np.searchsorted(node, np.arange(len(layers) + 1))
    return Graph(first, node + edges.span[live], values[:, live], live, layers, settled, values[:, settled].sum(axis=1))
