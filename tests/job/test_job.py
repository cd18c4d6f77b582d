"""The job as a value: what is read, where paths lead, and that it goes round through JSON, YAML and pickle."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from inlay.nas.errors import UserError
from inlay.nas.job import Budget, BudgetLimit, Job


def test_reads_the_design_sketch(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "stories.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    job = Job.load(file)
    assert job.data.validate.tokens == 64_000
    assert job.distill.learning_rate == 1e-3
    assert job.space.attention == ({"kv_heads": 1}, {"window": 128}, "linear", "no_op")
    assert job.hardware.scenarios[0].threads == 1
    assert list(job.budget) == [
        BudgetLimit("runtime", "0.6x", ratio=Fraction(3, 5)),
        BudgetLimit("memory", "0.8x", ratio=Fraction(4, 5)),
        BudgetLimit("kv", "24GiB", "chat", amount=24 * 2**30),
    ]
    assert job.file == file
    assert job.default_workspace() == tmp_path / "stories.search"


def test_the_yaml_flow_form_of_the_design(tmp_path: Path, values: dict[str, Any]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in values.items() if k != "space"}))
    with file.open("a") as stream:
        stream.write("space:\n  attention: [kv_heads: 1, linear]\n  ffn: [width: 0.5, no_op]\n")
    assert Job.load(file).space.ffn == ({"width": 0.5}, "no_op")


def test_paths_start_at_the_job_file(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "a.yaml").write_text(yaml.safe_dump(values | {"cluster": {"scratch": "fast"}}))
    monkeypatch.chdir(tmp_path)
    job = Job.load("jobs/a.yaml")
    assert job.resolve(job.data.distill.path[0].path) == str(folder / "stories.txt")
    assert job.resolve(str(job.cluster.scratch)) == str(folder / "fast")
    assert job.resolve("inlay:pystdlib/train") == "inlay:pystdlib/train"
    assert job.resolve("s3://bucket/text.txt") == "s3://bucket/text.txt"
    assert job.resolve("/data/text.txt") == "/data/text.txt"
    made = Job.from_dict(values)
    assert made.resolve("text.txt") == str(tmp_path / "text.txt")
    assert made.default_workspace() == tmp_path / "inlay.search"


def test_a_hub_id_stays_and_needs_its_commit(values: dict[str, Any]) -> None:
    job = Job.from_dict(values | {"parent": "owner/model", "revision": "0" * 40})
    assert job.resolve(job.parent) == "owner/model"


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    job = Job.from_dict(values | {"parent": "owner/model"}, tmp_path)
    assert job.resolve(job.parent) == str(tmp_path / "owner" / "model")


def test_goes_round(values: dict[str, Any], tmp_path: Path) -> None:
    job = Job.from_dict(values, tmp_path)
    again = Job.from_dict(json.loads(json.dumps(job.to_dict())), tmp_path)
    assert again == job
    assert again.digest() == job.digest()
    assert pickle.loads(pickle.dumps(job)) == job
    assert Job(**job.to_dict()).to_dict() == job.to_dict()


def test_the_text_of_a_file_is_kept_word_for_word(values: dict[str, Any], tmp_path: Path) -> None:
    text = f"# ours, since Monday\r\n{yaml.safe_dump(values)}# end"
    (tmp_path / "job.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    job = Job.load(tmp_path / "job.yaml")
    assert job.text == text
    again = Job.parse(job.text, tmp_path)
    assert (again.to_dict(), again.folder, again.text) == (job.to_dict(), tmp_path, text)
    changed = job.model_copy(update={"seed": 7})
    assert Job.parse(changed.text, tmp_path).to_dict() == changed.to_dict() != job.to_dict()


def test_a_job_made_in_python_has_a_text_too(values: dict[str, Any], tmp_path: Path) -> None:
    job = Job.from_dict(values | {"distill": {"tokens": 1024, "learning_rate": 1e-5}}, tmp_path)
    assert Job.parse(job.text, tmp_path).to_dict() == job.to_dict()
    with pytest.raises(UserError, match=r"the job `x`: .*seed"):
        Job.parse(job.text.replace("seed: 0", "seed: -1"), tmp_path, "the job `x`")


def test_sections_are_canonical(values: dict[str, Any]) -> None:
    written = Job.from_dict(values)
    other = Job.from_dict(values | {"distill": {"tokens": 500_000, "learning_rate": 0.001}})
    assert written.section("distill") == other.section("distill")
    assert written.section("budget") == {"runtime": "0.6x", "memory": "0.8x", "chat": {"kv": "24GiB"}}
    with pytest.raises(KeyError):
        written.section("distil")


def test_is_frozen(values: dict[str, Any]) -> None:
    job = Job.from_dict(values)
    with pytest.raises(ValidationError):
        job.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        job.distill.tokens = 3  # type: ignore[misc]


def test_an_empty_optional_section_is_its_default(values: dict[str, Any]) -> None:
    assert (
        Job.from_dict(values | {"recover": None, "cluster": None}).recover
        == Job.from_dict({key: value for key, value in values.items() if key != "recover"}).recover
    )


def test_limits_against_the_parent() -> None:
    ratio = BudgetLimit("memory", "0.6x", ratio=Fraction(3, 5))
    assert ratio.against(101) == 60  # whole units, never above
    assert ratio.field == "budget.memory"
    assert BudgetLimit("kv", "1GiB", "chat", amount=2**30).against(5) == 2**30
    assert BudgetLimit("kv", "1GiB", "chat", amount=2**30).field == "budget.chat.kv"
    throughput = BudgetLimit("throughput", "2x", ratio=Fraction(2))
    assert throughput.is_lower
    assert throughput.against(10.5) == 21.0


_COUNTS = st.integers(8, 10**12)
_RATIOS = st.integers(1, 1000).map(lambda n: f"{n / 1000:g}x")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    tokens=_COUNTS, pool=st.integers(1, 1000), ratio=_RATIOS, seed=st.integers(0, 2**63 - 1), rate=st.floats(1e-8, 1.0)
)
def test_any_right_job_goes_round(
    values: dict[str, Any], tokens: int, pool: int, ratio: str, seed: int, rate: float
) -> None:
    changed = values | {
        "distill": {"tokens": max(tokens, 256), "learning_rate": rate},
        "solve": {"pool": pool},
        "budget": {"runtime": ratio, "decode": "20ms"},
        "seed": seed,
    }
    job = Job.from_dict(changed)
    assert Job.from_dict(yaml.safe_load(yaml.safe_dump(job.to_dict(), sort_keys=False))) == job
    assert isinstance(job.budget, Budget)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("./vllm/bin/python", "{}/vllm/bin/python"), ("/opt/bin/python", "/opt/bin/python"), ("python3.12", "python3.12")],
)
def test_an_interpreter_is_a_path_from_the_job_file_or_a_name(
    values: dict[str, Any], tmp_path: Path, given: str, meant: str
) -> None:
    values["hardware"] |= {"engine": "vllm", "python": given}
    assert Job.from_dict(values, folder=tmp_path).python == meant.format(tmp_path)
