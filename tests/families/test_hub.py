"""Hub ids: a pinned revision, out of a local cache as the hub client lays it out."""

import hashlib
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from inlay.nas.check import check_file
from inlay.nas.errors import UserError
from inlay.nas.families import describe_hub_parent, open_parent
from inlay.nas.pieces.weights import parent_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny-llama"


@pytest.fixture
def cache(tiny_parent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds `NAME` at `COMMIT`, and a hub that is not reached."""
    repository = tmp_path / "hub" / "models--someone--tiny-llama"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in Path(tiny_parent("llama")).iterdir():
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_model_is_opened_from_the_cache_without_a_network(
    cache: Path, tiny_parent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    parent = open_parent(NAME, COMMIT)
    parent.check_finite()
    assert parent.folder == cache
    assert parent.config.num_hidden_layers == 3
    assert parent.tokenizer()("a").input_ids
    assert parent.digest == open_parent(tiny_parent("llama")).digest


def test_a_folder_of_that_name_comes_first(
    cache: Path, tiny_parent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_parent("qwen3"), tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert open_parent(NAME).shape.family == "qwen3"


@pytest.mark.parametrize(
    ("revision", "sentence"),
    [
        (None, f"parent: there is no folder `{NAME}`, and as a hub id it needs a pinned `revision`"),
        ("main", "revision: `main` can move to other weights; give the full commit hash of 40 hex digits"),
        (COMMIT[:12], f"revision: `{COMMIT[:12]}` can move"),
        (COMMIT[::-1], f"parent: the hub id `{NAME}` at revision `{COMMIT[::-1]}` cannot be had"),
    ],
)
def test_other_revisions_are_refused(cache: Path, revision: str | None, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        open_parent(NAME, revision)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_an_incomplete_snapshot_is_refused(cache: Path) -> None:
    (cache / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        open_parent(NAME, COMMIT)


def _no_network(*_: object) -> None:
    raise AssertionError("the network was used")


def test_shape_and_tokens_are_told_without_weights(cache: Path, tiny_parent: Any) -> None:
    (cache / "model.safetensors").unlink()
    described = describe_hub_parent(NAME, COMMIT)
    folder, shape = described.folder, described.shape
    assert folder == cache
    assert replace(shape, dtype="float32") == replace(open_parent(tiny_parent("llama")).shape, dtype="float32")


def test_a_worker_opens_a_hub_parent_through_its_own_cache(cache: Path) -> None:
    assert parent_of.__wrapped__(f"{NAME}@{COMMIT}").folder == cache
    assert parent_of.__wrapped__(str(cache)).folder == cache.resolve()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"ffn": [{"width": 480}]}}, "space.ffn[0].width: 480 is above the parent's width of 48"),
        ({"revision": COMMIT[::-1]}, "parent: the hub id"),
    ],
)
def test_a_job_is_checked_against_a_hub_parents_shape(
    cache: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    values: dict[str, Any] = {
        "parent": NAME,
        "revision": COMMIT,
        "data": {"distill": {"path": "inlay:pystdlib/train", "sequence_length": 16},
                 "validate": {"path": "inlay:pystdlib/held_out"}},
        "space": {"attention": ["no_op"]},
        "hardware": {"scenarios": [{"prefill": 8, "generate": 4}]},
        "budget": {"parameters": "0.9x"},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    assert check_file(tmp_path / "job.yaml").problems == []
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values | changes))
    (problem,) = check_file(tmp_path / "job.yaml").problems
    assert str(problem).startswith(words)
