"""Architectures: JSON there and back, digest, short text."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.nas.errors import UserError
from inlay.nas.families import Shape
from inlay.nas.variants import Architecture, Variant, parse_variant

SHAPE = Shape(
    family="llama",
    num_layers=4,
    hidden=16,
    q_heads=4,
    kv_heads=2,
    head_dim=4,
    ffn_width=32,
    vocab=100,
    tied=False,
    qkv_bias=False,
    o_bias=False,
    qk_norm=False,
    mlp_bias=False,
    dtype="float32",
    max_positions=64,
    windows=(None,) * 4,
)
ATTENTION = ["attention:parent", "attention:kv_heads=1", "attention:window=8,sinks=0", "attention:linear"]
FFN = ["ffn:parent", "ffn:width=16", "ffn:no_op"]

architectures = st.lists(st.tuples(st.sampled_from(ATTENTION), st.sampled_from(FFN)), max_size=6).map(
    Architecture.of_labels
)


@given(architectures)
def test_json_there_and_back(architecture: Architecture) -> None:
    again = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert again == architecture
    assert again.digest == architecture.digest
    assert Architecture.of_labels(architecture.labels) == architecture


@given(architectures, architectures)
def test_digests_are_distinct(first: Architecture, second: Architecture) -> None:
    assert (first.digest == second.digest) == (first == second)


def test_the_digest_does_not_change_between_versions() -> None:
    # It names results in workspaces and in the tracker.
    digest = Architecture.of_labels([("attention:kv_heads=1", "ffn:no_op")]).digest
    assert digest == "f927debc2f7a6e91cbeedd691d8a2f040e83617efb7b4e7250bb9d1516b542e3"


def test_blocks_are_the_entries_of_each_layer() -> None:
    architecture = Architecture.of_labels([(ATTENTION[2], FFN[1])] * 3 + [("attention:no_op", "ffn:linear")])
    window = {"kind": "window", "kv_heads": 2, "window": 8, "sinks": 0}
    assert architecture.blocks(SHAPE) == [
        *[{"attention": window, "ffn": {"kind": "gated", "width": 16}}] * 3,
        {"attention": {"kind": "no_op"}, "ffn": {"kind": "linear"}},
    ]


def test_sizes_of_the_parent() -> None:
    parent = Architecture.parent(SHAPE)
    layer = 16 * (16 + 8 + 8 + 16) + 3 * 16 * 32 + 2 * 16
    assert parent.parameters(SHAPE) == 4 * layer + 2 * 100 * 16 + 16
    assert parent.weights_bytes(SHAPE) == 4 * parent.parameters(SHAPE)
    assert parent.parameters(replace(SHAPE, tied=True)) == 4 * layer + 100 * 16 + 16
    assert parent.kv_bytes(SHAPE, batch=3, length=10) == 4 * 2 * 3 * 10 * 2 * 4 * 4
    assert parent.kv_bytes(SHAPE, batch=3, length=10, kv_dtype_bytes=1) == 4 * 2 * 3 * 10 * 2 * 4


def test_short_text() -> None:
    architecture = Architecture.of_labels([(ATTENTION[0], FFN[1])] * 3 + [(ATTENTION[2], FFN[2])])
    assert str(architecture) == "0-2 parent/width=16, 3 window=8,sinks=0/no_op"


def test_an_architecture_of_another_depth() -> None:
    with pytest.raises(UserError, match=r"architecture.layers: it has 1 layers and the parent has 4"):
        Architecture.of_labels([(ATTENTION[0], FFN[0])]).blocks(SHAPE)


@pytest.mark.parametrize("value", [None, [], {}, {"schema": 1}, {"schema": 1, "layers": [{"ffn": "ffn:no_op"}]}])
def test_a_value_that_is_none(value: Any) -> None:
    with pytest.raises(UserError, match="architecture: this is not one"):
        Architecture.from_json(value)


def test_a_schema_that_is_not_known() -> None:
    with pytest.raises(UserError, match=r"architecture.schema: 2 is not known; this inlay reads 1"):
        Architecture.from_json({"schema": 2, "layers": []})


def test_a_bad_label_is_named_with_its_layer() -> None:
    with pytest.raises(UserError, match=r"architecture.layers\[1\]: 'ffn:wide=3' is not a variant"):
        Architecture.of_labels([(ATTENTION[0], FFN[0]), (ATTENTION[0], "ffn:wide=3")])


@pytest.mark.parametrize("pair", [("ffn:no_op", "attention:no_op"), ("ffn:no_op", "ffn:no_op")])
def test_a_pair_in_another_order(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="Layer 0 must be an"):
        Architecture(((parse_variant(pair[0]), parse_variant(pair[1])),))
    assert Architecture(((Variant("attention", "no_op"), Variant("ffn", "no_op")),)).layers
