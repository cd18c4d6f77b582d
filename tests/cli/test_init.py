"""init: the file it writes is right, names every key, and fits the parent it was given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from inlay.nas.check import check_file
from inlay.nas.cli import main
from inlay.nas.job import Job

Captured = pytest.CaptureFixture[str]


def test_the_demo_is_right(tmp_path: Path) -> None:
    assert main(["init", "--demo", str(tmp_path / "demo.yaml")]) == 0
    assert check_file(tmp_path / "demo.yaml").problems == []
    assert Job.load(tmp_path / "demo.yaml").parent == "inlay:pystdlib"


def test_every_key_is_there_with_its_meaning(tmp_path: Path) -> None:
    main(["init", "--demo", str(tmp_path / "demo.yaml")])
    text = (tmp_path / "demo.yaml").read_text()

    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert f"{name}:" in text
            assert field.description in text
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                check(inner)

    check(Job)


def test_defaults_are_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    written = Job.load("job.yaml").to_dict()
    needed = {name: written[name] for name in ("parent", "data", "space", "budget")}
    assert Job.from_dict(needed).to_dict() == written


def test_it_fits_the_parent(tmp_path: Path, tiny_parent: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    parent = tiny_parent("llama")
    (tmp_path / "text.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--parent", str(parent), "--text", "text.txt", "jobs/a.yaml"]) == 0
    job = Job.load("jobs/a.yaml")
    assert Path(job.resolve(job.parent)).resolve() == parent.resolve()
    assert job.resolve(job.data.distill.path[0].path) == str(tmp_path / "jobs" / ".." / "text.txt")
    assert job.space.attention == ({"kv_heads": 1}, {"window": 32}, "linear", "no_op")
    assert job.data.distill.sequence_length == 64
    assert job.hardware.scenarios[0].prefill == job.hardware.scenarios[0].generate == 32
    fields = {problem.field for problem in check_file("jobs/a.yaml").problems}
    assert fields == {"data.distill.path", "data.validate.path"}  # one text is too short, the other not there yet


def test_nothing_is_overwritten(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("mine")
    assert main(["init", str(file)]) == 2
    assert "is already there; give another name, or --force" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main(["init", "--force", str(file)]) == 0
    assert yaml.safe_load(file.read_text())["budget"] == {"runtime": "0.6x"}


def test_it_prints(capsys: Captured) -> None:
    assert main(["init", "-"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["recover"]["tokens"] == "4M"


def test_lines_are_readable(capsys: Captured) -> None:
    main(["init", "--demo", "-"])
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 116


@pytest.mark.parametrize(
    ("value", "text"),
    [("plain/path.txt", "plain/path.txt"), ("a b: c", '"a b: c"'), ("yes", '"yes"'), ("# x", '"# x"'), ("1.5", '"1.5"'),
     ("ü.txt", '"ü.txt"'), ("-x", '"-x"'), (" x", '" x"')],
)  # fmt: skip
def test_texts_are_quoted_where_yaml_needs_it(value: str, text: str) -> None:
    from inlay.nas.cli.template import _scalar

    assert _scalar("path", value) == text
    assert yaml.safe_load(f"a: {text}") == {"a": value}


def test_an_unreadable_place_is_a_sentence(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file" / "job.yaml")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_bad_parent_is_told(tmp_path: Path, capsys: Captured) -> None:
    assert main(["init", "--parent", str(tmp_path), str(tmp_path / "job.yaml")]) == 2
    assert "has no config.json" in capsys.readouterr().err
    assert not (tmp_path / "job.yaml").exists()
