"""A parent by its Hugging Face hub id, at one commit, through the hub's own cache."""

import re
from pathlib import Path
from typing import Final

from inlay.nas.errors import UserError
from inlay.nas.families.checkpoint import INDEX
from inlay.nas.families.remote_code import repository_allowed
from inlay.nas.families.tokenizer import TOKENIZER_FILES

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
DESCRIPTION: Final = ("config.json", *TOKENIZER_FILES)
"""The files that tell a model's shape and tokens, without its weights."""
_WANTED: Final = ("config.json", "generation_config.json", "*.safetensors", INDEX, "LICENSE*", *TOKENIZER_FILES)


def download(name: str, revision: str | None, files: tuple[str, ...] = _WANTED) -> Path:
    """The folder of `name` at `revision` in the hub's cache, downloaded where it is not there yet.

    Only `files`, by default safetensors, configuration and tokenizer files, are fetched; what is cached completely
    needs no network.
    Raises `UserError` when `revision` is not a full commit hash, or the files cannot be had.
    """
    if revision is None:
        raise UserError(
            f"parent: there is no folder `{name}`, and as a hub id it needs a pinned `revision`; "
            f"give a folder, or set `revision` to a commit of the model ({_where(name)})."
        )
    if _COMMIT.fullmatch(revision) is None:
        raise UserError(
            f"revision: `{revision}` can move to other weights; "
            f"give the full commit hash of 40 hex digits ({_where(name)})."
        )
    # Imported here: a parent that is a folder needs no hub.
    from huggingface_hub import snapshot_download

    try:
        wanted = [*files, "*.py"] if repository_allowed(name, revision) else list(files)
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client's HTTP library, and so its errors, change between its versions
        reason = " ".join(str(error).split())
        raise UserError(
            f"parent: the hub id `{name}` at revision `{revision}` cannot be had ({type(error).__name__}: {reason}); "
            "check both, the network and `hf auth whoami`, or give a folder."
        ) from None


def _where(name: str) -> str:
    return f"listed at https://huggingface.co/{name}/commits"
