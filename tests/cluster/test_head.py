"""A head that goes while the driver is inside a call of Ray's: our sentence, before Ray ends the process itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

Nodes = Callable[..., AbstractContextManager[Any]]

DRIVER = """
import sys, time
from pathlib import Path
from inlay.cluster import ClusterSettings, ConnectError, Piece, PieceOutput, Resources, Store, connect, run_pieces

folder, where = Path(sys.argv[2]), sys.argv[3]

def work(arguments, context):
    time.sleep(1)
    return PieceOutput({"number": arguments["number"]})

def lose_the_head():
    (folder / "now").touch()
    while not (folder / "gone").exists():
        time.sleep(0.1)

def on_event(event):
    if event.kind == where and not (folder / "now").exists():
        lose_the_head()

def ready(piece):
    if where == "ready" and piece.label == "1":
        lose_the_head()
    return True

pieces = [Piece(f"{n:064}", str(n), "work", 1, work, {"number": n}) for n in range(3)]
with connect(ClusterSettings(address=sys.argv[1])) as cluster:
    try:
        if where == "workers":
            cluster.start()
            lose_the_head()
            cluster.places(Resources())
        run_pieces(Store(folder / "w"), pieces, cluster, on_event=on_event, ready=ready, exclusive=where == "ready")
    except ConnectError as error:
        print(error, flush=True)
    again = time.monotonic()
    try:
        cluster.check_share()
    except ConnectError as error:
        print(error, time.monotonic() - again < 1, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["workers", "ready", "finished"])
def test_a_head_lost_inside_a_call_is_told_in_our_words(ray_nodes: Nodes, tmp_path: Path, where: str) -> None:
    with ray_nodes(cpus=1) as nodes:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, nodes.address, str(tmp_path), where],
            env=os.environ | {"RAY_AUTH_MODE": "token"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "now").exists():
                assert driver.poll() is None, driver.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            nodes.lose(0)
            (tmp_path / "gone").touch()
            lost = time.monotonic()
            told, errors = driver.communicate(timeout=150)
        finally:
            driver.kill()
    said = rf"the Ray cluster at [\d.]+:{nodes.port} was lost: its head does not answer"
    assert driver.returncode == 0, errors
    assert re.fullmatch(rf"{said}\n{said} True\n", told), told + errors
    assert 25 < time.monotonic() - lost < 50
