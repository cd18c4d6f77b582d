"""The contract of a kind of subblock: all that it is stands in one file, and `kinds_inlay.py` lists them.

A kind is stateless: it works on its entry in config.json (its `kind` and the fields of that kind) and on sizes. Only
`modules`, `update` and `cache_layer` need torch, which they import themselves: sizes are asked where there is none.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol

from .context_inlay import WindowKey

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.cache_utils import CacheLayerMixin

    from .context_inlay import ForwardContext, Layer, ModelConfig

Slot = Literal["attention", "ffn"]
Entry = Mapping[str, Any]
Tensors = dict[str, tuple[int, ...]]

SLOTS: tuple[Slot, Slot] = ("attention", "ffn")
FORMAT = "format"
"""What an entry of any kind may say beside its fields: how those who pack the model store its matrices. Modules take
notice where the configuration says `packed`, sizes never do."""
TWO_OF_FOUR: Final = "2:4"
"""The format whose matrices may stay packed in memory (sparse_inlay.py)."""
KV_FORMAT: Final = "kv_format"
"""What an entry that is timed may say beside: how its keys and values are stored, where that is not as the engine is
told."""
ENDS_SLOT: Final = "ends"
"""What embedding, final norm and head are called beside subblocks."""
TimedSlot = Literal["attention", "ffn", "ends"]
"""What has a time of its own."""
NORMS: Mapping[str, str] = {"attention": "input_layernorm", "ffn": "post_attention_layernorm"}
MIXERS: Mapping[str, str] = {"attention": "self_attn", "ffn": "mlp"}


class Sizes(Protocol):
    """What all layers of a model share, as far as tensors depend on it."""

    @property
    def hidden(self) -> int:
        """Model width."""

    @property
    def q_heads(self) -> int:
        """Query heads of every attention that does not have fewer."""

    @property
    def head_dim(self) -> int:
        """Width of one head."""

    @property
    def qkv_bias(self) -> bool:
        """Whether query, key and value projections have a bias."""

    @property
    def o_bias(self) -> bool:
        """Whether attention's output projection has a bias."""

    @property
    def qk_norm(self) -> bool:
        """Whether the heads of queries and keys are normed."""

    @property
    def mlp_bias(self) -> bool:
        """Whether the projections of the ffn have a bias."""


class SubblockKind(ABC):
    """One kind of subblock; unless it says otherwise a norm and a mixer, which holds nothing between tokens."""

    name: ClassVar[str]
    """The `kind` of its entries."""
    slots: ClassVar[tuple[Slot, ...]]
    """The subblocks that it can be."""
    fields: ClassVar[Mapping[str, int]] = {}
    """The other fields of its entries, whole numbers, and the least value of each."""
    optional: ClassVar[Mapping[str, int]] = {}
    """Fields that entries may leave out, likewise."""
    is_plain: ClassVar[bool] = False
    """Whether its update is nothing but what the family's own modules, or one matrix, make of the normed input:
    training may then compute it in another order."""
    apart: ClassVar[tuple[str, ...]] = ()
    """Projections that may be stored in another format than its other matrices, by their modules' names without
    `_proj`."""
    state_bytes: ClassVar[int | None] = None
    """Bytes of each number of what it holds between tokens; None: those of the model's numbers."""
    recurrent: ClassVar[bool] = False
    """Whether what it holds is a state that every token changes: it needs its own cache layer, and is told which tokens
    are padding, and which of another document."""
    absent: ClassVar[bool] = False
    """Whether there is no subblock at all: the residual passes by, and nothing is held, computed or timed."""

    def problem(self, entry: Entry, base: Mapping[str, Any]) -> str | None:
        """What else is wrong with an entry whose fields are in their bounds; `base` is the configuration's."""
        return None

    @abstractmethod
    def tensors(self, entry: Entry, slot: Slot, sizes: Sizes) -> Tensors:
        """Names, within the layer, and shapes of its weights, its norm included."""

    def working(self, entry: Entry, slot: Slot, sizes: Sizes) -> Tensors:
        """Those of its weights that one token is computed with: as many operations as it takes."""
        return self.tensors(entry, slot, sizes)

    def state(self, entry: Entry, sizes: Sizes, tokens: int) -> Tensors:
        """Names and shapes of what one sequence holds in its cache layer after `tokens` tokens."""
        return {}

    def masks(self, entry: Entry) -> tuple[WindowKey | None, ...]:
        """The masks that it reads from the context, None being the full causal one; () unless it stores keys."""
        return ()

    def cache_layer(self, entry: Entry) -> CacheLayerMixin:
        """An empty cache layer of its own; one that nobody updates holds nothing."""
        from transformers.cache_utils import DynamicLayer

        layer: CacheLayerMixin = DynamicLayer()  # type: ignore[no-untyped-call]
        return layer

    def modules(self, config: ModelConfig, layer_index: int, slot: Slot, entry: Entry) -> dict[str, nn.Module]:
        """What the layer gets, by name, in the order of construction."""
        from .families_inlay import FAMILY_MODULES

        norm = FAMILY_MODULES[config.family].norm(config.hidden_size, eps=config.rms_norm_eps)
        return {NORMS[slot]: norm, MIXERS[slot]: self.mixer(config, layer_index, entry)}

    def mixer(self, config: ModelConfig, layer_index: int, entry: Entry) -> nn.Module:
        """The module behind the norm."""
        raise NotImplementedError(f"{self.name} has neither a mixer nor modules of its own")

    def update(self, layer: Layer, slot: Slot, hidden_BSD: Tensor, context: ForwardContext | None) -> Tensor:
        """What the subblock adds to its input [B, S, D]; an ffn is given no context."""
        norm, mixer = getattr(layer, NORMS[slot]), getattr(layer, MIXERS[slot])
        update_BSD: Tensor = mixer(norm(hidden_BSD))
        return update_BSD


def structure(entry: Entry) -> dict[str, Any]:
    """The entry without its format: what is computed."""
    return {name: value for name, value in entry.items() if name != FORMAT}


def without_cache(entry: Entry) -> tuple[dict[str, Any], str | None]:
    """The entry of something that is timed, and what it says of its keys and values."""
    own = dict(entry)
    return own, own.pop(KV_FORMAT, None)


def norm_tensors(slot: Slot, sizes: Sizes) -> Tensors:
    """The norm before a subblock."""
    return {f"{NORMS[slot]}.weight": (sizes.hidden,)}


def projection(name: str, outputs: int, inputs: int, bias: bool) -> Tensors:
    """A linear map and, where it has one, its bias."""
    weight: Tensors = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if bias else weight
