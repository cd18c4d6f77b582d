"""Which matrices are rounded by what the parent's read: those that read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from inlay.cluster.store import Store
from inlay.nas.families import open_parent
from inlay.nas.pieces.matrix_inputs import MatrixInputs, manifest
from inlay.nas.variants import parse_variant

OUTPUT = "self_attn.o_proj.weight"


@pytest.fixture
def told(tmp_path: Path) -> MatrixInputs:
    store = Store(str(tmp_path / "store"))
    digest = store.put_blob(save({"read": torch.eye(32)}))
    names = [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in (OUTPUT, "mlp.up_proj.weight")]
    return MatrixInputs.of(store, store.put_blob(manifest(dict.fromkeys(names, (digest, "read")))))


def test_a_trained_variant_is_not_fitted_to_what_the_parents_matrix_reads(
    told: MatrixInputs, tiny_parent: Callable[..., Path]
) -> None:
    shape = open_parent(tiny_parent("llama")).shape
    merged = ("attention:kv_heads=1@q4_0", "ffn:parent@q4_0")
    own = ("attention:parent@q8_0", "ffn:parent")
    child = told.where_own(shape, [merged, own, *[own] * (shape.num_layers - 2)])
    found = [
        child.get(f"model.layers.{layer}.{name}", 32) for layer in (0, 1) for name in (OUTPUT, "mlp.up_proj.weight")
    ]
    assert [inputs is not None for inputs in found] == [False, True, True, True]
    for layer, block in enumerate((merged, own)):
        inside = told.within(layer, parse_variant(block[0])).get(OUTPUT, 32)
        assert (inside is not None) == (found[2 * layer] is not None)
    assert told.get(f"model.layers.0.{OUTPUT}", 31) is None
