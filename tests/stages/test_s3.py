"""A whole search whose workspace is on an S3-compatible server: the same tables as on a folder, and it resumes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from inlay.cluster import Store

Run = Callable[..., "subprocess.CompletedProcess[str]"]
TinyParent = Callable[..., Path]
SAME = ("library.json", "texts.json", "tables/scores.parquet", "tables/losses.parquet", "tables/recovery.parquet")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A fresh bucket on moto's server, which the environment of this process and its children names."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is an optional dependency")
    moto_server = pytest.importorskip("moto.server", reason="moto is an optional dependency of tests")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("searches")
        yield "s3://searches"
    server.stop()


@pytest.mark.slow
def test_a_search_on_s3_is_the_one_on_a_folder(
    bucket: str, tmp_path: Path, tiny_parent: TinyParent, inlay_command: Run
) -> None:
    for name, count in (("train", 60), ("held_out", 40)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} story {n}\n<|endoftext|>\n" for n in range(count)))
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(values(tiny_parent("llama"))))
    places = (str(tmp_path / "here"), f"{bucket}/there")
    for place in places:
        done = inlay_command("run", job, "-w", place, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    here, there = (Store(place) for place in places)
    for name in SAME:
        assert there.get(name) == here.get(name), name
    assert there.list("blobs/") == here.list("blobs/")
    exported = {path.name: path.read_bytes() for path in (tmp_path / "here" / "child").iterdir()}
    measured = {"README.md", "inlay_recipe.json"}  # they tell of times, which were taken in each
    assert all(there.get(f"child/{key}") == held for key, held in exported.items() if key not in measured)
    assert len(there.list("child/")) == len(exported)
    before = there.list()
    done = inlay_command("run", job, "-w", places[1], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert there.list() == before
    done = inlay_command("export", places[1], "-o", tmp_path / "child")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "child" / "model.safetensors").read_bytes() == (
        tmp_path / "here" / "child" / "model.safetensors"
    ).read_bytes()


def values(parent: Path) -> dict[str, object]:
    return {
        "parent": str(parent),
        "data": {
            "distill": {"path": "train.txt", "sequence_length": 16},
            "validate": {"path": "held_out.txt", "tokens": 256},
        },
        "space": {"attention": [{"kv_heads": 1}, "no_op"], "ffn": [{"width": 0.5}, "no_op"]},
        "distill": {"tokens": 64, "batch_size": 2},
        "recover": {"tokens": 64, "batch_size": 2, "probes": 2},
        "hardware": {"scenarios": [{"prefill": 8, "generate": 4}]},
        "budget": {"parameters": "0.95x"},
        "cluster": {"max_workers": 2, "scratch": "scratch"},
    }
