"""How far a figure of a text can be trusted: sums document by document, and the interval that they give.

Tokens of one document resemble each other, so the document and not the token is what was drawn.

Shapes: C architectures, N sequences, S positions, D documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Values = npt.NDArray[np.float64]
CONFIDENCE = 0.95
_SUMMED = ("kl", "child_nll", "agree", "parent_nll")


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error and the interval that holds the true one in 95 of 100 texts; None: unknown."""

    value: float
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None

    def at_least(self, least: float) -> Estimate:
        """The interval cut off below what is possible."""
        return self._cut(least, math.inf)

    def share(self) -> Estimate:
        """The interval of a share, which ends at 0 and 1."""
        return self._cut(0.0, 1.0)

    def exp(self) -> Estimate:
        """Of e to the power of the figure; the error to first order."""
        value = _exp(self.value)
        error = None if self.standard_error is None else value * self.standard_error
        return Estimate(value, error, *(None if end is None else _exp(end) for end in (self.low, self.high)))

    def ends(self, name: str) -> dict[str, float | None]:
        """The interval as two fields of a row."""
        return {f"{name}_low": self.low, f"{name}_high": self.high}

    def _cut(self, least: float, most: float) -> Estimate:
        ends = (None if end is None else min(max(end, least), most) for end in (self.low, self.high))
        return Estimate(self.value, self.standard_error, *ends)


@dataclass(frozen=True)
class ByDocument:
    """What was seen of one architecture beside the parent, summed over the judged tokens of each document.

    Args:
        tokens_D: how many there are.
        sources_D: the document's source, by its place among those of the text.
        kl_D, child_nll_D, parent_nll_D: nats.
        agree_D: tokens where both have the same first choice.
    """

    tokens_D: Values
    sources_D: npt.NDArray[np.int64]
    kl_D: Values
    child_nll_D: Values
    agree_D: Values
    parent_nll_D: Values

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.tokens_D)

    @property
    def num_tokens(self) -> int:
        """Judged tokens of all documents."""
        return int(self.tokens_D.sum())

    def of_source(self, place: int) -> ByDocument:
        """The documents of one source."""
        own = self.sources_D == place
        names = ("tokens_D", "sources_D", "kl_D", "child_nll_D", "agree_D", "parent_nll_D")
        return ByDocument(*(getattr(self, name)[own] for name in names))

    @property
    def kl(self) -> Estimate:
        """KL(parent ‖ child), nats per token."""
        return self._mean(self.kl_D).at_least(0.0)

    @property
    def agreement(self) -> Estimate:
        """Share of tokens with the parent's first choice."""
        return self._mean(self.agree_D).share()

    @property
    def perplexity(self) -> Estimate:
        """The child's own."""
        return self._mean(self.child_nll_D).exp()

    @property
    def perplexity_ratio(self) -> Estimate:
        """Over the parent's on the same tokens: what is hard for both falls out of the error."""
        return self._mean(self.child_nll_D - self.parent_nll_D).exp()

    def above(self, other: ByDocument) -> Estimate:
        """How much more KL it has than another on the same documents."""
        return self._mean(self.kl_D - other.kl_D)

    def _mean(self, sums_D: Values) -> Estimate:
        return mean_of(sums_D, self.tokens_D, self.sources_D)


def mean_of(sums_D: Values, tokens_D: Values, sources_D: npt.NDArray[np.int64] | None = None) -> Estimate:
    """The mean per token, Σ sums / Σ tokens, with an error by documents.

    The variance is that of a ratio of sums over clusters, D/(D - 1) Σ e_d² / (Σ t_d)² with e_d = s_d - m t_d (Cochran
    1977, Sampling Techniques, section 2.11). The interval has the quantile of Student's t for as many documents as
    there are in effect, (Σ t_d)² / Σ t_d² (Kish 1965, Survey Sampling): a text that is mostly one long document tells
    little, whatever else stands in it. How much there is of each source is no chance: where each has two documents at
    least, what its documents have in common is left out of the error (strata, Cochran, section 6.11).

    Unknown of fewer than two documents.
    """
    tokens = float(tokens_D.sum())
    value = float(sums_D.sum()) / tokens
    if len(tokens_D) < 2:
        return Estimate(value)
    off_D = sums_D - value * tokens_D
    strata = _strata(len(tokens_D), sources_D)
    variance = sum(len(off_D[own]) * float(off_D[own].var(ddof=1)) for own in strata)
    freedom = tokens**2 / float(tokens_D @ tokens_D) - len(strata)
    return _interval(value, math.sqrt(variance) / tokens, freedom)


def _strata(number: int, sources_D: npt.NDArray[np.int64] | None) -> list[npt.NDArray[np.int64]]:
    """The documents of each source; all together where one has fewer than two."""
    if sources_D is not None:
        parts = [np.flatnonzero(sources_D == source) for source in np.unique(sources_D)]
        if all(len(part) > 1 for part in parts):
            return parts
    return [np.arange(number)]


def _exp(value: float) -> float:
    """Finite whatever a diverged model's loss is."""
    return math.exp(min(value, 700.0))


def _interval(value: float, error: float, freedom: float) -> Estimate:
    from scipy.special import stdtrit  # where figures are made, and not in every worker

    # With less than one degree of freedom the quantile has no bound worth telling.
    reach = error * float(stdtrit(max(1.0, freedom), (1 + CONFIDENCE) / 2))
    return Estimate(value, error, value - reach, value + reach)


def document_sums(values: Mapping[str, Tensor], documents_NS: Tensor) -> dict[str, Tensor]:
    """Sums by document of what was seen at each judged token, and which documents these are, as a part of a blob.

    Args:
        values: by name, [C, N, S - 1], or [N, S - 1] of `parent_nll`.
        documents_NS: the document of each token; position t is judged on token t + 1.
    """
    numbers_K, places = torch.unique(documents_NS[:, 1:].reshape(-1), return_inverse=True)
    sums = {"document": numbers_K, "document_tokens": torch.bincount(places, minlength=len(numbers_K)).double()}
    for name in _SUMMED:
        flat = values[name].flatten(-2).double().cpu()
        empty = torch.zeros((*flat.shape[:-1], len(numbers_K)), dtype=torch.float64)
        sums[f"document_{name}"] = empty.index_add_(-1, places, flat)
    return sums


def by_document(joined: Mapping[str, Tensor], row: int, sources_D: Sequence[int]) -> ByDocument:
    """One architecture's from the parts of all shards, `row` being its place among the architectures.

    `sources_D` has the source of every document of the text; those of which nothing is judged are left out.
    """
    document_K = joined["document"].numpy()

    def total(values_K: Tensor) -> Values:
        return np.bincount(document_K, weights=values_K.numpy(), minlength=len(sources_D)).astype(np.float64)

    tokens_D = total(joined["document_tokens"])
    judged = tokens_D > 0
    return ByDocument(
        tokens_D[judged],
        np.asarray(sources_D, np.int64)[judged],
        kl_D=total(joined["document_kl"][row])[judged],
        child_nll_D=total(joined["document_child_nll"][row])[judged],
        agree_D=total(joined["document_agree"][row])[judged],
        parent_nll_D=total(joined["document_parent_nll"])[judged],
    )
