"""report.html: one page that needs nothing else, with the figures, the pictures, the stages and the job of a search."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from inlay.nas.errors import InlayError, UserError
from inlay.nas.quantities import show_bytes, show_count, show_seconds
from inlay.nas.report.architecture import shares_of
from inlay.nas.report.drawing import png_of, svg_of
from inlay.nas.report.figures import PRESET_COLUMNS, evaluation_lines, preset_lines
from inlay.nas.report.further import sensitivity_lines, task_lines
from inlay.nas.report.pareto import ParetoRecord
from inlay.nas.report.pictures import Picture, all_pictures, architectures
from inlay.nas.report.promises import broken_promises
from inlay.nas.report.prompts import prompts_html
from inlay.nas.report.records import (
    Evaluation,
    StageRow,
    read_evaluation,
    read_losses,
    read_pool,
    read_rows,
    read_scores,
    read_solution,
    stages_of,
    work_columns,
)
from inlay.nas.report.rows import blocks_html, candidates_html, table
from inlay.nas.report.sentences import counted, round_words
from inlay.nas.report.style import CAPTIONS, SENSITIVITY, TASKS, framed
from inlay.nas.report.summary import failed_sentence
from inlay.nas.workspace import Workspace

Chart = tuple[str, Picture]
"""The place of a picture's chart in the page, by its name."""
MOST_BYTES = 2_950_000
"""Of a page, its frame not counted: charts for which there is no room stay pictures."""


def write_report(workspace: Workspace, output: Path | None = None, solution: str | None = None) -> list[Path]:
    """Writes report.html and pictures/*.png.

    Args:
        workspace: a search, finished or not: what is there is shown.
        output: folder to write to; by default the workspace's own.
        solution: id of a stored solution whose architecture is drawn beside the others.

    Returns:
        The files, the page first.

    Raises:
        UserError: there is no such solution, nothing to show yet, or no local folder to write to.
    """
    folder = output or workspace.folder
    if folder is None:
        raise UserError(f"{workspace.url} is not a local folder; give --output for the report")
    if solution is not None and read_solution(workspace, solution) is None:
        raise UserError(f"--solution: {solution} is not in {workspace.url}; `inlay compare {workspace.url}` lists them")
    pictures = dict(all_pictures(workspace, solution))
    if not pictures:
        raise UserError(f"{workspace.url} has nothing to show yet; run its job until the first tables are there")
    page = page_of(workspace, pictures)
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        written = [folder / "report.html"]
        written[0].write_text(page, encoding="utf-8")
        for name, picture in pictures.items():
            written.append(folder / "pictures" / f"{name}.png")
            written[-1].write_bytes(png_of(picture.figure))
    except OSError as error:
        raise InlayError(f"the report cannot be written to {folder}: {error.strerror}; give another --output") from None
    return written


def page_of(workspace: Workspace, pictures: Mapping[str, Picture]) -> str:
    """The page's HTML, below 3 MB."""
    run = workspace.find_json("run.json") or {}
    evaluation = read_evaluation(workspace)
    job = run.get("job") or {}
    title = f"{_parent_name(job)} under {_budget(job)}" if job else workspace.url
    body: list[str | Chart] = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class=where>{html.escape(workspace.url)}</p>",
        *_rounds(workspace),
        *(_cards(evaluation) if evaluation else ["<p>This search is not finished: figures come with its end.</p>"]),
        *([*_figures(evaluation), *_presets(evaluation), *_further(evaluation)] if evaluation else []),
        *_drawn(workspace, pictures),
        *_blocks(workspace, pictures),
        *(prompts_html(evaluation) if evaluation else []),
        *_stages(stages_of(run), run.get("failed_variants") or []),
        *([f"<h2>Job</h2><pre>{html.escape(_job_text(job))}</pre>"] if job else []),
    ]
    return framed(f"inlay: {title}", *_filled(body))


def _rounds(workspace: Workspace) -> Iterator[str]:
    """Which round this search is, and what those before it came to; nothing of a search that is none of several."""
    if (own := workspace.own_round()) is None:
        return
    relative = ": its parent is the child of the one before, and figures are relative to the parent of the first"
    yield f"<p class=note>This is {round_words(own.number, own.of)}{relative if own.number > 1 else ''}.</p>"
    rows = (
        (
            str(each["round"]),
            _budget(each),
            *(
                (f"{each['kl_nats']:.4f}", f"{each['runtime_ratio']:.3f}x", show_count(each["parameters"]))
                if "kl_nats" in each
                else ("under way", "", "")
            ),
        )
        for each in own.known
    )
    yield table(("round", "budget", "KL to parent, nats", "runtime", "parameters"), rows)


def _cards(evaluation: Evaluation) -> Iterator[str]:
    parent, child = evaluation.parent, evaluation.model(evaluation.chosen) or evaluation.child
    source = "by the given cost table" if evaluation.times_given else "measured"
    cards = [
        (f"{parent.runtime_seconds / child.runtime_seconds:.2f}x", f"as fast as the parent, {source}"),
        (f"{child.kl_nats:.3g}", "nats per token from the parent (KL)"),
        (f"{100 * child.top1_agreement:.1f} %", "same first choice as the parent"),
        (f"{child.parameters / parent.parameters:.2f}x", f"parameters ({show_count(child.parameters)})"),
        (f"{child.weights_bytes / parent.weights_bytes:.2f}x", f"weights ({show_bytes(child.weights_bytes)})"),
    ]
    inner = "".join(f"<div><b>{html.escape(big)}</b><span>{html.escape(small)}</span></div>" for big, small in cards)
    yield f"<div class=cards>{inner}</div>"
    if evaluation.chosen != "child":
        name = html.escape(evaluation.chosen)
        yield f"<p class=note>The baseline <b>{name}</b> ended better, and is what you got.</p>"


