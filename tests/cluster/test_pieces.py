"""Pieces on a real Ray: records, resume, order, lost workers, errors, limits, exclusiveness, progress."""

from __future__ import annotations

import errno
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inlay.cluster import (
    Cluster,
    ClusterSettings,
    Piece,
    PieceContext,
    PieceError,
    PieceEvent,
    PieceOutput,
    Resources,
    Store,
    StoreError,
    kept_records,
    piece_key,
    piece_seed,
    read_record,
    run_pieces,
)
from inlay.cluster.cost import Cost
from inlay.cluster.worker import is_out_of_memory


def make(function: Callable[..., PieceOutput], label: str, stage: str = "work", **arguments: Any) -> Piece:
    return Piece(
        key=piece_key(stage, 1, {}, {}, label),
        label=label,
        stage=stage,
        version=1,
        function=function,
        arguments=arguments,
        seed=piece_seed(7, label),
    )


def square(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    return PieceOutput({"square": arguments["x"] ** 2, "seed": context.seed}, {"bytes": b"x" * arguments["x"]})


def describe(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    import torch

    return PieceOutput(
        {
            "pid": os.getpid(),
            "threads": torch.get_num_threads(),
            "omp": os.environ["OMP_NUM_THREADS"],
            "path": sys.path,
            "driver_folder": arguments["folder"],
        },
        {"tensors": {"ones": torch.ones(3)}},
    )


def crash(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    if context.attempt <= arguments["times"]:
        os._exit(1)
    return PieceOutput({"attempt": context.attempt})


class TwoArguments(Exception):
    """Does not survive pickling, as many a library's error."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def fail(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    time.sleep(arguments.get("seconds", 0))
    raise TwoArguments("this", "that")


def slow(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    for step in range(arguments["steps"]):
        context.progress(step / arguments["steps"])
        time.sleep(0.1)
    return PieceOutput()


def tell_numbers(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    for step in range(1, 41):
        context.progress(step / 40, {"step": step, "loss": 1 / step})
        time.sleep(arguments["seconds"])
    return PieceOutput()


def hang_once(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    if context.attempt == 1:
        time.sleep(600)
    return PieceOutput()


def note(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    Path(arguments["file"]).touch()
    time.sleep(3)
    return PieceOutput()


def wait_for_others(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    context.progress.waits("the others")
    time.sleep(arguments["seconds"])
    context.progress(0.5)
    if context.attempt == 1:
        time.sleep(600)
    return PieceOutput()


def report_from_a_copy(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    import pickle

    copy = pickle.loads(pickle.dumps(context.progress))
    copy(0.5, {"step": 1})
    time.sleep(2)
    return PieceOutput()


def crash_late(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    time.sleep(1.5)
    if context.attempt == 1:
        os._exit(1)
    return PieceOutput()


def wait_only(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    context.progress.waits("its ranks")
    time.sleep(2)
    context.progress(0.5)
    time.sleep(1.5)
    return PieceOutput()


def hungry(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    micro_batch = 8 >> context.memory_retries
    held = bytearray(micro_batch * (256 << 20))
    return PieceOutput({"micro_batch": micro_batch, "bytes": len(held)})


def holds_memory(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    return PieceOutput({"bytes": len(b"x" * arguments["bytes"])})


def note_times(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    begun = time.time()
    time.sleep(0.3)
    return PieceOutput({"begun": begun, "ended": time.time()})


def standing(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    return PieceOutput({"priority": os.getpriority(os.PRIO_PROCESS, 0), "leads": os.getsid(0) == os.getpid()})


def diverge(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    return PieceOutput({"steps": 3}, failure="the loss was not finite at step 3")


def not_a_number(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    return PieceOutput({"kl": float("nan")})


def fill_disk(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    import resource

    import torch

    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    content: Any = {"zeros": torch.zeros(100_000)} if arguments["tensors"] else bytes(400_000)
    return PieceOutput(blobs={"large": content})


def test_records_come_as_given_and_are_committed(store: Store, cluster: Cluster) -> None:
    pieces = [make(square, f"number {x}", x=x) for x in (3, 1, 2)]
    records = run_pieces(store, pieces, cluster)
    assert [record.label for record in records] == ["number 3", "number 1", "number 2"]
    assert [record.values["square"] for record in records] == [9, 1, 4]
    assert [record.values["seed"] for record in records] == [piece.seed for piece in pieces]
    assert store.get_blob(records[0].blobs["bytes"]) == b"xxx"
    assert all(record.state == "done" and record.attempts == 1 and record.peak_bytes > 10**7 for record in records)
    assert [read_record(store, piece.record_key) for piece in pieces] == records


def test_committed_pieces_are_only_read_and_ray_is_not_started(store: Store, cluster: Cluster) -> None:
    pieces = [make(square, f"number {x}", x=x) for x in (1, 2)]
    first = run_pieces(store, pieces, cluster)
    events: list[PieceEvent] = []
    seen: list[str] = []
    idle = Cluster(ClusterSettings(workers=1))
    again = run_pieces(store, pieces, idle, on_event=events.append, on_record=lambda record: seen.append(record.label))
    assert again == first
    assert not idle.started
    assert [(event.kind, event.done, event.total) for event in events] == [("kept", 2, 2)]
    assert seen == ["number 1", "number 2"]


def test_a_piece_whose_blob_is_gone_is_made_anew(store: Store, cluster: Cluster) -> None:
    pieces = [make(square, f"number {x}", x=x) for x in (1, 2)]
    first = run_pieces(store, pieces, cluster)
    store.delete(f"blobs/{first[1].blobs['bytes']}")
    assert list(kept_records(store, pieces)) == [pieces[0].key]
    again = run_pieces(store, pieces, cluster)
    assert [record.identity() for record in again] == [record.identity() for record in first]
    assert store.has_blob(first[1].blobs["bytes"])


def test_threads_are_set_in_reused_workers_and_the_driver_folder_is_on_no_path(store: Store, cluster: Cluster) -> None:
    folder = os.getcwd()
    pieces = [
        replace(make(describe, f"threads {n}, {k}", folder=folder), resources=Resources(cpus=2, threads=n))
        for n in (2, 1)
        for k in range(2)
    ]
    records = run_pieces(store, pieces, cluster)
    assert [record.values["threads"] for record in records] == [2, 2, 1, 1]
    assert [record.values["omp"] for record in records] == ["2", "2", "1", "1"]
    assert len({record.values["pid"] for record in records}) < len(records)
    assert not any(folder in record.values["path"] for record in records)
    from safetensors.torch import load

    assert load(store.get_blob(records[0].blobs["tensors"]))["ones"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("seconds", [0.05, 0])
def test_numbers_arrive_while_a_piece_runs_and_its_last_ones_always(
    store: Store, cluster: Cluster, seconds: float
) -> None:
    events: list[PieceEvent] = []
    run_pieces(store, [make(tell_numbers, f"numbers {seconds}", seconds=seconds)], cluster, on_event=events.append)
    told = [event for event in events if event.numbers]
    assert told[-1].numbers == {"step": 40, "loss": 1 / 40}
    assert all(event.kind == "progress" and event.numbers["loss"] == 1 / event.numbers["step"] for event in told)
    steps = [event.numbers["step"] for event in told]
    assert steps == sorted(set(steps))
    if seconds:
        assert 2 <= len(steps) <= 8, "two a second for two seconds, and the last"
    assert events[-1].kind == "finished"


def test_a_lost_worker_is_replaced(store: Store, cluster: Cluster) -> None:
    events: list[PieceEvent] = []
    pieces = [make(crash, "crashes twice", times=2), make(crash, "never crashes", times=0)]
    records = run_pieces(store, pieces, cluster, on_event=events.append)
    assert [record.attempts for record in records] == [3, 1]
    assert [event.label for event in events if event.kind == "retried"] == ["crashes twice"] * 2
    assert "its worker was lost" in next(event.note for event in events if event.kind == "retried")


def test_retries_are_bounded_and_finished_pieces_stay(store: Store, cluster: Cluster) -> None:
    pieces = [make(square, "fine", x=1), make(crash, "always crashes", times=99)]
    with pytest.raises(PieceError, match="always crashes: given up after 2 attempts, because its worker was lost") as e:
        run_pieces(store, pieces, cluster, retries=1)
    assert (e.value.kept, e.value.kind, e.value.label) == (1, "Lost", "always crashes")
    assert list(kept_records(store, pieces)) == [pieces[0].key]


def test_an_exception_ends_the_call_once_pieces_under_way_are_committed(store: Store, cluster: Cluster) -> None:
    pieces = [make(fail, "fails"), make(slow, "under way", steps=10), make(square, "never sent", x=1)]
    with pytest.raises(PieceError, match="work, fails: TwoArguments: this and that") as caught:
        run_pieces(store, pieces, cluster)
    assert (caught.value.kept, caught.value.kind) == (1, "TwoArguments")
    assert "raise TwoArguments" in caught.value.details
    assert list(kept_records(store, pieces)) == [pieces[1].key]


def test_a_hung_piece_meets_its_deadline_and_is_tried_again(store: Store, cluster: Cluster) -> None:
    events: list[PieceEvent] = []
    records = run_pieces(store, [make(hang_once, "hangs")], cluster, deadline_seconds=3, on_event=events.append)
    assert records[0].attempts == 2
    assert "it made no progress for 3 s" in [event.note for event in events]


@pytest.mark.slow
def test_what_a_piece_waits_for_is_told_and_only_its_own_time_counts(
    store: Store, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inlay.cluster.fanout._WAITING_SECONDS", 1.0)
    events: list[PieceEvent] = []
    (record,) = run_pieces(
        store, [make(wait_for_others, "waits", seconds=7)], cluster, deadline_seconds=4, on_event=events.append
    )
    assert record.attempts == 2
    kinds = [event.kind for event in events]
    assert set(kinds[1 : kinds.index("started")]) == {"waiting"}
    assert {event.note for event in events if event.kind == "waiting"} >= {"it waits for the others"}
    assert [event.note for event in events if event.kind == "retried"] == ["it made no progress for 4 s"]


def test_pieces_behind_wider_ones_are_queued_and_not_hung(
    store: Store, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inlay.cluster.fanout._BEGINNING_SECONDS", 7.0)
    cluster.preload()
    wide = replace(make(slow, "wide", steps=100), resources=Resources(cpus=2))
    events: list[PieceEvent] = []
    records = run_pieces(
        store, [wide, make(square, "narrow", x=2)], cluster, deadline_seconds=7, on_event=events.append
    )
    assert [record.attempts for record in records] == [1, 1]
    assert "retried" not in {event.kind for event in events}


def test_pieces_that_are_queued_when_the_call_fails_never_run(store: Store, cluster: Cluster, tmp_path: Path) -> None:
    wide = replace(make(fail, "fails", seconds=2), resources=Resources(cpus=2))
    # Of these only one has room once the first has failed.
    queued = [
        replace(make(note, f"{cpus} CPUs", file=str(tmp_path / f"{cpus}")), resources=Resources(cpus=cpus))
        for cpus in (1.25, 1.5, 1.75)
    ]
    with pytest.raises(PieceError, match="work, fails: TwoArguments"):
        run_pieces(store, [wide, *queued], cluster)
    time.sleep(4)
    begun = [path.name for path in tmp_path.glob("1.*")]
    assert len(begun) <= 1
    assert [record.label for record in kept_records(store, queued).values()] == [f"{cpus} CPUs" for cpus in begun]
    assert len(run_pieces(store, queued, cluster)) == 3


def test_a_copy_of_the_progress_reports_at_once(store: Store, cluster: Cluster) -> None:
    """As a rank on another machine does, whose clock began elsewhere."""
    events: list[PieceEvent] = []
    run_pieces(store, [make(report_from_a_copy, "copies")], cluster, on_event=events.append)
    assert {"step": 1} in [event.numbers for event in events]


def test_a_failed_variant_is_an_answer_and_not_an_error(store: Store, cluster: Cluster) -> None:
    (record,) = run_pieces(store, [make(diverge, "diverges")], cluster)
    assert (record.state, record.reason) == ("failed", "the loss was not finite at step 3")
    assert record.values == {"steps": 3}


def test_values_that_are_not_finite_are_not_committed(store: Store, cluster: Cluster) -> None:
    with pytest.raises(PieceError, match="not JSON compliant"):
        run_pieces(store, [make(not_a_number, "nan")], cluster)
    assert store.list("records/") == []


@pytest.mark.parametrize("tensors", [False, True])
def test_a_full_disk_in_a_worker_names_bytes_and_path(store: Store, cluster: Cluster, tensors: bool) -> None:
    with pytest.raises(
        PieceError, match=rf"400\d\d\d bytes could not be written to {store.url}/blobs.*: no space"
    ) as e:
        run_pieces(store, [make(fill_disk, "fills the disk", tensors=tensors)], cluster)
    assert e.value.kind == "StoreError"
    assert store.list("records/") == []
    assert store.list("blobs/") == []


def test_what_fits_nowhere_is_said_at_once(store: Store, cluster: Cluster) -> None:
    piece = replace(make(square, "wide", x=1), resources=Resources(cpus=64, gpus=1))
    with pytest.raises(
        PieceError, match="work, wide: a worker needs 64 CPUs, 1 GPU, and the largest node has 2 CPUs, 0 GPUs"
    ):
        run_pieces(store, [piece], cluster)


def test_ready_holds_pieces_back_until_records_let_them_go(store: Store, cluster: Cluster) -> None:
    sources = [make(note_times, f"boundary {n}", stage="boundary") for n in range(3)]
    users = [make(note_times, f"distill {n}", stage="distill") for n in range(3)]
    done: set[str] = set()
    events: list[PieceEvent] = []

    def ready(piece: Piece) -> bool:
        number = int(piece.label.split()[1])
        if piece.stage == "distill":
            return f"boundary {number}" in done
        return number == 0 or (f"boundary {number - 1}" in done and f"distill {number - 2}" in done | {"distill -1"})

    records = run_pieces(
        store,
        [*users, *sources],
        cluster,
        ready=ready,
        on_record=lambda record: done.add(record.label),
        on_event=events.append,
    )
    ended = {record.label: record.values["ended"] for record in records}
    begun = {record.label: record.values["begun"] for record in records}
    assert all(begun[f"distill {n}"] >= ended[f"boundary {n}"] for n in range(3))
    assert begun["boundary 2"] >= ended["distill 0"]
    assert {event.stage for event in events if event.kind == "finished"} == {"boundary", "distill"}
    assert store.list("records/distill/") == sorted(piece.record_key for piece in users)


def test_pieces_that_can_never_start_are_an_error(store: Store, cluster: Cluster) -> None:
    with pytest.raises(PieceError, match="waits: none of the 1 pieces left may start"):
        run_pieces(store, [make(square, "waits", x=1)], cluster, ready=lambda piece: False)


def test_workers_compete_with_other_programs_as_equals(store: Store, cluster: Cluster) -> None:
    (record,) = run_pieces(store, [make(standing, "standing")], cluster)
    assert record.values == {"priority": os.getpriority(os.PRIO_PROCESS, 0), "leads": True}


def test_exclusive_pieces_never_overlap(store: Store, cluster: Cluster) -> None:
    records = run_pieces(store, [make(note_times, f"measure {n}") for n in range(3)], cluster, exclusive=True)
    times = sorted((record.values["begun"], record.values["ended"]) for record in records)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))


def test_the_cost_has_what_was_held_and_for_how_long_lost_attempts_too(store: Store, cluster: Cluster) -> None:
    def cost_of(piece: Piece, *, exclusive: bool = False) -> list[float]:
        """Of each attempt, in CPU-seconds."""
        costs: list[Cost] = []
        run_pieces(store, [piece], cluster, on_cost=costs.append, exclusive=exclusive)
        assert not any(cost.gpu_hours for cost in costs)
        return [cost.cpu_hours * 3600 for cost in costs]

    wide = Resources(cpus=2)
    lost, kept = cost_of(replace(make(crash_late, "crashes late"), resources=wide))
    assert kept > 3
    assert lost > 1.5, "what was lost has cost as much"
    assert cost_of(make(crash_late, "crashes late")) == [], "it is there already"
    (alone,) = cost_of(make(note_times, "measured alone"), exclusive=True)
    assert alone > 0.6, "it has the two CPUs of its node"
    ranks = replace(make(wait_only, "has ranks"), resources=Resources(cpus=0), ranks=(2, Resources(cpus=3)))
    (trained,) = cost_of(ranks)
    assert 6 < trained < 6 * 3, "its ranks hold nothing while they wait for room"


def test_what_is_ended_under_way_has_cost_something(store: Store, cluster: Cluster) -> None:
    def stop(event: PieceEvent) -> None:
        if event.fraction > 0.3:
            raise KeyboardInterrupt

    costs: list[Cost] = []
    with pytest.raises(KeyboardInterrupt):
        run_pieces(store, [make(slow, "stopped", steps=40)], cluster, on_event=stop, on_cost=costs.append)
    assert [cost.cpu_hours * 3600 > 1 for cost in costs] == [True]


def test_progress_is_told_with_the_time_left(store: Store, cluster: Cluster) -> None:
    events: list[PieceEvent] = []
    run_pieces(store, [make(slow, f"slow {n}", steps=25) for n in range(3)], cluster, on_event=events.append)
    fractions = [event.fraction for event in events if event.kind == "progress" and event.label == "slow 0"]
    assert len(fractions) >= 2
    assert fractions == sorted(fractions)
    middle = next(event for event in events if event.kind == "progress" and event.fraction > 0.4)
    assert middle.seconds_left is not None
    assert 0.5 < middle.seconds_left < 20
    assert events[-1].kind == "finished"
    assert (events[-1].done, events[-1].total, events[-1].seconds_left) == (3, 3, 0.0)


def test_a_local_worker_that_is_not_there_yet_is_said_to_start(
    store: Store, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    cluster.start()
    monkeypatch.setattr("inlay.cluster.fanout._WAITING_SECONDS", 1.0)
    preloading = ray.remote(lambda: time.sleep(4)).options(num_cpus=2).remote()
    events: list[PieceEvent] = []
    run_pieces(store, [make(slow, "waits", steps=1)], cluster, on_event=events.append)
    assert {event.note for event in events if event.kind == "waiting"} == {"its worker is still being started"}
    ray.get(preloading)


def test_peak_memory_is_that_of_the_piece(store: Store, cluster: Cluster) -> None:
    large = replace(make(holds_memory, "large", bytes=500 << 20), resources=Resources(cpus=2))
    small = replace(make(holds_memory, "small", bytes=1), resources=Resources(cpus=2))
    records = run_pieces(store, [large, small], cluster)
    assert records[0].peak_bytes - records[1].peak_bytes > 400 << 20


def test_two_pieces_of_one_key_are_refused(store: Store, cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="same key"):
        run_pieces(store, [make(square, "x", x=1), make(square, "x", x=2)], cluster)


def test_a_damaged_record_is_named(store: Store, cluster: Cluster) -> None:
    piece = make(square, "x", x=1)
    run_pieces(store, [piece], cluster)
    store.put(piece.record_key, b'{"schema": 1, "key": "x"}')
    with pytest.raises(StoreError, match=rf"{piece.key}\.json is a damaged record .* delete it"):
        run_pieces(store, [piece], cluster)
    store.put(piece.record_key, b'{"schema": 9}')
    with pytest.raises(StoreError, match="is not a record of schema 1"):
        run_pieces(store, [piece], cluster)


def test_keys_and_seeds_are_fixed() -> None:
    """Stored searches depend on these bytes: a change makes every workspace start anew."""
    key = piece_key("score", 2, {"tokens": 64000}, {"library": "abc"}, "layer 3")
    assert key == "03876950bd6789190f369985971eb121cdcfc3dc81fb66da4b5ef62ba023ec92"
    assert piece_seed(0, "layer 3") == 6431087757556385471


def test_errors_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(PieceError("text", "label", 3, "Lost", "trace")))
    assert (str(error), error.label, error.kept, error.kind, error.details) == ("text", "label", 3, "Lost", "trace")


def test_resources_are_checked() -> None:
    with pytest.raises(ValueError, match="cpus >= 0"):
        Resources(cpus=-1)
    with pytest.raises(ValueError, match="`workers` must be at least 1, not 0"):
        ClusterSettings(workers=0)


def test_what_is_want_of_memory() -> None:
    import torch

    mapping = OSError(errno.ENOMEM, "Cannot allocate memory")  # a weights file that the kernel refuses to map
    torch_cpu = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    torch_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 80 GiB")
    driver = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
    cublas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert all(map(is_out_of_memory, (MemoryError(), mapping, torch_cpu, torch_gpu, driver, cublas)))
    illegal = RuntimeError("CUDA error: an illegal memory access was encountered")
    full = OSError(errno.ENOSPC, "No space left on device")
    assert not any(map(is_out_of_memory, (full, ValueError("memory"), illegal)))


@pytest.mark.slow
def test_want_of_memory_is_retried_with_half_the_batch(store: Store, tmp_path: Path) -> None:
    """Workers of their own, whose address space is limited while they run a piece."""
    script = tmp_path / "limited.py"
    script.write_text(LIMITED.replace("FUNCTION", _source(hungry)))
    import subprocess

    done = subprocess.run([sys.executable, str(script), store.url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    micro_batch, attempts = map(int, done.stdout.split())
    assert micro_batch == 8 >> (attempts - 1) < 8
    assert done.stderr == ""


LIMITED = """
import sys
from inlay.cluster import ClusterSettings, Piece, PieceOutput, Store, connect, run_pieces

FUNCTION

piece = Piece("k" * 64, "hungry", "work", 1, hungry, {})
with connect(ClusterSettings(workers=1, memory_limit_bytes=3 << 30)) as cluster:
    (record,) = run_pieces(Store(sys.argv[1]), [piece], cluster)
    print(record.values["micro_batch"], record.attempts)
"""


def _source(function: Callable[..., Any]) -> str:
    import inspect

    return inspect.getsource(function).replace(
        "(arguments: dict[str, Any], context: PieceContext) -> PieceOutput", "(arguments, context)"
    )
