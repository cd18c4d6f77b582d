"""report.html: one page that needs nothing else, with the figures, the pictures, the stages and the job of a search."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from inlay.nas.errors import InlayError, UserError
from inlay.nas.quantities import show_bytes, show_count, show_seconds
from inlay.nas.report.drawing import png_of, svg_of
from inlay.nas.report.figures import PRESET_COLUMNS, evaluation_lines, preset_lines
from inlay.nas.report.further import sensitivity_lines, task_lines
from inlay.nas.report.pictures import all_pictures
from inlay.nas.report.promises import broken_promises
from inlay.nas.report.prompts import prompts_html
from inlay.nas.report.records import Evaluation, StageRow, cost_columns, read_evaluation, read_solution, stages_of
from inlay.nas.report.sentences import counted, round_words
from inlay.nas.report.style import CAPTIONS, PAGE, SENSITIVITY, TASKS
from inlay.nas.report.summary import failed_sentence
from inlay.nas.workspace import Workspace


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
    page = page_of(workspace, {name: svg_of(figure) for name, figure in pictures.items()})
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        written = [folder / "report.html"]
        written[0].write_text(page, encoding="utf-8")
        for name, figure in pictures.items():
            written.append(folder / "pictures" / f"{name}.png")
            written[-1].write_bytes(png_of(figure))
    except OSError as error:
        raise InlayError(f"the report cannot be written to {folder}: {error.strerror}; give another --output") from None
    return written


def page_of(workspace: Workspace, pictures: Mapping[str, bytes]) -> str:
    """The page's HTML; `pictures` are SVG by name."""
    run = workspace.find_json("run.json") or {}
    evaluation = read_evaluation(workspace)
    job = run.get("job") or {}
    title = f"{_parent_name(job)} under {_budget(job)}" if job else workspace.url
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class=where>{html.escape(workspace.url)}</p>",
        *_rounds(workspace),
        *(_cards(evaluation) if evaluation else ["<p>This search is not finished: figures come with its end.</p>"]),
        *([*_figures(evaluation), *_presets(evaluation), *_further(evaluation)] if evaluation else []),
        *(_picture(name, svg) for name, svg in pictures.items()),
        *(prompts_html(evaluation) if evaluation else []),
        *_stages(stages_of(run), run.get("failed_variants") or []),
        *([f"<h2>Job</h2><pre>{html.escape(_job_text(job))}</pre>"] if job else []),
    ]
    return PAGE.replace("{title}", html.escape(f"inlay: {title}")).replace("{body}", "\n".join(body))


def _rounds(workspace: Workspace) -> Iterator[str]:
    """Which round this search is, and what those before it came to; nothing of a search that is none of several."""
    if (own := workspace.own_round()) is None:
        return
    relative = ": its parent is the child of the one before, and figures are relative to the parent of the first"
    yield f"<p class=note>This is {round_words(own.number, own.of)}{relative if own.number > 1 else ''}.</p>"
    head = "".join(f"<th>{name}</th>" for name in ("round", "budget", "KL to parent, nats", "runtime", "parameters"))
    rows = _rows(
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
    yield f"<table><tr>{head}</tr>{rows}</table>"


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
    head = "".join(f"<th>{html.escape(model.name)}</th>" for model in evaluation.models)
    rows = _rows((line.name, *line.values) for line in evaluation_lines(evaluation))
    scenario = f" Times are those of the scenario {html.escape(evaluation.scenario)}." if evaluation.scenario else ""
    yield f"<h2>Figures</h2><table><tr><th></th>{head}</tr>{rows}</table>"
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
        head = "".join(f"<th>{html.escape(name)}</th>" for name in PRESET_COLUMNS)
        rows = _rows((line.name, *line.values) for line in lines)
        yield f"<h2>llama.cpp's presets</h2><table><tr><th></th>{head}</tr>{rows}</table>"


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
            names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
            yield f"<h2>{title}</h2><table><tr>{names}</tr>{_rows(lines)}</table><p class=caption>{caption}</p>"


def _picture(name: str, svg: bytes) -> str:
    data = base64.b64encode(svg).decode()
    title, caption = CAPTIONS.get(name, (name, ""))
    return (
        f"<h2>{html.escape(title)}</h2>"
        f'<img alt="{html.escape(title)}" src="data:image/svg+xml;base64,{data}">'
        f"<p class=caption>{html.escape(caption)}</p>"
    )


def _stages(stages: list[StageRow], failed: list[Mapping[str, Any]]) -> Iterator[str]:
    if not stages:
        return
    costs = cost_columns(stages)
    rows = _rows(
        (
            stage.name,
            show_seconds(stage.seconds),
            stage.pieces or "",
            show_bytes(stage.peak_bytes) if stage.peak_bytes else "",
            *(each[number] for each, _ in costs.values()),
        )
        for number, stage in enumerate(stages)
    )
    total = _rows(
        [("total", show_seconds(sum(s.seconds for s in stages)), "", "", *(all for _, all in costs.values()))]
    )
    titles = "".join(f"<th>{title}</th>" for title in ("stage", "time", "pieces", "peak memory", *costs))
    yield f"<h2>Stages</h2><table><tr>{titles}</tr>{rows}{total}</table>"
    if failed:
        yield f"<p class=note>{html.escape(failed_sentence(failed))}</p>"


def _rows(rows: Iterable[Iterable[object]]) -> str:
    cells = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    return "".join(f"<tr>{row}</tr>" for row in cells)


def _parent_name(job: Mapping[str, Any]) -> str:
    parent = str(job.get("original") or job["parent"])
    return PurePath(parent).name if parent.startswith((".", "/", "~")) else parent


def _budget(job: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in (job.get("budget") or {}).items())


def _job_text(job: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(json.loads(json.dumps(job)), sort_keys=False, default_flow_style=None, width=100))
