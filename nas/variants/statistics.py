"""What calibrate gathers of a layer: sums over tokens that training-free starts are computed from.

A statistic says which of a layer's modules it watches and what it adds up of what they see; only those that a layer's
variants need are gathered. Sums are float32: each chunk's product is a float32 matrix product, and its rounding (about
1e-7 of the diagonal) would stay if chunks were added in float64, at twice the memory. The penalties of the solutions
are far above it; a test holds them against those of float64 sums. torch is imported where sums are gathered.

N = B S tokens of a chunk, D model width, F ffn channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inlay.nas.modeling.full_inlay import OUTPUT
from inlay.nas.modeling.gated_inlay import DOWN
from inlay.nas.modeling.subblock_inlay import MIXERS, NORMS, Slot

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.modeling import ForwardContext, InlayLayer


class Statistic(ABC):
    """Sums over tokens of what one layer of the parent computes; equal statistics are gathered once."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of its own among all statistics, and for what it is in a stored file."""

    @property
    def needs(self) -> "tuple[Statistic, ...]":
        """Those whose sums over all of the text it needs before it can watch: a second pass over the text is made."""
        return ()

    def ready(self, state: "Mapping[str, Tensor]", sums: "Sums") -> "Statistic":
        """Itself, once `sums` has what it needs; `state` is the parent's layer, with those behind it as `run_state`
        gives them where a variant is a run of layers."""
        return self

    @abstractmethod
    def watch(self, layer: "InlayLayer", seen: "dict[str, Tensor]") -> list[Any]:
        """Hooks that leave in `seen` what it needs of one forward; returns their handles."""

    @abstractmethod
    def sums(self, seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """The named sums of one forward, float32; those of two chunks of text are added."""


@dataclass(frozen=True)
class Products(Statistic):
    """X'X and X'Y, both [D, D], of a subblock's normed input X and its update Y."""

    slot: Slot

    @property
    def name(self) -> str:
        """`attention.products`."""
        return f"{self.slot}.products"

    def watch(self, layer: "InlayLayer", seen: "dict[str, Tensor]") -> list[Any]:
        """What its norm and its mixer give."""
        norm, mixer = layer.get_submodule(NORMS[self.slot]), layer.get_submodule(MIXERS[self.slot])
        return [
            norm.register_forward_hook(keep_output(seen, "x")),
            mixer.register_forward_hook(keep_output(seen, "y")),
        ]

    def sums(self, seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """`xx` and `xy`."""
        x_ND, y_ND = rows_of(seen["x"]), rows_of(seen["y"])
        return {"xx": x_ND.T @ x_ND, "xy": x_ND.T @ y_ND}


@dataclass(frozen=True)
class Inputs(Statistic):
    """X'X, [D, D], and the sum of X, [D], of a subblock's normed input X."""

    slot: Slot

    @property
    def name(self) -> str:
        """`attention.inputs`."""
        return f"{self.slot}.inputs"

    def watch(self, layer: "InlayLayer", seen: "dict[str, Tensor]") -> list[Any]:
        """What its norm gives."""
        return [layer.get_submodule(NORMS[self.slot]).register_forward_hook(keep_output(seen, "x"))]

    def sums(self, seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """`xx` and `x`."""
        x_ND = rows_of(seen["x"])
        return {"xx": x_ND.T @ x_ND, "x": x_ND.sum(dim=0)}


@dataclass(frozen=True)
class ChannelGram(Statistic):
    """H'H, [F, F], of what a subblock's last matrix reads: the ffn channels H = act(gate) * up, unless said."""

    name: str = "ffn.gram"
    last: str = DOWN
    """The module of the matrix."""

    def watch(self, layer: "InlayLayer", seen: "dict[str, Tensor]") -> list[Any]:
        """What it reads."""
        return [layer.get_submodule(self.last).register_forward_pre_hook(keep_input(seen, "channels"))]

    def sums(self, seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """`hh`."""
        channels_NF = rows_of(seen["channels"])
        return {"hh": channels_NF.T @ channels_NF}


@dataclass(frozen=True)
class Sums:
    """The sums of one layer over a number of tokens, `name.part` by `name.part`; `+` joins those of two chunks."""

    tokens: int = 0
    tensors: "Mapping[str, Tensor]" = field(default_factory=dict)

    def of(self, statistic: Statistic) -> "dict[str, Tensor]":
        """The sums of one statistic by their parts. Raises `ValueError` where it was not gathered."""
        prefix = f"{statistic.name}."
        found = {name.removeprefix(prefix): sums for name, sums in self.tensors.items() if name.startswith(prefix)}
        if not found:
            raise ValueError(f"there are no sums `{statistic.name}`; run calibrate with them.")
        return found

    def __add__(self, other: "Sums") -> "Sums":
        if self.tensors.keys() != other.tensors.keys():
            lacking = sorted(self.tensors.keys() ^ other.tensors.keys())
            raise ValueError(f"Only one of the two has the sums `{lacking[0]}`; gather both for the same statistics.")
        joined = {name: tensor + other.tensors[name] for name, tensor in self.tensors.items()}
        return Sums(self.tokens + other.tokens, joined)

    def __or__(self, other: "Sums") -> "Sums":
        """These and those of other statistics over the same tokens."""
        return Sums(self.tokens, {**self.tensors, **other.tensors})

    def to_dict(self) -> "dict[str, Tensor]":
        """All of it as tensors on the CPU, for safetensors."""
        import torch

        tensors = {"tokens": torch.tensor([self.tokens], dtype=torch.int64), **self.tensors}
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_dict(cls, tensors: "Mapping[str, Tensor]") -> "Sums":
        """From what `to_dict` gave."""
        return cls(int(tensors["tokens"]), {name: sums for name, sums in tensors.items() if name != "tokens"})


def gather(
    layer: "InlayLayer", hidden_BSD: "Tensor", context: "ForwardContext", statistics: Iterable[Statistic]
) -> "tuple[Sums, Tensor]":
    """The sums of one chunk, and the layer's output [B, S, D], from one pass of the parent's layer."""
    import torch

    statistics = tuple(statistics)
    seen: list[dict[str, Tensor]] = [{} for _ in statistics]
    hooks = []
    try:
        for statistic, own in zip(statistics, seen, strict=True):
            hooks += statistic.watch(layer, own)
        with torch.no_grad():
            output_BSD: Tensor = layer(hidden_BSD, context)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        tensors = {
            f"{statistic.name}.{part}": sums
            for statistic, own in zip(statistics, seen, strict=True)
            for part, sums in statistic.sums(own).items()
        }
    return Sums(hidden_BSD.shape[0] * hidden_BSD.shape[1], tensors), output_BSD


def keep_output(seen: "dict[str, Tensor]", name: str) -> Any:
    """A forward hook that leaves what a module gives in `seen`."""

    def hook(module: Any, inputs: Any, output: Any) -> None:
        seen[name] = output[0] if isinstance(output, tuple) else output  # attention gives its weights too

    return hook


def keep_input(seen: "dict[str, Tensor]", name: str) -> Any:
    """A hook before the forward that leaves what a module reads in `seen`."""

    def hook(module: Any, inputs: "tuple[Tensor, ...]") -> None:
        seen[name] = inputs[0]

    return hook


def watch_beside(layer: "InlayLayer", beside: Any, seen: "dict[str, Tensor]") -> list[Any]:
    """Hooks that run another layer's attention on the same input and leave in `seen` what its output projection reads,
    `z`, what the layer's own gives, `y`, and the bias of that where it has one."""
    own = layer.get_submodule(OUTPUT)
    beside.get_submodule(OUTPUT).register_forward_pre_hook(keep_input(seen, "z"))

    def run(module: Any, inputs: Any) -> None:
        beside.attention_update(*inputs)

    seen |= {name: tensor.detach() for name, tensor in own.named_parameters() if name == "bias"}
    return [layer.register_forward_pre_hook(run), own.register_forward_hook(keep_output(seen, "y"))]


def rows_of(tensor_BSD: "Tensor") -> "Tensor":
    """[N, D], float32."""
    return tensor_BSD.flatten(0, -2).float()


def output_sums(seen: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """`zz` and `zy`: Z'Z and Z'Y of inputs Z of a projection and of what it should give, Y, without the bias."""
    z_NO, y_ND = rows_of(seen["z"]), rows_of(seen["y"])
    if "bias" in seen:
        y_ND = y_ND - seen["bias"].float()
    return {"zz": z_NO.T @ z_NO, "zy": z_NO.T @ y_ND}
