"""Who ran what, from which code and with which packages: what a run must say so that somebody can repeat it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from inlay.cluster.account import account_name
from inlay.version import __version__

USER_TAG = "mlflow.user"


def origin_tags(source: str, is_job: bool) -> dict[str, str]:
    """Return MLflow's own tags of a run: user, source and, where inlay runs from its repository, the commit.

    `source` names what was run; `is_job`: on a cluster, where it was submitted.
    """
    tags = {
        USER_TAG: account_name(),
        "mlflow.source.name": source,
        "mlflow.source.type": "JOB" if is_job else "LOCAL",
        "inlay.version": __version__,
    }
    commit = _commit(Path(__file__).resolve())
    return tags if commit is None else tags | {"mlflow.source.git.commit": commit}


def installed_packages() -> str:
    """Return Python, system and every installed package with its version, as a file that pip reads."""
    found = {
        f"{name}=={distribution.version.partition('+')[0]}"
        for distribution in importlib.metadata.distributions()
        if (name := distribution.metadata["Name"])
    }
    lines = sorted(found, key=str.lower)
    return "\n".join([f"# Python {platform.python_version()}, {platform.platform()}", *lines]) + "\n"


def _commit(file: Path) -> str | None:
    """The commit that is checked out where `file` belongs to a git repository; one that lies in another's is not."""
    try:
        for command in (["ls-files", "--error-unmatch", file.name], ["rev-parse", "HEAD"]):
            done = subprocess.run(
                ["git", "-C", str(file.parent), *command], capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
