"""A search on real Ray, killed with -9 at random moments and given again: the same records, little repeated."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from inlay.cluster import Store, parse_record, piece_key, piece_seed

DRIVER = Path(__file__).with_name("kill_driver.py")
WORKERS = 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kills", "whole_group"),
    [(0, 1, True), (1, 12, True), (2, 8, False)],
)
def test_kill_and_resume(tmp_path: Path, seed: int, kills: int, whole_group: bool) -> None:
    count = 6 + 4 * kills
    disturbed = tmp_path / "disturbed"
    moments = random.Random(seed)
    for kill in range(kills):
        search = Search(disturbed, count, seconds=0.5)
        # One in three while Ray is starting, the others in the middle of pieces.
        search.wait_for("kept" if kill % 3 == 2 else "finished")
        time.sleep(moments.uniform(0, 1.5))
        search.kill(whole_group)
        search.assert_that_workers_end()
    search = Search(disturbed, count, seconds=0.05)
    assert search.wait() == 0, search.output()
    assert identities(disturbed) == undisturbed(count)
    begun = (disturbed / "begun.txt").read_text().split()
    assert sorted(set(begun), key=int) == [str(number) for number in range(count)]
    assert len(begun) - count <= kills * WORKERS
    search = Search(disturbed, count, seconds=0.05)
    assert search.wait() == 0
    assert search.output() == "kept \n"


def undisturbed(count: int) -> dict[str, object]:
    """Return what the pieces of kill_driver.py come to, by their definition."""
    expected: dict[str, object] = {}
    for label in (f"piece {index}" for index in range(count)):
        seed = piece_seed(0, label)
        expected[label] = {
            "key": piece_key("work", 1, {}, [], label),
            "label": label,
            "stage": "work",
            "version": 1,
            "seed": seed,
            "state": "done",
            "reason": "",
            "blobs": {"data": hashlib.sha256(str(seed).encode() * 1000).hexdigest()},
            "values": {"value": seed % 1000},
        }
    return expected


def identities(folder: Path) -> dict[str, object]:
    store = Store(folder / "store")
    records = [parse_record(store.get(key), key) for key in store.list("records/")]
    assert all(store.get_blob(digest) for record in records for digest in record.blobs.values())
    return {record.label: record.identity() for record in records}


class Search:
    """A search as a process group of its own, whose output is read as it comes."""

    def __init__(self, folder: Path, count: int, seconds: float) -> None:
        folder.mkdir(exist_ok=True)
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(folder), str(count), str(WORKERS), str(seconds)],
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def output(self) -> str:
        return "".join(self.lines)

    def wait(self) -> int:
        code = self.process.wait(timeout=400)
        self.reader.join()
        return code

    def wait_for(self, word: str) -> None:
        deadline = time.monotonic() + 200
        while not any(line.startswith(word) for line in list(self.lines)):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def kill(self, whole_group: bool) -> None:
        if whole_group:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()

    def assert_that_workers_end(self) -> None:
        """Ray's workers and daemons end with the driver; two idle agents of a killed node take about a minute."""
        deadline = time.monotonic() + 30
        while left := [line for line in session_members(self.process.pid) if "Agent" not in line]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


def session_members(session: int) -> list[str]:
    """Return the command lines of the live processes of a session (Linux)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append((entry / "cmdline").read_text().replace("\0", " ").strip())
            except OSError:
                continue
    return found
