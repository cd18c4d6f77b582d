"""The cost table of an engine whose layers are an attention and an ffn has all that a child's file holds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.engines.gguf.packing import pack
from inlay.nas.engines.llama_cpp import CELLS, LlamaCppEngine
from inlay.nas.engines.registry import ENGINES
from inlay.nas.families import open_parent
from inlay.nas.job.sections import Scenario
from inlay.nas.job.space import Space
from inlay.nas.stages.measure import CostRows
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks, blocks_of
from inlay.nas.tables.costs import ADDED, CostTable
from inlay.nas.variants import variants_of
from inlay.nas.variants.entries import entries_of

CHAT = Scenario(name="chat", batch_size=2, prefill=24, generate=8)
LAYERS = 3
MAP, NONE = ("attention:linear", "ffn:linear"), ("attention:no_op", "ffn:no_op")
FORM = "f16"


def table_of(parent: Any, space: Space, engine: str = "llama.cpp") -> CostTable:
    """Times that are powers of ten, so that a sum says what is in it."""
    form = FORM if engine == "llama.cpp" else "parent"
    made = CostRows(space, parent.shape, ENGINES[engine], form, ENGINES[engine].storage(form, "cpu"))
    times = {}
    for number, name in enumerate([*made.entries(), "ends"]):
        own = {"prefill_ns": 10**number, "decode_ns": 1}
        times[name] = own | {"runtime_ns": own["prefill_ns"] + CHAT.generate, "spread_ns": 0}
    return CostTable(made.of(CHAT, times, None))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_totals_are_those_of_the_file_and_blocks_are_never_less(family: str, tiny_parent: Callable[..., Path]) -> None:
    parent = open_parent(tiny_parent(family))
    shape, storage = parent.shape, LlamaCppEngine().storage(FORM, "cpu")
    words = ["linear"] if family == "llama" else []  # normed heads go without maps
    space = Space(attention=[{"kv_heads": 1}, *words, "no_op"], ffn=[{"width": 32}, *words, "no_op"])
    costs = table_of(parent, space)
    variants = variants_of(space, shape, 0)
    attentions, ffns = ([v.label for v in variants if v.slot == slot] for slot in ("attention", "ffn"))
    chance = random.Random(0)
    cells = CHAT.batch_size * CELLS
    for _ in range(300):
        child = blocks_of((chance.choice(attentions), chance.choice(ffns)) for _ in range(LAYERS))
        packed, total = pack(shape, entries_of(shape, child), FORM), costs.total("chat", child)
        assert total["weights_bytes"] == packed.weights_bytes == storage.model(shape, entries_of(shape, child)), child
        assert total["kv_bytes"] == packed.kv_bytes(cells), child
        blocks = [costs.block("chat", layer, block) for layer, block in enumerate(child)]
        if {attention for attention, _ in child} - {MAP[0], NONE[0]}:  # a head for a cache is no block's
            ends = costs.ends("chat")
            for name in ADDED:
                assert ends[name] + sum(block[name] for block in blocks) >= total[name], (name, child)


def test_a_dropped_last_layer_moves_the_saving_to_the_layer_before(tiny_parent: Callable[..., Path]) -> None:
    parent = open_parent(tiny_parent("llama"))
    costs = table_of(parent, Space(attention=["no_op"], ffn=["no_op"]))
    whole: Blocks = (PARENT_BLOCK,) * LAYERS
    ffn = costs.of("chat", 0, "ffn:parent")
    assert ffn["last_prefill_ns"] == ffn["decode_ns"] == costs.of("chat", LAYERS - 1, "ffn:parent")["prefill_ns"]
    shorter = costs.total("chat", (*whole[:-1], NONE))
    one = costs.of("chat", 0, "attention:parent")["prefill_ns"] + ffn["prefill_ns"]
    assert costs.total("chat", whole)["prefill_ns"] - shorter["prefill_ns"] == one
    # The program, which adds up blocks, does not count on the saving.
    blocks = sum(costs.block("chat", layer, block)["prefill_ns"] for layer, block in enumerate((*whole[:-1], NONE)))
    assert costs.ends("chat")["prefill_ns"] + blocks > shorter["prefill_ns"]


def test_what_stands_in_takes_time(tiny_parent: Callable[..., Path]) -> None:
    parent = open_parent(tiny_parent("llama"))
    costs = table_of(parent, Space(attention=["linear", "no_op"], ffn=["no_op"]))
    whole = [PARENT_BLOCK] * LAYERS
    rows = {row["variant"]: row for row in costs.rows if row["slot"] == "stand_in"}
    for place, block, stand_in in (
        (0, (NONE[0], PARENT_BLOCK[1]), rows["stand_in:map"]),
        (1, (PARENT_BLOCK[0], NONE[1]), rows["stand_in:ffn"]),
    ):
        child = [*whole[:place], block, *whole[place + 1 :]]
        absent = next(label for label in PARENT_BLOCK if label not in block)
        saved = costs.of("chat", place, absent)["prefill_ns"] - stand_in["prefill_ns"]
        assert costs.total("chat", whole)["prefill_ns"] - costs.total("chat", child)["prefill_ns"] == saved
    # An ffn that has lost its attention takes the place of one that is missing before it.
    shared = [(PARENT_BLOCK[0], NONE[1]), (NONE[0], PARENT_BLOCK[1]), PARENT_BLOCK]
    assert not any(row["slot"] == "stand_in" for row in costs.terms("chat", shared))


def test_another_engine_has_no_halves(tiny_parent: Callable[..., Path]) -> None:
    parent = open_parent(tiny_parent("llama"))
    costs = table_of(parent, Space(attention=["no_op"], ffn=["no_op"]), "transformers")
    assert all("half" not in row and row["slot"] != "stand_in" for row in costs.rows)
    lacking = [(NONE[0], PARENT_BLOCK[1]), *[PARENT_BLOCK] * (LAYERS - 1)]
    added = sum(costs.block("chat", layer, block)["prefill_ns"] for layer, block in enumerate(lacking))
    assert costs.total("chat", lacking)["prefill_ns"] == costs.ends("chat")["prefill_ns"] + added
