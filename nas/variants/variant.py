"""A variant: what stands in one subblock, with its label, its config entry and its training-free start."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from inlay.nas.errors import UserError
from inlay.nas.families.shape import SLOTS, Entry, Shape, subblock_tensors
from inlay.nas.formats import FORMATS
from inlay.nas.formats.by_tensor import form_of, forms_in, is_stored_as, parts_of
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.subblock_inlay import FORMAT, Slot
from inlay.nas.problems import Problem, did_you_mean, show
from inlay.nas.variants.kind import Place, Value, parted
from inlay.nas.variants.no_op import NoOp
from inlay.nas.variants.parent import Parent
from inlay.nas.variants.registry import KINDS, kinds_of
from inlay.nas.variants.statistics import Statistic, Sums

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Variant:
    """A replacement for one subblock. Raises `ValueError` for a slot, kind or format that is not there."""

    slot: Slot
    kind: str
    value: Value = None
    """A number for `kv_heads` and `width`, (window, sinks) for `window`, a pair of these for two kinds in one."""
    form: str | None = None
    """The format that its matrices are stored in, or `q4_K,down=q6_K` where some differ; None: that of the whole
    file."""

    def __post_init__(self) -> None:
        if self.slot not in SLOTS or self.kind not in kinds_of(self.slot):
            raise ValueError(f"`{self.slot}:{self.kind}` is not a variant.")
        if self.form is not None and (self.is_free or not is_stored_as(self.form, parts_of(self.form))):
            raise ValueError(f"`{self.form}` is no format of `{self.slot}:{self.kind}`.")

    def __str__(self) -> str:
        return self.label

    @property
    def label(self) -> str:
        """`attention:kv_heads=2`, `ffn:width=256@q4_K`; `parse_variant` reads it back."""
        own = f"{self.slot}:{KINDS[self.kind].format(self.value)}"
        return own if self.form is None else f"{own}@{self.form}"

    @property
    def bare(self) -> "Variant":
        """The same without a format of its own: what is trained, and what the block library holds."""
        return replace(self, form=None)

    @property
    def short(self) -> str:
        """What a cell of a picture says of it."""
        return " ".join(filter(None, (KINDS[self.kind].short(self.value), self.form)))

    @property
    def rank(self) -> tuple[Slot, int, list[int], list[int]]:
        """What sorts variants for people: by slot, by kind, large before small."""
        forms = [] if self.form is None else [list(FORMATS).index(form) for form in forms_in(self.form)]
        return self.slot, list(KINDS).index(self.kind), [-number for number in _numbers(self.value)], forms

    @property
    def trained(self) -> bool:
        """Whether local distillation trains it; one in a format is what was trained without, rounded."""
        return KINDS[self.kind].trained and self.form is None

    @property
    def is_parent(self) -> bool:
        """Whether it is the parent's own subblock, stored as everything is."""
        return self.is_own and self.form is None

    @property
    def is_own(self) -> bool:
        """Whether its weights are the parent's own, whatever they are stored in."""
        return KINDS[self.kind].is_parent

    @property
    def is_free(self) -> bool:
        """Whether it costs nothing wherever it stands."""
        return KINDS[self.kind].is_free

    @property
    def run(self) -> "tuple[tuple[Variant, Variant], ...]":
        """Attention and ffn of each of the layers that are one choice with it, from its own on; () where it is a choice
        of its own subblock."""
        values = KINDS[self.kind].run(self.value)

        def at(slot: Slot, value: Value) -> Variant:
            return Variant(slot, NoOp.name) if value is None else Variant(slot, self.kind, value, self.form)

        return tuple((at("attention", value), at("ffn", value)) for value in values)

    @property
    def beside(self) -> str | None:
        """The label of the one subblock that it stands beside in its layer, the two doing the work of that or of a run
        of layers; None: any."""
        if run := self.run:
            return run[0][SLOTS.index(self.slot) - 1].label
        return KINDS[self.kind].beside

    @property
    def block(self) -> tuple[str, str]:
        """The labels of attention and ffn where it stands and all else is the parent's."""
        if self.slot == "attention":
            return self.label, self.beside or Variant("ffn", Parent.name).label
        return self.beside or Variant("attention", Parent.name).label, self.label

    def is_absent(self, shape: Shape, layer: int) -> bool:
        """Whether nothing stands there when it is chosen at this layer: no weights, no cache, no time."""
        return SUBBLOCKS.of(self.entry(shape, layer)).absent

    def problem(self, shape: Shape, layer: int) -> str | None:
        """What is wrong with it at this layer of the parent, or `None`."""
        place = Place(shape, layer, self.slot)
        if place.is_empty and not self.is_parent:
            return f"{self.label} is not possible: the parent has no {self.slot} there; leave it out"
        if (problem := KINDS[self.kind].problem(self.value, place)) is not None:
            return problem
        stored = self.run[0] if self.run else (self,)
        return next(filter(None, (each._format_problem(shape, layer) for each in stored)), None)

    def _format_problem(self, shape: Shape, layer: int) -> str | None:
        """A part that it does not have, and a format that none of its matrices would be stored in: that is another."""
        if self.form is None:
            return None
        entry = self.entry(shape, layer)
        known = SUBBLOCKS.of(entry).apart
        if unknown := [part for part in parts_of(self.form) if part not in known]:
            return f"{self.label} is not possible: it has no `{unknown[0]}` apart; {known_parts(known)}"
        sizes = subblock_tensors(shape, self.slot, entry)
        rows: dict[str, set[int]] = {form: set() for form in forms_in(self.form)}
        for name, size in sizes.items():
            if len(size) == 2:
                rows[form_of(self.form, name)].add(size[1])
        for form, own in ((FORMATS[name], sorted(held)) for name, held in rows.items()):
            if not any(map(form.fits, own)):
                return (
                    f"{self.label} is not possible: {form.name} stores {form.block} numbers together, and its rows "
                    f"have {' and '.join(map(str, own))}; take {form.holding(own[-1]).name}"
                )
        return None

    def check(self, shape: Shape, layer: int, field: str) -> None:
        """Raise `UserError`, opened by `field`, when it cannot stand at this layer of the parent."""
        problem = self.problem(shape, layer)
        if problem is not None:
            raise UserError(str(Problem(field, problem)))

    def too_long(self, length: int) -> str | None:
        """What is wrong with it where quality is judged on sequences of `length` tokens, or `None`."""
        return KINDS[self.kind].too_long(self.value, length)

    def entry(self, shape: Shape, layer: int) -> Entry:
        """How config.json describes it at this layer."""
        entry = KINDS[self.kind].entry(self.value, Place(shape, layer, self.slot))
        return entry if self.form is None else {**entry, FORMAT: self.form}

    def statistics(self, shape: Shape, layer: int) -> tuple[Statistic, ...]:
        """What its start needs of the parent's layer."""
        return KINDS[self.kind].statistics(self.value, Place(shape, layer, self.slot))

    def start(
        self, shape: Shape, layer: int, state: "dict[str, Tensor]", sums: Sums | None = None
    ) -> "dict[str, Tensor]":
        """Its tensors without any training, its norm included, by layer-local names, in the dtypes of `state`.

        `state` is the parent's layer. Raises `ValueError` where `sums` lacks one of its statistics.
        """
        place = Place(shape, layer, self.slot)
        return KINDS[self.kind].start(self.value, place, state, Sums() if sums is None else sums)


