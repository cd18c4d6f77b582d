"""What fits where, in words and in numbers, and what an autoscaler's report says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.cluster.capacity import Growth, fits, misfit, read_growth, read_status_text, room, words
from inlay.cluster.pieces import Resources

SMALL = {"CPU": 2.0, "memory": 8 * 2.0**30}
LARGE = {"CPU": 16.0, "GPU": 2.0, "memory": 64 * 2.0**30}


@pytest.mark.parametrize(
    ("share", "count"),
    [
        (Resources(), 18),
        (Resources(cpus=4), 4),
        (Resources(gpus=1), 2),
        (Resources(gpus=0.1), 16),
        (Resources(gpus=0.5), 4),
        (Resources(memory_bytes=8 << 30), 9),
        (Resources(memory_bytes=(64 << 30) + 1), 0),
        (Resources(cpus=64), 0),
    ],
)
def test_room(share: Resources, count: int) -> None:
    assert room([SMALL, LARGE], share) == count


@given(st.integers(1, 64), st.sampled_from([0, 0.25, 0.5, 1]), st.integers(0, 2**37), st.integers(1, 64))
def test_there_is_room_exactly_when_one_node_fits(cpus: int, gpus: float, memory: int, node_cpus: int) -> None:
    node = {"CPU": node_cpus, "GPU": 2, "memory": 2**36}
    share = Resources(cpus=cpus, gpus=gpus, memory_bytes=memory)
    assert (room([node], share) > 0) == fits(node, share) == (misfit([node], share) is None)


def test_what_does_not_fit_names_the_share_and_the_node_that_comes_nearest() -> None:
    share = Resources(cpus=4, gpus=1, memory_bytes=96 << 30)
    assert words(share) == "4 CPUs, 1 GPU, 96 GiB of memory"
    assert misfit([SMALL, LARGE], share) == (
        "a worker needs 4 CPUs, 1 GPU, 96 GiB of memory, and the largest node has 16 CPUs, 2 GPUs, 64 GiB of memory"
    )
    assert misfit([SMALL], Resources(cpus=3)) == "a worker needs 3 CPUs, and the largest node has 2 CPUs"
    assert misfit([], Resources()) == "a worker needs 1 CPU, and the cluster has no node"


def test_a_kind_of_gpu_is_asked_for_by_its_name() -> None:
    share = Resources(gpus=1, gpu_type="H100")
    with_h100 = {"CPU": 8, "GPU": 2, "accelerator_type:H100": 1}
    with_a100 = {"CPU": 64, "GPU": 8, "accelerator_type:A100": 1}
    assert words(share) == "1 CPU, 1 GPU, H100"
    assert fits(with_h100, share)
    assert room([with_h100, with_a100], share) == 2
    assert misfit([with_a100], share) == (
        "a worker needs 1 CPU, 1 GPU, H100, and the largest node has 64 CPUs, 8 GPUs, no H100"
    )
    assert misfit([with_a100, with_h100], Resources(gpus=4, gpu_type="H100")) == (
        "a worker needs 1 CPU, 4 GPUs, H100, and the largest node has 8 CPUs, 2 GPUs, H100"
    )


def test_a_cluster_without_kinds_of_nodes_cannot_grow() -> None:
    report = {"autoscaler_report": {"node_type_mapping": {"a1": "node_a1", "b2": "node_b2"}, "pending_launches": {}}}
    assert read_growth(json.dumps(report).encode()) is None
    assert read_growth(None) is None
    assert read_growth("") is None


STATUS = """======== Autoscaler status: 2026-11-30 10:07:29.217830 ========
Node status
---------------------------------------------------------------
Active:
 1 headgroup
Idle:
 (no idle nodes)
Pending:
 gpu, 2 launching
 c8a91215-1a0f: cpu, starting ray
 10.0.0.7: cpu, setting-up
Recent failures:
 gpu: LaunchFailed (latest_attempt: 10:07:29)
 cpu: NodeTerminated (instance_id: c8a9)

Resources
---------------------------------------------------------------
Total Usage:
 0.0/1.0 inlay_job
"""


def test_the_text_of_the_second_autoscaler_is_read() -> None:
    assert read_status_text(STATUS) == Growth({"gpu": 2, "cpu": 2}, {"gpu": 1, "cpu": 1})
    quiet = STATUS.partition("Pending:")[0] + "Pending:\n (no pending nodes)\nRecent failures:\n (no failures)\n\n"
    assert read_status_text(quiet) == Growth({}, {})
    assert read_status_text(quiet.replace("headgroup", f"node_{'0f' * 28}")) is None
    assert (
        read_status_text("No cluster status. It may take a few seconds for the Ray internal services to start.") is None
    )
    assert read_status_text("") is None


def test_nodes_on_the_way_are_told() -> None:
    report = {
        "node_type_mapping": {"a1": "head"},
        "pending_launches": {"gpu": 2},
        "pending_nodes": [["10.0.0.1", "gpu", "setting-up"], ["10.0.0.2", "cpu", "waiting-for-ssh"]],
        "failed_nodes": [["10.0.0.3", "cpu"]],
    }
    growth = read_growth({"autoscaler_report": report})
    assert growth == Growth({"gpu": 3, "cpu": 1}, {"cpu": 1})
    assert str(growth) == (
        "1 node of the kind cpu on the way; 3 nodes of the kind gpu on the way; 1 node of the kind cpu failed"
    )
    assert str(Growth({}, {})) == "its autoscaler has no node on the way"
