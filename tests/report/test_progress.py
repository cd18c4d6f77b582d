"""Progress: plain lines at a sensible rate, a live display that fits 80 columns, and the end of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from inlay.cluster.events import PieceEvent
from inlay.nas.report.live import LiveReporter
from inlay.nas.report.progress import Reporter, make_reporter
from inlay.nas.report.records import StageRow
from inlay.nas.report.summary import closing_lines, print_summary, stage_table
from inlay.nas.workspace import Workspace


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def event(kind: str, done: int, left: float | None = None, label: str = "layer 3", note: str = "") -> PieceEvent:
    return PieceEvent(kind, label, "distill", done, 8, left, note=note)  # type: ignore[arg-type]


def test_plain_lines_come_at_a_sensible_rate() -> None:
    clock, stream = Clock(), io.StringIO()
    with Reporter(stream, clock) as reporter:
        reporter.stage_started("distill", 8)
        for done in range(1, 8):
            clock.now += 4
            reporter.piece_event(event("finished", done, 40.0 - 5 * done))
        reporter.piece_event(event("finished", 8))
        reporter.stage_finished("distill", 32.0, 300 * 2**20, "64 variants")
    assert stream.getvalue().splitlines() == [
        "distill    started, 8 pieces",
        "distill    3 of 8 pieces, 25 s left",
        "distill    6 of 8 pieces, 10 s left",
        "distill    32 s, 300 MiB, 64 variants",
    ]


def test_what_the_user_should_know_is_never_held_back() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = Reporter(stream, clock)
    reporter.stage_started("distill")
    reporter.piece_event(event("kept", 5, label=""))
    reporter.piece_event(event("retried", 5, note="its worker was killed (signal 9)"))
    reporter.warning("MLflow does not answer")
    reporter.message("hello")
    assert stream.getvalue().splitlines()[1:] == [
        "distill    5 of 8 pieces are there already",
        "distill    layer 3 retried: its worker was killed (signal 9)",
        "warning    MLflow does not answer",
        "hello",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_live_frames_fit_the_terminal(width: int) -> None:
    clock, stream = Clock(), io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    reporter = LiveReporter(console, clock)
    with reporter:
        reporter.stage_started("distill")
        for done in range(8):
            for number in range(4):
                reporter.piece_event(event("started", done, 4000.0, f"layer {number} with a long name"))
            reporter.piece_event(event("finished", done + 1, 3000.0, f"layer {done}"))
        with console.capture() as frame:
            console.print(reporter._draw())
    lines = frame.get().splitlines()
    assert "distill" in lines[0]
    assert "8/8" in lines[0]
    assert any(line.startswith("  now: ") for line in lines)
    assert all(len(line.rstrip()) <= width for line in lines)


def test_live_leaves_a_line_for_each_stage() -> None:
    stream = io.StringIO()
    with LiveReporter(Console(file=stream, width=80, force_terminal=True, color_system=None), Clock()) as reporter:
        reporter.stage_started("measure")
        reporter.stage_finished("measure", 21.4, None, "24 variants")
        reporter.warning("look at this")
    assert "✓ measure   21.4 s, 24 variants" in stream.getvalue()
    assert "! look at this" in stream.getvalue()


def test_no_terminal_means_plain_lines() -> None:
    assert type(make_reporter(io.StringIO())) is Reporter


def test_summary_has_figures_stages_and_what_failed_last(search: Workspace) -> None:
    stream = io.StringIO()
    result = {
        "workspace": search.url,
        "evaluation": search.read_json("evaluation.json"),
        "run": search.read_json("run.json"),
        "already_done": False,
    }
    print_summary(result, Console(file=stream, width=80))
    lines = stream.getvalue().rstrip().splitlines()
    assert any(line.startswith("speed-up") and "1.72x" in line for line in lines)
    assert any(line.startswith("total") and "5 min 48 s" in line for line in lines)
    assert lines[-1].startswith("1 variant failed and was not offered: layer 2 ffn:width=128: the loss was not finite")
    table = [line for line in lines if line and not line.startswith(("child", "pictures", "mlflow", "1 variant"))]
    assert all(len(line) <= 80 for line in table)


def test_a_run_with_nothing_to_do_says_so(search: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(
        {
            "workspace": search.url,
            "evaluation": search.read_json("evaluation.json"),
            "run": search.read_json("run.json"),
            "already_done": True,
        }
    )
    assert capsys.readouterr().out.startswith("nothing to do: ")


def test_a_better_baseline_is_told(search: Workspace) -> None:
    result = {
        "workspace": "/w",
        "evaluation": {"chosen": "uniform"},
        "run": {"failed_variants": [{"layer": 1, "variant": "ffn:linear", "reason": "nan"}] * 3},
    }
    lines = closing_lines(result)
    assert lines[0].startswith("the baseline `uniform` ended better")
    assert lines[-1] == "3 variants failed and were not offered: layer 1 ffn:linear: nan (and 2 more)"


def test_stage_table_adds_up() -> None:
    stream = io.StringIO()
    rows = [StageRow("distill", 10.0, 2**30, 8), StageRow("score", 20.0)]
    Console(file=stream, width=80).print(stage_table(rows))
    assert stream.getvalue().splitlines()[-1].split() == ["total", "30", "s", "1", "GiB"]
