"""A search for a cache in q8_0: whole models are judged with it, bytes are its, single blocks are scored without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.job import Job
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.training import assembled_models
from inlay.nas.loop.true_kl import true_scores, true_scores_of_models
from inlay.nas.pieces.weights import Library
from inlay.nas.stages.score import score_blocks
from inlay.nas.tables.architecture import PARENT_BLOCK


@pytest.fixture
def search_of(
    make_search: Callable[[Job, Path], SmallSearch],
    tiny_parent: Callable[..., Path],
    texts: tuple[Path, Path],
    tmp_path: Path,
) -> Callable[[str], SmallSearch]:
    """A search for a cache, in one workspace for all of them."""

    def make(kv_format: str) -> SmallSearch:
        values: dict[str, Any] = {
            "parent": str(tiny_parent("llama", hidden_size=128, num_attention_heads=2, num_key_value_heads=1)),
            "data": {
                "distill": {"path": str(texts[0]), "sequence_length": 32},
                "validate": {"path": str(texts[1]), "tokens": 512},
            },
            "space": {"ffn": ["no_op"]},
            "score": {"pairs": 0},
            "hardware": {
                "engine": "llama.cpp",
                "kv_format": kv_format,
                "scenarios": [{"prefill": 16, "generate": 8}],
            },
            "budget": {"memory": "0.9x"},
        }
        return make_search(Job.from_dict(values), tmp_path / "w.search")

    return make


def test_whole_models_are_judged_with_the_cache_that_they_run_with(search_of: Callable[[str], SmallSearch]) -> None:
    kl: dict[str, list[float]] = {}
    for kv_format in ("f16", "q8_0"):
        search = search_of(kv_format)
        ids = store_texts(pack_texts(search.job, search.parent.tokenizer()), search.workspace).score
        own = (PARENT_BLOCK,) * search.parent.shape.num_layers
        found = true_scores(search, ids, Library({}), [own, (("attention:parent", "ffn:no_op"), *own[1:])])
        models = assembled_models(search, Library({}), {"child": own})
        stored = true_scores_of_models(search, ids, models)["child"]
        assert stored.kl_nats == pytest.approx(found[0].kl_nats, rel=1e-4, abs=1e-9)
        scores = score_blocks(search, ids, Library({}))
        kl[kv_format] = [each.kl_nats for each in found] + [one.comparison.kl_nats for one in scores]
    exact, rounded = kl["f16"], kl["q8_0"]
    assert exact[0] == 0 < rounded[0]
    assert rounded[1] != exact[1]
    assert rounded[2:] == exact[2:]


def test_the_budget_counts_its_bytes(search_of: Callable[[str], SmallSearch]) -> None:
    sizes = {}
    for kv_format in ("f16", "q8_0"):
        search = search_of(kv_format)
        shape = search.parent.shape
        sizes[kv_format] = search.storage.kv(shape.parent_entry(0, "attention"), shape, 1, 24)
        assert search.target.kv_format == kv_format
        assert search.cache_rounding == ({"kv_format": "q8_0"} if kv_format == "q8_0" else {})
    assert sizes["q8_0"] * 64 == sizes["f16"] * 34
    plain = replace(search_of("auto").target, kv_format="f16")
    assert search_of("auto").target == plain
