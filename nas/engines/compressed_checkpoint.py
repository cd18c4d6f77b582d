"""A checkpoint whose subblocks are stored in formats of compressed-tensors: its tensors, and what its config says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from inlay.nas.families.shape import SLOTS, Shape, layer_prefix, subblock_tensors
from inlay.nas.formats.compressed import COMPRESSED, CompressedFormat
from inlay.nas.modeling.subblock_inlay import FORMAT
from inlay.nas.variants.storage import Block

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from inlay.nas.formats.format import Bytes, Format

KEY: Final = "quantization_config"
"""Where config.json describes stored numbers."""
MIXED: Final = "mixed-precision"
"""What the whole is called where its parts are stored otherwise."""
_WEIGHT: Final = ".weight"


def matrix_formats(shape: Shape, blocks: Sequence[Block]) -> dict[str, CompressedFormat | None]:
    """By whole-model name every matrix of the layers: the format that its subblock's entry names, or None."""
    return {
        layer_prefix(layer) + name: COMPRESSED[block[slot][FORMAT]] if FORMAT in block[slot] else None
        for layer, block in enumerate(blocks)
        for slot in SLOTS
        for name, size in subblock_tensors(shape, slot, block[slot]).items()
        if len(size) == 2
    }


def quantization_config(formats: Mapping[str, CompressedFormat | None]) -> dict[str, Any]:
    """What config.json says of these matrices, under `KEY`: a group for each format, with its modules by name."""
    modules: dict[CompressedFormat | None, list[str]] = {}
    for name, form in formats.items():
        modules.setdefault(form, []).append(name.removesuffix(_WEIGHT))
    own = {form: names for form, names in modules.items() if form is not None}
    named = {form.file_format for form in own}
    return {
        "quant_method": "compressed-tensors",
        "format": named.pop() if len(named) == 1 else MIXED,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [*modules.get(None, []), "lm_head"],
        "config_groups": {
            f"group_{number}": {
                "targets": names,
                "weights": form.scheme,
                "input_activations": None,
                "output_activations": None,
                "format": form.file_format,
            }
            for number, (form, names) in enumerate(own.items())
        },
    }


def stored_tensors(
    names: Iterable[str],
    read: Callable[[str], Tensor],
    formats: Mapping[str, CompressedFormat | None],
    rows: Callable[[str, Format], Bytes],
    dtype: torch.dtype,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the checkpoint by their names, one after the other.

    Args:
        names: the model's tensors, whole-model names.
        read: one of them.
        formats: of its matrices.
        rows: a matrix' packed rows in a format.
        dtype: of all other numbers, and of scales.

    Raises:
        UserError: the type does not hold a scale.
    """
    for name in names:
        form, tensor = formats.get(name), read(name)
        if form is None:
            yield name, tensor.to(dtype).contiguous()
        else:
            yield from form.tensors(name, rows(name, form), tensor.shape[1], dtype).items()
