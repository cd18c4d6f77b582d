"""docs/cluster.md on a first search: every command as it is written, and every line that is quoted is printed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
SECTION = DOCUMENT.partition("## From nothing to the first result\n")[2].partition("\n## ")[0]
LONGEST_LINE = 80


class User:
    """A home and a folder that are empty; variables that were exported stay."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "work"
        self.folder.mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "INLAY_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
        self.variables = kept | {"HOME": str(home), "LOGNAME": "ada", "PATH": path, "OMP_NUM_THREADS": "1"}

    def gives(self, command: str, interrupted_after: float | None = None) -> str:
        """What a command prints; it succeeds, or is interrupted by Ctrl-C."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if interrupted_after is not None:
            time.sleep(interrupted_after)
            process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=900)
        assert process.returncode == (0 if interrupted_after is None else 130), f"{command}: {printed}"
        return printed

    def wait_for(self, command: str, text: str) -> None:
        deadline = time.monotonic() + 300
        while text not in self.gives(command):
            assert time.monotonic() < deadline
            time.sleep(2)


def steps() -> list[tuple[str, list[str]]]:
    """Every command of the section, with the lines that are quoted behind it."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", SECTION, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def alike(line: str, user: User) -> str:
    """A line without what differs from run to run: numbers, ids, how far a search is, and whose folder it is."""
    line = line.replace(str(user.folder), "/home/ada/work").replace(str(user.home), "/home/ada")
    line = re.sub(r"[0-9a-f]{32}", "RUN", line)
    line = re.sub(r"^(  stage +[a-z]+|  search) .*", r"\1", line)
    line = re.sub(r" · search .*", " · search", line)
    line = re.sub(r"^([a-z]+ +)\d[\d.]* (?:s|min \d+ s|ms), .*", r"\1TIME", line)
    return re.sub(r"\d+(?:\.\d+)?", "0", " ".join(line.split()))


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    user = User(tmp_path / "home")
    for language, name in (("yaml", "first.yaml"), ("python", "read.py"), ("python", "use.py")):
        blocks = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
        (text,) = [block for block in blocks if language == "yaml" or block.startswith(f"# {name}\n")]
        (user.folder / name).write_text(text)
    yield user
    user.gives("inlay down")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_new_users_path_as_it_is_written(user: User) -> None:
    url = ""
    for command, quoted in steps():
        if command.startswith("export MLFLOW_TRACKING_URI="):
            user.variables["MLFLOW_TRACKING_URI"] = url
            continue
        if command == "inlay list":
            user.wait_for("inlay list", "RUNNING" if "PENDING" in "".join(quoted) else "SUCCEEDED")
        if command == "inlay status first":
            user.wait_for("inlay logs first", "distill    started")
        printed = user.gives(command, 4 if "^C" in quoted else None)
        if command.startswith("inlay up"):
            url = re.findall(r"^mlflow +(http://\S+)$", printed, re.MULTILINE)[0]
            running = [child.pid for child in descendants(user)]
        if command == "python use.py":
            assert "def main(" in printed
        rest = [alike(line, user) for line in printed.splitlines()]
        for line in quoted:
            if line != "^C":
                expected = alike(line, user)
                assert expected in rest, f"{command}: {line!r} is not in {printed}"
                rest = rest[rest.index(expected) + 1 :]
        if command.startswith("inlay") and "logs" not in command and "--wait" not in command:
            # Folders and addresses are as long as they are.
            told = [line for line in printed.splitlines() if str(user.home) not in line and "http://" not in line]
            assert max(map(len, told), default=0) <= LONGEST_LINE, printed
    assert running
    assert not descendants(user)
    assert not [pid for pid in running if psutil.pid_exists(pid)]


def descendants(user: User) -> list[psutil.Process]:
    """The processes of this user's services and jobs."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(user.home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # it is gone, or nobody's business
    return found
