"""The page and the pictures as files: complete, self-contained, safe, the same each time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inlay.nas.errors import UserError
from inlay.nas.report.drawing import svg_of
from inlay.nas.report.grid import Cell, GridRecord, draw_grid
from inlay.nas.report.page import page_of, write_report
from inlay.nas.report.pictures import all_pictures
from inlay.nas.workspace import Workspace

PICTURES = ["pareto", "architecture", "losses", "scores", "recovery"]


def test_everything_is_written(search: Workspace) -> None:
    written = write_report(search)
    assert [path.name for path in written] == ["report.html", *(f"{name}.png" for name in PICTURES)]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])
    page = written[0].read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml;base64,") == len(PICTURES)
    for words in (
        "1.72x",
        "as fast as the parent",
        "runtime: 0.6x",
        "by 5 %",
        "1 variant failed",
        "assemble",
    ):
        assert words in page


def test_the_page_needs_nothing_else(search: Workspace) -> None:
    page = page_of(search, {"pareto": b"<svg/>"})
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "@import" not in page


def test_names_from_the_job_are_text(search: Workspace) -> None:
    run = search.read_json("run.json")
    run["job"]["parent"] = "<script>alert(1)</script>"
    search.write_json("run.json", run)
    page = page_of(search, {})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_pictures_are_the_same_each_time(search: Workspace) -> None:
    first, second = (dict(all_pictures(search)) for _ in range(2))
    assert list(first) == PICTURES
    assert svg_of(first["pareto"]) == svg_of(second["pareto"])


def test_an_unfinished_search_shows_what_it_has(search: Workspace) -> None:
    for name in ("evaluation.json", "solution.json", "tables/pool.parquet", "tables/recovery.parquet"):
        search.store.delete(name)
    written = write_report(search)
    assert [path.stem for path in written] == ["report", "losses", "scores"]
    assert "not finished" in written[0].read_text()


def test_other_folder_and_other_solution(search: Workspace, tmp_path: Path) -> None:
    written = write_report(search, tmp_path / "out", "bbbb00000000")
    assert written[0] == tmp_path / "out" / "report.html"
    assert not (Path(search.url) / "report.html").exists()
    with pytest.raises(UserError, match="--solution: nope is not in"):
        write_report(search, tmp_path, "nope")


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has nothing to show yet"):
        write_report(Workspace(tmp_path))


def test_eighty_layers_fit() -> None:
    cells = tuple(tuple(Cell(layer / 80, "0.5") for layer in range(80)) for _ in range(8))
    figure = draw_grid(GridRecord("Architecture", tuple("abcdefgh"), cells, "share"))
    assert figure.get_size_inches()[0] <= 14
    assert not figure.axes[0].texts  # too narrow to read
