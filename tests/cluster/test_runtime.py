"""A Ray of our own, seen from outside: loopback only, quiet, token protected, no other cluster, gone after SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inlay.cluster import Cluster, ClusterSettings, ConnectError, connect

DRIVER = """
import json, os, sys, time
from pathlib import Path
import psutil
from inlay.cluster import ClusterSettings, connect
from inlay.cluster.ray_private import session_folder

with connect(ClusterSettings(workers=1)) as cluster:
    cluster.start()
    mine = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
    ports = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in mine]
    arguments = [" ".join(psutil.Process(pid).cmdline()) for pid in mine]
    session = str(session_folder())
    Path(sys.argv[1]).write_text(json.dumps({"ports": ports, "arguments": arguments, "session": session}))
    time.sleep(float(sys.argv[2]))
"""


def test_it_listens_on_the_loopback_only_says_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"RAY_ADDRESS": "192.0.2.99:6379", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path / "seen.json"), "0"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["ports"]
    assert all("127.0.0.1" in address for address in seen["ports"])
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64
    assert not any(token.read_text() in arguments for arguments in seen["arguments"])
    assert not Path(seen["session"]).exists()


ENVIRONMENT = """
import os
import psutil
import ray
from inlay.cluster import ClusterSettings, connect

os.environ["RAY_USAGE_STATS_ENABLED"] = "given"
for _ in range(2):
    before = dict(os.environ)
    with connect(ClusterSettings(workers=1)) as cluster:
        cluster.start()
        assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
        assert os.environ["RAY_AUTH_MODE"] == "token"
        mine = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
        ports = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in mine]
        assert ports and all("127.0.0.1" in address for address in ports), ports
    names = {name for name in before.keys() | os.environ.keys() if name.startswith("RAY_")}
    print({name for name in names if before.get(name) != os.environ.get(name)})
"""


@pytest.mark.slow
def test_where_ray_was_imported_before_it_is_the_same_and_the_environment_stays() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", ENVIRONMENT], env=kept, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "set()\nset()\n"), done.stderr


def test_sigterm_ends_everything(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "seen.json"), "600"], start_new_session=True
    )
    while not (tmp_path / "seen.json").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    deadline = time.monotonic() + 30
    while left := [path for path in Path("/proc").glob("[0-9]*/stat") if _session(path) == process.pid]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_a_cluster_that_is_not_there_is_one_sentence() -> None:
    with connect(ClusterSettings(workers=1, address="127.0.0.1:9")) as cluster, pytest.raises(ConnectError) as caught:
        cluster.start()
    assert str(caught.value).startswith("the Ray cluster at 127.0.0.1:9 did not answer: ")
    assert "\n" not in str(caught.value)


def test_a_handle_costs_nothing_and_leaves_nothing_until_it_is_used(tmp_path: Path) -> None:
    cluster = Cluster(ClusterSettings(scratch=tmp_path / "scratch"))
    assert not cluster.started
    cluster.close()
    assert not (tmp_path / "scratch").exists()


def _session(path: Path) -> int:
    try:
        fields = path.read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] == "Z" else int(fields[3])
