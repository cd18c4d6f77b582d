"""Code that comes with a model is not run, unless who administers the machine says so; a job cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.errors import UserError
from inlay.nas.families import open_parent
from inlay.nas.families.remote_code import VARIABLE, code_digest, tokenizer_code
from inlay.nas.job import Job

CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast

Path({marker!r}).write_text("ran")

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Where the model's code leaves a trace when it runs."""
    return tmp_path / "marker"


@pytest.fixture
def folder(tiny_parent: Any, tmp_path: Path, marker: Path) -> Path:
    """A parent whose tokenizer is code of its own."""
    folder = tmp_path / "parent"
    shutil.copytree(tiny_parent("llama"), folder)
    (folder / "tokenization_own.py").write_text(CODE.format(marker=str(marker)))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
    }
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("value", [None, "0", "1", "true", "", "*", "owner/name", "sha256:" + "0" * 64])
def test_it_is_refused_by_default(
    folder: Path, marker: Path, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(
        UserError, match=rf"tokenizer in `{folder}` is code of its own .* allow it by {VARIABLE}=sha256:"
    ):
        open_parent(folder)
    assert not marker.exists()


def test_the_administrator_can_allow_it_and_it_is_part_of_the_parent(
    folder: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"owner/name@{'0' * 40} sha256:{code_digest(folder)}")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    parent = open_parent(folder)
    before = parent.digest
    assert type(parent.tokenizer()).__name__ == "OwnTokenizer"
    assert marker.read_text() == "ran"
    code = folder / "tokenization_own.py"
    code.write_text(code.read_text() + "# other\n")
    with pytest.raises(UserError, match="is code of its own"):
        open_parent(folder)
    monkeypatch.setenv(VARIABLE, f"sha256:{code_digest(folder)}")
    assert open_parent(folder).digest != before


def test_a_repository_is_allowed_at_the_revision_that_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "a" * 40
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    snapshot = cache / "models--owner--name" / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    monkeypatch.setenv(VARIABLE, f"owner/name@{'b' * 40},other/name@{commit}")
    with pytest.raises(UserError, match=rf"allow it by {VARIABLE}=owner/name@{commit} in its environment"):
        tokenizer_code(snapshot)
    monkeypatch.setenv(VARIABLE, f"owner/name@{commit}")
    assert [path.name for path in tokenizer_code(snapshot)] == ["tokenization_own.py"]
    # A folder elsewhere that looks like the cache is not that repository.
    copy = tmp_path / "models--owner--name" / "snapshots" / commit
    shutil.copytree(folder, copy)
    with pytest.raises(UserError, match="is code of its own"):
        tokenizer_code(copy)


def test_no_job_can_ask_for_it(folder: Path) -> None:
    with pytest.raises(UserError, match="trust_remote_code"):
        Job.from_dict({"parent": str(folder), "trust_remote_code": True})
