"""Every engine, by the name that `hardware.engine` has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from inlay.nas.engines.engine import Engine
from inlay.nas.engines.llama_cpp import LlamaCppEngine
from inlay.nas.engines.transformers_engine import TransformersEngine
from inlay.nas.engines.vllm import VllmEngine
from inlay.nas.families.shape import Shape
from inlay.nas.job.sections import Hardware
from inlay.nas.variants.storage import Storage

ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {engine.name: engine for engine in (TransformersEngine(), LlamaCppEngine(), VllmEngine())}
)


def format_of(engine: str, asked: str, shape: Shape) -> str:
    """The format that `hardware.format` stands for."""
    return ENGINES[engine].usual_format(shape) if asked == "auto" else asked


def kv_formats_of(hardware: Hardware) -> tuple[str, ...]:
    """What the engine may store keys and values in, in its order: of the first all figures of the parent are, the
    others are chosen or not. Empty where it has one way."""
    known = ENGINES[hardware.engine].kv_formats
    asked = (hardware.kv_format,) if isinstance(hardware.kv_format, str) else hardware.kv_format
    return known[:1] if asked == ("auto",) else tuple(sorted(asked, key=lambda form: (*known, form).index(form)))


def kv_format_of(hardware: Hardware) -> str | None:
    """What the engine stores keys and values in where nothing else is chosen; None where it has one way."""
    return next(iter(kv_formats_of(hardware)), None)


def storage_of(hardware: Hardware, shape: Shape) -> Storage:
    """How a job's engine keeps models of a parent."""
    form, kv_format = format_of(hardware.engine, hardware.format, shape), kv_format_of(hardware)
    return ENGINES[hardware.engine].storage(form, hardware.device, kv_format)
