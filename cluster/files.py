"""Two ways to keep named bytes: a local folder with atomic renames, and any fsspec URL; `store.py` is what others
use."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from inlay.cluster.errors import AbsentError, StoreError

TEMPORARY = ".tmp"
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_LONGEST_SHOWN = 300
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Files(Protocol):
    """Named bytes under one root; names are relative posix paths that were checked before."""

    def read(self, name: str) -> bytes: ...

    def open(self, name: str) -> BinaryIO: ...

    def first_byte(self, name: str) -> bytes: ...

    def size(self, name: str) -> int: ...

    def write(self, name: str, content: bytes) -> None: ...

    def write_new(self, name: str, content: bytes) -> bool: ...

    def take(self, name: str, source: Path) -> None: ...

    def copy(self, name: str, target: str) -> None: ...

    def exists(self, name: str) -> bool: ...

    def names(self, prefix: str) -> list[str]: ...

    def remove(self, name: str) -> None: ...

    def remove_all(self, names: Sequence[str]) -> None: ...


class LocalFiles:
    """Files of a local or shared folder: written beside, synced, then renamed, so that a name is there whole or not at
    all."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        return (self.root / name).open("rb")

    def first_byte(self, name: str) -> bytes:
        with self.open(name) as stream:
            return stream.read(1)

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def write(self, name: str, content: bytes) -> None:
        with self._beside(name, len(content)) as temporary:
            _write_synced(temporary, content)
            temporary.replace(self.root / name)

    def write_chunks(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write what comes in parts, one of them in memory at a time."""
        written = 0
        with self._beside(name, 0) as temporary:
            with temporary.open("wb") as stream:
                for chunk in chunks:
                    written += len(chunk)
                    try:
                        stream.write(chunk)
                    except OSError as error:
                        raise write_error(self.root / name, written, error) from error
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self.root / name)

    def write_new(self, name: str, content: bytes) -> bool:
        target = self.root / name
        with self._beside(name, len(content)) as temporary:
            _write_synced(temporary, content)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise
                return self._rename_new(temporary, target)
        return True

    def _rename_new(self, temporary: Path, target: Path) -> bool:
        """As a hard link would, where there are none: a writer that dies lets the claim go and leaves no empty file."""
        with (self.root / TEMPORARY / "claim").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if target.exists():
                return False
            temporary.replace(target)
            return True

    def take(self, name: str, source: Path) -> None:
        size = source.stat().st_size
        with self._beside(name, size) as temporary:
            try:
                os.rename(source, temporary)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                shutil.copyfile(source, temporary)
                source.unlink()
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(self.root / name)

    def copy(self, name: str, target: str) -> None:
        source = self.root / name
        with self._beside(target, source.stat().st_size) as temporary:
            shutil.copyfile(source, temporary)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(self.root / target)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def names(self, prefix: str) -> list[str]:
        folder = self.root / prefix if prefix.endswith("/") or not prefix else (self.root / prefix).parent
        found: list[str] = []
        for directory, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if name != TEMPORARY]
            here = PurePosixPath(Path(directory).relative_to(self.root).as_posix())
            found.extend((here / file).as_posix() for file in files)
        return sorted(name for name in found if name.startswith(prefix))

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def remove_all(self, names: Sequence[str]) -> None:
        for name in names:
            self.remove(name)

    @contextlib.contextmanager
    def _beside(self, name: str, size: int) -> Iterator[Path]:
        target = self.root / name
        temporary = self.root / TEMPORARY / uuid.uuid4().hex
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
        except OSError as error:
            raise write_error(target, size, error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


class RemoteFiles:
    """Files under an fsspec URL: an object is visible only when its upload ended, so a plain write is whole or
    absent."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self.filesystem = filesystem
        self.root = root.rstrip("/")

    def read(self, name: str) -> bytes:
        with _reading(self._path(name)):
            return bytes(self.filesystem.cat_file(self._path(name)))

    def open(self, name: str) -> BinaryIO:
        with _reading(self._path(name)):
            stream: BinaryIO = self.filesystem.open(self._path(name), "rb")
        return stream

    def first_byte(self, name: str) -> bytes:
        if self.size(name) == 0:
            return b""
        with _reading(self._path(name)):
            return bytes(self.filesystem.cat_file(self._path(name), start=0, end=1))

    def size(self, name: str) -> int:
        with _reading(self._path(name)):
            return int(self.filesystem.size(self._path(name)))

    def write(self, name: str, content: bytes) -> None:
        with self._writing(name, len(content)) as path:
            self.filesystem.pipe_file(path, content)

    def write_new(self, name: str, content: bytes) -> bool:
        try:
            with self._writing(name, len(content)) as path:
                self.filesystem.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        return True

    def take(self, name: str, source: Path) -> None:
        with self._writing(name, source.stat().st_size) as path:
            self.filesystem.put_file(str(source), path)
        source.unlink()

    def copy(self, name: str, target: str) -> None:
        try:
            with self._writing(target) as path:
                self.filesystem.cp_file(self._path(name), path)
        except FileNotFoundError:
            raise AbsentError(f"{self._path(name)} does not exist") from None

    def exists(self, name: str) -> bool:
        with _reading(self._path(name)):
            return bool(self.filesystem.isfile(self._path(name)))

    def names(self, prefix: str) -> list[str]:
        folder = self._path(prefix if prefix.endswith("/") or not prefix else prefix.rpartition("/")[0])
        start = len(self.filesystem._strip_protocol(self.root)) + 1
        with _reading(folder):
            self.filesystem.invalidate_cache()
            found = [path[start:] for path in self.filesystem.find(folder.rstrip("/"))]
        return sorted(name for name in found if name.startswith(prefix))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), _client_errors(f"{self._path(name)} could not be removed"):
            self.filesystem.rm_file(self._path(name))

    def remove_all(self, names: Sequence[str]) -> None:
        if names:
            paths = [self._path(name) for name in names]
            with contextlib.suppress(FileNotFoundError), _client_errors(f"{paths[0]} and more could not be removed"):
                self.filesystem.rm(paths)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextlib.contextmanager
    def _writing(self, name: str, size: int | None = None) -> Iterator[str]:
        path = self._path(name)
        what = path if size is None else f"{size} bytes"
        with _client_errors(f"{what} could not be written{'' if size is None else f' to {path}'}"):
            self.filesystem.makedirs(self.filesystem._parent(path), exist_ok=True)
            yield path


