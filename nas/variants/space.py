"""From the job's `space` to the variants of each layer of a parent."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from inlay.nas.errors import UserError
from inlay.nas.families.shape import SLOTS, Shape, Slot
from inlay.nas.job.problems import Problem, did_you_mean, show
from inlay.nas.variants.registry import KINDS, kinds_of
from inlay.nas.variants.variant import Variant


class SearchSpace(Protocol):
    """What is read of the job's `space`: items are `"linear"`, `"no_op"` or one kind with its value."""

    @property
    def attention(self) -> Sequence[Any]:
        """Alternatives to attention."""

    @property
    def ffn(self) -> Sequence[Any]:
        """Alternatives to the ffn."""

    @property
    def multiple(self) -> int:
        """Widths are rounded to it."""

    @property
    def sinks(self) -> int:
        """First tokens that every window sees."""


def variants_of(space: SearchSpace, shape: Shape, layer: int) -> tuple[Variant, ...]:
    """The variants allowed at `layer`: for each slot the parent's own, then the space's in its order, each once.

    A variant that another layer can take but this one cannot (a window not below the one it slides in already), and a
    width that is the parent's own, are left out. Raises `UserError` with every problem of the space.
    """
    problems = space_problems(space, shape)
    if problems:
        raise UserError("\n".join(map(str, problems)))
    found: dict[str, Variant] = {}
    for slot in SLOTS:
        parent = Variant(slot, "parent")
        found[parent.label] = parent
        for variant in (_variant(item, slot, space, shape) for item in getattr(space, slot)):
            is_parent = variant.entry(shape, layer) == parent.entry(shape, layer)
            if not is_parent and variant.problem(shape, layer) is None:
                found.setdefault(variant.label, variant)
    return tuple(found.values())


def space_problems(space: SearchSpace, shape: Shape, field: str = "space") -> list[Problem]:
    """Everything in the space that no layer of this parent can take, each with its path below `field`."""
    return [problem for slot in SLOTS for problem in _slot_problems(space, shape, slot, f"{field}.{slot}")]


def _slot_problems(space: SearchSpace, shape: Shape, slot: Slot, field: str) -> Iterator[Problem]:
    for place, item in enumerate(getattr(space, slot)):
        path = f"{field}[{place}]"
        name, value = _split(item)
        if name not in kinds_of(slot):
            hint = did_you_mean(name, kinds_of(slot))
            yield Problem(path, f"{show(item)} is no {slot} alternative; {hint}there are {', '.join(kinds_of(slot))}")
            continue
        path = path if value is None else f"{path}.{name}"
        variant = _variant(item, slot, space, shape)
        problems = [variant.problem(shape, layer) for layer in range(shape.num_layers)]
        if problems[0] is not None and None not in problems:
            rounded = name == "width" and variant.value != value
            given = f"{value} gives a multiple of {space.multiple}, and " if rounded else ""
            yield Problem(path, given + problems[0])


def _variant(item: Any, slot: Slot, space: SearchSpace, shape: Shape) -> Variant:
    name, value = _split(item)
    return Variant(slot, name, KINDS[name].resolve(value, space, shape))


def _split(item: Any) -> tuple[str, Any]:
    if isinstance(item, str):
        return item, None
    ((name, value),) = item.items()
    return str(name), value
