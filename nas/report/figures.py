"""The figures of a search as a table: for a terminal of 80 columns, and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from inlay.nas.quantities import show_bytes, show_count, show_seconds
from inlay.nas.report.further import sensitivity_lines, task_lines
from inlay.nas.report.records import Evaluation, Figures, Interval

SHOWN = 0.01
"""Standard error of a ratio, relative to it, above which it is shown."""


LONGEST_NAME = 16
"""Characters of a source's name that are shown, from its end."""


@dataclass(frozen=True)
class Line:
    """One line of the table: a figure's name, and its text for each model."""

    name: str
    values: tuple[str, ...]


def evaluation_lines(evaluation: Evaluation) -> list[Line]:
    """What the table shows, top to bottom; ratios are to the parent."""
    parent, models = evaluation.parent, evaluation.models

    def line(name: str, show: Callable[[Figures], str]) -> Line:
        return Line(name, tuple(show(model) for model in models))

    lines = [
        line("KL to parent, nats", lambda m: _kl(m.kl_nats) + _reach(m.kl_nats, m.kl)),
        line("  before recovery", lambda m: "" if m.before_kl_nats is None else _kl(m.before_kl_nats)),
        line("same first choice", _agreement),
        line("perplexity", lambda m: f"{m.perplexity:.3g}"),
        line("  over the parent's", lambda m: _perplexity_ratio(m, parent)),
        *(each for name in parent.sources for each in _of_source(name, models)),
        line("parameters", lambda m: _ratio(show_count(m.parameters), m.parameters, parent.parameters)),
        line("weights", lambda m: show_bytes(m.weights_bytes)),
        line("  file", lambda m: _size(m.sizes.get("file"))),
        line("KV cache a token", lambda m: show_bytes(m.kv_bytes_per_token)),
        line("  stored in", lambda m: m.kv_format or ""),
        line("peak memory", lambda m: _size(m.sizes.get("memory_peak"))),
        line("prefill, tokens/s", lambda m: f"{m.prefill_tokens_per_second:,.0f}"),
        line("decode, tokens/s", lambda m: f"{m.decode_tokens_per_second:,.0f}"),
        line("runtime", lambda m: show_seconds(m.runtime_seconds)),
        line("speed-up", lambda m: _speed_up(parent.runtime_seconds / m.runtime_seconds, m)),
        line("  predicted", lambda m: f"{1 / m.ratios['runtime'][0]:.2f}x" if m.ratios else ""),
        line("over budget", _over_budget),
    ]
    return [each for each in lines if any(each.values)]


def evaluation_table(evaluation: Evaluation) -> Table:
    """The table for a terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for model in evaluation.models:
        table.add_column(model.name, justify="right", style="bold green" if model.name == "child" else "")
    for line in evaluation_lines(evaluation):
        table.add_row(line.name, *line.values)
    return table


def preset_lines(evaluation: Evaluation) -> list[Line]:
    """llama.cpp's presets of the parent, one a line, below what was chosen."""
    chosen = evaluation.model(evaluation.chosen) or evaluation.child
    lines = [Line(chosen.name, (_kl(chosen.kl_nats), show_bytes(chosen.weights_bytes), _runtime(chosen.runtime_ratio)))]
    for own in evaluation.presets:
        figures = (_kl(own.kl_nats), show_bytes(own.weights_bytes), _runtime(own.runtime_ratio))
        lines.append(Line(own.name, figures))
    return lines if evaluation.presets else []


PRESET_COLUMNS = ("KL, nats", "weights", "runtime")


def preset_table(evaluation: Evaluation) -> Table | None:
    """The same for a terminal; None where there are none."""
    if not evaluation.presets:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("llama.cpp's preset", no_wrap=True)
    for name in PRESET_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for line in preset_lines(evaluation):
        table.add_row(line.name, *line.values)
    return table


def _runtime(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def evaluation_markdown(evaluation: Evaluation) -> str:
    """The table in Markdown, and below it those of what was asked for later."""
    head = ["", *(model.name for model in evaluation.models)]
    rows = [[line.name.replace("  ", "&nbsp;&nbsp;"), *line.values] for line in evaluation_lines(evaluation)]
    later = (task_lines(evaluation), sensitivity_lines(evaluation))
    return "\n\n".join([_markdown([head, *rows]), *(_markdown(lines) for lines in later if lines)])


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head."""
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [lines[0], rule, *lines[1:]])


def _kl(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}" if value >= 0.01 else f"{value:.2e}"


def _of_source(name: str, models: Sequence[Figures]) -> Iterator[Line]:
    shown = name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
    known = [model.sources.get(name) for model in models]
    yield Line(
        f"KL, {shown}", tuple("" if own is None else _kl(own.kl_nats) + _reach(own.kl_nats, own.kl) for own in known)
    )
    yield Line(f"perplexity, {shown}", tuple("" if own is None else f"{own.perplexity:.3g}" for own in known))


def _reach(value: float, interval: Interval | None) -> str:
    """` ± 0.012`: how far the interval's farther end is."""
    if interval is None or interval == (value, value):
        return ""
    return f" ± {max(value - interval[0], interval[1] - value):.2g}"


def _agreement(model: Figures) -> str:
    value = 100 * model.top1_agreement
    interval = None if model.agreement is None else (100 * model.agreement[0], 100 * model.agreement[1])
    return f"{value:.1f}{_reach(value, interval)} %"


def _perplexity_ratio(model: Figures, parent: Figures) -> str:
    if model.perplexity_ratio is None or model.name == parent.name:
        return ""
    ratio = model.perplexity / parent.perplexity
    return f"{ratio:.3g}x{_reach(ratio, model.perplexity_ratio)}"


def _ratio(text: str, value: float, of: float) -> str:
    return text if value == of or not of else f"{text} ({value / of:.2f}x)"


def _size(size: tuple[int | None, int | None] | None) -> str:
    """As found, else as predicted."""
    own, found = size or (None, None)
    known = own if found is None else found
    return "" if known is None else show_bytes(known)


def _speed_up(value: float, model: Figures) -> str:
    """With its standard error where other work on the machine made the times scatter."""
    ratio, error = model.runtime_ratio, model.runtime_ratio_error
    if ratio is None or error is None or error <= SHOWN * ratio:
        return f"{value:.2f}x"
    return f"{value:.2f}x ± {value * error / ratio:.2f}"


def _over_budget(model: Figures) -> str:
    if model.name == "parent":
        return ""
    worst = max(model.over_budget.values(), default=1.0)
    return f"by {100 * (worst - 1):.0f} %" if worst > 1 else "no"
