"""A parent: its shape, its digest, and its weights one layer at a time.

Opening reads headers only and imports neither torch nor transformers; `config`, the states and `tokenizer` do.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inlay.nas.errors import UserError
from inlay.nas.families.checkpoint import Checkpoint, open_checkpoint
from inlay.nas.families.checks import check_finite, check_tensors, stored_name
from inlay.nas.families.family import CHILD
from inlay.nas.families.hub import DESCRIPTION, download
from inlay.nas.families.reading import check_unpacked, family_of, read_config, shape_of
from inlay.nas.families.remote_code import tokenizer_code
from inlay.nas.families.shape import EMBEDDING, HEAD, SLOTS, Entry, Shape, ends_tensors, layer_prefix, subblock_tensors
from inlay.nas.families.tokenizer import TOKENIZER_FILES, check_tokenizer_files, load_tokenizer
from inlay.nas.hub_ids import has_hub_form
from inlay.nas.modeling.subblock_inlay import Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from inlay.nas.modeling import InlayConfig

_DIGEST_CHUNK_BYTES: Final = 1 << 24


def open_parent(name: str | Path, revision: str | None = None) -> "Parent":
    """The parent in the folder `name`, or the hub model `name` at the commit `revision`.

    Raises `UserError` for everything that can be told from names, sizes and headers: no such folder, another family,
    no or pickled weights, a truncated file, a missing or misshapen tensor, a tokenizer of another model. Numbers are
    looked at by `Parent.check_finite`.
    """
    folder = _folder(str(name), revision)
    config = read_config(folder)
    family = family_of(config)
    check_unpacked(config)
    checkpoint = open_checkpoint(folder)
    if config["model_type"] != CHILD:
        checkpoint = checkpoint.with_names(family.name_of)
    shape = shape_of(config, _stored_dtype(checkpoint))
    check_tensors(checkpoint, shape)
    check_tokenizer_files(folder, shape.vocab)
    tokenizer_code(folder)
    return Parent(folder, shape, checkpoint)


def describe_hub_parent(name: str, revision: str) -> "Described":
    """A folder with config and tokenizer of the hub model `name` at the commit `revision`, and its shape; no weights.

    Where its config names no number type the shape's is a guess, since weights tell it. Raises `UserError` as
    `open_parent` does for those files.
    """
    folder = download(name, revision, DESCRIPTION)
    config = read_config(folder)
    family_of(config)
    shape = shape_of(config, "float32")
    check_tokenizer_files(folder, shape.vocab)
    tokenizer_code(folder)
    return Described(folder, shape)


def describe_folder(name: str | Path) -> "Described":
    """The parent in the folder `name`, which may hold nothing but its config.json: then that names the number type.

    Raises `UserError` as `open_parent` does, and when nothing tells the number type.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return open_parent(name)
    config = read_config(folder)
    if not (config.get("dtype") or config.get("torch_dtype")):
        raise UserError(
            f"parent: there are no weights in `{folder}`, and its config.json names no `dtype`; copy the weights too, "
            "or name it there."
        )
    return Described(folder.resolve(), shape_of(config, "float32"))


@dataclass(frozen=True)
class Described:
    """What config.json tells of a parent."""

    folder: Path
    shape: Shape

    @cached_property
    def config(self) -> "InlayConfig":
        """The parent as an inlay model: every block is its own. Raises `UserError` when Transformers refuses it."""
        import torch
        from transformers import AutoConfig

        from inlay.nas.modeling import InlayConfig

        try:
            config = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
            config.dtype = getattr(torch, self.shape.dtype)
            # The shape decides which layers slide: a Llama with a `sliding_window` in its config.json has none.
            blocks: list[dict[str, Entry]] = [
                {slot: self.shape.parent_entry(layer, slot) for slot in SLOTS} for layer in range(self.shape.num_layers)
            ]
            return InlayConfig.from_parent(config).with_blocks(blocks)
        except Exception as error:  # validation errors of the config classes have no root in common
            reason = " ".join(str(error).split())
            raise UserError(
                f"parent: Transformers refuses `{self.folder / 'config.json'}` ({reason}); correct that file."
            ) from None


