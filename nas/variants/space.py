"""From the job's `space` to the variants of each layer of a parent."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from inlay.nas.errors import UserError
from inlay.nas.families.shape import SLOTS, Shape
from inlay.nas.formats import FORMATS
from inlay.nas.formats.by_tensor import parts_of
from inlay.nas.modeling.subblock_inlay import Slot
from inlay.nas.problems import Problem, did_you_mean, show
from inlay.nas.variants.kind import JOIN, LAYERS, LISTS, Kind, Place
from inlay.nas.variants.registry import kind_with, kinds_in
from inlay.nas.variants.variant import Variant


class SearchSpace(Protocol):
    """What is read of the job's `space`: items are `"linear"`, `"no_op"` or one kind, or two, with their values."""

    @property
    def attention(self) -> Sequence[Any]:
        """Alternatives to attention."""

    @property
    def ffn(self) -> Sequence[Any]:
        """Alternatives to the ffn."""

    @property
    def layers(self) -> Sequence[Any]:
        """Alternatives to neighbouring layers together."""

    @property
    def forms(self) -> Sequence[str]:
        """Formats beside that of the whole file, each of which may be that of a subblock, and of embedding and head."""

    @property
    def mixes_forms(self) -> bool:
        """Whether the matrices of one subblock may be in different ones."""

    def stored_as(self, layer: int, slot: Slot) -> Sequence[str]:
        """All that a subblock may be stored in: formats, and where its matrices may differ `q4_K,down=q6_K`."""

    @property
    def multiple(self) -> int:
        """Widths are rounded to it."""

    @property
    def sinks(self) -> int:
        """First tokens that every window sees."""


def variants_of(space: SearchSpace, shape: Shape, layer: int) -> tuple[Variant, ...]:
    """The variants allowed at `layer`: for each slot the parent's own, then the space's in its order, each once, and
    after each of them the same in every format of the space.

    A variant that another layer can take but this one cannot (a window not below the one it slides in already), and one
    that is the parent's own there, are left out. Raises `UserError` with every problem of the space.
    """
    problems = space_problems(space, shape)
    if problems:
        raise UserError("\n".join(map(str, problems)))
    found: dict[str, Variant] = {}
    for slot in SLOTS:
        parent = Variant(slot, "parent")
        _add(found, parent, space, shape, layer)
        items = [*getattr(space, slot), *space.layers]
        for variant in (_variant(item, space, Place(shape, layer, slot)) for item in items):
            # Only what can stand there has an entry; the parent's own entry beside another subblock has other weights.
            if variant.problem(shape, layer) is None and (
                variant.beside is not None or variant.entry(shape, layer) != parent.entry(shape, layer)
            ):
                _add(found, variant, space, shape, layer)
    return tuple(found.values())


def _add(found: dict[str, Variant], variant: Variant, space: SearchSpace, shape: Shape, layer: int) -> None:
    forms = () if variant.is_absent(shape, layer) else space.stored_as(layer, variant.slot)
    if variant.run:
        # Both subblocks of its layer are stored alike, and not every mix is one of both.
        forms = [form for form in forms if not parts_of(form)]
    for one in (variant, *(replace(variant, form=form) for form in forms)):
        if one.problem(shape, layer) is None:
            found.setdefault(one.label, one)


def ends_forms(space: SearchSpace, shape: Shape) -> tuple[str, ...]:
    """The formats that embedding and head may be stored in beside the whole file's: those that hold their rows."""
    return tuple(form for form in space.forms if FORMATS[form].fits(shape.hidden))


def space_problems(space: SearchSpace, shape: Shape, field: str = "space") -> list[Problem]:
    """Everything in the space that no layer of this parent can take, each with its path below `field`."""
    found = [problem for listed in LISTS for problem in _item_problems(space, shape, listed, f"{field}.{listed}")]
    return [*found, *_format_problems(space, shape, f"{field}.formats")]


def unseen_problems(space: SearchSpace, shape: Shape, length: int, raised: str) -> list[Problem]:
    """Everything in a space without other problems that sequences of `length` tokens cannot tell from the parent's own.

    Quality is judged on such sequences; `raised` is the job's field that makes them longer.
    """
    found = []
    for listed in LISTS:
        slot = _slot_of(listed)
        for place, item in enumerate(getattr(space, listed)):
            text = _variant(item, space, Place(shape, 0, slot)).too_long(length)
            if text is not None:
                found.append(Problem(_path(f"space.{listed}[{place}]", item), f"{text}, or raise {raised}"))
    return found


def _item_problems(space: SearchSpace, shape: Shape, listed: str, field: str) -> Iterator[Problem]:
    slot = _slot_of(listed)
    for place, item in enumerate(getattr(space, listed)):
        path = f"{field}[{place}]"
        kind = kind_with(_keys(item), listed)
        if kind is None:
            known = [each.name for each in kinds_in(listed)]
            hint = did_you_mean(JOIN.join(_keys(item)), known)
            yield Problem(path, f"{show(item)} is no {listed} alternative; {hint}there are {', '.join(known)}")
            continue
        variants = [_variant(item, space, Place(shape, layer, slot)) for layer in range(shape.num_layers)]
        problems = [variant.problem(shape, layer) for layer, variant in enumerate(variants)]
        if problems[0] is not None and None not in problems:
            rounding = kind.rounding(_value(item, kind), variants[0].value, space)
            yield Problem(_path(path, item), rounding + problems[0])


def _format_problems(space: SearchSpace, shape: Shape, field: str) -> Iterator[Problem]:
    """Formats that no subblock of the parent has rows for."""
    for place, form in enumerate(space.forms):
        own = [(Variant(slot, "parent", form=form), layer) for layer in range(shape.num_layers) for slot in SLOTS]
        problems = [variant.problem(shape, layer) for variant, layer in own]
        if problems[0] is not None and None not in problems:
            yield Problem(f"{field}[{place}]", problems[0])


def _variant(item: Any, space: SearchSpace, place: Place) -> Variant:
    kind = kind_with(_keys(item), place.slot) or kind_with(_keys(item), LAYERS)
    assert kind is not None
    return Variant(place.slot, kind.name, kind.resolve(_value(item, kind), space, place))


def _slot_of(listed: str) -> Slot:
    """The subblock that a list's items are asked about; those for whole layers say the same of both."""
    return next((slot for slot in SLOTS if slot == listed), SLOTS[0])


def _keys(item: Any) -> list[str]:
    return [item] if isinstance(item, str) else list(item)


def _value(item: Any, kind: Kind) -> Any:
    """The number behind a kind's name, those of two kinds, or nothing."""
    if isinstance(item, str):
        return None
    values = tuple(item[key] for key in kind.keys)
    return values if len(values) > 1 else values[0]


def _path(path: str, item: Any) -> str:
    """With the one key that the item has."""
    return path if isinstance(item, str) or len(item) > 1 else f"{path}.{_keys(item)[0]}"
