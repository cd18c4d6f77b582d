"""Whether an engine can run what a job asks for: said before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from inlay.nas.engines.engine import Engine, Target
from inlay.nas.engines.registry import ENGINES, format_of, kv_formats_of
from inlay.nas.families.shape import Shape
from inlay.nas.job.budget import PEAK, BudgetLimit
from inlay.nas.job.sections import Hardware
from inlay.nas.problems import Problem
from inlay.nas.variants import SearchSpace, space_problems, variants_of
from inlay.nas.variants.kind import LAYERS


def hardware_problems(hardware: Hardware) -> Iterator[Problem]:
    """What is wrong with the choice of the engine itself."""
    engine = ENGINES[hardware.engine]
    if hardware.format != "auto" and hardware.format not in engine.formats:
        known = ", ".join(engine.formats)
        if hardware.format in engine.subblock_formats:
            text = f"{engine.name} stores only subblocks in {hardware.format}; name it in space.formats, and here"
        else:
            text = f"{hardware.format} is not a format of {engine.name};"
        yield Problem("hardware.format", f"{text} write {known} or auto")
    if form := next((form for form in kv_formats_of(hardware) if form not in engine.kv_formats), None):
        others = " or ".join(name for name, other in ENGINES.items() if form in other.kv_formats)
        text = f"{engine.name} stores keys and values in one way; search with `hardware.engine: {others}`, or leave it"
        yield Problem("hardware.kv_format", f"{text} out")
    if hardware.python is not None and not engine.has_python:
        yield Problem("hardware.python", f"{engine.name} runs in the search's own workers; leave it out")
    device = hardware.device.partition(":")[0]
    if device not in engine.devices:
        text = f"{hardware.device} is not where inlay runs {engine.name}; write {' or '.join(engine.devices)}"
        yield Problem("hardware.device", text)


def shape_problems(hardware: Hardware, shape: Shape, space: SearchSpace | None) -> Iterator[Problem]:
    """What of the parent and of the space the engine cannot run; each choice once, with the first layer of it."""
    engine = ENGINES[hardware.engine]
    form = format_of(hardware.engine, hardware.format, shape)
    if form not in engine.formats:
        return
    if (problem := engine.model_problem(shape, form, hardware.device)) is not None:
        yield Problem("hardware.engine", problem)
        return
    for kv_format in kv_formats_of(hardware):
        if (problem := engine.cache_problem(shape, kv_format)) is not None:
            yield Problem("hardware.kv_format", problem)
    if space is None or space_problems(space, shape):
        return
    wrong = list(_format_problems(engine, space, form, hardware.device))
    yield from wrong
    if wrong:
        return
    told: set[str] = set()
    for layer in range(shape.num_layers):
        for variant in variants_of(space, shape, layer):
            if variant.is_free or variant.label in told or variant.is_absent(shape, layer):
                continue
            problem = engine.problem(variant.entry(shape, layer), variant.slot, shape, form)
            if problem is not None:
                told.add(variant.label)
                listed = LAYERS if variant.run else variant.slot
                yield Problem(f"space.{listed}", f"{variant.label} at layer {layer}: {problem}")


def budget_problems(hardware: Hardware, limits: Iterable[BudgetLimit]) -> Iterator[Problem]:
    """Limits on what the engine does not tell; what a given cost table tells is not asked here."""
    reason = ENGINES[hardware.engine].untold(hardware.device)
    for limit in limits:
        if limit.name == PEAK and reason is not None:
            yield Problem(limit.field, f"{reason}; limit `memory`, which is weights and cache")


def _format_problems(engine: Engine, space: SearchSpace, form: str, device: str) -> Iterator[Problem]:
    """Formats of single subblocks that the engine does not have, or not there, or has everything in already."""
    if space.mixes_forms and not engine.stores_matrices_apart:
        others = " or ".join(name for name, other in ENGINES.items() if other.stores_matrices_apart)
        text = f"tensor: {engine.name} stores all matrices of a subblock alike; write subblock, or search with"
        yield Problem("space.formats.by", f"{text} `hardware.engine: {others}`")
    for place, own in enumerate(space.forms):
        field = f"space.formats[{place}]"
        if own == form:
            yield Problem(field, f"{own} is what everything is stored in already (hardware.format); leave it out")
        elif own not in engine.subblock_formats:
            others = " or ".join(name for name, other in ENGINES.items() if own in other.subblock_formats)
            whole = f"{engine.name} has {own} for whole models alone (hardware.format)"
            text = whole if own in engine.formats else f"{own} is not a format of {engine.name}"
            yield Problem(field, f"{text}; search with `hardware.engine: {others}`, or leave it out")
        elif (problem := engine.format_problem(own, form, device)) is not None:
            yield Problem(field, problem)


def check_installed(hardware: Hardware, shape: Shape, python: str | None) -> None:
    """Starts an engine that has a process of its own, on the machine that measures, and lets it go.

    Raises:
        UserError: its interpreter is not there, or has no such engine.
    """
    engine = ENGINES[hardware.engine]
    if engine.has_python:
        form = format_of(hardware.engine, hardware.format, shape)
        engine.describe(Target(hardware.device, "float32", form, python))
