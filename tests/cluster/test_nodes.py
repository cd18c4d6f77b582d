"""Pieces on a real cluster of several nodes, processes of this machine: spread, a lost node, other numbers of nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inlay.cluster import Store, parse_record

DRIVER = """
import json, os, sys, time
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "token"
from inlay.cluster import ClusterSettings, Piece, PieceOutput, Store, connect, piece_key, piece_seed, run_pieces
from inlay.cluster.ray_token import protect_token
protect_token()
from ray.cluster_utils import Cluster

def work(arguments, context):
    import ray
    time.sleep(arguments["seconds"])
    return PieceOutput({"value": context.seed % 1000}, {"node": b"x"} if arguments["blob"] else {})

def where(arguments, context):
    import ray
    time.sleep(1)
    return PieceOutput({"node": ray.get_runtime_context().get_node_id()})

folder, nodes, lose = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "lose"
machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
others = [machines.add_node(num_cpus=1) for _ in range(nodes - 1)]
pieces = [
    Piece(piece_key("work", 1, {}, [], str(n)), str(n), "work", 1, work, {"seconds": 1, "blob": n % 2},
          seed=piece_seed(0, str(n)))
    for n in range(8)
]
retried = []

def on_event(event):
    global others
    if event.kind == "retried":
        retried.append(event.label)
    if lose and others and event.kind == "finished" and event.done == 2:
        machines.remove_node(others.pop(), allow_graceful=False)

with connect(ClusterSettings(address=machines.address)) as cluster:
    records = run_pieces(Store(folder), pieces, cluster, on_event=on_event)
    probes = [Piece(f"probe{n}", f"probe {n}", "where", 1, where, {}) for n in range(4)]
    places = run_pieces(Store(folder + "-places"), probes, cluster)
    print(json.dumps({"retried": len(retried), "nodes": len({record.values["node"] for record in places})}))
machines.shutdown()
"""


def run(folder: Path, nodes: int, lose: str = "") -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder), str(nodes), lose], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, int] = json.loads(done.stdout)
    return told


def identities(folder: Path) -> list[dict[str, object]]:
    store = Store(folder)
    return [parse_record(store.get(key), key).identity() for key in store.list("records/work/")]


@pytest.mark.slow
def test_any_number_of_nodes_and_a_lost_one_give_the_same_records(tmp_path: Path) -> None:
    assert run(tmp_path / "one", 1) == {"retried": 0, "nodes": 1}
    assert run(tmp_path / "two", 2)["nodes"] == 2
    lost = run(tmp_path / "lost", 2, "lose")
    assert lost["nodes"] == 1
    assert 0 <= lost["retried"] <= 2
    assert identities(tmp_path / "one") == identities(tmp_path / "two") == identities(tmp_path / "lost")
    assert len(identities(tmp_path / "one")) == 8
