"""docs/cluster.md on several machines: its lines start a head, and a node that joins it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from inlay.cluster.errors import ClusterError
from inlay.cluster.jobs import JobServer
from inlay.cluster.processes import Spawned, end, free_port, spawn

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
DOCUMENT = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
SECTION = DOCUMENT.partition("## Several machines\n")[2].partition("\n## ")[0]
LINES = re.findall(r"^\$ (.+)$", SECTION, re.MULTILINE)


def exported(line: str) -> dict[str, str]:
    """The variables of a line that exports them."""
    return dict(word.split("=", 1) for word in shlex.split(line)[1:])


@pytest.mark.slow
def test_a_head_and_a_node_started_as_the_guide_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, token, start, node, join, use, submit = LINES
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    shown = token.replace("ray get-auth-token", shlex.join([*RAY, "get-auth-token"]))
    subprocess.run(["bash", "-c", shown], env=kept | exported(head), check=True)
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    port, server = free_port(0), free_port(0)
    sessions = tempfile.mkdtemp(prefix="in", dir="/tmp")  # sockets have short paths
    started: list[Spawned] = []
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", exported(use)["RAY_API_SERVER_ADDRESS"].replace("8265", str(server)))
    monkeypatch.setenv("RAY_AUTH_MODE", exported(use)["RAY_AUTH_MODE"])
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / ".ray" / "auth_token"))
    try:
        for count, (line, variables) in enumerate(((start, head), (join, node)), 1):
            line = line.replace("6379", str(port)).replace("8265", str(server)).replace("HEAD", "127.0.0.1")
            # What nodes on machines of their own need not be told: they share this one's address and ports.
            words = [*RAY, *shlex.split(line)[1:], "--block", "--num-cpus", "1", "--node-ip-address", "127.0.0.1"]
            words += ["--object-store-memory", str(90 * 2**20), "--metrics-export-port", str(free_port(0))]
            words += ["--dashboard-agent-listen-port", str(free_port(0))]
            words += ["--temp-dir", sessions] if "--head" in words else []
            log = tmp_path / f"node{count}.log"
            started.append(spawn(words, kept | exported(variables), log))
            deadline = time.monotonic() + 240
            while len(nodes := nodes_of(JobServer())) < count:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(1)
    finally:
        for process in reversed(started):
            end(process, patience_seconds=5)
    assert sum(node.get("inlay_job", 0) for node in nodes) == 4
    assert submit.startswith("inlay submit ")


def nodes_of(server: JobServer) -> list[dict[str, float]]:
    try:
        return [dict(node) for node in server.nodes()]
    except ClusterError:
        return []  # it is starting
