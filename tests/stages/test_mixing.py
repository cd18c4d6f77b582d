"""Which mixes of formats are offered: those on the front of bytes and estimated KL, and they are what they say."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.families import Shape, open_parent, subblock_tensors
from inlay.nas.formats import FORMATS
from inlay.nas.formats.by_tensor import form_of, forms_in
from inlay.nas.job import Job
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.stages.estimates import CHECKED, CHECKED_MIXES, estimate_blocks, estimate_matrices
from inlay.nas.stages.measure import CostRows
from inlay.nas.stages.mixing import MIXES, Mix, all_mixes, front, hull, mixes_of
from inlay.nas.stages.scoring import mix_formats
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.variants import parse_variant, variants_of

FORMS = ("q8_0", "q5_0", "q4_0")


@pytest.fixture(scope="module")
def shape(tiny_parent: Callable[..., Path]) -> Shape:
    return open_parent(tiny_parent("llama", hidden_size=64, num_attention_heads=4, intermediate_size=256)).shape


def drawn_nats(shape: Shape, layer: int) -> dict[str, dict[str, float]]:
    """Of every matrix in every format, more where there are fewer bits, at random."""
    drawn = random.Random(layer)
    found: dict[str, dict[str, float]] = {}
    for slot in ("attention", "ffn"):
        sizes = subblock_tensors(shape, slot, shape.parent_entry(layer, slot))
        for place, form in enumerate(FORMS):
            found[f"{slot}:parent@{form}"] = {
                name: 8**place * drawn.uniform(0.1, 1) for name, size in sizes.items() if len(size) == 2
            }
    return found


def test_the_front_has_what_nothing_beats(shape: Shape) -> None:
    nats = drawn_nats(shape, 0)
    every = list(all_mixes(shape, 0, "attention", FORMS, nats))
    assert len({mix.stored for mix in every}) == len(every) == len(FORMS) ** 3
    for mix in every:
        sizes = subblock_tensors(shape, "attention", shape.parent_entry(0, "attention"))
        forms = {name: form_of(mix.stored, name) for name, size in sizes.items() if len(size) == 2}
        assert mix.num_bytes == sum(FORMATS[form].holding(64).num_bytes(sizes[name]) for name, form in forms.items())
        assert mix.nats == pytest.approx(sum(nats[f"attention:parent@{form}"][n] for n, form in forms.items()))
    kept = front(iter(every))
    for mix in kept:
        assert not any(o.num_bytes <= mix.num_bytes and o.nats <= mix.nats for o in every if o.stored != mix.stored)
    best = {own.stored for own in kept}
    for mix in every:
        if mix.stored not in best:
            assert any(o.num_bytes <= mix.num_bytes and o.nats <= mix.nats for o in kept)
    below = hull(kept)
    assert {below[0], below[-1]} == {kept[0], kept[-1]}
    for first, last in itertools.pairwise(below):
        for mix in kept:
            if first.num_bytes < mix.num_bytes < last.num_bytes:
                share = (mix.num_bytes - first.num_bytes) / (last.num_bytes - first.num_bytes)
                assert mix.nats >= first.nats + share * (last.nats - first.nats) - 1e-12


def test_a_hull_leaves_out_what_is_above_its_lines() -> None:
    points = [Mix("a", 0, 8.0), Mix("b", 1, 7.0), Mix("c", 2, 1.0), Mix("d", 4, 0.0)]
    assert [mix.stored for mix in hull(points)] == ["a", "c", "d"]


def test_few_are_offered_and_each_lies_on_its_layers_front(shape: Shape) -> None:
    nats = [drawn_nats(shape, layer) for layer in range(shape.num_layers)]
    found = mixes_of(shape, FORMS, nats)
    assert set(found) == {(layer, slot) for layer in range(shape.num_layers) for slot in ("attention", "ffn")}
    for slot in ("attention", "ffn"):
        assert 0 < len({stored for (_, own), held in found.items() if own == slot for stored in held}) <= MIXES
    for (layer, slot), held in found.items():
        best = {mix.stored for mix in front(all_mixes(shape, layer, slot, FORMS, nats[layer]))}
        assert set(held) <= best
        assert all(len(forms_in(stored)) > 1 for stored in held)


def test_what_holds_no_row_of_a_part_is_not_among_them(shape: Shape) -> None:
    forms = ("q8_0", "q4_K")
    sizes = {slot: subblock_tensors(shape, slot, shape.parent_entry(0, slot)) for slot in ("attention", "ffn")}
    nats = {
        f"{slot}:parent@{form}": {name: 1.0 for name, size in sizes[slot].items() if len(size) == 2}
        for slot, form in (("attention", "q8_0"), ("ffn", "q8_0"), ("ffn", "q4_K"))
    }
    # Rows of 64 hold no blocks of 256, and the down projection's of 256 do.
    assert {mix.stored for mix in all_mixes(shape, 0, "ffn", forms, nats)} == {"q8_0", "q8_0,down=q4_K"}
    assert {mix.stored for mix in all_mixes(shape, 0, "attention", forms, nats)} == {"q8_0"}


def test_what_a_format_alone_comes_to_is_no_mix(shape: Shape) -> None:
    forms = ("q8_0", "q5_0", "q4_K")
    nats = []
    for layer in range(shape.num_layers):
        own = drawn_nats(shape, layer)
        nats.append({label.replace("q4_0", "q4_K"): told for label, told in own.items()})
    # Of rows of 64 q4_K is q5_0, so that `ffn:parent@q4_K` says it already: the smallest, which is on every hull.
    every = [hull(front(all_mixes(shape, layer, "ffn", forms, own))) for layer, own in enumerate(nats)]
    assert all(own[0].stored == "q5_0,down=q4_K" for own in every)
    assert "q5_0,down=q4_K" not in {stored for held in mixes_of(shape, forms, nats).values() for stored in held}


def test_heads_that_are_normed_keep_their_values_with_the_queries(tiny_parent: Callable[..., Path]) -> None:
    normed = open_parent(tiny_parent("qwen3", hidden_size=64, num_attention_heads=4, head_dim=16)).shape
    found = [mix.stored for mix in all_mixes(normed, 0, "attention", FORMS, drawn_nats(normed, 0))]
    assert len(found) == len(FORMS) ** 2
    assert not any("v=" in stored for stored in found)


@pytest.fixture
def search(
    make_search: Callable[[Job, Path], SmallSearch],
    tiny_parent: Callable[..., Path],
    texts: tuple[Path, Path],
    tmp_path: Path,
) -> SmallSearch:
    values: dict[str, Any] = {
        "parent": str(tiny_parent("llama", hidden_size=64, num_attention_heads=4, intermediate_size=256)),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 32},
            "validate": {"path": str(texts[1]), "tokens": 512},
        },
        "space": {"formats": {"choices": ["q8_0", "q4_0"], "by": "tensor"}},
        "distill": {"tokens": 0},
        "recover": {"tokens": 0},
        "hardware": {"engine": "llama.cpp", "scenarios": [{"prefill": 16, "generate": 8}]},
        "budget": {"weights": "0.4x"},
    }
    return make_search(Job.from_dict(values), tmp_path / "w.search")


def test_mixes_are_estimated_scored_and_counted_as_what_they_are(search: SmallSearch) -> None:
    shape = search.parent.shape
    texts = store_texts(pack_texts(search.job, search.parent.tokenizer()), search.workspace)
    number = mix_formats(search, texts)
    assert number == len({(slot, stored) for (_, slot), held in search.mixes.items() for stored in held}) > 0
    nats = estimate_matrices(search, texts.score)
    found, _ = estimate_blocks(search, texts.score)
    labels = {(one.layer, label) for one in found for label in one.block if "@" in label}
    offered = {
        (layer, v.label)
        for layer in range(shape.num_layers)
        for v in variants_of(search.space, shape, layer)
        if v.form is not None
    }
    assert labels == offered
    mixed = [one for one in found if any("=" in label.partition("@")[2] for label in one.block)]
    assert len(mixed) == sum(map(len, search.mixes.values()))
    # Four of them, and eight of the others, have their true KL: the sum of what their matrices cost is near it.
    checked = [one for one in mixed if one.true is not None]
    assert len(checked) == min(len(mixed), CHECKED_MIXES)
    assert sum(one.true is not None for one in found) == len(checked) + min(len(found) - len(mixed), CHECKED)
    for one in checked:
        assert one.true is not None
        assert one.kl_nats == pytest.approx(one.true.kl_nats, rel=0.5)
    # What is timed and counted are the very entries.
    rows = CostRows(search.space, shape, search.engine, "f16", search.storage)
    for one in mixed:
        (label,) = (label for label in one.block if "@" in label)
        variant = parse_variant(label)
        entry = variant.entry(shape, one.layer)
        assert any(str(entry["format"]) in key for key in rows.entries())
        sizes = subblock_tensors(shape, variant.slot, entry)
        own = sum(
            FORMATS[form_of(str(variant.form), name)].holding(size[1]).num_bytes(size)
            if len(size) == 2
            else 4 * size[0]
            for name, size in sizes.items()
        )
        assert search.storage.weights(entry, variant.slot, shape) == own
    assert all(set(own) >= {f"{slot}:parent@q8_0" for slot in ("attention", "ffn")} for own in nats)
    scores = ScoreTable.of([one.row() for one in found])
    assert all(one.block in scores.blocks(one.layer) for one in mixed)
