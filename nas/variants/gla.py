"""`gla`: gated linear attention (Yang et al., arXiv 2312.06635) in place of softmax, from the parent's own projections.

As in MOHAWK (Bick et al., arXiv 2408.10189) the mixing of tokens is matched first and the update next, both here
without training. Mixing: how fast the state of each head of keys fades, of some rates the one whose matrix of weights
is nearest to that of the parent's softmax on calibration text. Update: the output projection, fitted by least squares
to what the parent's attention adds. The part of the gate that depends on the token starts at nothing.

H query heads, G heads of keys, S tokens, B sequences, K key size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from inlay.nas.families.shape import Entry, subblock_tensors
from inlay.nas.modeling.full_inlay import HEADS, OUTPUT
from inlay.nas.modeling.gla_inlay import (
    GATE_DOWN,
    GATE_UP,
    KEY_HEADS,
    RANK,
    GatedLinearAttention,
)
from inlay.nas.variants.kind import Kind, Place, Value
from inlay.nas.variants.least_squares import fitted
from inlay.nas.variants.statistics import Statistic, Sums, output_sums, watch_beside

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.modeling import ForwardContext, InlayLayer

GATE_RANK: Final = 16
"""Of the gate's projection (section 4.4 of the paper)."""
HALF_LIVES: Final = tuple(2.0**exponent for exponent in range(-1, 11))
"""Tokens in which a state may fade by half at the start."""
MOST_TOKENS: Final = 512
"""Of a sequence, whose weights are compared."""


class Gla(Kind):
    """A state of constant size instead of keys and values."""

    name = "gla"
    slots = ("attention",)
    trained = True

    def problem(self, value: Value, place: Place) -> str | None:
        """There must be keys to take over."""
        if "kv_heads" in place.own:
            return None
        return "gla is not possible: the parent's attention there has no keys and values to begin from; leave gla out"

    def entry(self, value: Value, place: Place) -> Entry:
        """The parent's heads, without its window."""
        own = place.own
        heads = {HEADS: own[HEADS]} if HEADS in own else {}
        rank = min(GATE_RANK, place.shape.hidden)
        return {"kind": GatedLinearAttention.name, KEY_HEADS: own["kv_heads"], RANK: rank, **heads}

    def statistics(self, value: Value, place: Place) -> tuple[Statistic, ...]:
        """How far its mixing is from the parent's and, behind a second pass, what it gives the output projection."""
        return (Mixing(place), Mixed(place))

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
        """The parent's tensors, gates that fade as its attention does, the output projection fitted."""
        started, weight = _faded(place, state, sums), f"{OUTPUT}.weight"
        found = sums.of(Mixed(place))
        fitted_DO = fitted(started[weight], found["zz"], found["zy"], sums.tokens)
        return started | {weight: fitted_DO.to(started[weight].dtype)}


