"""evaluate, report, compare and clean on a finished workspace."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from inlay.cluster.errors import LockedError
from inlay.cluster.lock import locked
from inlay.nas.cli import main
from inlay.nas.cli.leftovers import held_leftovers
from inlay.nas.workspace import Workspace

Captured = pytest.CaptureFixture[str]


def test_evaluate(search: Workspace, capsys: Captured) -> None:
    assert main(["evaluate", search.url]) == 0
    table = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 80 for line in table.splitlines())
    assert "before recovery" in table
    assert main(["evaluate", search.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == search.read_json("evaluation.json")
    assert main(["evaluate", search.url, "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("|  | parent | child | uniform | depth |\n| --- | ---: |")


def test_evaluate_a_stored_solution(search: Workspace, capsys: Captured) -> None:
    values = search.read_json("solutions/bbbb00000000.json")
    figures = search.read_json("evaluation.json")
    values["evaluation"] = {name: figures[name] for name in ("parent", "child")}
    search.write_json("solutions/bbbb00000000.json", values)
    assert main(["evaluate", search.url, "--solution", "bbbb00000000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == values["evaluation"]
    assert main(["compare", search.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["kl_nats"] == figures["child"]["kl_nats"]
    for name in ("nope", "../run"):
        assert main(["evaluate", search.url, "--solution", name]) == 2
        assert f"there is no solution `{name}`; there are: bbbb00000000" in capsys.readouterr().err


def test_report(search: Workspace, capsys: Captured) -> None:
    assert main(["report", search.url, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert written[0].endswith("report.html")
    assert all(os.path.exists(path) for path in written)


def test_compare_solutions(search: Workspace, capsys: Captured) -> None:
    assert main(["compare", search.url, "--json"]) == 0
    kept, stored = json.loads(capsys.readouterr().out)
    assert (kept["name"], kept["kept"], kept["kl_nats"], kept["changed_layers"]) == ("aaaa00000000", True, 0.44, 6)
    assert (stored["name"], stored["kept"], stored["kl_nats"]) == ("bbbb00000000", False, None)
    assert 0 < stored["runtime_ratio"] < kept["runtime_ratio"] < 1
    assert main(["compare", search.url]) == 0
    assert all(len(line.rstrip()) <= 80 for line in capsys.readouterr().out.splitlines())


def test_compare_searches(search: Workspace, capsys: Captured) -> None:
    assert main(["compare", search.url, search.url, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["demo.search", "demo.search"]
    assert rows[0]["runtime_ratio"] == pytest.approx(0.58)


@pytest.mark.parametrize("verb", ["evaluate", "report", "compare", "clean"])
def test_no_workspace(verb: str, tmp_path: Path, capsys: Captured) -> None:
    assert main([verb, str(tmp_path)]) == 2
    assert "has no workspace.json" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_not_that_far_yet(search: Workspace, capsys: Captured) -> None:
    search.store.delete("evaluation.json")
    assert main(["evaluate", search.url]) == 2
    assert "has no evaluation.json yet; run its job to the end" in capsys.readouterr().err


def test_clean_keeps_what_records_name(search: Workspace, capsys: Captured) -> None:
    named = search.store.put_blob(b"weights")
    inner = search.store.put_blob(b"inner weights")
    through = search.store.put_blob(json.dumps({"blob": inner}).encode())
    orphan = search.store.put_blob(b"x" * 4096)
    search.store.put("records/distill/a.json", json.dumps({"blobs": {"w": named, "j": through}}).encode())
    folder = Path(search.url)
    (folder / "scratch").mkdir()
    (folder / "scratch" / "boundary").write_bytes(b"y" * 1024)
    assert main(["clean", search.url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["size_bytes"]) for each in told["leftovers"]] == [
        ("scratch", 1024),
        ("orphan blobs", 4096),
    ]
    assert search.store.has_blob(orphan)
    assert main(["clean", search.url, "--yes"]) == 0
    assert "dropped 5 KiB" in capsys.readouterr().out
    assert not search.store.has_blob(orphan)
    assert not (folder / "scratch").exists()
    assert all(search.store.has_blob(digest) for digest in (named, through, inner))
    assert main(["clean", search.url]) == 0
    assert capsys.readouterr().out == "nothing to drop\n"


def test_clean_leaves_a_running_search_alone(search: Workspace, capsys: Captured) -> None:
    with locked(search.store, "a search"):
        assert main(["clean", search.url, "--yes"]) == 2
    assert "is in use by a search (process " in capsys.readouterr().err


def test_clean_holds_the_workspace_while_it_drops(search: Workspace) -> None:
    """A search that starts meanwhile would find its blobs gone."""
    search.store.put_blob(b"orphan")
    with held_leftovers(search) as found:
        assert found
        with pytest.raises(LockedError, match="in use by `inlay clean`"), locked(search.store, "a search"):
            pass
    with locked(search.store, "a search"):
        pass


def test_clean_of_a_url_drops_orphans_and_the_copies_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = Workspace(f"memory://{tmp_path.name}/far.search")
    place.claim("0" * 64, "parent")
    inner = place.store.put_blob(b"weights")
    named = place.store.put_blob(json.dumps({"blob": inner}).encode())
    orphan = place.store.put_blob(b"x" * 4096)
    place.write_json("library.json", {"0": named})
    copy = place.store.blob_path(inner)
    assert main(["clean", place.url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["leftovers"]
    assert [(each["name"], each["size_bytes"]) for each in told] == [("orphan blobs", 4096), ("local copies", 7)]
    assert copy.is_file()
    assert main(["clean", place.url, "--yes"]) == 0
    assert place.store.list("blobs/") == sorted(f"blobs/{digest}" for digest in (inner, named))
    assert not place.store.has_blob(orphan)
    assert not copy.exists()
    assert place.store.blob_path(inner).read_bytes() == b"weights"
