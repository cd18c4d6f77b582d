"""What a path of a job file may be: a file beside the job, a URL, a hub id, or something that ships with inlay."""

from __future__ import annotations

import re
from pathlib import Path

EMBEDDED = "inlay:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def resolve(path: str, folder: Path) -> str:
    """The absolute form of a path relative to `folder`; `inlay:...`, URLs and hub ids stay as they are."""
    if path.startswith(EMBEDDED) or "://" in path or is_hub_id(path, folder):
        return path
    return str((folder / Path(path).expanduser()).absolute())


def is_hub_id(parent: str, folder: Path) -> bool:
    """Whether a parent is meant as `owner/name` on the hub: it has that form and no such folder is there."""
    return _HUB_ID.fullmatch(parent) is not None and not (folder / parent).exists()