def _figures(evaluation: Evaluation) -> Iterator[str]:
    rows = ((line.name, *line.values) for line in evaluation_lines(evaluation))
    scenario = f" Times are those of the scenario {html.escape(evaluation.scenario)}." if evaluation.scenario else ""
    yield f"<h2>Figures</h2>{table(('', *(model.name for model in evaluation.models)), rows)}"
    for sentence in broken_promises(evaluation):
        yield f"<p class=note>{html.escape(sentence)}</p>"
    yield f"<p class=caption>{html.escape(_judged_on(evaluation))}{scenario}</p>"


def _judged_on(evaluation: Evaluation) -> str:
    text = evaluation.raw.get("report_text")
    judged = "" if text is None else f" ({text['tokens']:,} tokens in {counted(text['documents'], 'document')})"
    return (
        f"Quality is on text that nothing has seen{judged}; ± is the 95 % interval by its documents. Baselines had the "
        "same recovery."
    )


def _presets(evaluation: Evaluation) -> Iterator[str]:
    """llama.cpp's own presets of the parent, where there are any."""
    if lines := preset_lines(evaluation):
        rows = ((line.name, *line.values) for line in lines)
        yield f"<h2>llama.cpp's presets</h2>{table(('', *PRESET_COLUMNS), rows)}"


def _further(evaluation: Evaluation) -> Iterator[str]:
    """What was asked for later."""
    for (head, *lines), title, caption in (
        (
            task_lines(evaluation) or [()],
            "Tasks",
            TASKS,
        ),
        (sensitivity_lines(evaluation) or [()], "Prompt sensitivity", SENSITIVITY),
    ):
        if head:
            yield f"<h2>{title}</h2>{table(head, lines)}<p class=caption>{caption}</p>"


def _drawn(workspace: Workspace, pictures: Mapping[str, Picture]) -> Iterator[str | Chart]:
    """Each picture with the place of its chart, which takes over where JavaScript runs, and its caption; below the
    front, what was tried."""
    for name, picture in pictures.items():
        title, caption = (html.escape(text) for text in CAPTIONS[name])
        image = base64.b64encode(svg_of(picture.figure)).decode()
        yield f'<h2>{title}</h2><div class=chart><img alt="{title}" src="data:image/svg+xml;base64,{image}">'
        yield name, picture
        yield f"</div><p class=caption>{caption}</p>"
        if isinstance(picture.record, ParetoRecord):
            yield from candidates_html(read_pool(workspace), picture.record)


def _filled(body: Sequence[str | Chart]) -> tuple[str, str]:
    """The body with the charts that there is room for, and the library that they need."""
    charts = [part for part in body if not isinstance(part, str)]
    if not charts:
        return "\n".join(part for part in body if isinstance(part, str)), ""
    # Bokeh takes a second to import: not before there is something to draw.
    from inlay.nas.report.charts import LIBRARY, chart_data, chart_of

    room = MOST_BYTES - len(LIBRARY.encode()) - sum(len(part.encode()) for part in body if isinstance(part, str))
    parts = []
    for part in body:
        if isinstance(part, str):
            parts.append(part)
            continue
        name, picture = part
        data = chart_data(chart_of(picture.record))
        if len(data) < room:
            room -= len(data)
            parts.append(f'<div id="chart-{name}"></div><script type="application/json">{data}</script>')
    return "\n".join(parts), LIBRARY


def _blocks(workspace: Workspace, pictures: Mapping[str, Picture]) -> Iterator[str]:
    """Every variant at every layer, as soon as one was trained or scored."""
    losses, scores = read_losses(workspace), read_scores(workspace)
    if pictures and (losses or scores):
        models, evaluation = architectures(workspace), read_evaluation(workspace)
        child = models.get(evaluation.chosen if evaluation else "child", ())
        yield from blocks_html(losses, scores, shares_of(read_rows(workspace, "costs")), child)


def _stages(stages: list[StageRow], failed: list[Mapping[str, Any]]) -> Iterator[str]:
    if not stages:
        return
    costs = work_columns(stages)
    rows = [
        (
            stage.name,
            show_seconds(stage.seconds),
            stage.pieces or "",
            show_bytes(stage.peak_bytes) if stage.peak_bytes else "",
            *(each[number] for each, _ in costs.values()),
        )
        for number, stage in enumerate(stages)
    ]
    rows.append(
        ("total", show_seconds(sum(s.seconds for s in stages)), "", "", *(whole for _, whole in costs.values()))
    )
    yield f"<h2>Stages</h2>{table(('stage', 'time', 'pieces', 'peak memory', *costs), rows)}"
    if failed:
        yield f"<p class=note>{html.escape(failed_sentence(failed))}</p>"


def _parent_name(job: Mapping[str, Any]) -> str:
    parent = str(job.get("original") or job["parent"])
    return PurePath(parent).name if parent.startswith((".", "/", "~")) else parent


def _budget(job: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in (job.get("budget") or {}).items())


def _job_text(job: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(json.loads(json.dumps(job)), sort_keys=False, default_flow_style=None, width=100))
