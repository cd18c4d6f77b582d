"""Progress: plain lines at a sensible rate, a live display that fits 80 columns, and the end of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from inlay.cluster.cost import Cost
from inlay.cluster.events import PieceEvent
from inlay.nas.report.best import Best
from inlay.nas.report.live import LiveReporter
from inlay.nas.report.progress import Reporter
from inlay.nas.report.records import StageRow, work_columns
from inlay.nas.report.sentences import about, batch_words, counted, probe_words, read_costs, read_progress, search_words
from inlay.nas.report.summary import closing_lines, print_summary, stage_table
from inlay.nas.report.terminal import make_reporter
from inlay.nas.report.time_left import Standing
from inlay.nas.workspace import Workspace

STAGES = ("distill", "recover")
ESTIMATES = {"distill": 40.0, "recover": 60.0}


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def event(kind: str, done: int, left: float | None = None, label: str = "layer 3", note: str = "") -> PieceEvent:
    return PieceEvent(kind, label, "distill", done, 8, left, note=note)  # type: ignore[arg-type]


def drawn(reporter: LiveReporter, width: int) -> list[str]:
    """The lines of the live part as they are now."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as frame:
        console.print(reporter._draw())
    return frame.get().splitlines()


def test_plain_lines_say_what_is_done_and_how_far_the_search_is() -> None:
    clock, stream = Clock(), io.StringIO()
    with Reporter(stream, clock) as reporter:
        reporter.search_started(STAGES, ESTIMATES)
        reporter.stage_started("distill")
        reporter.part(1.0, 1)
        reporter.batch_started("training 64 variants", "layers")
        reporter.piece_event(event("kept", 0))
        reporter.piece_event(event("started", 0))
        for done in range(1, 9):
            clock.now += 5
            reporter.piece_event(event("finished", done, 40.0 - 5 * done))
        reporter.stage_finished("distill", 40.0, 300 * 2**20, "64 variants")
        reporter.stage_started("recover")
    assert stream.getvalue().splitlines() == [
        "distill    started · search 0 %, about 1 min 40 s left",
        "distill    training 64 variants, 2 of 8 layers · search 10 %, about 1 min 30 s left",
        "distill    training 64 variants, 4 of 8 layers · search 20 %, about 1 min 20 s left",
        "distill    training 64 variants, 6 of 8 layers · search 30 %, about 1 min 10 s left",
        "distill    training 64 variants, 8 of 8 layers · search 40 %, about 1 min left",
        "distill    40 s, 300 MiB, 64 variants",
        "recover    started · search 40 %, about 1 min left",
    ]


def test_without_estimates_the_stage_is_counted_and_no_time_is_told() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = Reporter(stream, clock)
    reporter.search_started(STAGES, {})
    reporter.stage_started("distill")
    reporter.batch_started("training 64 variants", "layers")
    clock.now = 30
    reporter.piece_event(event("finished", 4, 12.0))
    assert stream.getvalue().splitlines() == [
        "distill    started · search stage 1 of 2",
        "distill    training 64 variants, 4 of 8 layers · search stage 1 of 2",
    ]


def test_what_the_user_should_know_is_never_held_back() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = Reporter(stream, clock)
    reporter.stage_started("distill")
    reporter.batch_started("training 64 variants", "layers")
    reporter.piece_event(event("kept", 5, label=""))
    reporter.piece_event(event("retried", 5, note="its worker was killed (signal 9)"))
    reporter.found("best so far: true KL 0.36, runtime 0.58x, memory 0.77x")
    reporter.warning("MLflow does not answer")
    reporter.message("hello")
    reporter.piece_event(event("kept", 2, label=""))
    assert stream.getvalue().splitlines()[1:] == [
        "distill    training 64 variants: 5 of 8 layers are there already",
        "distill    layer 3 retried: its worker was killed (signal 9)",
        "distill    best so far: true KL 0.36, runtime 0.58x, memory 0.77x",
        "warning    MLflow does not answer",
        "hello",
    ]


def test_what_a_run_did_itself_is_not_said_to_be_there_already() -> None:
    stream = io.StringIO()
    reporter = Reporter(stream, Clock())
    reporter.stage_started("distill")
    reporter.piece_event(event("kept", 0))
    reporter.piece_event(event("finished", 8))
    reporter.piece_event(event("kept", 8))  # its records are collected
    reporter.stage_started("score")
    reporter.kept(5, 8, "layers")
    reporter.piece_event(event("kept", 8))
    assert [line for line in stream.getvalue().splitlines() if "already" in line] == [
        "score      5 of 8 layers are there already"
    ]


