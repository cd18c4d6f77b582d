"""Intervals by documents: they hold what they promise, pair what can be paired, and sums are those of the tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from inlay.nas.pieces.by_document import ByDocument, by_document, document_sums, mean_of


def test_documents_of_one_length_have_students_interval() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.1, size=12)
    found = mean_of(50 * values, np.full(12, 50.0))
    low, high = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))


def test_one_document_tells_no_interval() -> None:
    found = mean_of(np.array([20.0]), np.array([100.0]))
    assert (found.value, found.standard_error, found.low, found.high) == (0.2, None, None, None)


def test_19_of_20_intervals_hold_the_truth_where_tokens_of_a_document_are_alike() -> None:
    """Few documents of very different lengths: taken token by token a third of the intervals would hold it."""
    random = np.random.default_rng(1)
    held = by_token = 0
    texts = 2000
    for _ in range(texts):
        tokens_D = random.lognormal(5, 1, size=16).round() + 2
        hardness_D = random.gamma(4.0, 0.1, size=16)
        sums_D = hardness_D * tokens_D + random.normal(0, 0.5, size=16) * np.sqrt(tokens_D)
        found = mean_of(sums_D, tokens_D)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.4 <= found.high
        spread = math.sqrt(float(tokens_D @ (sums_D / tokens_D - found.value) ** 2 / tokens_D.sum() + 0.25))
        by_token += abs(found.value - 0.4) <= 1.96 * spread / math.sqrt(tokens_D.sum())
    assert held / texts == pytest.approx(0.95, abs=0.03)
    assert by_token / texts < 0.6


def test_differences_are_paired_and_ratios_leave_out_what_is_hard_for_both() -> None:
    random = np.random.default_rng(2)
    tokens_D = np.full(60, 40.0)
    hard_D = random.gamma(2.0, 0.5, size=60) * tokens_D
    better, worse = (_seen(tokens_D, hard_D, hard_D * 0.1 + extra * tokens_D) for extra in (0.0, 0.01))
    apart = worse.above(better)
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.01, 0.01, 0.01))
    assert better.kl.high - better.kl.low > 0.01, "their own intervals would hide it"
    ratio = better.perplexity_ratio
    assert ratio.value == pytest.approx(math.exp(0.1 * hard_D.sum() / tokens_D.sum()))
    assert ratio.high / ratio.low < (better.perplexity.high / better.perplexity.low) ** 0.2


def test_how_sources_differ_is_no_chance() -> None:
    """A loud and a quiet source in fixed shares: 19 of 20 intervals hold the mean of both, and they are narrow."""
    random = np.random.default_rng(3)
    held, texts, widths = 0, 1000, []
    sources_D = np.repeat([0, 1], [20, 10])
    tokens_D = np.full(30, 50.0)
    for _ in range(texts):
        sums_D = 50 * (np.where(sources_D == 0, 0.1, 0.7) + random.normal(0, 0.05, size=30))
        found = mean_of(sums_D, tokens_D, sources_D)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.3 <= found.high
        widths.append(found.high - found.low)
        together = mean_of(sums_D, tokens_D)
    assert held / texts == pytest.approx(0.95, abs=0.025)
    assert (together.high or 0) - (together.low or 0) > 4 * np.mean(widths)
    assert mean_of(sums_D, tokens_D, np.arange(30)) == together, "one document a source tells no spread"


def test_intervals_end_where_figures_can_be() -> None:
    tokens_D = np.array([100.0, 120.0, 90.0])
    seen = _seen(tokens_D, tokens_D, np.array([0.0, 0.0, 9.0]), agree_D=tokens_D * np.array([1.0, 1.0, 0.9]))
    assert seen.kl.low == 0.0
    assert seen.agreement.high == 1.0


def test_sums_by_document_are_those_of_the_judged_tokens_over_all_shards() -> None:
    """Position t is judged on token t + 1: what opens a sequence is judged nowhere."""
    random = torch.Generator().manual_seed(0)
    documents_NS = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 2, 2, 2], [2, 3, 3, 3, 3], [4, 3, 3, 3, 3]])
    values = {name: torch.rand((2, 4, 4), generator=random) for name in ("kl", "child_nll", "agree")}
    values["parent_nll"] = torch.rand((4, 4), generator=random)
    parts = [
        document_sums({name: each[..., rows, :] for name, each in values.items()}, documents_NS[rows])
        for rows in (slice(0, 3), slice(3, 4))
    ]
    joined = {name: torch.cat([part[name] for part in parts], dim=-1) for name in parts[0]}
    seen = by_document(joined, 1, [0, 0, 1, 1, 1])
    assert seen.tokens_D.tolist() == [2, 3, 3, 8], "document 4 has no judged token"
    assert seen.num_tokens == 16
    judged = documents_NS[:, 1:]
    for number in range(4):
        assert seen.kl_D[number] == pytest.approx(float(values["kl"][1][judged == number].sum()))
        assert seen.parent_nll_D[number] == pytest.approx(float(values["parent_nll"][judged == number].sum()))
    second = seen.of_source(1)
    assert second.kl.value == pytest.approx(float(values["kl"][1][judged >= 2].mean()))
    assert second.num_documents == 2


def _seen(
    tokens_D: np.ndarray, parent_nll_D: np.ndarray, kl_D: np.ndarray, agree_D: np.ndarray | None = None
) -> ByDocument:
    """What is seen of a child whose loss is above its parent's by its KL."""
    agree_D = 0.5 * tokens_D if agree_D is None else agree_D
    sources_D = np.zeros(len(tokens_D), np.int64)
    return ByDocument(tokens_D, sources_D, kl_D, parent_nll_D + kl_D, agree_D, parent_nll_D)
