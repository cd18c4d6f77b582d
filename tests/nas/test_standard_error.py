"""Errors of means over packed sequences: what one tells, what neighbours share, and what differences cancel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inlay.nas.pieces.comparison import MEASURES, Comparison, Difference, summaries
from inlay.nas.pieces.standard_error import standard_error


def compared(kl_CN: np.ndarray) -> list[Comparison]:
    """The comparisons of architectures with these KLs."""
    kl = torch.from_numpy(kl_CN)
    blobs = {**dict.fromkeys(MEASURES, kl), "parent_nll": torch.zeros(kl.shape[1], dtype=torch.float64)}
    return list(summaries([str(row) for row in range(len(kl))], [blobs]).values())


def test_one_sequence_does_not_tell_its_error() -> None:
    (one,) = compared(np.array([[0.3]]))
    assert one.kl_nats == pytest.approx(0.3)
    assert one.standard_error is None
    assert one.figures()["standard_error"] is None
    assert "kl_N" not in one.figures()


def test_independent_sequences_have_the_usual_error() -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.5, size=(200, 400))
    found = np.mean([standard_error(row) or 0.0 for row in draws])
    assert found == pytest.approx(0.5 / np.sqrt(400), rel=0.1)


def test_documents_that_run_over_several_sequences_make_the_error_larger() -> None:
    """Four sequences in a row share a document: 100 independent values, not 400."""
    draws = np.random.default_rng(1).normal(1.0, 0.5, size=(200, 100)).repeat(4, axis=1)
    found = np.mean([standard_error(row) or 0.0 for row in draws])
    true = float(draws.mean(axis=1).std())
    independent = np.mean(draws.std(axis=1, ddof=1) / np.sqrt(400))
    assert independent < 0.55 * true, "taken as independent it is half of what it is"
    assert found == pytest.approx(true, rel=0.2)


def test_the_error_of_a_difference_is_that_of_the_paired_sequences() -> None:
    random = np.random.default_rng(2)
    hard = random.gamma(2.0, 0.2, size=100)  # what is hard for one child is hard for the other
    better, worse = compared(np.stack([hard, hard + 0.01 + random.normal(0, 0.002, size=100)]))
    apart = worse.above(better)
    assert apart.nats == pytest.approx(0.01, abs=0.001)
    assert not apart.within_noise
    assert (better.standard_error or 0.0) > apart.nats, "their own errors would hide it"
    assert Difference(0.001, 0.002).within_noise
    assert not Difference(0.001, None).within_noise
