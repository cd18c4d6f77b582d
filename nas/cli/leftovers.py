"""What lies in a workspace that no result needs: scratch, temporary files of dead writers, and orphan blobs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inlay.cluster.files import TEMPORARY
from inlay.cluster.lock import locked
from inlay.nas.workspace import Workspace

_ON_SCRATCH = "activations of a run that was stopped, unpacked GGUF parents, files of `inlay chat`"
_DIGEST = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True)
class Leftover:
    """Files that can go: `keys` in the store, `copies` of its blobs on this machine by digest, or one folder."""

    name: str
    why: str
    size_bytes: int
    keys: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()


@contextmanager
def held_leftovers(
    workspace: Workspace, on_watch: Callable[[str], None] = lambda text: None
) -> Iterator[list[Leftover]]:
    """What can be dropped, while no run can take the workspace; raises LockedError while one has it."""
    with locked(workspace.store, "`inlay clean`", on_watch):
        yield _leftovers(workspace)


def _leftovers(workspace: Workspace) -> list[Leftover]:
    store, folder = workspace.store, workspace.folder
    found = []
    if folder is not None:
        found.append(_folder(folder / "scratch", "scratch", f"{_ON_SCRATCH}; made again when needed"))
        found.append(_folder(folder / TEMPORARY, TEMPORARY, "files that were being written when a process died"))
    orphans = _orphans(workspace)
    size = sum(store.size(key) for key in orphans)
    found.append(Leftover("orphan blobs", f"{len(orphans)} that no record names", size, tuple(orphans)))
    copies = store.local_copies()
    size = sum(copies.values())
    found.append(
        Leftover("local copies", "of its blobs on this machine; downloaded again when needed", size, (), tuple(copies))
    )
    return [each for each in found if each.size_bytes]


def drop(workspace: Workspace, found: list[Leftover]) -> None:
    """Removes leftovers."""
    for each in found:
        for digest in each.copies:
            workspace.store.drop_local_copy(digest)
        for key in each.keys:
            workspace.store.delete(key)
        if workspace.folder is not None and not each.keys:
            shutil.rmtree(workspace.folder / each.name, ignore_errors=True)


def _folder(path: Path, name: str, why: str) -> Leftover:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    return Leftover(name, why, sum(file.stat().st_size for file in files))


def _orphans(workspace: Workspace) -> list[str]:
    """Keys of blobs that no JSON document names, nor a JSON blob that is itself named."""
    store = workspace.store
    blobs = {key.removeprefix("blobs/") for key in store.list("blobs/")}
    named: set[str] = set()
    unread = [key for key in store.list("") if key.endswith(".json")]
    while unread:
        new = {digest.decode() for digest in _DIGEST.findall(store.get(unread.pop()))} & blobs - named
        named |= new
        unread += [f"blobs/{digest}" for digest in new if store.is_json_blob(digest)]
    return [f"blobs/{digest}" for digest in sorted(blobs - named)]
