"""The file where tracking entries wait: one JSON line each, and how many of them were sent."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from inlay.cluster.tracking_send import Entry


class Buffer:
    """The unsent entries of a workspace; written by the one run that holds its lock."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "unsent.jsonl"
        self.aside_path = folder / "aside.jsonl"
        self._sent_path = folder / "sent"
        self._sent = 0

    def is_empty(self) -> bool:
        """Tell whether nothing waits, without changing anything."""
        return not (self.path.is_file() and self.path.stat().st_size)

    def unsent(self) -> list[Entry]:
        """Return what an earlier run of the workspace left; a last line cut by a kill is dropped."""
        entries = []
        with contextlib.suppress(FileNotFoundError):
            lines = self.path.read_text().splitlines()
            self._sent = self._read_sent()
            for line in lines[self._sent :]:
                with contextlib.suppress(ValueError, TypeError):
                    entries.append(Entry(**json.loads(line)))
        self._rewrite(entries)
        return entries

    def append(self, entry: Entry) -> None:
        """Add an entry; raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(entry.to_json() + "\n")

    def put_aside(self, entry: Entry) -> None:
        """Keep an entry that cannot be sent, out of the way of the others; raises OSError."""
        self.aside_path.parent.mkdir(parents=True, exist_ok=True)
        with self.aside_path.open("a") as stream:
            stream.write(entry.to_json() + "\n")

    def mark_sent(self, count: int, *, empty: bool) -> None:
        """Remember that `count` more entries were sent; `empty` when none is left; raises OSError."""
        self._sent += count
        if empty:
            self._rewrite([])
        else:
            self._sent_path.write_text(str(self._sent))

    def _rewrite(self, entries: list[Entry]) -> None:
        self._sent = 0
        if not self.path.parent.is_dir():
            return
        # Nothing counts as sent before the lines that were are gone: at worst some are sent twice.
        self._sent_path.unlink(missing_ok=True)
        beside = self.path.with_suffix(".new")
        beside.write_text("".join(entry.to_json() + "\n" for entry in entries))
        beside.replace(self.path)

    def _read_sent(self) -> int:
        try:
            return int(self._sent_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0
