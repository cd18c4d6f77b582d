"""A Ray of our own for the tests of pieces, shared by a module, and the functions of test modules sent by value."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inlay.cluster import Cluster, ClusterSettings, Store, connect


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two workers; workers cannot import test modules, so what those define travels by value."""
    from ray import cloudpickle

    module = sys.modules[request.module.__name__]
    cloudpickle.register_pickle_by_value(module)
    with connect(ClusterSettings(workers=2)) as cluster:
        yield cluster
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "workspace")
