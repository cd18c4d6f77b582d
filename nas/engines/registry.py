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


def storage_of(hardware: Hardware, shape: Shape) -> Storage:
    """How a job's engine keeps models of a parent."""
    return ENGINES[hardware.engine].storage(format_of(hardware.engine, hardware.format, shape), hardware.device)