@dataclass(frozen=True)
class Mixing(Statistic):
    """The squared distance of weights that fade from those of the parent's softmax, relative to the latter.

    A sum for each head of keys and half-life, [G, half-lives], over the first sequence of every chunk and its first
    `MOST_TOKENS`: what is compared is as large as their square.
    """

    place: Place

    @property
    def name(self) -> str:
        """`attention.gla.mixing`."""
        return f"{self.place.slot}.{Gla.name}.mixing"

    def watch(self, layer: "InlayLayer", seen: "dict[str, Tensor]") -> list[Any]:
        """Queries and keys as softmax sees them, and how it takes them."""
        beside = _built(self.place, layer, _ungated(self.place, layer.state_dict()))
        attention: Any = layer.self_attn

        def look(module: Any, inputs: "tuple[Tensor, ForwardContext]") -> None:
            hidden_BSD, context = inputs
            cos, sin = (each[:1, :MOST_TOKENS] for each in context.position_embeddings)
            normed_1SD = layer.input_layernorm(hidden_BSD[:1, :MOST_TOKENS])
            seen["q"], seen["k"] = beside.self_attn.rotated(
                normed_1SD, replace(context, position_embeddings=(cos, sin))
            )
            seen["errors"] = mixing_errors(seen["q"], seen["k"], attention.scaling, layer.window)

        return [layer.register_forward_pre_hook(look)]

    def sums(self, seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """`errors`."""
        return {"errors": seen["errors"]}


def mixing_errors(query_1HSK: "Tensor", key_1GSK: "Tensor", scaling: float, window: tuple[int, int] | None) -> "Tensor":
    """[G, half-lives]; each head of queries counts alike, whatever its weights are like."""
    import torch

    from inlay.nas.modeling.gla_modules_inlay import EPSILON

    key_1HSK = key_1GSK.repeat_interleave(query_1HSK.shape[1] // key_1GSK.shape[1], dim=1)
    places_S = torch.arange(query_1HSK.shape[2], device=query_1HSK.device)
    ago_SS = places_S[:, None] - places_S
    hidden_SS = ago_SS < 0
    if window is not None:
        hidden_SS = hidden_SS | ((ago_SS >= window[0]) & (places_S >= window[1]))
    softmax_HSS = (query_1HSK @ key_1HSK.mT * scaling).masked_fill(hidden_SS, -torch.inf).softmax(dim=-1)[0]
    alike_HSS = (query_1HSK.relu() @ key_1HSK.relu().mT)[0]
    errors = []
    for half_life in HALF_LIVES:
        faded_HSS = alike_HSS * torch.exp2(-ago_SS / half_life).tril()
        faded_HSS = faded_HSS / (faded_HSS.sum(dim=-1, keepdim=True) + EPSILON)
        errors.append((faded_HSS - softmax_HSS).square().sum(dim=(1, 2)) / softmax_HSS.square().sum(dim=(1, 2)))
    return torch.stack(errors, dim=-1).view(key_1GSK.shape[1], -1, len(HALF_LIVES)).sum(dim=1)


@dataclass(frozen=True)
class Mixed(Statistic):
    """Z'Z and Z'Y of what the state gives the output projection, Z, and of the parent's update without bias, Y."""

    place: Place
    started: "Mapping[str, Tensor] | None" = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """`attention.gla.mixed`."""
        return f"{self.place.slot}.{Gla.name}.mixed"

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """What the gates begin by."""
        return (Mixing(self.place),)

    def ready(self, state: "Mapping[str, Tensor]", sums: Sums) -> Statistic:
        """With its gates."""
        return replace(self, started=_faded(self.place, state, sums))

    def watch(self, layer: "InlayLayer", seen: "dict[str, Tensor]") -> list[Any]:
        """The parent's update, and that of a state beside it on the same input."""
        assert self.started is not None
        return watch_beside(layer, _built(self.place, layer, self.started), seen)

    def sums(self, seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """`zz` and `zy`."""
        return output_sums(seen)


def _built(place: Place, layer: "InlayLayer", state: "Mapping[str, Tensor]") -> Any:
    """A layer with nothing but a state in place of the attention of `layer`."""
    from inlay.nas.modeling import build_layer

    attention: Any = layer.self_attn  # the family's, which keeps its model's configuration
    weight = attention.o_proj.weight
    built = build_layer(attention.config, layer.layer_index, Gla().entry(None, place), None, state, weight.dtype)
    return built.to(weight.device)


def _faded(place: Place, state: "Mapping[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
    """The parent's tensors, and gates that alone let each head fade as it should."""
    import torch

    from inlay.nas.modeling.gla_modules_inlay import TEMPERATURE

    started = _ungated(place, state)
    bias = started[f"{GATE_UP}.bias"]
    best_G = sums.of(Mixing(place))["errors"].argmin(dim=-1).cpu()
    # log(2) / half-life is what -logsigmoid(bias) / TEMPERATURE has to be.
    biases_G = torch.tensor([-math.log(math.expm1(math.log(2) * TEMPERATURE / HALF_LIVES[best])) for best in best_G])
    started[f"{GATE_UP}.bias"] = biases_G.to(bias).repeat_interleave(place.shape.head_dim)
    return started


def _ungated(place: Place, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The parent's tensors, and gates that know nothing: the same directions of the input in every layer, unread."""
    import torch

    own = place.tensors(dict(state))
    weight = own[f"{OUTPUT}.weight"]
    sizes = subblock_tensors(place.shape, place.slot, Gla().entry(None, place))
    down, up, bias = f"{GATE_DOWN}.weight", f"{GATE_UP}.weight", f"{GATE_UP}.bias"
    noise = torch.randn(sizes[down], generator=torch.Generator().manual_seed(0)) / math.sqrt(place.shape.hidden)
    return own | {down: noise.to(weight), up: weight.new_zeros(sizes[up]), bias: weight.new_zeros(sizes[bias])}
