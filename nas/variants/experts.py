"""`experts=n`: an ffn of experts with fewer of them, those kept that take the largest share of all tokens.

A router's rows go with their experts; tokens take the next best of those that are left. The rule is frequency, weighed
by the router's probability; how many a layer keeps is the program's choice. benchmarks/experts.py says what that is
worth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inlay.nas.modeling.experts_inlay import ACTIVE, EXPERTS, ROUTER, expert
from inlay.nas.variants.expert_count import ExpertCount
from inlay.nas.variants.kind import Place, Value, whole
from inlay.nas.variants.statistics import Statistic, Sums

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.modeling import InlayLayer


@dataclass(frozen=True)
class ExpertShares(Statistic):
    """What each expert takes of the tokens, [E]: the sum of its shares."""

    name: str = "ffn.shares"

    def watch(self, layer: "InlayLayer", seen: "dict[str, Tensor]") -> list[Any]:
        """What the router gives, and which experts are taken by it."""
        import torch

        mixer: Any = layer.mlp

        def taken(module: Any, inputs: Any, logits_NE: "Tensor") -> None:
            expert_NK, share_NK = mixer.taken(logits_NE)
            seen["shares"] = torch.zeros_like(logits_NE, dtype=torch.float32).scatter_(1, expert_NK, share_NK)

        return [layer.get_submodule(ROUTER).register_forward_hook(taken)]

    def sums(self, seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """`e`."""
        return {"e": seen["shares"].sum(dim=0)}


class Experts(ExpertCount):
    """Fewer experts to choose from."""

    name = EXPERTS
    example = "experts: 4"
    forms = "{experts: N}"

    def short(self, value: Value) -> str:
        """`e 4`."""
        return f"e {value}"

    def problem(self, value: Value, place: Place) -> str | None:
        """A token must find as many as it takes."""
        if (problem := super().problem(value, place)) is not None:
            return problem
        count, active = whole(value), int(place.own[ACTIVE])
        if count < active:
            return (
                f"{count} is fewer than the {active} experts that each token takes; give at least {active}, or both "
                f"numbers: {{{ACTIVE}: {count}, {EXPERTS}: {count}}}"
            )
        return None

    def statistics(self, value: Value, place: Place) -> tuple[Statistic, ...]:
        """What each expert takes."""
        return (ExpertShares(),)

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
        """The experts of the largest shares, in their old order, and their rows of the router."""
        own, router = place.tensors(state), f"{ROUTER}.weight"
        kept = sums.of(ExpertShares())["e"].topk(whole(value)).indices.sort().values
        started = {name: tensor for name, tensor in own.items() if not name.startswith(f"mlp.{EXPERTS}.")}
        started[router] = own[router][kept]
        for number, old in enumerate(kept.tolist()):
            opened = f"{expert(old)}."
            for name in (each for each in own if each.startswith(opened)):
                started[f"{expert(number)}.{name.removeprefix(opened)}"] = own[name]
        return started
