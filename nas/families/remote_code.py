"""Code that a model brings along: who allows it, and which files it is.

Only a tokenizer's code is ever run, since the models are Transformers' own classes or ours.
"""

import json
import os
from pathlib import Path
from typing import Final

from inlay.nas.errors import UserError

VARIABLE: Final = "INLAY_TRUST_REMOTE_CODE"
"""Set to 1 by whoever runs the machine or the cluster; no job file and no option can."""


def remote_code_allowed() -> bool:
    """Whether this machine may run code from a model's folder."""
    return os.environ.get(VARIABLE) == "1"


def tokenizer_code(folder: Path) -> list[Path]:
    """The Python files that the folder's tokenizer needs, sorted; none for a tokenizer that is Transformers' own.

    Raises `UserError` when it needs some and this machine does not allow it.
    """
    if not _asks_for_code(folder):
        return []
    if not remote_code_allowed():
        raise UserError(
            f"parent: the tokenizer in `{folder}` is code of its own (`auto_map` in tokenizer_config.json), which is "
            f"not run here; whoever runs this machine or cluster can allow it by {VARIABLE}=1 in its environment."
        )
    return sorted(folder.glob("*.py"))


def _asks_for_code(folder: Path) -> bool:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        return False  # Transformers says what is wrong with it when the tokenizer is loaded
    return isinstance(config, dict) and "AutoTokenizer" in (config.get("auto_map") or {})
