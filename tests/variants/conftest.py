"""One opened tiny parent a family, its calibration sums, and what a search space looks like."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from inlay.nas.families import Parent, open_parent
from inlay.nas.modeling import ForwardContext, InlayLayer, build_layer, make_context
from inlay.nas.variants import Place, Variant
from inlay.nas.variants.alone import LayerByChannels
from inlay.nas.variants.expert_width import ExpertGrams
from inlay.nas.variants.experts import ExpertShares
from inlay.nas.variants.gla import Mixed, Mixing
from inlay.nas.variants.heads import HEAD_GRAM
from inlay.nas.variants.kv_heads import MergedHeads
from inlay.nas.variants.run import RunChannels, run_state
from inlay.nas.variants.statistics import ChannelGram, Inputs, Products, Statistic, Sums, gather

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"dtype": "bfloat16"},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"attention_bias": True, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2},
}


STATISTICS: tuple[Statistic, ...] = (
    Inputs("attention"),
    Products("attention"),
    Products("ffn"),
    ChannelGram(),
    LayerByChannels(),
    HEAD_GRAM,
)


@dataclass(frozen=True)
class Case:
    """A parent with all that a start can need of its layer 1."""

    parent: Parent
    layer: InlayLayer
    state: dict[str, torch.Tensor]
    hidden_BSD: torch.Tensor
    context: ForwardContext
    sums: Sums

    def given(self, variant: Variant) -> dict[str, torch.Tensor]:
        """The tensors that a variant of layer 1 starts from: those of that layer, or of all layers of a run."""
        behind = [self.parent.layer_state(1 + number) for number in range(1, len(variant.run))]
        return run_state([self.state, *behind])

    def merged_sums(self, layer: InlayLayer, state: dict[str, torch.Tensor], sums: Sums, heads: int) -> Sums:
        """What a second pass gathers of merged heads; `layer` and `state` are the parent's, or stand in for them."""
        merged = MergedHeads(Place(self.parent.shape, 1, "attention"), heads).ready(state, sums)
        return gather(layer, self.hidden_BSD, self.context, [merged])[0]


@dataclass(frozen=True)
class Space:
    """The part of a job that variants read."""

    attention: tuple[Any, ...] = ()
    ffn: tuple[Any, ...] = ()
    layers: tuple[Any, ...] = ()
    multiple: int = 8
    sinks: int = 4


def case_of(parent: Parent, layer_index: int, statistics: tuple[Statistic, ...]) -> Case:
    """A layer of a parent, and some statistics of it."""
    block = parent.config.blocks[layer_index]
    state = parent.layer_state(layer_index)
    dtype = getattr(torch, parent.shape.dtype)
    layer = build_layer(parent.config, layer_index, block["attention"], block["ffn"], state, dtype)
    noise_BSD = torch.randn(4, 32, parent.shape.hidden, generator=torch.Generator().manual_seed(1))
    hidden_BSD = noise_BSD.to(dtype)
    context = make_context(parent.config, 4, 32, dtype, "cpu", [block["attention"]])
    sums, _ = gather(layer, hidden_BSD, context, statistics)
    return Case(parent, layer, state, hidden_BSD, context, sums)


def make_case(parent: Parent, layer_index: int = 1) -> Case:
    own = case_of(parent, layer_index, STATISTICS)
    layer, state, hidden_BSD, context, sums = own.layer, own.state, own.hidden_BSD, own.context, own.sums
    place = Place(parent.shape, layer_index, "attention")
    run = run_state([state, parent.layer_state(layer_index + 1)])
    sums |= gather(layer, hidden_BSD, context, [RunChannels(place, 2).ready(run, sums)])[0]
    sums |= gather(layer, hidden_BSD, context, [Mixing(place)])[0]
    sums |= gather(layer, hidden_BSD, context, [Mixed(place).ready(state, sums)])[0]
    return replace(own, sums=sums | own.merged_sums(layer, state, sums, 1))


@pytest.fixture(scope="session", params=FAMILIES)
def case(request: pytest.FixtureRequest, tiny_parent: Any) -> Case:
    """Each family in turn: Llama in bfloat16, Mistral and a layer of Qwen3 sliding, Qwen2 and Qwen3 with biases."""
    return make_case(open_parent(tiny_parent(request.param, **FAMILIES[request.param])))


@pytest.fixture(scope="session", params=("mixtral", "qwen3_moe"))
def of_experts(request: pytest.FixtureRequest, tiny_parent: Any) -> Case:
    """Each family whose layers have experts."""
    dense = {"mlp_only_layers": []} if request.param == "qwen3_moe" else {}
    parent = open_parent(tiny_parent(request.param, num_hidden_layers=2, **dense))
    return case_of(parent, 1, (Products("ffn"), ExpertShares(), ExpertGrams()))


@pytest.fixture(scope="session")
def llama(tiny_parent: Any) -> Case:
    """A Llama in float32."""
    return make_case(open_parent(tiny_parent("llama")))
