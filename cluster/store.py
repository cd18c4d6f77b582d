"""The store of a workspace: named JSON and bytes, and blobs named by their content, on a folder or any fsspec URL.

A blob `blobs/<sha256>` never changes, so duplicate writers are harmless and a damaged one shows itself by its digest.
A small record written last with `put_if_absent` is what commits a piece of work.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from inlay.cluster.errors import AbsentError, StoreError
from inlay.cluster.files import TEMPORARY, LocalFiles, open_files

_KEY = re.compile(r"[A-Za-z0-9_.=+@-]+(/[A-Za-z0-9_.=+@-]+)*")
_CHUNK = 1 << 20
_YOUNG_NS = 2_000_000_000
_UNUSED_SECONDS = 30 * 24 * 3600.0


class Store:
    """Named bytes and blobs under one URL; safe to pickle into workers and to use from several processes at once."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(Path(url).expanduser().absolute()) if "://" not in str(url) else str(url).rstrip("/")
        self._files = open_files(self.url)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.url,)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def folder(self) -> Path | None:
        """The local folder behind the store, None for a remote one."""
        return self._files.root if isinstance(self._files, LocalFiles) else None

    def get(self, key: str) -> bytes:
        """Return the bytes under `key`; raises AbsentError when there are none."""
        try:
            return self._files.read(_checked(key))
        except FileNotFoundError:
            raise AbsentError(f"{self.url}/{key} does not exist") from None
        except OSError as error:
            raise StoreError(f"{self.url}/{key} cannot be read: {error.strerror or error}") from error

    def put(self, key: str, content: bytes) -> None:
        """Write `content` under `key`, whole or not at all, replacing what was there."""
        self._files.write(_checked(key), content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Write `content` under `key` unless something is there; True when this call wrote it."""
        return self._files.write_new(_checked(key), content)

    def get_json(self, key: str) -> Any:
        """Return the JSON value under `key`; raises StoreError when it is absent or damaged."""
        content = self.get(key)
        try:
            return json.loads(content)
        except ValueError as error:
            raise StoreError(
                f"{self.url}/{key} is damaged ({error}); delete it and give the same command again"
            ) from None

    def put_json(self, key: str, value: Any) -> None:
        """Write `value` as JSON with sorted keys; raises ValueError for numbers that are not finite."""
        self.put(key, json_bytes(value))

    def exists(self, key: str) -> bool:
        """Tell whether `key` is there."""
        return self._files.exists(_checked(key))

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted; a prefix that ends with `/` is a folder."""
        if prefix:
            _checked(prefix.rstrip("/"))
        return self._files.names(prefix)

    def delete(self, key: str) -> None:
        """Remove `key`; an absent one is no error."""
        self._files.remove(_checked(key))

    def delete_all(self, keys: Iterable[str]) -> None:
        """Remove many, by few requests where the store takes them."""
        self._files.remove_all([_checked(key) for key in keys])

    def put_blob(self, content: bytes | Path) -> str:
        """Keep `content` (bytes, or the content of a file, which stays) and return its sha256 in hex."""
        if isinstance(content, Path):
            copy = self.temporary_path()
            shutil.copyfile(content, copy)
            return self.take_blob(copy)
        digest = hashlib.sha256(content).hexdigest()
        if not self._files.exists(_blob(digest)):
            self._files.write(_blob(digest), content)
        return digest

    def take_blob(self, path: Path) -> str:
        """Move the file `path` into the store as a blob (a rename on the same file system) and return its sha256 in
        hex."""
        digest = _file_digest(path)
        if self._files.exists(_blob(digest)):
            path.unlink()
        else:
            self._files.take(_blob(digest), path)
        return digest

    def get_blob(self, digest: str) -> bytes:
        """Return a blob's bytes; raises StoreError when it is absent or its content does not have this digest."""
        content = self.get(_blob(digest))
        if hashlib.sha256(content).hexdigest() != digest:
            raise self._damaged(digest, len(content))
        return content

    def blob_path(self, digest: str) -> Path:
        """Return a local file with the blob, to be mapped into memory; raises StoreError as `get_blob` does.

        A remote blob is downloaded to the user's cache, once for all processes of a machine. A file's digest is checked
        once by each machine, and again only after the file has changed.
        """
        path = self._cached(digest)
        if self.folder is None and not path.is_file():
            self._download(digest, path)
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise AbsentError(f"{self.url}/{_blob(digest)} does not exist") from None
        if self.folder is None:
            with contextlib.suppress(OSError):  # says that it was used; where nobody may, it goes earlier
                os.utime(path, ns=(time.time_ns(), stat.st_mtime_ns))
        if not _has_digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ino, digest):
            if self.folder is None:
                path.unlink(missing_ok=True)  # the next call downloads it anew
            raise self._damaged(digest, stat.st_size)
        return path

    def copy_blob(self, digest: str, key: str) -> None:
        """Write a blob's content under `key` too, replacing what was there, where it lies: not through this process."""
        self._files.copy(_blob(digest), _checked(key))

    def has_blob(self, digest: str) -> bool:
        """Tell whether the blob is there (its content is checked when it is read)."""
        return self._files.exists(_blob(digest))

    def size(self, key: str) -> int:
        """Return how many bytes `key` has."""
        return self._files.size(_checked(key))

    def is_json_blob(self, digest: str) -> bool:
        """Tell by its first byte whether a blob is a JSON document, without reading the rest."""
        return self._files.first_byte(_blob(digest)) in (b"{", b"[")

    def local_copies(self) -> dict[str, int]:
        """Return the sizes, by digest, of the blobs of a remote store that this account has a copy of here."""
        if self.folder is not None:
            return {}
        paths = {digest: cache_folder() / _blob(digest) for digest in (key[-64:] for key in self.list("blobs/"))}
        return {digest: path.stat().st_size for digest, path in paths.items() if path.is_file()}

    def drop_local_copy(self, digest: str) -> None:
        """Remove the copy of a remote blob; who needs it downloads it again."""
        if self.folder is None:
            (cache_folder() / _blob(digest)).unlink(missing_ok=True)

    def temporary_path(self) -> Path:
        """Return a fresh local path to write a file that `take_blob` then moves in without a copy where it can."""
        folder = Path(tempfile.gettempdir()) if self.folder is None else self.folder / TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"inlay-{os.getpid()}-{os.urandom(8).hex()}"

    def _download(self, digest: str, path: Path) -> None:
        """Bring a remote blob to the cache, in chunks; whoever comes meanwhile waits for it and finds it there."""
        cache = LocalFiles(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        claim = path.parent / f".{digest}.lock"
        with claim.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                _drop_unused(path.parent)
                if not path.is_file():
                    cache.write_chunks(path.name, self._chunks(_blob(digest)))
            finally:
                claim.unlink(missing_ok=True)

    def _chunks(self, key: str) -> Iterator[bytes]:
        try:
            with self._files.open(key) as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
        except FileNotFoundError:
            raise AbsentError(f"{self.url}/{key} does not exist") from None
        except OSError as error:
            raise StoreError(f"{self.url}/{key} cannot be read: {error.strerror or error}") from error

    def _cached(self, digest: str) -> Path:
        if self.folder is not None:
            return self.folder / _blob(digest)
        return cache_folder() / _blob(digest)

    def _damaged(self, digest: str, size: int) -> StoreError:
        return StoreError(
            f"the blob {self.url}/{_blob(digest)} is damaged: its {size} bytes do not have the digest in its name; "
            "delete it and give the same command again, and what depends on it is made anew"
        )


def json_bytes(value: Any) -> bytes:
    """Return `value` as JSON bytes with sorted keys, the same bytes for the same value; raises ValueError for NaN and
    infinity."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def digest_of(value: Mapping[str, Any] | list[Any] | str) -> str:
    """Return the sha256 in hex of a JSON value's canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key) or any(part in (".", "..") for part in key.split("/")):
        raise ValueError(f"{key!r} is not a store key: letters, digits and _.=+@- between single slashes")
    return key


def _blob(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"{digest!r} is not a blob digest: 64 hex digits")
    return f"blobs/{digest}"


def _drop_unused(folder: Path) -> None:
    """Take copies away that nobody has used for a month: nobody else drops those of workspaces that are gone."""
    limit = time.time() - _UNUSED_SECONDS
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was first
            if not path.name.startswith(".") and path.stat().st_atime < limit:
                path.unlink()


def cache_folder() -> Path:
    """Return the folder of this account for what can be had again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inlay"


@lru_cache(maxsize=1 << 16)
def _has_digest(path: Path, size: int, changed_ns: int, inode: int, digest: str) -> bool:
    """Whether a file as it is now has this digest: read once by a machine, whose later processes find a mark.

    The mark is named by all that would change with the file. A file that is so young that it could change again without
    a new time gets none, and where no mark can be written each process reads for itself.
    """
    identity = [socket.gethostname(), str(path), size, changed_ns, inode, digest]
    mark = cache_folder() / "verified" / digest_of(identity)
    if mark.is_file():
        return True
    if _file_digest(path) != digest:
        return False
    if time.time_ns() - changed_ns > _YOUNG_NS:
        with contextlib.suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    return True


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
