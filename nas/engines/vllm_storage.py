"""How vLLM keeps a model: weights in its dtype, keys and values in blocks of tokens.

Read in the source of vLLM 0.32, where nobody gives it `--block-size`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

from inlay.nas.families.shape import DTYPE_BYTES, FINAL_NORM, Entry, Shape, ends_tensors, subblock_tensors
from inlay.nas.formats.compressed import COMPRESSED, SCALE_BYTES
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.subblock_inlay import FORMAT, Slot
from inlay.nas.variants.sizes import parameters
from inlay.nas.variants.storage import Storage

DTYPES: Final[Mapping[str, str]] = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
"""`--dtype` by format."""
VOCABULARY_STEP: Final = 64
"""Embedding and head are filled up to a multiple of so many rows."""
CPU_BLOCK: Final = 128
GPU_BLOCK: Final = 16


def block_tokens(device: str) -> int:
    """Tokens of a sequence for which its cache has room come in multiples of this many."""
    return CPU_BLOCK if device.startswith("cpu") else GPU_BLOCK


class VllmStorage(Storage):
    """Weights in one dtype where entries name no format, with their scales in that dtype, and a cache of the same.

    A sequence holds whole blocks; a layer with a window lets go of those that it no longer sees. That vLLM fills up
    pages where layers with windows stand beside others is not counted: it depends on all layers together.
    """

    def __init__(self, form: str, device: str) -> None:
        self._bytes, self._block = DTYPE_BYTES[DTYPES[form]], block_tokens(device)

    def weights(self, entry: Entry, slot: Slot, shape: Shape) -> int:
        """Its tensors; query, key and value are one, and so are gate and up, but not larger for it."""
        whole = parameters(entry, slot, shape) * self._bytes
        if FORMAT not in entry:
            return whole
        form = COMPRESSED[entry[FORMAT]]
        sizes = [size for size in subblock_tensors(shape, slot, entry).values() if len(size) == 2]
        scales = sum(map(form.num_scales, sizes)) * (self._bytes - SCALE_BYTES)
        return whole + scales + sum(form.num_bytes(size) - prod(size) * self._bytes for size in sizes)

    def ends(self, shape: Shape, form: str | None = None) -> int:
        """Final norm, embedding and an untied head."""
        numbers = 0
        for name, size in ends_tensors(shape).items():
            rows = size[0] if name == FINAL_NORM else -(-size[0] // VOCABULARY_STEP) * VOCABULARY_STEP
            numbers += rows * prod(size[1:])
        return numbers * self._bytes

    def kv(self, entry: Entry, shape: Shape, batch: int, length: int, form: str | None = None) -> int:
        """Blocks that its sequences hold."""
        blocks = -(-length // self._block)
        for window, _ in filter(None, SUBBLOCKS.of(entry).masks(entry)):
            # A window need not begin where a block does.
            blocks = min(blocks, -(-(window - 1) // self._block) + 1)
        return batch * blocks * self.page(entry, shape)

    def page(self, entry: Entry, shape: Shape) -> int:
        """Bytes of one block of one layer."""
        held = SUBBLOCKS.of(entry).state(entry, shape, 1).values()
        return self._block * self._bytes * sum(prod(size) for size in held)


def cache_block_bytes(shape: Shape, form: str, device: str) -> int:
    """Bytes of one block of all layers, at most.

    Layers of one window, or all without, have each their own page. Where they differ pages are filled up to the
    largest, groups of layers to the same number, and each group takes blocks of its own.
    """
    storage = VllmStorage(form, device)
    entries = [block["attention"] for block in shape.blocks]
    pages = [page for entry in entries if (page := storage.page(entry, shape))]
    if not pages:
        # One head of what the plugin declares where no layer has attention.
        return block_tokens(device) * 2 * shape.head_dim * DTYPE_BYTES[DTYPES[form]]
    masks = {mask for entry in entries for mask in SUBBLOCKS.of(entry).masks(entry)}
    return sum(pages) if len(masks) < 2 else (1 + len(masks)) * len(pages) * max(pages)
