"""The log of a search: every line that it said, with its time, in the workspace, where it outlives the cluster."""

from __future__ import annotations

import time

from inlay.cluster.urls import redacted
from inlay.nas.job import Job
from inlay.nas.workspace import Workspace


class SearchLog:
    """`logs/<digest of the search>.txt`; a search that goes on adds to it."""

    def __init__(self, job: Job, place: Workspace) -> None:
        self._place = place
        self._key = f"logs/{job.search_digest()[:16]}.txt"
        self._lines = place.store.get(self._key).decode().splitlines() if place.store.exists(self._key) else []

    def add(self, line: str) -> None:
        """Takes a line, without the passwords in it."""
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {redacted(line)}")

    def write(self) -> str:
        """Keeps what was said so far; the whole log."""
        text = "".join(f"{line}\n" for line in self._lines)
        self._place.check_held()
        self._place.store.put(self._key, text.encode())
        return text
