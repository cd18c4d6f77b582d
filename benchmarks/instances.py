"""Problems to time the solver on: shaped like real searches, uniformly random, and made to be hard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from inlay.solver import Choice, Limit, Problem

COSTS = ("runtime_ns", "memory_bytes", "parameters")
PRECISE_COSTS = ("decode_ns", "prefill_ns", "memory_bytes", "weights_bytes")
PRECISIONS = 4
GRIDS = {16: (4, 4), 54: (6, 9), 100: (10, 10)}
"""Joint choices of a layer as attention variants x ffn variants."""


def realistic(num_layers: int, num_choices: int, num_limits: int, seed: int) -> Problem:
    """Attention x ffn variants a layer, as a search of a language model scores and measures them.

    The first and last layers have scores ten times the median, scores are convex in width, costs are in proportion to
    width plus a constant, and both carry noise. Limits are between 0.5 and 0.7 of the parent.
    """
    rng = np.random.default_rng(seed)
    attentions, ffns = GRIDS[num_choices]
    weight_L = np.exp(rng.normal(0, 0.5, num_layers))
    edge = max(1, num_layers // 25)
    weight_L[:edge] *= 10
    weight_L[-edge:] *= 10
    layers = []
    for weight in weight_L:
        attention = _subblock(rng, attentions, 0.004 * weight, 300_000, 40 << 20, 20 << 20, cache=64 << 20)
        ffn = _subblock(rng, ffns, 0.008 * weight, 700_000, 330 << 20, 165 << 20, cache=0)
        joint = rng.normal(0.8, 0.05, (attentions, ffns))
        choices = []
        for a, (score_a, cost_a) in enumerate(attention):
            for f, (score_f, cost_f) in enumerate(ffn):
                score = score_a + score_f if 0 in (a, f) else joint[a, f] * (score_a + score_f)
                costs = tuple(int(x + y) for x, y in zip(cost_a, cost_f, strict=True))[:num_limits]
                choices.append(Choice(f"a{a} + f{f}", round(1e9 * score), costs))
        layers.append(tuple(choices))
    names = COSTS[:num_limits]
    base = (5_000_000, 1 << 30, 1 << 29)[:num_limits]
    parent = [b + sum(layer[0].costs[k] for layer in layers) for k, b in enumerate(base)]
    shares = rng.uniform(0.5, 0.7, num_limits)
    limits = tuple(Limit(name, upper=int(s * p)) for name, s, p in zip(names, shares, parent, strict=True))
    return Problem(names, tuple(layers), base, limits)


def precise(num_layers: int, num_choices: int, num_limits: int, seed: int) -> Problem:
    """Structure x number formats: the choices of `realistic` layers with each subblock in each of four formats.

    Rounding errors grow fourfold with every bit less and with what is left of the subblock; bytes follow the bits of a
    number, decode time the bytes, and prefill time has its own factor for each format, which no bytes explain.
    """
    assert num_choices % PRECISIONS**2 == 0
    assert num_limits == len(PRECISE_COSTS)
    rng = np.random.default_rng(seed)
    plain = realistic(num_layers, num_choices // PRECISIONS**2, 3, seed)
    bits = np.array([16.0, 8.5, 6.5625, 4.5])
    slower = np.array([1.0, 1.15, 1.3, 1.1])
    layers = []
    for layer in plain.layers:
        harm = np.exp(rng.normal(np.log(3e-4), 0.6, 2))
        choices = []
        for choice in layer:
            runtime, memory, parameters = choice.costs
            # An ffn has twice the parameters and runtime of attention.
            share = np.array([1 / 3, 2 / 3])
            for a in range(PRECISIONS):
                for f in range(PRECISIONS):
                    own = np.array([a, f])
                    error = (harm * share * 4.0 ** (4.5 - bits[own]) * (own > 0)).sum() * parameters / 1.85e8
                    score = choice.score + round(1e9 * error * np.exp(rng.normal(0, 0.1)))
                    weights = parameters * (share * bits[own]).sum() / 8
                    decode = 0.2 * runtime + 0.8 * runtime * (share * bits[own]).sum() / 16
                    prefill = runtime * (share * slower[own]).sum() * np.exp(rng.normal(0, 0.01))
                    costs = tuple(map(int, (decode, prefill, memory - 2 * parameters + weights, weights)))
                    choices.append(Choice(f"{choice.label} @ {a}{f}", score, costs))
        layers.append(tuple(choices))
    base = (5_000_000, 5_000_000, 1 << 30, 1 << 29)
    parent = [b + sum(layer[0].costs[k] for layer in layers) for k, b in enumerate(base)]
    shares = (rng.uniform(0.3, 0.5), rng.uniform(0.7, 0.9), rng.uniform(0.4, 0.6), rng.uniform(0.25, 0.4))
    limits = tuple(Limit(n, upper=int(s * p)) for n, s, p in zip(PRECISE_COSTS, shares, parent, strict=True))
    return Problem(PRECISE_COSTS, tuple(layers), base, limits)


def uniform(num_layers: int, num_choices: int, num_limits: int, seed: int) -> Problem:
    """Scores and costs uniformly random and independent; limits midway between the least and the mean total."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 10**8, (num_layers, num_choices))
    costs = rng.integers(0, 10**9, (num_layers, num_choices, num_limits))
    names = COSTS[:num_limits]
    middle = (costs.min(axis=1).sum(axis=0) + costs.mean(axis=1).sum(axis=0)) / 2
    return _problem(score, costs, names, middle)


