"""Ray's private names: each is there and does what we expect of it, and they stand in one file."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from inlay.cluster import Cluster, ray_private
from inlay.cluster.capacity import growth_of, read_growth
from inlay.cluster.ray_private import PrivateName

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "cluster", "distill", "inlay", "kernels", "nas", "solver", "tests")
NAMES = {name: value for name, value in vars(ray_private).items() if isinstance(value, PrivateName)}
PRIVATE = re.compile(r"\bray(\.\w+)*\._(?!_)\w+|\bfrom\s+ray[\w.]*\s+import\s+(\([^)]*\b|[^\n(]*\b)_(?!_)\w+")


def is_heeded(found: Any) -> bool:
    from ray._private import ray_constants

    with ray_private.on_the_loopback():
        inside = ray_constants.ENABLE_RAY_CLUSTER
    return inside is False and ray_constants.ENABLE_RAY_CLUSTER is found


def starts_no_monitors(found: Any) -> bool:
    from ray._private import parameter

    with ray_private.without_monitors():
        given = parameter.RayParams()
    started = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in started)
    assert not any("monitor" in Path(word).name for command in started for word in command.split())
    return given.no_monitor and not given.include_log_monitor and parameter.RayParams is found


def writes_reads_and_deletes(found: Any) -> bool:
    ray_private.put_value("key", "value", "tests")
    there = ray_private.get_values(["key", "another"], "tests")
    ray_private.delete_value("key", "tests")
    return there == [b"value", None] and ray_private.get_values(["key"], "tests") == [None]


def removes(found: Any) -> bool:
    import ray

    group = ray.util.placement_group([{"CPU": 1}])
    ray.get(group.ready())
    ray_private.remove_placement_group(group.id.hex())
    ray_private.remove_placement_group("f" * len(group.id.hex()))
    return isinstance(group.id, found) and bool(ray.util.placement_group_table(group)["state"] == "REMOVED")


def nothing_grows_here(found: Any) -> bool:
    import ray

    status = ray_private.second_autoscaler(ray.get_runtime_context().gcs_address)
    return len(status.active_nodes) + len(status.idle_nodes) == 1 and growth_of(status) is None


DOES: dict[str, Callable[[Any], bool]] = {
    "CLUSTERS_ALLOWED": is_heeded,
    "AUTOSCALER_STATUS": lambda found: len(found) > 0 and read_growth(ray_private.autoscaler_status()) is None,
    "CLUSTER_STATUS": nothing_grows_here,
    "PARAMETERS": starts_no_monitors,
    "SESSION_FOLDER": lambda found: (ray_private.session_folder() / "logs").is_dir(),
    "PRINTER_ENDS": lambda found: bool(found.is_set()),
    "PRINTER_HEARS": lambda found: callable(found.close),
    "TABLE_OF": writes_reads_and_deletes,
    "TABLE_GET": writes_reads_and_deletes,
    "TABLE_PUT": writes_reads_and_deletes,
    "TABLE_DELETE": writes_reads_and_deletes,
    "PLACEMENT_GROUP_ID": removes,
    # Whether a training writes it is asserted where one runs, in test_train.py.
    "LIST_OF_COMMITS": lambda found: ray_private.list_of_commits(Path("folder")) == Path("folder", found),
}
"""What each name is for; a new one needs an entry."""


def test_every_name_is_tried() -> None:
    assert DOES.keys() == NAMES.keys()
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", name.tried_with) for name in NAMES.values())


@pytest.mark.parametrize("name", NAMES)
def test_ray_has_it_and_it_does_what_we_expect(cluster: Cluster, name: str) -> None:
    cluster.start()
    assert DOES[name](NAMES[name].get())


@pytest.mark.parametrize("gone", [("ray._private.gone", "x"), ("ray._private.worker", "global_worker.gone")])
def test_a_name_that_is_gone_is_an_error(gone: tuple[str, str]) -> None:
    with pytest.raises((ImportError, AttributeError), match="gone"):
        PrivateName(*gone, "2.60.0").get()


def test_no_other_file_of_ours_uses_a_private_name_of_rays() -> None:
    # Tests of clusters that grow have nodes of a class of Ray's own.
    here = ("cluster/ray_private.py", "tests/cluster/test_ray_private.py", "tests/cluster/conftest.py")
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if not _is_linked(path)]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    assert texts.keys() >= set(here)
    assert [name for name, text in texts.items() if PRIVATE.search(text) and name not in here] == []


def test_there_they_stand_in_the_table_alone() -> None:
    tree = ast.parse((ROOT / "cluster" / "ray_private.py").read_text(encoding="utf-8"))
    code = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom | ast.Attribute)]
    assert [line for line in code if PRIVATE.search(line)] == []


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("ray._private.worker", True),
        ("import ray.train.v2._internal.constants", True),
        ("from ray._raylet import PlacementGroupID", True),
        ("from ray.experimental.internal_kv import (\n    _internal_kv_get,\n)", True),
        ("from ray.util import placement_group, _hidden", True),
        ("from ray.util.placement_group import PlacementGroup\n_mine = 1", False),
        ("array._private", False),
        ("ray.__version__", False),
        ("ray.util.placement_group_table()", False),
    ],
)
def test_what_counts_as_private(text: str, private: bool) -> None:
    assert bool(PRIVATE.search(text)) is private


def _is_linked(path: Path) -> bool:
    """The package folder `inlay` links to the rooms."""
    return any(part.is_symlink() for part in path.parents)
