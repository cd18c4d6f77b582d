"""What a path of a job file may be: a file beside the job, a URL, a hub id, or something that ships with inlay."""

from __future__ import annotations

from pathlib import Path

from inlay.nas.families.registered import is_registered
from inlay.nas.hub_ids import has_hub_form

EMBEDDED = "inlay:"


def resolve(path: str, folder: Path) -> str:
    """The absolute form of a path relative to `folder`; URLs, hub ids, `inlay:...`, `models:/...` stay as they are."""
    if path.startswith(EMBEDDED) or is_registered(path) or "://" in path or is_hub_id(path, folder):
        return path
    return str((folder / Path(path).expanduser()).absolute())


def is_hub_id(parent: str, folder: Path) -> bool:
    """Whether a parent is meant as `owner/name` on the hub: it has that form and no such folder is there."""
    return has_hub_form(parent) and not (folder / parent).exists()
