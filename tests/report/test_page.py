"""The page and the pictures as files: complete, self-contained, safe, the same each time."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inlay.nas.errors import UserError
from inlay.nas.report.drawing import svg_of
from inlay.nas.report.grid import Cell, GridRecord, draw_grid
from inlay.nas.report.page import page_of, write_report
from inlay.nas.report.pareto import ParetoRecord
from inlay.nas.report.pictures import Picture, all_pictures
from inlay.nas.report.records import read_pool
from inlay.nas.workspace import Workspace

PICTURES = ["pareto", "architecture", "losses", "scores", "recovery"]


def test_everything_is_written(search: Workspace) -> None:
    written = write_report(search)
    assert [path.name for path in written] == ["report.html", *(f"{name}.png" for name in PICTURES)]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])
    page = written[0].read_text(encoding="utf-8")
    assert page.count('src="data:image/svg+xml;base64,') == len(PICTURES)
    for words in (
        "1.72x",
        "as fast as the parent",
        "runtime: 0.6x",
        "by 5 %",
        "1 variant failed",
        "assemble",
    ):
        assert words in page


def test_the_page_needs_nothing_else(search: Workspace, drawn: dict[str, Picture]) -> None:
    page = page_of(search, drawn)
    # What browsers enforce: nothing but images that stand in the page, and the scripts of these digests.
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    assert len(scripts) == 2
    rest = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["']?(?!["']?data:)""", rest)
    assert "@import" not in rest
    assert "url(" not in rest


def test_without_a_chart_the_page_has_no_library(search: Workspace) -> None:
    assert len(page_of(search, {})) < 30_000


def test_charts_hold_what_pictures_show(search: Workspace, drawn: dict[str, Picture]) -> None:
    page = page_of(search, drawn)
    data = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    assert len(data) == len(PICTURES)
    assert not any("<" in each for each in data)
    sources = [model["attributes"]["data"] for each in data for model in _models(json.loads(each))]
    columns = [dict(source["entries"]) for source in sources]
    (tried,) = [column for column in columns if "predicted_kl" in column]
    assert tried["id"] == [row.id for row in read_pool(search)]
    grids = [column for column in columns if "layer" in column]
    assert grids[0]["value"][0] == 1.0  # the parent's own costs what it costs
    (losses,) = [column for column in grids if "×" in column["text"]]
    assert losses["layer"][losses["text"].index("×")] == 2
    recovery = [column for column in columns if "tokens" in column]
    assert [column["name"][0] for column in recovery] == ["child", "uniform", "depth"]
    assert recovery[0]["tokens"][-1] == pytest.approx(4.0, abs=0.001)  # millions


def _models(value: Any) -> Iterator[Any]:
    """Every source of data in a chart."""
    if isinstance(value, dict):
        if value.get("name") == "ColumnDataSource":
            yield value
        for part in value.values():
            yield from _models(part)
    elif isinstance(value, list):
        for part in value:
            yield from _models(part)


def test_long_tables_can_be_filtered(search: Workspace, drawn: dict[str, Picture]) -> None:
    page = page_of(search, drawn)
    candidates, blocks = (
        page.split(f"data-filter={name}>")[1].split("</table>")[0] for name in ("candidates", "blocks")
    )
    assert candidates.count("<tr>") == 1 + 16
    assert "<th data-choose>origin</th>" in candidates
    assert re.search(r"<td>000000000000</td><td>pool</td><td>0.4300</td>.*<td>kept</td>", candidates)
    assert candidates.count("<td>front</td>") + 1 == len(pareto(drawn).front)
    assert blocks.count("<tr>") == 1 + 8 * 9
    assert blocks.count("<td>child</td>") == 2 * 8
    assert re.search(
        r"<tr><td>2</td><td>attention</td><td>window</td><td>window=64</td><td>0.80x</td><td>failed</td>", blocks
    )


def pareto(drawn: dict[str, Picture]) -> ParetoRecord:
    record = drawn["pareto"].record
    assert isinstance(record, ParetoRecord)
    return record


def test_a_page_of_80_layers_stays_below_3_mb(search: Workspace) -> None:
    labels = [f"attention:window={size}" for size in range(16, 656, 32)]
    labels += [f"ffn:width={size}" for size in range(64, 64 * 81, 64)]
    ends, *_, row = search.read_table("costs")
    losses, scores, costs = [], [], [ends]
    for layer in range(80):
        for label in ("attention:parent", "ffn:parent", *labels):
            costs.append(row | {"layer": layer, "slot": label.split(":")[0], "variant": label, "runtime_ns": 10**6})
        for place, label in enumerate(labels):
            loss = 0.1234567 + place / 100
            losses.append({"layer": layer, "variant": label, "status": "trained", "start_loss": 1.0, "loss": loss})
            pair = (label, "ffn:parent") if label.startswith("attention") else ("attention:parent", label)
            scores.append(
                {"layer": layer, "attention": pair[0], "ffn": pair[1], "kl_nats": loss / 7, "standard_error": loss / 99}
            )
    pool = [{**row, "id": f"{number:012x}", "kept": False} for number in range(10) for row in search.read_table("pool")]
    recovery = [
        {"model": name, "point": point, "loss": 1 / (point + 1), "kl_nats": 1 / (point + 1), "cosine": 0.1}
        for name in ("child", "uniform", "depth")
        for point in range(300)
    ]
    for name, rows in {"losses": losses, "scores": scores, "costs": costs, "pool": pool, "recovery": recovery}.items():
        search.write_table(name, rows)
    page = page_of(search, dict(all_pictures(search)))
    assert 2_500_000 < len(page.encode()) < 3_000_000
    # There is no room for all charts where two have 8,000 cells; their pictures are there.
    assert page.count('src="data:image/svg+xml;base64,') == len(PICTURES)
    assert 3 <= page.count('<script type="application/json">') < len(PICTURES)
    assert re.search(r"The first 3,000 of 8,1\d\d; all of them are in tables/losses.parquet", page)


def test_names_from_the_job_are_text(search: Workspace) -> None:
    run = search.read_json("run.json")
    run["job"]["parent"] = "<script>alert(1)</script>"
    search.write_json("run.json", run)
    page = page_of(search, {})
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


def test_pictures_are_the_same_each_time(search: Workspace, drawn: dict[str, Picture]) -> None:
    again = dict(all_pictures(search))
    assert list(again) == list(drawn) == PICTURES
    assert svg_of(again["pareto"].figure) == svg_of(drawn["pareto"].figure)


def test_an_unfinished_search_shows_what_it_has(search: Workspace) -> None:
    for name in ("evaluation.json", "solution.json", "tables/pool.parquet", "tables/recovery.parquet"):
        search.store.delete(name)
    written = write_report(search)
    assert [path.stem for path in written] == ["report", "losses", "scores"]
    page = written[0].read_text()
    assert "not finished" in page
    assert "data-filter=blocks" in page
    assert "data-filter=candidates" not in page


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
