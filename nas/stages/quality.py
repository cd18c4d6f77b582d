"""The quality of models on the report text, as evaluation.json holds it: figures, their intervals, source by source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inlay.nas.pieces.by_document import ByDocument
from inlay.nas.pieces.comparison import Comparison


def quality_of(comparison: Comparison, sources: Sequence[str]) -> dict[str, Any]:
    """One model's figures; with the same for each of several `sources` of the text by name."""
    seen = documents_of(comparison)
    figures: dict[str, Any] = {
        "kl_nats": comparison.kl_nats,
        "kl_standard_error": seen.kl.standard_error,
        "perplexity": comparison.perplexity,
        "top1_agreement": comparison.top1_agreement,
        **_intervals(seen),
    }
    if len(sources) > 1:
        apart = {name: seen.of_source(place) for place, name in enumerate(sources)}
        figures["sources"] = {name: _of_source(own) for name, own in apart.items() if own.num_documents}
    return figures


def judged_text(comparison: Comparison) -> dict[str, int]:
    """How much of the report text was judged: what intervals are made of."""
    seen = documents_of(comparison)
    return {"documents": seen.num_documents, "tokens": seen.num_tokens}


def above_child(quality: Mapping[str, Comparison]) -> dict[str, dict[str, float | None]]:
    """How much more KL than the child each other model has on the report text, by paired documents."""
    child = documents_of(quality["child"])
    found = {name: documents_of(each).above(child) for name, each in quality.items() if name != "child"}
    return {
        name: {"nats": each.value, "standard_error": each.standard_error, **each.ends("nats")}
        for name, each in found.items()
    }


def documents_of(comparison: Comparison) -> ByDocument:
    """What was seen document by document, which is there for the report text."""
    assert comparison.documents is not None
    return comparison.documents


def _of_source(seen: ByDocument) -> dict[str, Any]:
    return {
        "documents": seen.num_documents,
        "tokens": seen.num_tokens,
        "kl_nats": seen.kl.value,
        "perplexity": seen.perplexity.value,
        "top1_agreement": seen.agreement.value,
        **_intervals(seen),
    }


def _intervals(seen: ByDocument) -> dict[str, float | None]:
    ratio = seen.perplexity_ratio
    return {
        **seen.kl.ends("kl"),
        "perplexity_ratio": ratio.value,
        **ratio.ends("perplexity_ratio"),
        **seen.agreement.ends("top1_agreement"),
    }
