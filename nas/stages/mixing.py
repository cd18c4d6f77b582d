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
from inlay.nas.formats.by_tensor import forms_in, stored_as
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.subblock_inlay import Slot
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
        hulls = Counter(mix.stored for own in every.values() for mix in hull(own) if len(forms_in(mix.stored)) > 1)
        offered = sorted(hulls, key=lambda stored: (-hulls[stored], stored))[:MIXES]
        found |= {
            (layer, slot): tuple(mix.stored for mix in own if mix.stored in offered) for layer, own in every.items()
        }
    return found


def all_mixes(shape: Shape, layer: int, slot: Slot, forms: Sequence[str], nats: Nats) -> Iterator[Mix]:
    """Every way to store the parent's own subblock of a layer."""
    entry = shape.parent_entry(layer, slot)
    # Files hold query, key and value of heads that are normed as one matrix.
    apart = [part for part in SUBBLOCKS.of(entry).apart if not (shape.qk_norm and part == "v")]
    sizes = {name: size for name, size in subblock_tensors(shape, slot, entry).items() if len(size) == 2}
    groups: dict[str, dict[str, tuple[int, ...]]] = {"": {}, **{part: {} for part in apart}}
    for name, size in sizes.items():
        part = name.removesuffix(".weight").rpartition(".")[2].removesuffix("_proj")
        groups[part if part in apart else ""][name] = size
    told = {form: nats.get(Variant(slot, "parent", form=form).label) for form in forms}
    choices: list[list[tuple[str, str, int, float]]] = []
    for part, own in groups.items():
        choices.append(
            [
                (part, form, sum(FORMATS[form].holding(size[1]).num_bytes(size) for size in own.values()), harm)
                for form in forms
                # What holds no row of it is another format under that name.
                if any(FORMATS[form].fits(size[1]) for size in own.values())
                for estimates in (told[form],)
                if estimates is not None
                for harm in (sum(estimates[name] for name in own),)
            ]
        )
    for chosen in itertools.product(*choices) if all(groups.values()) else ():
        main, *rest = chosen
        stored = stored_as(main[1], {part: form for part, form, _, _ in rest})
        yield Mix(stored, sum(each[2] for each in chosen), sum(each[3] for each in chosen))


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