def correlated(num_layers: int, num_choices: int, num_limits: int, seed: int) -> Problem:
    """Strongly correlated: each choice up from the last costs w more and is w + 10 better, as Pisinger has them.

    A minimal algorithm for the multiple-choice knapsack problem (European Journal of Operational Research 83, 1995).
    Further costs are the first with a little noise.
    """
    rng = np.random.default_rng(seed)
    step = rng.integers(1, 1001, (num_layers, num_choices))
    first = step.cumsum(axis=1)
    score = (first[:, -1:] - first) + 10 * np.arange(num_choices)[::-1]
    costs = np.stack([first + rng.integers(0, 20, first.shape) * (k > 0) for k in range(num_limits)], axis=2)
    return _problem(score, costs, COSTS[:num_limits], costs.mean(axis=1).sum(axis=0))


def even_subset_sum(num_layers: int, num_choices: int, num_limits: int, seed: int) -> Problem:
    """Scores and costs of a choice add up to the same, all even, under odd limits: no relaxation's bound is met."""
    rng = np.random.default_rng(seed)
    costs = 2 * np.sort(rng.integers(0, 10**7, (num_layers, num_choices, num_limits)), axis=1)
    score = (costs.max(axis=1, keepdims=True) - costs).sum(axis=2)
    return _problem(score, costs, COSTS[:num_limits], costs.mean(axis=1).sum(axis=0) // 2 * 2 + 1)


Maker = Callable[[int, int, int, int], Problem]


def _problem(score: np.ndarray, costs: np.ndarray, names: tuple[str, ...], most: np.ndarray) -> Problem:
    num_layers, num_choices = score.shape
    layers = tuple(
        tuple(Choice(f"v{v}", int(score[n, v]), tuple(map(int, costs[n, v]))) for v in range(num_choices))
        for n in range(num_layers)
    )
    limits = tuple(Limit(name, upper=int(value)) for name, value in zip(names, most, strict=True))
    return Problem(names, layers, limits=limits)


def _subblock(
    rng: np.random.Generator, count: int, harm: float, time_ns: int, size: int, parameters: int, cache: int
) -> list[tuple[float, tuple[int, int, int]]]:
    """Variants from the parent's own (share 1, score 0) to nothing at all: (score, costs)."""
    found: list[tuple[float, tuple[int, int, int]]] = []
    for share in np.linspace(1, 0, count):
        # 1 at a quarter of the width, convex, about 4 for nothing.
        score = harm * (1 / (share + 0.15) - 1 / 1.15) / 1.63 * np.exp(rng.normal(0, 0.1)) if share < 1 else 0.0
        lives = share > 0
        time = lives * time_ns * (0.15 + 0.85 * share) * np.exp(rng.normal(0, 0.02))
        memory = lives * (share * (size + cache) + 8192)
        found.append((float(score), (int(time), int(memory), int(lives * (share * parameters + 4096)))))
    return found
