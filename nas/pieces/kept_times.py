"""Times of subblocks that this machine keeps, so that none is taken twice: by searches of any workspace, or alone.

    <folder>/<digest of the conditions>/conditions.json    what the times depend on beside the subblock
    <folder>/<digest of the conditions>/<digest>.json      one subblock's name and times

The folder is `INLAY_MEASURED`, else `$XDG_CACHE_HOME/inlay/measured`. A subblock is a file of its own: two that measure
at once lose nothing. No torch here: what is kept is listed at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from inlay.cluster.errors import StoreError
from inlay.cluster.store import Store, digest_of

Times = dict[str, int]
"""`prefill_ns, decode_ns, runtime_ns, spread_ns` of one subblock, or of the ends."""

Pace = tuple[int, int]
"""ns that one and the same model took for its prompt and for a step beside what was measured."""


@dataclass(frozen=True)
class Taken:
    """Times, and how fast the machine was when they were taken: a shared one changes by a fifth from minute to minute.

    Args:
        times: of a subblock, or of the ends.
        pace: of that moment.
    """

    times: Times
    pace: Pace

    def at(self, pace: Pace) -> Times:
        """The times of a machine of another pace."""
        prefill, decode = (now / then for now, then in zip(pace, self.pace, strict=True))
        own = self.times
        scaled = {"prefill_ns": round(prefill * own["prefill_ns"]), "decode_ns": round(decode * own["decode_ns"])}
        steps = (own["runtime_ns"] - own["prefill_ns"]) * decode
        spread = round(own["spread_ns"] * (prefill + decode) / 2)
        return {**scaled, "runtime_ns": scaled["prefill_ns"] + round(steps), "spread_ns": spread}


FOLDER: Final = "INLAY_MEASURED"
_CONDITIONS: Final = "conditions.json"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_TIMES: Final = ("prefill_ns", "decode_ns", "runtime_ns", "spread_ns")


class KeptTimes:
    """Times that were taken under equal conditions.

    Args:
        conditions: JSON values, all that the times of a subblock depend on beside itself.
    """

    def __init__(self, conditions: Mapping[str, Any]) -> None:
        self._conditions = conditions
        self._digest = digest_of(conditions)
        self._store = Store(kept_folder())

    def find(self, name: str) -> Taken | None:
        """The times of a subblock; None where it was never measured, or its file is damaged."""
        try:
            held = json.loads(self._store.get(self._key(name)))
            prefill, decode = map(int, held["pace"])
            taken = Taken({part: int(held["times"][part]) for part in _TIMES}, (prefill, decode))
        except (StoreError, ValueError, KeyError, TypeError):
            return None
        return taken if held["name"] == name and min(taken.pace) > 0 else None

    def keep(self, taken: Mapping[str, Taken]) -> None:
        """Keeps times by subblock, in place of older ones; where nothing can be written they are not kept."""
        with contextlib.suppress(OSError, StoreError):  # a time that was taken is good without a copy for later
            self._store.put_json(f"{self._digest}/{_CONDITIONS}", self._conditions)
            for name, own in taken.items():
                self._store.put_json(self._key(name), {"name": name, "times": own.times, "pace": own.pace})

    def _key(self, name: str) -> str:
        return f"{self._digest}/{digest_of(name)}.json"


@dataclass(frozen=True)
class KeptSet:
    """What is kept of one set of conditions.

    Args:
        conditions: what the times depend on; empty where that cannot be read.
        entries: how many subblocks, the ends among them.
        changed: when the last of them was measured, ISO 8601, UTC.
        size_bytes: of all files.
    """

    conditions: Mapping[str, Any]
    entries: int
    changed: str
    size_bytes: int


def kept_folder() -> Path:
    """Where this machine's times lie."""
    given = os.environ.get(FOLDER)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given).expanduser() if given else cache / "inlay" / "measured"


def kept_sets() -> list[KeptSet]:
    """All that is kept, the latest first."""
    found = []
    for folder in _folders():
        stats = {path.name: path.stat() for path in _files(folder)}
        times = [stat.st_mtime for name, stat in stats.items() if name != _CONDITIONS]
        if times:
            changed = datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds")
            size = sum(stat.st_size for stat in stats.values())
            found.append(KeptSet(_conditions(folder / _CONDITIONS), len(times), changed, size))
    return sorted(found, key=lambda each: each.changed, reverse=True)


def drop_kept() -> None:
    """Removes all that is kept, and nothing else: the folder may hold what is not ours."""
    for folder in _folders():
        for path in _files(folder):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in there
            folder.rmdir()


def _folders() -> Iterator[Path]:
    root = kept_folder()
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if _DIGEST.fullmatch(folder.name) and folder.is_dir():
            yield folder


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.json") if path.name == _CONDITIONS or _DIGEST.fullmatch(path.stem)]


def _conditions(path: Path) -> Mapping[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