def _reading(path: str) -> contextlib.AbstractContextManager[None]:
    return _client_errors(f"{path} cannot be read")


@contextlib.contextmanager
def _client_errors(what: str) -> Iterator[None]:
    """Turn what a store's client raises into a StoreError that begins with `what`.

    Each client has errors of its own, and many of them are no OSError. That a file is there, or is not, is an answer.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, StoreError):
        raise
    except OSError as error:
        raise StoreError(f"{what}: {_os_reason(error)}") from error
    except Exception as error:
        raise StoreError(f"{what}: {str(error) or type(error).__name__}") from error


def open_files(url: str) -> Files:
    """Return the files under `url` (a folder, `file://`, or any fsspec URL); raises StoreError for an unknown
    scheme."""
    if "://" not in url:
        return LocalFiles(Path(url).expanduser().absolute())
    try:
        # A listing that is kept hides what other processes write afterwards.
        filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(url.partition("://")[0])
        way_out = f"; pip install 'inlay[{extra}]'" if extra else ""
        raise StoreError(f"the store {url} cannot be opened: {error}{way_out}") from error
    # Each client has errors of its own, and a chain of them (`zip://...`) opens files already.
    except Exception as error:
        reason = ascii(str(error) or type(error).__name__)[1:-1]
        raise StoreError(f"the store {ascii(url[:_LONGEST_SHOWN])[1:-1]} cannot be opened: {reason}") from error
    if isinstance(filesystem, LocalFileSystem):
        return LocalFiles(Path(root))
    return RemoteFiles(filesystem, root)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def write_error(target: object, size: int, error: OSError) -> StoreError:
    """Return what is told of `size` bytes that could not be written to `target`."""
    return StoreError(f"{size} bytes could not be written to {target}: {_os_reason(error)}")


def _os_reason(error: OSError) -> str:
    """Return why the system refused, and the way out of a full disk."""
    if error.errno in _NO_SPACE:
        return "no space is left there; what is finished stays: free some space and give the same command again"
    return error.strerror or str(error) or type(error).__name__
