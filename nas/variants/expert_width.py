"""`expert_width=w`: an ffn of experts each of which has fewer channels.

As in `width`, those stay that the expert's output misses least, and its last matrix is fitted to what all of them gave:
over the tokens that take the expert, each by its share.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inlay.nas.modeling.experts_inlay import EXPERT_WIDTH, EXPERTS, ROUTER, expert
from inlay.nas.variants.expert_count import ExpertCount
from inlay.nas.variants.kind import Place, Value, whole
from inlay.nas.variants.least_squares import least_missed, refitted
from inlay.nas.variants.statistics import Statistic, Sums, keep_output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from inlay.nas.modeling import InlayLayer


@dataclass(frozen=True)
class ExpertGrams(Statistic):
    """H'H of each expert's channels H, each token's by its share: [E, F, F]; and how many tokens take each, [E]."""

    name: str = "ffn.expert_grams"

    def watch(self, layer: "InlayLayer", seen: "dict[str, Tensor]") -> list[Any]:
        """What the router gives, and what each expert's last matrix reads."""
        import torch

        mixer: Any = layer.mlp
        last, count = mixer.experts[0].down_proj, len(mixer.experts)
        seen["hh"] = last.weight.new_zeros((count, last.in_features, last.in_features), dtype=torch.float32)
        seen["n"] = seen["hh"].new_zeros(count)
        hooks = [layer.get_submodule(ROUTER).register_forward_hook(keep_output(seen, "logits"))]

        def keep(number: int) -> Any:
            def read(module: Any, inputs: Any) -> None:
                expert_NK, share_NK = mixer.taken(seen["logits"])
                channels_TF = inputs[0].float() * share_NK[expert_NK == number][:, None]
                seen["hh"][number] += channels_TF.T @ channels_TF
                seen["n"][number] += len(channels_TF)

            return read

        for number, each in enumerate(mixer.experts):
            hooks.append(each.down_proj.register_forward_pre_hook(keep(number)))
        return hooks

    def sums(self, seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """`hh` and `n`."""
        return {"hh": seen["hh"], "n": seen["n"]}


class ExpertWidth(ExpertCount):
    """Narrower experts."""

    name = EXPERT_WIDTH
    example = "expert_width: 256"
    forms = "{expert_width: N}"

    def short(self, value: Value) -> str:
        """`ew 256`."""
        return f"ew {value}"

    def statistics(self, value: Value, place: Place) -> tuple[Statistic, ...]:
        """How channels of each expert go together."""
        return (ExpertGrams(),)

    def start(self, value: Value, place: Place, state: "dict[str, Tensor]", sums: Sums) -> "dict[str, Tensor]":
        """Each expert cut to the channels that are missed most, in their old order, which then do more."""
        import torch

        started, found = dict(place.tensors(state)), sums.of(ExpertGrams())
        for number in range(int(place.own[EXPERTS])):
            gate, up, down = (f"{expert(number)}.{name}_proj.weight" for name in ("gate", "up", "down"))
            tokens, gram_FF = int(found["n"][number]), found["hh"][number]
            if not tokens or not gram_FF.any():
                # No token says which of its channels matter: all count alike.
                tokens, gram_FF = 1, torch.eye(len(gram_FF), device=gram_FF.device)
            kept = least_missed(started[down], gram_FF, whole(value), tokens)
            started[gate], started[up] = started[gate][kept], started[up][kept]
            started[down] = refitted(started[down], gram_FF, kept, tokens).to(started[down].dtype)
        return started
