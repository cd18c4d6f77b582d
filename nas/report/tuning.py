"""What came of `inlay tune`, on a terminal: the best trials, what decides, and what was gained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from inlay.nas.report.sentences import counted

TUNED_FROM = "Tuned from"
SHOWN = 4
"""Trials in the table, the job's own settings not counted."""


def trials_table(told: Mapping[str, Any]) -> Table:
    """The best trials that came to their end, a column each, and the job's own settings behind them."""
    complete = sorted((row for row in told["trials"] if row["end"] == "complete"), key=lambda row: row["kl_nats"])
    shown = [row for row in complete if not row["is_job"]][:SHOWN]
    shown += [row for row in complete if row["is_job"]][:1]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("trial", no_wrap=True)
    for row in shown:
        table.add_column("the job" if row["is_job"] else str(row["number"]), justify="right", no_wrap=True)
    table.add_row("KL", *(f"{row['kl_nats']:.4f}" for row in shown), style="bold")
    for name in told["best"]["settings"]:
        table.add_row(name, *(_short(row["settings"][name]) for row in shown))
    return table


def closing(told: Mapping[str, Any]) -> list[str]:
    """How the trials ended, what decides, what was gained, and where it stands; a sentence a line."""
    counts, left = told["counts"], []
    for name, words in (("pruned", "stopped early"), ("diverged", "diverged"), ("failed", "failed")):
        if counts[name]:
            left.append(f"{counts[name]} {words}")
    lines = [
        f"{counted(sum(counts.values()), 'trial')}, {counts['complete']} to the end" + "".join(f", {x}" for x in left)
    ]
    if told["importance"]:
        parts = [f"{name} {100 * share:.0f} %" for name, share in list(told["importance"].items())[:4]]
        lines.append(f"what decides: {', '.join(parts)}")
    lines.append(verdict(told))
    if told["output"]:
        lines.append(f"tuned job  {told['output']}")
    lines.append(f"study      {told['study']} in {told['storage']}")
    return lines


def verdict(told: Mapping[str, Any]) -> str:
    """What was gained, or that there is nothing to gain."""
    compared = told["compared"]
    if compared is None:
        return "nothing to gain: no trial was better than the job's own settings"
    own, tuned = (_mean(compared[f"{name}_kl_nats"]) for name in ("job", "tuned"))
    change = f"KL {own:.4f} with the job's settings, {tuned:.4f} with the best ones"
    seeds = f"{len(compared['seeds'])} seeds, on the score text"
    if not compared["is_better"]:
        return f"nothing to gain: {change} ({seeds}), which is no more than noise"
    return f"{change}: {100 * compared['gain_ratio']:.3g} % less ({seeds})"


def header(told: Mapping[str, Any], source: str, own: Mapping[str, Any]) -> str:
    """The comment on top of a tuned job file."""
    best, compared = told["best"]["settings"], told["compared"]
    tokens = " and ".join(f"{number:,} of {what}" for what, number in told["tokens"].items() if number)
    changed = [f"{name} {_short(own[name])} -> {_short(best[name])}" for name in best if best[name] != own[name]]
    error = compared["standard_error"]
    lines = [
        f"{TUNED_FROM} {source} by `inlay tune`, {counted(sum(told['counts'].values()), 'trial')} ({told['metric']}):",
        f"{verdict(told)}, +- {error:.4f};",
        f"{tokens} tokens each.",
        *(f"  {line}" for line in changed),
    ]
    return "".join(f"# {line}\n" for line in lines)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
