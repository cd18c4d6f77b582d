"""A parent by whatever a job names: a model folder, a hub id, or a GGUF file that is unpacked into a folder first."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inlay.nas.errors import UserError
from inlay.nas.families.gguf import GgufFile, is_gguf, open_gguf
from inlay.nas.families.parent import Parent, open_parent
from inlay.nas.families.registered import is_registered, registered_folder


def open_source(name: str | Path, revision: str | None = None, tracking: str | None = None) -> Parent | GgufFile:
    """The parent, as far as headers tell: `open_parent`'s, or the GGUF file of that name, not unpacked yet.

    A version of a registered model is downloaded from the MLflow store `tracking`. Raises `UserError` as they do.
    """
    if is_registered(str(name)):
        return open_parent(registered_folder(str(name), tracking, "parent"))
    return open_gguf(name) if is_gguf(name) and not Path(name).expanduser().is_dir() else open_parent(name, revision)


@contextmanager
def described(source: Parent | GgufFile) -> Iterator[Parent]:
    """A parent for a look at it: of a GGUF file a folder without weights for so long, which are read from the file."""
    if isinstance(source, Parent):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="inlay-") as folder:
        source.write_description(Path(folder))
        yield Parent(Path(folder), source.shape, source.checkpoint)


@contextmanager
def unpacked(source: Parent | GgufFile, place: Path) -> Iterator[Parent]:
    """The parent in a folder; a GGUF file becomes one below `place`.

    Where it was not there before and the block raises `UserError`, it goes again: then nothing was written. Raises
    `UserError` as `GgufFile.unpack` does.
    """
    if isinstance(source, Parent):
        yield source
        return
    folder = place / source.digest
    was_there = folder.is_dir()
    try:
        yield open_parent(source.unpack(place))
    except UserError:
        if not was_there:
            shutil.rmtree(folder, ignore_errors=True)
        raise
