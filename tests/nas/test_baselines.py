"""What the uniform baseline has to choose from, also where a parent's layers are unlike."""

from __future__ import annotations

from inlay.nas.loop.baselines import everywhere
from inlay.nas.tables.architecture import PARENT_BLOCK
from inlay.nas.tables.scores import ScoreTable

ATTENTION, FFN = PARENT_BLOCK
MERGED, HALF = "attention:kv_heads=1", "ffn:width=8"


def scores(*layers: list[tuple[str, str]]) -> ScoreTable:
    return ScoreTable({layer: dict.fromkeys([*blocks, PARENT_BLOCK], 0.1) for layer, blocks in enumerate(layers)}, 1.0)


def test_alike_layers_have_every_block_everywhere() -> None:
    table = scores(*[[(MERGED, FFN), (ATTENTION, HALF)]] * 3)
    found = everywhere(table, 3)
    assert sorted(found) == sorted((block,) * 3 for block in table.blocks(0))
    assert len(found) == 4


def test_a_layer_without_a_variant_keeps_its_own() -> None:
    table = scores([(MERGED, FFN), (ATTENTION, HALF)], [(ATTENTION, HALF)], [])
    found = everywhere(table, 3)
    assert ((MERGED, HALF), (ATTENTION, HALF), PARENT_BLOCK) in found
    assert ((MERGED, FFN), PARENT_BLOCK, PARENT_BLOCK) in found
    assert ((ATTENTION, HALF), (ATTENTION, HALF), PARENT_BLOCK) in found
    assert (PARENT_BLOCK,) * 3 in found
    assert len(found) == len(set(found)) == 4
