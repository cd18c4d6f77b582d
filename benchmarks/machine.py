"""What every results file says about where and when it was written."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def about() -> dict[str, str]:
    """Commit, date, processor and versions."""
    root = Path(__file__).resolve().parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=False
    )
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {
        # A copy whose history is not the code's is told what it is.
        "commit": os.environ.get("INLAY_COMMIT")
        or (commit.stdout.strip() or "unknown") + (" with changes" if dirty.stdout.strip() else ""),
        "date": datetime.date.today().isoformat(),
        "machine": f"{name}, {os.cpu_count()} cores, shared with other work",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "ray")},
    }


def footer() -> str:
    """The same as one line of Markdown."""
    told = about()
    packages = ", ".join(f"{name} {told[name]}" for name in ("python", "torch", "transformers", "ray"))
    return f"Commit {told['commit']}, {told['date']}, {told['machine']}; {packages}."
