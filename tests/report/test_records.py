"""What pictures draw, computed from the tables: read as records, without a pixel."""

from __future__ import annotations

import pytest

from inlay.nas.errors import InlayError
from inlay.nas.report import records
from inlay.nas.report.architecture import architecture_record, shares_of, short
from inlay.nas.report.curves import curves_record, smoothed
from inlay.nas.report.figures import evaluation_lines
from inlay.nas.report.grid import short_number
from inlay.nas.report.losses import loss_record, score_record
from inlay.nas.report.pareto import pareto_record
from inlay.nas.report.pictures import architectures, parent_runtime_ns
from inlay.nas.report.promises import broken_promises
from inlay.nas.report.records import Evaluation, PoolRow
from inlay.nas.workspace import Workspace


def pool_row(name: str, predicted: int, kl: float, measured: float | None = None, kept: bool = False) -> PoolRow:
    return PoolRow(name, "pool", kl / 2, kl, predicted, measured, kept)


def test_the_front_is_what_nothing_beats() -> None:
    pool = [pool_row("a", 50, 1.0), pool_row("b", 60, 0.5), pool_row("c", 70, 0.6), pool_row("d", 55, 1.2)]
    record = pareto_record(pool, 100)
    assert [tried.id for tried in record.front] == ["a", "b"]
    assert record.tried[1].predicted_ratio == 0.6
    assert record.tried[1].predicted_kl_nats == 0.25
    assert record.ended == ()


def test_a_measured_ratio_takes_the_place_of_the_predicted_one() -> None:
    (tried,) = pareto_record([pool_row("a", 50, 1.0, measured=0.57, kept=True)], 100).tried
    assert (tried.predicted_ratio, tried.ratio, tried.kept) == (0.5, 0.57, True)


def test_models_stand_where_they_were_measured(search: Workspace) -> None:
    evaluation = records.read_evaluation(search)
    record = pareto_record(records.read_pool(search), parent_runtime_ns(search), evaluation)
    assert [(each.name, each.ratio, each.before_kl_nats, each.kl_nats) for each in record.ended] == [
        ("child", 0.58, 0.43, 0.081),
        ("uniform", 0.59, 0.71, 0.142),
        ("depth", 0.61, 2.9, 0.334),
    ]
    assert parent_runtime_ns(search) == 120_000_000 + 8 * 101_000_000
    assert len(record.tried) == 16


def test_architecture_rows_are_models_and_slots(search: Workspace) -> None:
    record = architecture_record(architectures(search), shares_of(records.read_rows(search, "costs")))
    assert record.rows[:4] == ("parent  attention", "parent  ffn", "child  attention", "child  ffn")
    child_ffn = record.cells[3]
    assert [cell.text for cell in child_ffn] == ["", "", "256", "256", "lin", "–", "128", ""]
    assert [cell.value for cell in child_ffn] == pytest.approx([1, 1, 0.55, 0.55, 0.2, 0, 0.32, 1])
    asked = architectures(search, "bbbb00000000")
    assert list(asked) == ["parent", "child", "uniform", "depth", "bbbb00000000"]


def test_labels_are_short() -> None:
    labels = ["attention:kv_heads=2", "attention:window=128,sinks=0", "ffn:width=256", "ffn:no_op", "ffn:parent"]
    assert [short(label) for label in labels] == ["kv 2", "w128", "256", "–", ""]


def test_losses_say_what_failed(search: Workspace) -> None:
    record = loss_record(records.read_losses(search))
    assert record.rows == (
        "attention:kv_heads=2",
        "attention:window=64",
        "ffn:width=256",
        "ffn:width=128",
        "ffn:linear",
    )
    assert record.breaks == (2,)
    failed = [
        (row, layer) for row, cells in enumerate(record.cells) for layer, cell in enumerate(cells) if cell.value is None
    ]
    assert failed == [(1, 2)]
    assert record.cells[1][2].text == "×"


def test_scores_show_single_replacements_only(search: Workspace) -> None:
    record = score_record(records.read_scores(search))
    assert len(record.rows) == 7  # three attention and four ffn alternatives; the joint row has no place here
    assert all(cell.value is not None for row in record.cells for cell in row)


def test_curves_end_at_their_tokens(search: Workspace) -> None:
    record = curves_record(records.read_recovery(search), 4_000_000)
    assert list(record.curves) == ["child", "uniform", "depth"]
    assert record.curves["child"][-1][0] == 4_000_000
    assert record.curves["child"][-1][1] == pytest.approx(0.08, rel=0.15)
    assert smoothed([1.0, 3.0, 5.0], 2) == [1.0, 2.0, 4.0]


def test_numbers_fit_their_cells() -> None:
    assert [short_number(v) for v in (0, 0.42, 0.013, 2e-4, 12.3, 1.0)] == ["0", "0.42", ".013", "2e-4", "12", "1.00"]


def test_an_empty_workspace_has_no_rows(tmp_path: object) -> None:
    place = Workspace(str(tmp_path))
    assert records.read_evaluation(place) is None
    assert records.read_pool(place) == []
    assert records.read_recovery(place) == []
    assert records.read_solution(place) is None
    assert records.read_stages(place) == []


def test_damaged_figures_name_the_file_and_what_is_missing(search: Workspace) -> None:
    values = search.read_json("evaluation.json")
    del values["child"]["perplexity"]
    with pytest.raises(InlayError, match=r"evaluation\.json is damaged \(no 'perplexity'\); delete it"):
        Evaluation.of(values)
    with pytest.raises(InlayError, match="has no parent or no child"):
        Evaluation.of({"child": search.read_json("evaluation.json")["child"]})


def test_sizes_that_are_further_off_than_promised_are_told(search: Workspace) -> None:
    raw = search.read_json("evaluation.json")
    raw["child"] |= {
        "predicted_file_bytes": 900,
        "file_bytes": 1000,
        "held_weights_bytes": raw["child"]["weights_bytes"],
        "predicted_memory_peak_bytes": 2048,
        "memory_peak_bytes": 1024,
        "kv_bytes": 512,
        "held_kv_bytes": None,
    }
    evaluation = records.Evaluation.of(raw)
    assert broken_promises(evaluation) == ["child: memory_peak takes 1 KiB, and 2 KiB were predicted (+100 %)"]
    lines = {line.name.strip(): line.values for line in evaluation_lines(evaluation)}
    assert lines["file"][1] == "1000 B"
    assert lines["peak memory"][1] == "1 KiB"
    plain = records.read_evaluation(search)
    assert plain is not None
    assert "peak memory" not in {line.name for line in evaluation_lines(plain)}
