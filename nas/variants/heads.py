"""`heads=n`: fewer query heads, whole groups of them gone with the key/value head that they read.

Groups go one at a time, the one whose loss the others can best make up for (`least_squares.least_missed`); the columns
of the output projection that stay are then fitted by least squares to what all heads gave. Those that stay compute what
they did, so that one pass over the text says all.
"""

from typing import TYPE_CHECKING, Final

from inlay.nas.families.shape import Entry
from inlay.nas.modeling.full_inlay import HEADS, KEY, OUTPUT, QUERY, VALUE, query_heads
from inlay.nas.variants.head_count import HeadCount
from inlay.nas.variants.kind import Place, Value, whole
from inlay.nas.variants.least_squares import least_missed, refitted
from inlay.nas.variants.statistics import ChannelGram, Statistic, Sums

if TYPE_CHECKING:
    from torch import Tensor

HEAD_GRAM: Final = ChannelGram("attention.gram", OUTPUT)
"""How heads go together: Z'Z of what they give the output projection."""


class Heads(HeadCount):
    """Attention without some of its groups of heads."""

    name = HEADS
    example = "heads: 4"
    forms = "{heads: N}"

    def short(self, value: Value) -> str:
        """`h 4`."""
        return f"h {value}"

    def problem(self, value: Value, place: Place) -> str | None:
        """Whole groups must stay, at least one and not all."""
        heads, kv_heads = whole(value), place.own.get("kv_heads")
        if kv_heads is None:
            return f"{heads} is not possible: the parent's attention has no heads; leave heads out"
        if kv_heads == 1:
            return f"{heads} is not possible: all heads of the parent read its 1 key/value head; leave heads out"
        own = query_heads(place.own, place.shape)
        group = own // kv_heads
        if 0 < heads < own and heads % group == 0:
            return None
        fitting = f"a number below {own}" if group == 1 else f"a multiple of {group} below {own}"
        return f"{heads} is not possible: the parent has {own} heads, {group} to a key/value head; give {fitting}"

    def entry(self, value: Value, place: Place) -> Entry:
        """The parent's attention, its window included, with `value` query heads and their KV heads."""
        return place.own | {HEADS: whole(value), "kv_heads": whole(value) // _group(place)}

    def statistics(self, value: Value, place: Place) -> tuple[Statistic, ...]:
        """How heads go together."""
        return (HEAD_GRAM,)

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
        """The heads that are missed most, in their old order, and an output projection that does more."""
        import torch

        size = place.shape.head_dim
        started, gram_OO = place.tensors(state), sums.of(HEAD_GRAM)["hh"]
        output_DO = started[f"{OUTPUT}.weight"]
        together = _group(place) * size
        kept = least_missed(output_DO, gram_OO, whole(value) * size, sums.tokens, together)
        groups = kept[::together] // together
        kept_keys = (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
        for name, tensor in started.items():
            if name.startswith(f"{QUERY}."):
                started[name] = tensor[kept]
            elif name.startswith((f"{KEY}.", f"{VALUE}.")):
                started[name] = tensor[kept_keys]
        columns_DK = refitted(output_DO, gram_OO, kept, sums.tokens)
        return started | {f"{OUTPUT}.weight": columns_DK.to(output_DO.dtype)}


def _group(place: Place) -> int:
    """Query heads to a KV head."""
    return query_heads(place.own, place.shape) // int(place.own["kv_heads"])
