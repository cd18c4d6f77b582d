"""A variant: what stands in one subblock, with its label, its config entry and its training-free start."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inlay.nas.errors import UserError
from inlay.nas.families.shape import SLOTS, Entry, Shape, Slot
from inlay.nas.job.problems import Problem, did_you_mean, show
from inlay.nas.variants.kind import Value
from inlay.nas.variants.registry import KINDS, kinds_of

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.nas.variants.sums import CalibrationSums


@dataclass(frozen=True)
class Variant:
    """A replacement for one subblock. Raises `ValueError` for a slot or kind that is not there."""

    slot: Slot
    kind: str
    value: Value = None
    """A number for `kv_heads` and `width`, (window, sinks) for `window`, else `None`."""

    def __post_init__(self) -> None:
        if self.slot not in SLOTS or self.kind not in kinds_of(self.slot):
            raise ValueError(f"`{self.slot}:{self.kind}` is not a variant.")

    def __str__(self) -> str:
        return self.label

    @property
    def label(self) -> str:
        """`attention:kv_heads=2`; `parse_variant` reads it back."""
        return f"{self.slot}:{KINDS[self.kind].format(self.value)}"

    @property
    def trained(self) -> bool:
        """Whether local distillation trains it."""
        return KINDS[self.kind].trained

    def problem(self, shape: Shape, layer: int) -> str | None:
        """What is wrong with it at this layer of the parent, or `None`."""
        return KINDS[self.kind].problem(self.value, self.slot, shape, layer)

    def check(self, shape: Shape, layer: int, field: str) -> None:
        """Raise `UserError`, opened by `field`, when it cannot stand at this layer of the parent."""
        problem = self.problem(shape, layer)
        if problem is not None:
            raise UserError(str(Problem(field, problem)))

    def entry(self, shape: Shape, layer: int) -> Entry:
        """How config.json describes it at this layer."""
        return KINDS[self.kind].entry(self.value, self.slot, shape, layer)

    def start(
        self, shape: Shape, state: "dict[str, Tensor]", sums: "CalibrationSums | None" = None
    ) -> "dict[str, Tensor]":
        """Its tensors without any training, its norm included, by layer-local names, in the dtypes of `state`.

        `state` is the parent's layer. `width` needs `sums`, `linear` needs products in it: `ValueError` without.
        """
        return KINDS[self.kind].start(self.value, self.slot, shape, state, sums)


def parse_variant(text: str) -> Variant:
    """The variant with the label `text`. Raises `UserError` with what is close or what there is."""
    slot, _, rest = text.partition(":")
    name, equals, value = rest.partition("=")
    for known in SLOTS:
        if slot == known:
            break
    else:
        raise _no_variant(text, f"a label is `attention:KIND` or `ffn:KIND`; {did_you_mean(slot, SLOTS)}")
    if name not in kinds_of(known):
        hint = did_you_mean(name, kinds_of(known))
        raise _no_variant(text, f"{hint}kinds of {known} are {', '.join(kinds_of(known))}")
    if equals and not value:
        raise _no_variant(text, "nothing stands behind `=`")
    try:
        return Variant(known, name, KINDS[name].parse(value))
    except ValueError as error:
        raise _no_variant(text, str(error)) from None


def _no_variant(text: str, reason: str) -> UserError:
    return UserError(f"{show(text)} is not a variant: {reason.removesuffix('; ')}.")
