"""A worker that hangs between two pieces: the next one is given to it, and is never begun."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from inlay.cluster import (
    Cluster,
    ClusterSettings,
    Piece,
    PieceContext,
    PieceEvent,
    PieceOutput,
    Store,
    connect,
    fanout,
    piece_key,
    run_pieces,
)

FREEZE = "import os, signal, sys, time; time.sleep(0.5); os.kill(int(sys.argv[1]), signal.SIGSTOP)"


def work(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Stops its worker once it is over, if it is told to, as a machine that stalls does."""
    if arguments["freeze"]:
        subprocess.Popen([sys.executable, "-c", FREEZE, str(os.getpid())], start_new_session=True)
    return PieceOutput({"pid": os.getpid()})


def make(label: str, **arguments: Any) -> Piece:
    return Piece(piece_key("work", 1, {}, {}, label), label, "work", 1, work, arguments)


@pytest.fixture(autouse=True)
def travels_by_value(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers cannot import test modules; and they are given less time to begin than a busy machine needs."""
    from ray import cloudpickle

    monkeypatch.setattr(fanout, "_BEGINNING_SECONDS", 6.0)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def check_that_a_frozen_worker_is_left(store: Store, cluster: Cluster) -> None:
    (frozen,) = run_pieces(store, [make("freezes", freeze=True)], cluster)
    time.sleep(2)
    events: list[PieceEvent] = []
    pieces = [make("is late", freeze=False)]
    (record,) = run_pieces(store, pieces, cluster, deadline_seconds=5, on_event=events.append)
    assert record.attempts >= 2
    assert record.values["pid"] != frozen.values["pid"]
    assert "it made no progress for 5 s" in [event.note for event in events]


@pytest.mark.slow
def test_a_worker_that_hangs_between_pieces_is_left(store: Store) -> None:
    with connect(ClusterSettings(workers=1)) as cluster:
        check_that_a_frozen_worker_is_left(store, cluster)


def test_on_a_cluster_where_pieces_are_queued_too(
    store: Store, ray_nodes: Callable[..., AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with ray_nodes(cpus=1) as nodes, connect(ClusterSettings(address=nodes.address)) as cluster:
        check_that_a_frozen_worker_is_left(store, cluster)
