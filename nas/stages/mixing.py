"""Which mixes of formats a subblock is offered in whose tensors may differ (`space.formats: {by: tensor}`).

All of them would be many times the formats. Of a layer's only those are offered that lie on its front of bytes and
estimated KL, and of these only what is on the hull of the most layers: whatever is offered has to be timed, and between
the points of a hull a program mixes over layers anyhow.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from inlay.nas.families.shape import SLOTS, Shape, subblock_tensors
from inlay.nas.formats import FORMATS
from inlay.nas.formats.by_tensor import form_of, part_of, stored_as
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.subblock_inlay import Slot, Tensors
from inlay.nas.variants import Variant

MIXES: Final = 8
"""Mixes of attention, and of ffn, that a model may have at most beside the formats alone."""

Nats = Mapping[str, Mapping[str, float]]
"""Estimated KL of every matrix of a layer, by the label of what rounds all of its subblock, and by name."""
Mixes = dict[tuple[int, Slot], tuple[str, ...]]
"""What is offered at each layer of each subblock."""


@dataclass(frozen=True)
class Mix:
    """A subblock stored so: its matrices' bytes, and its estimated KL in nats."""

    stored: str
    num_bytes: int
    nats: float


def mixes_of(shape: Shape, forms: Sequence[str], nats: Sequence[Nats]) -> Mixes:
    """What is offered beside the formats alone, in the order of their bytes.

    Args:
        shape: the parent's.
        forms: the formats.
        nats: of every layer.
    """
    found: Mixes = {}
    for slot in SLOTS:
        every = {layer: front(all_mixes(shape, layer, slot, forms, own)) for layer, own in enumerate(nats)}
        hulls = Counter(
            mix.stored
            for layer, own in every.items()
            for mix in hull(own)
            if not any(_are_alike(shape, layer, slot, mix.stored, form) for form in forms)
        )
        offered = sorted(hulls, key=lambda stored: (-hulls[stored], stored))[:MIXES]
        found |= {
            (layer, slot): tuple(mix.stored for mix in own if mix.stored in offered) for layer, own in every.items()
        }
    return found


def all_mixes(shape: Shape, layer: int, slot: Slot, forms: Sequence[str], nats: Nats) -> Iterator[Mix]:
    """Every way to store the parent's own subblock of a layer; `nats` are the layer's."""
    parts = _parts(shape, layer, slot)
    told = {form: nats[label] for form in forms if (label := Variant(slot, "parent", form=form).label) in nats}
    choices = [
        [
            Mix(form, _num_bytes(sizes, form), sum(own[name] for name in sizes))
            for form, own in told.items()
            # What holds no row of it is another format under that name.
            if any(FORMATS[form].fits(size[1]) for size in sizes.values())
        ]
        for sizes in parts.values()
    ]
    for chosen in itertools.product(*choices):
        main, *apart = (each.stored for each in chosen)
        stored = stored_as(main, dict(zip([*parts][1:], apart, strict=True)))
        yield Mix(stored, sum(each.num_bytes for each in chosen), sum(each.nats for each in chosen))


def _parts(shape: Shape, layer: int, slot: Slot) -> dict[str, Tensors]:
    """The matrices of a subblock by the part that is stored alike; those that are in none come first, as ""."""
    entry = shape.parent_entry(layer, slot)
    # Files hold query, key and value of heads that are normed as one matrix.
    apart = [part for part in SUBBLOCKS.of(entry).apart if not (shape.qk_norm and part == "v")]
    found: dict[str, Tensors] = {part: {} for part in ("", *apart)}
    for name, size in subblock_tensors(shape, slot, entry).items():
        if len(size) == 2:
            own = part_of(name)
            found[own if own in apart else ""][name] = size
    return found


def _are_alike(shape: Shape, layer: int, slot: Slot, one: str, other: str) -> bool:
    """Whether both come to the same: a format alone stores rows that it does not hold in another."""
    sizes = {name: size for own in _parts(shape, layer, slot).values() for name, size in own.items()}
    return all(
        FORMATS[form_of(one, name)].holding(size[1]).name == FORMATS[form_of(other, name)].holding(size[1]).name
        for name, size in sizes.items()
    )


def _num_bytes(sizes: Tensors, form: str) -> int:
    return sum(FORMATS[form].holding(size[1]).num_bytes(size) for size in sizes.values())


def front(mixes: Iterator[Mix]) -> list[Mix]:
    """Those that no other one equals or beats in both, least bytes first."""
    found: list[Mix] = []
    for mix in sorted(mixes, key=lambda each: (each.num_bytes, each.nats, each.stored)):
        if not found or mix.nats < found[-1].nats:
            found.append(mix)
    return found


def hull(points: Sequence[Mix]) -> list[Mix]:
    """Those of a front below which no line between two others passes."""
    found: list[Mix] = []
    for point in points:
        while len(found) > 1 and _is_above(found[-2], found[-1], point):
            found.pop()
        found.append(point)
    return found


def _is_above(first: Mix, middle: Mix, last: Mix) -> bool:
    """Whether the one in the middle is on or above the line between the others."""
    wide, long = last.num_bytes - first.num_bytes, middle.num_bytes - first.num_bytes
    return (middle.nats - first.nats) * wide >= (last.nats - first.nats) * long
