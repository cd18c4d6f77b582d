"""The Kneser-Ney yardstick: it is a distribution, and agrees with figures worked out by hand."""

import itertools

import numpy as np
import pytest

from inlay.nas.embedded.ngram import KneserNey


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [12, 400])
def test_probabilities_of_every_context_sum_to_one(order: int, length: int) -> None:
    tokens = np.random.default_rng(order).integers(0, 4, length) ** 2 // 3  # ids 0, 1 and 3; 2 and 4 unseen
    model = KneserNey.fit(tokens, vocabulary=5, order=order)
    contexts = list(itertools.product(range(5), repeat=order - 1))
    everywhere = np.repeat(np.array(contexts, dtype=np.int64).reshape(len(contexts), order - 1), 5, axis=0)
    found = model.probabilities(everywhere, np.tile(np.arange(5), len(contexts)))
    assert (found > 0).all()
    np.testing.assert_allclose(found.reshape(-1, 5).sum(axis=1), 1.0, rtol=1e-12)


def test_bigram_by_hand() -> None:
    # Stream a b a b a c: bigrams ab 2, ba 2, ac 1. Too small to estimate discounts: 0.5 for 1, 1.0 for 2.
    # Unigram counts are the different tokens before: a 1 (b), b 1 (a), c 1 (a); total 3, each discounted by 0.5,
    # so the uniform distribution over 4 tokens gets 1.5 / 3: p(b) = 0.5 / 3 + 0.5 / 4 = 0.291666...
    # After a (3 times): p(b|a) = (2 - 1.0) / 3 + (1.0 + 0.5) / 3 * p(b) = 0.479166...
    model = KneserNey.fit(np.array([0, 1, 0, 1, 0, 2]), vocabulary=4, order=2)
    found = model.probabilities(np.array([[0], [0], [0], [3]]), np.array([1, 2, 3, 1]))
    p_b = 0.5 / 3 + 0.5 / 4
    expected = [1 / 3 + 0.5 * p_b, 0.5 / 3 + 0.5 * p_b, 0.5 * (0.5 / 4), p_b]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_discounts_are_chen_and_goodman_estimates() -> None:
    # Unigram counts 1, 1, 1, 2, 2, 3, 4: Y = 3 / (3 + 2 * 2); D1 = 1 - 2Y * 2/3, D2 = 2 - 3Y * 1/2, D3 = 3 - 4Y * 1/1.
    model = KneserNey.fit(np.array([0, 1, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 6, 6]), vocabulary=7, order=1)
    y = 3 / 7
    d1, d2, d3 = 1 - 2 * y * 2 / 3, 2 - 3 * y / 2, 3 - 4 * y
    uniform = (3 * d1 + 2 * d2 + 2 * d3) / 14 / 7
    found = model.probabilities(np.empty((4, 0)), np.array([0, 3, 5, 6]))
    np.testing.assert_allclose(found, [(c - d) / 14 + uniform for c, d in ((1, d1), (2, d2), (3, d3), (4, d3))])


def test_bits_of_a_stream() -> None:
    model = KneserNey.fit(np.array([0, 1, 0, 1, 0, 2]), vocabulary=4, order=2)
    by_token = model.probabilities(np.array([[3], [0], [1]]), np.array([0, 1, 0]))
    assert model.bits(np.array([0, 1, 0]), before=3) == pytest.approx(-np.log2(by_token).sum())


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "order", "message"),
    [
        ([0, 1], 4, 3, r"`tokens` must hold at least `order` \(3\) ids, not 2\."),
        ([0, 4], 4, 2, r"`tokens` must lie in \[0, 4\), not 0 to 4\."),
        ([0, 1], 3072, 6, r"`order` must be 1 to 5 for a vocabulary of 3072, not 6\."),
    ],
)
def test_refusals(tokens: list[int], vocabulary: int, order: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        KneserNey.fit(np.array(tokens), vocabulary, order)