@pytest.mark.parametrize(
    ("what", "done", "total", "unit", "words"),
    [
        ("true KL of 4 candidates", 3, 8, "shards", "true KL of 4 candidates, 3 of 8 shards"),
        ("times of 1 candidate", 0, 1, "pieces", "times of 1 candidate"),
        ("probe 3 of 8", 0, 1, "models", "probe 3 of 8"),
        (
            "baseline depth: 5 of 6 layers dropped",
            1,
            2,
            "shards",
            "baseline depth: 5 of 6 layers dropped, 1 of 2 shards",
        ),
        ("", 5, 8, "pieces", "5 of 8 pieces"),
    ],
)
def test_a_batch_says_what_it_is_for(what: str, done: int, total: int, unit: str, words: str) -> None:
    assert batch_words(what, done, total, unit) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "about 5 s"),
        (41.0, "about 40 s"),
        (58.0, "about 1 min"),
        (103.0, "about 1 min 40 s"),
        (299.0, "about 5 min"),
        (1000.0, "about 17 min"),
        (7500.0, "about 2 h 5 min"),
    ],
)
def test_a_time_left_is_as_exact_as_an_estimate_is(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_things_are_counted_in_words() -> None:
    assert counted(1, "candidate") == "1 candidate"
    assert counted(4, "candidate") == "4 candidates"
    assert probe_words(3, 3, 8) == "probe 3 of 8"
    assert probe_words(3, 4, 8) == "probes 3 to 4 of 8"


def test_the_search_in_words() -> None:
    assert search_words(Standing(0.62, 100.0, 4, 7)) == "62 %, about 1 min 40 s left"
    assert search_words(Standing(0.62, None, 4, 7)) == "62 %"
    assert search_words(Standing(0.5, None, 4, 7, estimated=False)) == "stage 4 of 7"


@pytest.mark.parametrize(
    ("best", "sentence"),
    [
        (
            Best("predicted", 0.4123, 0.581, 0.774),
            "first architecture: predicted KL 0.412, runtime 0.58x, memory 0.77x",
        ),
        (Best("true", 0.36, 0.58, 0.77), "best so far: true KL 0.36, runtime 0.58x, memory 0.77x"),
        (Best("recovered", 0.0193, 0.6, 0.77), "best after a short recovery: KL 0.0193, runtime 0.60x, memory 0.77x"),
    ],
)
def test_the_best_architecture_in_words(best: Best, sentence: str) -> None:
    assert best.sentence() == sentence
    assert len(f"assemble   {sentence}") <= 80


def test_progress_is_read_back_from_a_log() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = Reporter(stream, clock)
    reporter.search_started(STAGES, ESTIMATES)
    reporter.stage_started("distill")
    assert read_progress(stream.getvalue()) == {
        "stage": "distill",
        "doing": "started",
        "done": None,
        "total": None,
        "percent": 0,
        "round": None,
        "time_left": "1 min 40 s",
        "line": "distill started · search 0 %, about 1 min 40 s left",
    }
    reporter.batch_started("true KL of 4 candidates", "shards")
    clock.now = 20
    reporter.piece_event(event("finished", 3))
    reporter.found("best so far: true KL 0.36, runtime 0.58x, memory 0.77x")
    reporter.warning("MLflow does not answer")
    reporter.stage_finished("distill", 32.0, 300 * 2**20, "64 variants")
    progress = read_progress(stream.getvalue())
    assert progress is not None
    assert (progress["doing"], progress["done"], progress["total"]) == ("true KL of 4 candidates", 3, 8)
    assert progress["line"].startswith("distill true KL of 4 candidates, 3 of 8 shards · search ")
    reporter.search_started(STAGES, ESTIMATES, of_this_device=False)
    reporter.stage_started("distill")
    progress = read_progress(stream.getvalue())
    assert progress is not None
    assert (progress["doing"], progress["percent"], progress["time_left"]) == ("started", 0, None)
    reporter.round_started(2, 3)
    reporter.search_started(STAGES, ESTIMATES)
    reporter.stage_started("distill")
    reporter.batch_started("training 8 variants", "layers")
    clock.now = 40
    reporter.piece_event(event("finished", 3))
    progress = read_progress(stream.getvalue())
    assert progress is not None
    assert (progress["round"], progress["doing"], progress["done"]) == ("round 2 of 3", "training 8 variants", 3)
    assert progress["line"].startswith("distill training 8 variants, 3 of 8 layers · round 2 of 3 · search ")
    reporter = Reporter(stream, clock)
    reporter.search_started(STAGES, {})
    reporter.stage_started("recover")
    assert (read_progress(stream.getvalue()) or {})["line"] == "recover started · search stage 1 of 2"
    reporter.piece_event(event("waiting", 3, label="", note="no node is free"))
    assert (read_progress(stream.getvalue()) or {})["doing"] == "waiting: no node is free"
    assert read_progress("hello\nwarning    MLflow does not answer\ndistill    32 s, 300 MiB, 64 variants") is None


def test_what_stages_cost_is_told_and_read_back_from_the_log() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = Reporter(stream, clock)
    reporter.search_started(STAGES, ESTIMATES)
    reporter.stage_started("distill")
    assert read_costs(stream.getvalue()) == {}
    reporter.spent(Cost(0.01234))
    clock.now = 20
    reporter.batch_started("training 64 variants", "layers")
    reporter.piece_event(event("finished", 3))
    line = stream.getvalue().splitlines()[-1]
    assert line.endswith(" left · distill 0.012 CPU h so far")
    assert (read_progress(stream.getvalue()) or {})["percent"] is not None
    assert read_costs(stream.getvalue()) == {"distill": Cost(0.012)}
    reporter.spent(Cost(1.5, 0.25))
    reporter.stage_finished("distill", 32.0, 300 * 2**20, "64 variants")
    assert stream.getvalue().splitlines()[-1] == "distill    32 s, 300 MiB, 1.5 CPU h, 0.25 GPU h, 64 variants"
    reporter.stage_started("recover")
    reporter.stage_finished("recover", 1.0)
    assert read_costs(stream.getvalue()) == {"distill": Cost(1.5, 0.25)}, "the last line of a stage tells"
    reporter.round_started(2, 3)
    reporter.stage_started("distill")
    reporter.spent(Cost(120.4, 2.0))
    reporter.stage_finished("distill", 32.0)
    assert read_costs(stream.getvalue()) == {"distill": Cost(121.5, 2.25)}, "rounds are added up"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_live_frames_fit_the_terminal_and_keep_their_height(width: int) -> None:
    clock, stream = Clock(), io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    reporter = LiveReporter(console, clock)
    heights = set()
    with reporter:
        reporter.search_started(STAGES, ESTIMATES)
        reporter.stage_started("distill")
        for done in range(8):
            reporter.batch_started("training 64 variants that have a long name", "layers")
            for number in range(4 * (done % 2)):
                reporter.piece_event(event("started", done, 4000.0, f"layer {number} with a long name"))
            lines = drawn(reporter, width)
            heights.add(len(lines))
            assert all(len(line.rstrip()) <= width for line in lines)
            clock.now += 1
    assert heights == {3}
    assert lines[0].split()[0] == "search"
    assert "distill" in lines[1]
    assert lines[2].startswith("  now: layer 0")


def test_a_live_frame_has_a_line_for_the_search_and_one_for_its_stage() -> None:
    clock = Clock()
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with LiveReporter(console, clock) as reporter:
        reporter.search_started(STAGES, ESTIMATES)
        reporter.stage_started("distill")
        reporter.part(1.0, 1)
        reporter.batch_started("true KL of 4 candidates", "shards")
        reporter.piece_event(event("kept", 0))
        reporter.piece_event(event("started", 0))
        clock.now = 20
        reporter.piece_event(event("finished", 4))
        search, stage = (line.rstrip() for line in drawn(reporter, 80)[:2])
    assert search.endswith(" 20 %, about 1 min 20 s left")
    assert stage.split("  ")[-1].strip() == "true KL of 4 candidates, 4 of 8 shards"


def test_live_leaves_a_line_for_each_stage_and_each_architecture() -> None:
    stream = io.StringIO()
    with LiveReporter(Console(file=stream, width=80, force_terminal=True, color_system=None), Clock()) as reporter:
        reporter.stage_started("measure")
        reporter.found("first architecture: predicted KL 0.41, runtime 0.58x, memory 0.77x")
        reporter.stage_finished("measure", 21.4, None, "24 variants")
        reporter.warning("look at this")
    assert "• first architecture: predicted KL 0.41, runtime 0.58x, memory 0.77x" in stream.getvalue()
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
    stream = io.StringIO()
    rows = [StageRow("distill", 10.0, 2**30, 8, 1.25), StageRow("score", 20.0, cpu_hours=0.0055)]
    Console(file=stream, width=80).print(stage_table(rows))
    title, *_, score, total = (line.split() for line in stream.getvalue().splitlines())
    assert title[-2:] == ["CPU", "hours"], "no GPU was held"
    assert (score[-1], total[-1]) == ("0.0055", "1.3")


def test_a_stage_stands_beside_its_plan() -> None:
    rows = [StageRow("distill", 10.0, planned_seconds=9.0, operations=2e12, read_bytes=2**31), StageRow("score", 20.0)]
    columns = work_columns(rows)
    assert columns["planned"] == (["~9 s", ""], "~9 s")
    assert columns["FLOPs"] == (["2 T", ""], "2 T")
    assert columns["weights read"] == (["2 GiB", ""], "2 GiB")
    stream = io.StringIO()
    Console(file=stream, width=80).print(stage_table(rows))
    assert stream.getvalue().splitlines()[1].split() == ["distill", "10", "s", "~9", "s"]
