"""A cache in q8_0, of all models or of those that the program chooses: bytes, times and KL are of the cache that a
model runs with, and single blocks are scored without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.engines.registry import storage_of
from inlay.nas.job import Job
from inlay.nas.loop.baselines import everywhere
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.solving import Tables, solve_pool
from inlay.nas.loop.swaps import neighbours, spending
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.training import assembled_models
from inlay.nas.loop.true_kl import true_scores, true_scores_of_models
from inlay.nas.loop.true_times import measure
from inlay.nas.pieces.subblock_times import cached_key, entry_key
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.stages.measure import TIMES, cost_rows
from inlay.nas.stages.score import score_blocks
from inlay.nas.stages.sizes import sizes_of
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks, architecture_of, cache_form
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.scores import ScoreTable
from inlay.solver import Limit

SearchOf = Callable[..., SmallSearch]
BOTH = ["f16", "q8_0"]
CACHE, ENDS = "kv:q8_0", "ends:parent@q8_0"


@pytest.fixture
def search_of(
    make_search: Callable[[Job, Path], SmallSearch],
    tiny_parent: Callable[..., Path],
    texts: tuple[Path, Path],
    tmp_path: Path,
) -> SearchOf:
    """A search for a cache, in one workspace for all of them."""

    def make(kv_format: str | list[str], **more: Any) -> SmallSearch:
        values: dict[str, Any] = {
            "parent": str(tiny_parent("llama", hidden_size=128, num_attention_heads=2, num_key_value_heads=1)),
            "data": {
                "distill": {"path": str(texts[0]), "sequence_length": 32},
                "validate": {"path": str(texts[1]), "tokens": 512},
            },
            "space": {"ffn": ["no_op"], **more},
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


def score_ids(search: SmallSearch) -> Ids:
    return store_texts(pack_texts(search.job, search.parent.tokenizer()), search.workspace).score


def parent_with(search: SmallSearch, *labels: str) -> Blocks:
    own = (PARENT_BLOCK,) * search.parent.shape.num_layers
    return (*own[:-1], (*PARENT_BLOCK, *labels))


def test_whole_models_are_judged_with_the_cache_that_they_run_with(search_of: SearchOf) -> None:
    kl: dict[str, list[float]] = {}
    for kv_format in BOTH:
        search = search_of(kv_format)
        ids, own = score_ids(search), parent_with(search)
        found = true_scores(search, ids, Library({}), [own, (("attention:parent", "ffn:no_op"), *own[1:])])
        models = assembled_models(search, Library({}), {"child": own})
        stored = true_scores_of_models(search, ids, models)["child"]
        assert stored.kl_nats == pytest.approx(found[0].kl_nats, rel=1e-4, abs=1e-9)
        scores = [one for one in score_blocks(search, ids, Library({})) if len(one.block) == 2]
        kl[kv_format] = [each.kl_nats for each in found] + [one.comparison.kl_nats for one in scores]
    exact, rounded = kl["f16"], kl["q8_0"]
    assert exact[0] == 0 < rounded[0]
    assert rounded[1] != exact[1]
    assert rounded[2:] == exact[2:]


def test_a_chosen_cache_is_that_of_a_search_for_it(search_of: SearchOf) -> None:
    chosen, fixed = search_of(BOTH), search_of("q8_0")
    ids, own = score_ids(fixed), parent_with(fixed)
    both = [own, parent_with(chosen, CACHE)]
    plain, rounded = true_scores(chosen, ids, Library({}), both)
    (theirs,) = true_scores(fixed, ids, Library({}), [own])
    assert plain.kl_nats == 0 < rounded.kl_nats == theirs.kl_nats
    models = assembled_models(chosen, Library({}), {"plain": both[0], "rounded": both[1]})
    stored = true_scores_of_models(chosen, ids, models)
    assert stored["plain"].kl_nats == pytest.approx(0, abs=1e-9)
    assert stored["rounded"].kl_nats == pytest.approx(rounded.kl_nats, rel=1e-4)


@pytest.mark.slow
def test_the_kl_of_the_cache_counts_once(search_of: SearchOf) -> None:
    tables = {}
    for name, kv_format in (("f16", "f16"), ("q8_0", "q8_0"), ("both", BOTH)):
        search = search_of(kv_format, formats=["q8_0"])
        rows = [one.row() for one in score_blocks(search, score_ids(search), Library({}))]
        tables[name] = ScoreTable.of(rows)
    search = search_of("q8_0", formats=["q8_0"])
    (rounded,) = true_scores(search, score_ids(search), Library({}), [parent_with(search)])
    plain, fixed, both = tables["f16"], tables["q8_0"], tables["both"]
    # What embedding and head lose is the same whatever the cache, whose own loss every model has once.
    assert plain.ends == fixed.ends == both.ends
    assert (plain.caches, plain.base) == ({}, 0)
    assert (fixed.caches, fixed.base) == ({}, rounded.kl_nats)
    assert (both.caches, both.base) == ({CACHE: rounded.kl_nats}, 0)
    own, ends = parent_with(search), parent_with(search, ENDS)
    assert fixed.predict(own) == rounded.kl_nats
    assert fixed.predict(ends) == pytest.approx(rounded.kl_nats + plain.ends[ENDS])
    assert both.predict(parent_with(search, ENDS, CACHE)) == pytest.approx(fixed.predict(ends))
    assert both.predict(ends) == plain.predict(ends)
    last = both.blocks(search.parent.shape.num_layers - 1)
    assert len(last) == len(set(last)) == 2 * len(fixed.blocks(search.parent.shape.num_layers - 1))


def test_the_budget_counts_its_bytes(search_of: SearchOf) -> None:
    sizes = {}
    for kv_format in BOTH:
        search = search_of(kv_format)
        shape = search.parent.shape
        sizes[kv_format] = search.storage.kv(shape.parent_entry(0, "attention"), shape, 1, 24)
        assert search.target.kv_format == kv_format
        assert search.cache_of() == ("q8_0" if kv_format == "q8_0" else "")
    assert sizes["q8_0"] * 64 == sizes["f16"] * 34
    plain = replace(search_of("auto").target, kv_format="f16")
    assert search_of("auto").target == search_of(BOTH).target == plain


def test_the_program_changes_the_cache_where_memory_binds(search_of: SearchOf) -> None:
    search = search_of(BOTH)
    shape, num_layers = search.parent.shape, search.parent.shape.num_layers
    costs = CostTable(cost_rows(search))
    own, rounded = parent_with(search), parent_with(search, CACHE)
    totals = [costs.total("default", blocks) for blocks in (own, rounded)]
    # Bytes are those of a search for one of them; what has no cache has one row.
    for total, kv_format in zip(totals, BOTH, strict=True):
        storage = storage_of(search_of(kv_format).job.hardware, shape)
        assert total["kv_bytes"] == sum(storage.kv(block["attention"], shape, 1, 24) for block in shape.blocks)
    assert totals[0]["kv_bytes"] * 34 == totals[1]["kv_bytes"] * 64
    assert {name: totals[0][name] for name in ("weights_bytes", "parameters")} == {
        name: totals[1][name] for name in ("weights_bytes", "parameters")
    }
    cached = {row["variant"] for row in costs.rows if CACHE in row["variant"]}
    assert cached == {f"attention:parent + {CACHE}", f"stand_in:attention + {CACHE}"}
    # Each has the times that were taken of it, in turns with the other.
    (record,) = search.records.values()
    entry = shape.parent_entry(0, "attention")
    for key, label in (
        (entry_key("attention", entry), "attention:parent"),
        (cached_key("attention", entry, "q8_0"), f"attention:parent + {CACHE}"),
    ):
        row = costs.of("default", 0, label)
        assert {name: row[name] for name in TIMES} == record.values["times"][key]

    scores = ScoreTable.of([one.row() for one in score_blocks(search, score_ids(search), Library({}))])
    tables = Tables(scores, costs, {"default": 8})
    memory = [total["weights_bytes"] + total["kv_bytes"] for total in totals]
    found = {}
    for limit in (memory[0], memory[0] - 1, memory[1], memory[1] - 1):
        problem = tables.problem([]).with_limits(Limit("memory", upper=limit))
        (solution,) = solve_pool(problem, 1, 0.0, 60.0)
        found[limit] = architecture_of(solution.labels)
        assert solution.status == "optimal"
        assert solution.objective == round(scores.predict(found[limit]) * 1e9)
        total = costs.total("default", found[limit])
        assert solution.totals["memory"] == total["weights_bytes"] + total["kv_bytes"] <= limit
    own_first, *less, least = found.values()
    assert own_first == own
    assert less == [rounded, rounded]
    assert cache_form(least) in (None, "q8_0")
    assert least not in (own, rounded)

    # What is left of a budget is spent on the finer cache, and the coarser one is a neighbour.
    wide, narrow = (tables.problem([]).with_limits(Limit("memory", upper=bytes_)) for bytes_ in memory)
    assert own in spending(rounded, scores, wide)
    assert rounded in neighbours(own, scores, wide)
    assert all(cache_form(blocks) == "q8_0" for blocks in neighbours(rounded, scores, narrow) if blocks[:1] == own[:1])
    assert {cache_form(blocks) for blocks in everywhere(scores, num_layers)} == {None, "q8_0"}


def test_a_models_times_and_sizes_are_of_its_cache(search_of: SearchOf) -> None:
    search = search_of(BOTH)
    costs = CostTable(cost_rows(search))
    scenario = search.job.hardware.scenarios[0]
    architectures = [parent_with(search), parent_with(search, CACHE)]
    found = []
    for architecture, times in zip(architectures, measure(search, architectures, "times"), strict=True):
        held = times[scenario.name].held
        sizes = sizes_of(search, costs, scenario, architecture, held, None)
        # The log has MiB with two digits.
        assert sizes["held_kv_bytes"] == pytest.approx(sizes["kv_bytes"], abs=2**20 / 100)
        found.append(sizes["held_kv_bytes"])
    assert found[1] < found[0]
