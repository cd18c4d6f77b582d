"""Layers are dropped as if all were tried each time, at a number of evaluations that grows with the layers alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.job import Job
from inlay.nas.loop import baselines
from inlay.nas.loop.baselines import DEPTH_TRIED, NO_BLOCK, depth
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks

NAMES = sorted(path.parent.name for path in Path(os.environ.get("INLAY_PARENTS", "none")).glob("*/config.json"))


def tried_all_each_time(search: SmallSearch, ids: Ids, number: int) -> list[Blocks]:
    """Architectures with one layer less each, every layer tried for every one of them."""
    found: list[Blocks] = [(PARENT_BLOCK,) * search.parent.shape.num_layers]
    for _ in range(number):
        last = found[-1]
        options = [(*last[:i], NO_BLOCK, *last[i + 1 :]) for i, block in enumerate(last) if block != NO_BLOCK]
        scores = true_scores(search, ids, Library({}), options)
        found.append(min(zip(options, scores, strict=True), key=lambda pair: pair[1].kl_nats)[0])
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if place else []) for place, name in enumerate(NAMES)]
)
def test_it_drops_what_trying_all_each_time_drops(
    name: str,
    parents_dir: Path,
    texts: tuple[Path, Path],
    make_search: Callable[[Job, Path], SmallSearch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values: dict[str, Any] = {
        "parent": str(parents_dir / name),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 128},
            "validate": {"path": str(texts[1]), "tokens": "1k"},
        },
        "space": {"attention": ["no_op"], "ffn": ["no_op"]},
        "hardware": {"scenarios": [{"prefill": 16, "generate": 8}]},
        "budget": {"parameters": "0.5x"},
    }
    search = make_search(Job.from_dict(values), tmp_path / "w.search")
    ids = store_texts(pack_texts(search.job, search.parent.tokenizer()), search.workspace).score
    layers, tried = search.parent.shape.num_layers, []

    def counted(search: SmallSearch, ids: Ids, library: Library, options: list[Blocks], what: str) -> Any:
        tried.append(len(options))
        return true_scores(search, ids, library, options, what)

    monkeypatch.setattr(baselines, "true_scores", counted)
    for dropped, expected in enumerate(tried_all_each_time(search, ids, layers - 1)):
        tried.clear()
        found = depth(search, ids, Library({}), lambda own, most=dropped: 2.0 - (own.count(NO_BLOCK) >= most))
        assert found.architecture == expected
        assert sum(tried) <= 1 + layers + DEPTH_TRIED * max(0, dropped - 1)
