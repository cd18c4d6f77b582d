"""`experts`: an ffn of several, of which each token takes those that a router gives it (Shazeer et al., arXiv
1701.06538), as Qwen3-MoE and Mixtral have it.

A router's row and three matrices make up an expert; a token takes the `active` experts of the largest probability.
What computes it is experts_modules_inlay.py.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .gated_inlay import GatedFfn
from .subblock_inlay import Entry, Sizes, Slot, SubblockKind, Tensors, norm_tensors, projection

if TYPE_CHECKING:
    from torch import nn

    from .context_inlay import ModelConfig

ROUTER = "mlp.gate"
EXPERTS = "experts"
ACTIVE = "active"
EXPERT_WIDTH = "expert_width"
"""Channels of each expert. Not `width`, which is what variants of a dense ffn read and change."""


class Experts(SubblockKind):
    """The sum of a token's experts, each by its share of their probability."""

    name = EXPERTS
    slots = ("ffn",)
    fields: ClassVar[Mapping[str, int]] = {EXPERTS: 1, ACTIVE: 1, EXPERT_WIDTH: 1}

    def problem(self, entry: Entry, base: Mapping[str, Any]) -> str | None:
        """No token can take more experts than there are."""
        if entry[ACTIVE] > entry[EXPERTS]:
            return f"{ACTIVE} is {entry[ACTIVE]}; it must not be above the {entry[EXPERTS]} experts"
        return None

    def tensors(self, entry: Entry, slot: Slot, sizes: Sizes) -> Tensors:
        """The norm, the router, and three projections of each expert."""
        width, hidden = int(entry[EXPERT_WIDTH]), sizes.hidden
        found = {**norm_tensors(slot, sizes), **projection(ROUTER, int(entry[EXPERTS]), hidden, bias=False)}
        for number in range(int(entry[EXPERTS])):
            for name, rows, columns in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)):
                found |= projection(f"{expert(number)}.{name}_proj", rows, columns, bias=False)
        return found

    def working(self, entry: Entry, slot: Slot, sizes: Sizes) -> Tensors:
        """Those of as many experts as a token takes."""
        held = self.tensors(entry, slot, sizes)
        idle = tuple(f"{expert(number)}." for number in range(int(entry[ACTIVE]), int(entry[EXPERTS])))
        return {name: size for name, size in held.items() if not name.startswith(idle)} if idle else held

    def mixer(self, config: ModelConfig, layer_index: int, entry: Entry) -> nn.Module:
        """The router and the family's ffn module for each expert."""
        from .experts_modules_inlay import RoutedExperts
        from .families_inlay import FAMILY_MODULES

        shape = config.family_config()
        shape.intermediate_size = entry[EXPERT_WIDTH]
        made = [FAMILY_MODULES[config.family].mlp(shape) for _ in range(entry[EXPERTS])]
        # Where the family's configuration has no say, shares are always those of the experts taken.
        joint = bool(getattr(shape, "norm_topk_prob", True))
        return RoutedExperts(made, config.hidden_size, entry[ACTIVE], shares_of_taken=joint)


def expert(number: int) -> str:
    """The module of an expert, within its layer."""
    return f"mlp.{EXPERTS}.{number}"


def parent_ffn(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """The entry of a parent's own ffn at a layer, of what its family's configuration says.

    Layers are dense or have experts as Transformers' Qwen3-MoE decides it: `mlp_only_layers` are dense, and of the
    others each `decoder_sparse_step`-th has experts.
    """
    experts = config.get("num_local_experts") or config.get("num_experts")
    step = config.get("decoder_sparse_step", 1)
    if not experts or layer in (config.get("mlp_only_layers") or ()) or (layer + 1) % step:
        return {"kind": GatedFfn.name, "width": config["intermediate_size"]}
    width = config.get("moe_intermediate_size") or config["intermediate_size"]
    return {"kind": Experts.name, EXPERTS: experts, ACTIVE: config["num_experts_per_tok"], EXPERT_WIDTH: width}