@dataclass(frozen=True)
class Parent(Described):
    """An opened parent; it can be pickled, and holds no weights."""

    checkpoint: Checkpoint

    @cached_property
    def digest(self) -> str:
        """sha256 over config.json, every tensor's bytes and the tokenizer, however the weights are sharded.

        It reads the whole model: seconds for each gigabyte. `fingerprint` tells whether it can have changed.
        """
        digest = hashlib.sha256(json.dumps(read_config(self.folder), sort_keys=True).encode())
        for name, tensor in sorted(self.checkpoint.tensors.items()):
            digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
            for chunk in _chunks(tensor.file, tensor.offset, tensor.num_bytes):
                digest.update(chunk)
        for path in self._tokenizer_files():
            digest.update(json.dumps([path.name, path.stat().st_size]).encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """sha256 over path, size and time of change of the files that `digest` reads: quick, but bound to a place."""
        files = (self.folder / "config.json", *self.checkpoint.files, *self._tokenizer_files())
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()

    def layer_state(self, layer: int, dtype: "torch.dtype | None" = None) -> "dict[str, Tensor]":
        """The tensors of one layer by layer-local names, in the parent's own dtype or in `dtype`."""
        return {name: tensor for slot in SLOTS for name, tensor in self.slot_state(layer, slot, dtype).items()}

    def slot_state(self, layer: int, slot: Slot, dtype: "torch.dtype | None" = None) -> "dict[str, Tensor]":
        """The tensors of one subblock, and no others, as `layer_state` gives them."""
        names = subblock_tensors(self.shape, slot, self.shape.parent_entry(layer, slot))
        return {name: self._read(layer_prefix(layer) + name, dtype) for name in names}

    def ends_state(self, dtype: "torch.dtype | None" = None) -> "dict[str, Tensor]":
        """Embedding, final norm and an untied head by whole-model names, in the parent's own dtype or in `dtype`.

        Raises `UserError` when a tied head is stored too and differs from the embedding.
        """
        state = {name: self._read(name, dtype) for name in ends_tensors(self.shape)}
        stored_twice = self.shape.tied and {EMBEDDING, HEAD} <= self.checkpoint.tensors.keys()
        if stored_twice and not state[EMBEDDING].equal(self._read(HEAD, dtype)):
            raise UserError(
                f"parent: config.json ties the head to the embedding, but `{HEAD}` differs from `{EMBEDDING}`; "
                "set `tie_word_embeddings` to false there."
            )
        return state

    def tensor(self, name: str) -> "Tensor":
        """One tensor by its whole-model name, in the parent's own dtype."""
        return self._read(name, None)

    def check_finite(self) -> None:
        """Read every tensor once; raise `UserError` naming the first one, and its layer, that is not finite."""
        check_finite(self.ends_state(), "", "outside the layers", self.shape.dtype)
        for layer in range(self.shape.num_layers):
            check_finite(self.layer_state(layer), layer_prefix(layer), f"in layer {layer}", self.shape.dtype)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The parent's tokenizer. Raises `UserError` when it cannot be loaded or has ids that the embedding lacks."""
        return load_tokenizer(self.folder, self.shape.vocab)

    def _read(self, name: str, dtype: "torch.dtype | None") -> "Tensor":
        import torch

        stored = self.checkpoint.tensors[stored_name(self.checkpoint, name)]
        return stored.read().to(getattr(torch, self.shape.dtype) if dtype is None else dtype)

    def _tokenizer_files(self) -> list[Path]:
        there = [self.folder / name for name in TOKENIZER_FILES if (self.folder / name).is_file()]
        return there + tokenizer_code(self.folder)


def _folder(name: str, revision: str | None) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_file():
        raise UserError(
            f"parent: `{name}` is a file; give a GGUF file, or the folder with config.json and safetensors in it."
        )
    if has_hub_form(name):
        return download(name, revision)
    raise UserError(f"parent: there is no folder `{name}`; give a model folder, or a hub id with a `revision`.")


def _stored_dtype(checkpoint: Checkpoint) -> str:
    names = (EMBEDDING, HEAD, *sorted(checkpoint.tensors))
    return next((checkpoint.tensors[name].dtype for name in names if name in checkpoint.tensors), "float32")


def _chunks(file: Path, offset: int, num_bytes: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        stream.seek(offset)
        while num_bytes > 0 and (chunk := stream.read(min(num_bytes, _DIGEST_CHUNK_BYTES))):
            num_bytes -= len(chunk)
            yield chunk
