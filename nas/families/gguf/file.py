"""A parent that lies in one GGUF file: what is known without its weights, and its folder as Transformers has it."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Final

from inlay.nas.errors import UserError
from inlay.nas.families.checkpoint import SINGLE, Checkpoint
from inlay.nas.families.checks import check_finite
from inlay.nas.families.gguf.config import config_of
from inlay.nas.families.gguf.header import Header, read_header
from inlay.nas.families.gguf.tokenizer import tokenizer_of, write_tokenizer
from inlay.nas.families.gguf.weights import packed_checkpoint
from inlay.nas.families.reading import shape_of
from inlay.nas.families.shape import Shape

SUFFIX: Final = ".gguf"
_VERSION: Final = 1
"""Of what is made of a file; another one is unpacked again."""
_SAFETENSORS: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class GgufFile:
    """An opened file; it holds its header and no weights."""

    header: Header
    config: Mapping[str, Any]
    """Its config.json."""
    tokenizer: Mapping[str, Any]
    """Its tokenizer.json."""
    shape: Shape
    checkpoint: Checkpoint
    """Its tensors, each turned back into numbers when it is read."""

    @property
    def fingerprint(self) -> str:
        """sha256 over path, size and time of change: quick, but bound to a place."""
        path = self.header.path
        stat = path.stat()
        return hashlib.sha256(json.dumps([str(path), stat.st_size, stat.st_mtime_ns]).encode()).hexdigest()

    @cached_property
    def digest(self) -> str:
        """sha256 over the file and the version of what is made of it; seconds for each gigabyte."""
        with self.header.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
        digest.update(str(_VERSION).encode())
        return digest.hexdigest()

    def write_description(self, folder: Path) -> None:
        """Write config.json, the tokenizer's files and the chat template into a folder."""
        (folder / "config.json").write_text(json.dumps(self.config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        write_tokenizer(folder, self.header, self.tokenizer, self.shape.max_positions)

    def unpack(self, place: Path) -> Path:
        """The model folder `place`/<digest>, written whole by the first who asks and then found there.

        Tensor after tensor is turned back into numbers, so the largest one bounds the memory that this takes.
        Raises `UserError` for numbers that are not finite, or too little room; then nothing is left behind.
        """
        folder = place / self.digest
        if folder.is_dir():
            return folder
        beside = place / f".{self.digest}.{uuid.uuid4().hex}.part"
        beside.mkdir(parents=True)
        try:
            self._check_room(beside)
            self._write_weights(beside / SINGLE)
            self.write_description(beside)
            try:
                os.rename(beside, folder)
            except OSError:
                if not folder.is_dir():  # another process was quicker, with the same bytes
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return folder

    def _check_room(self, folder: Path) -> None:
        needed = sum(prod(tensor.shape) for tensor in self.checkpoint.tensors.values()) * self.shape.dtype_bytes
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"parent: `{self.header.path}` takes {needed:,} bytes as {self.shape.dtype}, and {folder.parent} has "
                f"{free:,} free; set cluster.scratch to a folder with more room."
            )

    def _write_weights(self, path: Path) -> None:
        head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in self.checkpoint.tensors.items():
            start, end = end, end + prod(tensor.shape) * self.shape.dtype_bytes
            head[name] = {
                "dtype": _SAFETENSORS[self.shape.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name, packed in self.checkpoint.tensors.items():
                numbers = packed.read()
                check_finite({name: numbers}, "", f"in `{self.header.path}`", self.shape.dtype)
                _write_bytes(stream, numbers)


def _write_bytes(stream: Any, tensor: Any) -> None:
    import torch

    stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def is_gguf(name: str | Path) -> bool:
    """Whether a parent of that name is meant as a GGUF file."""
    return Path(name).suffix.lower() == SUFFIX


def open_gguf(name: str | Path) -> GgufFile:
    """The parent in the GGUF file `name`, as far as its header tells; neither torch nor transformers is needed.

    Raises `UserError` for a file that is not there, damaged or truncated, of another architecture, without a tensor
    that its sizes ask for, or with a tokenizer that cannot be rebuilt; and where the package gguf is not installed.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"parent: there is no file `{name}`; give a GGUF file, a model folder, or a hub id.")
    header = read_header(path.resolve())
    config = config_of(header)
    shape = shape_of(config, str(config["dtype"]))
    checkpoint = packed_checkpoint(header, shape)
    return GgufFile(header, config, tokenizer_of(header), shape, checkpoint)