def parse_variant(text: str) -> Variant:
    """The variant with the label `text`. Raises `UserError` with what is close or what there is."""
    slot, _, rest = text.partition(":")
    rest, at, form = rest.partition("@")
    name, value = parted(rest)
    for known in SLOTS:
        if slot == known:
            break
    else:
        raise _no_variant(text, f"a label is `attention:KIND` or `ffn:KIND`; {did_you_mean(slot, SLOTS)}")
    if name not in kinds_of(known):
        hint = did_you_mean(name, kinds_of(known))
        raise _no_variant(text, f"{hint}kinds of {known} are {', '.join(kinds_of(known))}")
    if "=" in rest and not value:
        raise _no_variant(text, "nothing stands behind `=`")
    if at and not is_stored_as(form, parts_of(form)):
        wrong = next((each for each in forms_in(form) if each not in FORMATS), form)
        hint = did_you_mean(wrong, FORMATS)
        raise _no_variant(text, f"{show(wrong)} is no format; {hint}there are {', '.join(FORMATS)}")
    if at and KINDS[name].is_free:
        raise _no_variant(text, f"`{name}` has nothing to store")
    try:
        return Variant(known, name, KINDS[name].parse(value), form or None)
    except ValueError as error:
        raise _no_variant(text, str(error)) from None


def known_parts(parts: Sequence[str]) -> str:
    """What of a subblock may be stored apart, as a sentence ends."""
    return f"it has {', '.join(parts)}" if parts else "all of it is stored alike"


def is_free(label: str) -> bool:
    """Whether what a label names costs nothing wherever it stands; False for a label that is no variant's."""
    kind = KINDS.get(parted(label.partition(":")[2])[0])
    return kind is not None and kind.is_free


def _numbers(value: Value) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [number for each in value or () for number in _numbers(each)]


def _no_variant(text: str, reason: str) -> UserError:
    return UserError(f"{show(text)} is not a variant: {reason.removesuffix('; ')}.")
