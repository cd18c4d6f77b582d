"""Code that a model brings along: who allows it, and which files it is.

Only a tokenizer's code is ever run, since the models are Transformers' own classes or ours.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Final

from inlay.nas.errors import UserError

VARIABLE: Final = "INLAY_TRUST_REMOTE_CODE"
"""Set by whoever runs the machine or the cluster, no job file and no option can: what may run, between spaces or
commas. A repository of the hub stands there as `owner/name@COMMIT`, a folder by its code's digest, `sha256:...`."""
_SNAPSHOT: Final = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})")


def repository_allowed(name: str, revision: str) -> bool:
    """Whether this machine may run the code of a hub repository at a commit."""
    return f"{name}@{revision}" in _allowed()


def code_digest(folder: Path) -> str:
    """sha256 in hex of the names and contents of a folder's Python files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        for part in (path.name.encode(), path.read_bytes()):
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def tokenizer_code(folder: Path) -> list[Path]:
    """The Python files that the folder's tokenizer needs, sorted; none for a tokenizer that is Transformers' own.

    Raises `UserError` when it needs some and this machine does not allow it.
    """
    if not _asks_for_code(folder):
        return []
    repository, digest = _repository(folder), f"sha256:{code_digest(folder)}"
    if not _allowed() & {repository, digest}:
        raise UserError(
            f"parent: the tokenizer in `{folder}` is code of its own (`auto_map` in tokenizer_config.json), which is "
            f"not run here; whoever runs this machine or cluster can read it and allow it by "
            f"{VARIABLE}={repository or digest} in its environment."
        )
    return sorted(folder.glob("*.py"))


def _allowed() -> set[str]:
    return set(os.environ.get(VARIABLE, "").replace(",", " ").split())


def _repository(folder: Path) -> str:
    """`owner/name@COMMIT` of a folder in the hub's own cache, which nobody but its client writes; else nothing."""
    from huggingface_hub import constants

    try:
        place = folder.absolute().relative_to(Path(constants.HF_HUB_CACHE).absolute()).as_posix()
    except ValueError:
        return ""
    match = _SNAPSHOT.fullmatch(place)
    return f"{match[1]}/{match[2]}@{match[3]}" if match else ""


def _asks_for_code(folder: Path) -> bool:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        return False  # Transformers says what is wrong with it when the tokenizer is loaded
    return isinstance(config, dict) and "AutoTokenizer" in (config.get("auto_map") or {})
