"""The contract of a variant, over every kind and every family: label, entry, start, and sizes to the byte."""

import pytest
import torch
from transformers.cache_utils import Cache

from inlay.nas.modeling import InlayForCausalLM, build_layer
from inlay.nas.variants import KINDS, Variant, ends_parameters, kv_bytes, parameters, parse_variant, weights_bytes
from inlay.nas.variants.entries import entries_of

LABELS = (
    "attention:parent",
    "attention:kv_heads=1",
    "attention:heads=2",
    "attention:window=8",
    "attention:window=8,sinks=0",
    "attention:window=1,sinks=2",
    "attention:kv_heads=1+window=8",
    "attention:heads=2+window=8,sinks=0",
    "attention:gla",
    "attention:linear",
    "attention:no_op",
    "attention:merge=2",
    "attention:fuse=2",
    "ffn:parent",
    "ffn:width=16",
    "ffn:width=1",
    "ffn:alone=16",
    "ffn:alone=48",
    "ffn:linear",
    "ffn:no_op",
    "ffn:merge=2",
    "ffn:fuse=2",
)

OF_EXPERTS = (
    "ffn:experts=2",
    "ffn:experts=3",
    "ffn:active=1",
    "ffn:expert_width=16",
    "ffn:active=1+experts=1",
    "ffn:active=1+expert_width=16",
    "ffn:expert_width=16+experts=2",
)
"""Of a parent whose layers have them."""

MORE_TOKENS = ((5, 0), (30, 0), (20, 15))


def test_every_kind_is_among_the_labels() -> None:
    labels = [parse_variant(label) for label in LABELS + OF_EXPERTS]
    assert {variant.kind for variant in labels} == set(KINDS)
    assert {(variant.slot, variant.kind) for variant in labels} == {
        (slot, kind.name) for kind in KINDS.values() for slot in kind.slots
    }


class Contract:
    """What holds for all of them."""

    @pytest.fixture
    def variant(self, label: str) -> Variant:
        return parse_variant(label)

    def test_it_fits_and_has_its_label(self, case, variant, label) -> None:
        assert variant.label == str(variant) == label
        for layer in range(case.parent.shape.num_layers if not variant.run else 1):
            variant.check(case.parent.shape, layer, "space")

    def test_its_start_is_what_the_layer_wants(self, case, variant) -> None:
        shape, config = case.parent.shape, case.parent.config
        state = variant.start(shape, 1, case.given(variant), case.sums)
        dtype = getattr(torch, shape.dtype)
        assert {tensor.dtype for tensor in state.values()} <= {dtype}
        assert all(tensor.isfinite().all() for tensor in state.values())
        entries = {"attention": None, "ffn": None} | {variant.slot: variant.entry(shape, 1)}
        # A strict load: other names or shapes raise.
        layer = build_layer(config, 1, entries["attention"], entries["ffn"], state, dtype)
        assert sum(tensor.numel() for tensor in layer.state_dict().values()) == parameters(
            entries[variant.slot], variant.slot, shape
        )

    def test_sizes_are_those_of_its_tensors(self, case, variant) -> None:
        shape = case.parent.shape
        state = variant.start(shape, 1, case.given(variant), case.sums)
        entry = variant.entry(shape, 1)
        assert parameters(entry, variant.slot, shape) == sum(tensor.numel() for tensor in state.values())
        assert weights_bytes(entry, variant.slot, shape) == sum(tensor.nbytes for tensor in state.values())

    def test_the_same_start_twice(self, case, variant) -> None:
        first, second = (variant.start(case.parent.shape, 1, case.given(variant), case.sums) for _ in range(2))
        assert first.keys() == second.keys()
        assert all(first[name].equal(second[name]) for name in first)

    def test_the_start_leaves_the_parent_alone(self, case, variant) -> None:
        given = case.given(variant)
        before = {name: tensor.clone() for name, tensor in given.items()}
        variant.start(case.parent.shape, 1, given, case.sums)
        assert all(given[name].equal(before[name]) for name in before)

    def test_a_whole_model_of_it_has_the_sizes_of_its_parts(self, case, variant) -> None:
        shape = case.parent.shape
        block = (variant.label, "ffn:parent") if variant.slot == "attention" else ("attention:parent", variant.label)
        entries = entries_of(shape, [block] * shape.num_layers)
        model = InlayForCausalLM(case.parent.config.with_blocks(entries)).to(getattr(torch, shape.dtype))
        counted = ends_parameters(shape) + sum(
            parameters(entry[slot], slot, shape) for entry in entries for slot in entry
        )
        assert counted == sum(tensor.numel() for tensor in model.parameters())


@pytest.mark.parametrize("label", LABELS)
class TestEveryVariant(Contract):
    """Of dense parents."""


@pytest.mark.parametrize("label", [*OF_EXPERTS, "ffn:parent", "ffn:linear"])
class TestOfExperts(Contract):
    """Of parents with experts."""

    @pytest.fixture
    def case(self, of_experts):
        return of_experts


@pytest.mark.parametrize("label", [label for label in LABELS if label.startswith("attention")])
@pytest.mark.parametrize(
    ("prefill", "steps"), [(1, 0), (9, 3), *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE_TOKENS)]
)
def test_kv_bytes_are_those_of_the_cache(case, label, prefill, steps) -> None:
    shape, batch = case.parent.shape, 2
    entries = entries_of(shape, [(label, "ffn:parent")] * shape.num_layers)
    config = case.parent.config.with_blocks(entries)
    model = InlayForCausalLM(config).to(getattr(torch, shape.dtype)).eval()
    cache = model.new_cache()
    ids_BS = torch.arange(batch * (prefill + steps)).reshape(batch, -1) % shape.vocab
    with torch.no_grad():
        model(ids_BS[:, :prefill], past_key_values=cache)
        for step in range(prefill, prefill + steps):
            model(ids_BS[:, step : step + 1], past_key_values=cache)
    held = held_bytes(cache)
    assert held == [kv_bytes(entry["attention"], shape, batch, prefill + steps) for entry in entries]


def held_bytes(cache: Cache) -> list[int]:
    """Bytes of the tensors each layer of the cache holds."""
    return [
        sum(states.nbytes for states in (layer.keys, layer.values)) if layer.is_initialized else 0
        for layer in cache.layers
    ]


@pytest.mark.parametrize("label", ["ffn:width=16", "attention:gla", "attention:linear", "ffn:linear"])
def test_a_start_without_the_sums_it_needs(case, label) -> None:
    with pytest.raises(ValueError, match="run calibrate"):
        parse_variant(label).start(case.parent.shape, 1, case.state)


def test_what_is_trained() -> None:
    assert {label for label in LABELS if not parse_variant(label).trained} == {
        f"{slot}:{kind}" for slot in ("attention", "ffn") for kind in ("parent", "no_op")
    }


@pytest.mark.parametrize(("slot", "kind"), [("attention", "width"), ("ffn", "window"), ("mlp", "no_op"), ("ffn", "x")])
def test_a_kind_that_the_slot_does_not_have(slot, kind) -> None:
    with pytest.raises(ValueError, match="is not a variant"):
        Variant(slot, kind)
