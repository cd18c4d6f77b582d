"""Files of llama.cpp that are timed or asked for their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inlay.nas.engines.engine import Held
from inlay.nas.engines.gguf.packing import Packed, pack
from inlay.nas.engines.shapes import shape_of_model

if TYPE_CHECKING:
    from inlay.nas.modeling import InlayConfig

MIB: Final = 2**20


def packed_of(config: InlayConfig, form: str) -> Packed:
    """A model of this configuration as a file holds it."""
    return pack(shape_of_model(config), config.blocks, form, config.ends_format)


def write_shape(path: Path, config: InlayConfig, form: str, hollow: bool = False) -> None:
    """Writes a file of this shape, with random numbers or, `hollow`, without any."""
    from inlay.nas.engines.gguf.fields import NO_TOKENIZER
    from inlay.nas.engines.gguf.metadata import described
    from inlay.nas.engines.gguf.writer import write_hollow, write_skeleton

    packed = packed_of(config, form)
    rotation, fields = described(packed, config, "skeleton")
    write = write_hollow if hollow else write_skeleton
    write(path, packed, rotation, [*fields, NO_TOKENIZER])


def held_of(path: str, sizes: Mapping[str, Any]) -> Held:
    """What llama.cpp holds for a file, of what its worker tells when it opens it."""
    kv, compute = (round(sizes[part] * MIB) for part in ("kv_mib", "compute_mib"))
    return Held(sizes["weights_bytes"], kv, compute, Path(path).stat().st_size)
