"""What `inlay tune` is worth: KL with a job's own settings against the best ones that a study found, at equal tokens.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/tune.py [--parent demo stories260K] [--trials 20]

Both are trained by three seeds that no trial had, and judged on text that judged no trial. A study that was stopped
goes on. `demo` is the search of `make demo`, whose parent and text ship with inlay; it needs neither variable.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer
from searches import job_of, split_text

from inlay.nas.cli.init import DEMO
from inlay.nas.job import Job
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.tuning.tune import tune_job

BUDGET = {"parameters": "0.7x"}
PROMISED = 0.10
"""The share of the KL that tuning takes from the demo, unless it says that there is nothing to gain."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=["demo", "stories260K"])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("tune.search"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tune.md")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    folder = options.folder.absolute()
    os.environ["INLAY_MEASURED"] = str(folder / "measured")
    results = folder / "results.json"
    rows: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for parent in options.parent:
        file = folder / f"{parent}.yaml"
        file.write_text(yaml.safe_dump(values_of(parent, folder)))
        started = time.monotonic()
        told = tune_job(
            Job.load(file),
            None,
            Reporter(),
            trials=options.trials,
            timeout=None,
            metric="kl",
            storage=None,
            output=folder / f"{parent}.tuned.yaml",
        )
        seconds = time.monotonic() - started + rows.get(parent, {}).get("seconds", 0.0)
        rows[parent] = {**told, "seconds": seconds}
        results.write_text(json.dumps(rows))
        options.output.write_text(page(rows))


def values_of(parent: str, folder: Path) -> dict[str, Any]:
    """The job whose settings are tuned."""
    if parent == "demo":
        tracking = {"experiment": "tune", "uri": f"sqlite:///{folder / 'mlflow.db'}"}
        return {**DEMO, "tracking": tracking, "cluster": {"max_workers": 2}}
    split_text(folder)
    return job_of(parent, BUDGET, 0, folder).to_dict()


def page(rows: dict[str, Any]) -> str:
    """The results as Markdown: what was gained, then the settings and what decides."""
    lines = [
        "# What tuning is worth",
        "",
        "KL to the parent on the score text, nats a token, after local distillation and recovery of one child, for",
        "equal tokens: the mean of three seeds that no trial had, and in brackets the worst. The error is the gain's",
        "standard error over the seeds; `better` says whether the gain is more than noise.",
        "",
        "| parent | trials (stopped early, diverged, failed) | tokens | job's | best | gain | error | better | time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for parent, told in rows.items():
        counts, compared = told["counts"], told["compared"]
        trials = f"{sum(counts.values())} ({counts['pruned']}, {counts['diverged']}, {counts['failed']})"
        tokens = " + ".join(f"{number:,}" for number in told["tokens"].values())
        if compared is None:
            found = "the best trial | | | | no"
        else:
            own, tuned = (figures(compared[f"{name}_kl_nats"]) for name in ("job", "tuned"))
            found = f"{own} | {tuned} | {100 * compared['gain_ratio']:.1f} % | {compared['standard_error']:.4f} | "
            found += "yes" if compared["is_better"] else "no"
        lines.append(f"| {parent} | {trials} | {tokens} | {found} | {told['seconds'] / 60:.0f} min |")
    lines += ["", "| parent | setting | job's | best | importance |", "|---|---|---|---|---|"]
    for parent, told in rows.items():
        own_row = told["trials"][0]
        for name, value in told["best"]["settings"].items():
            share = told["importance"].get(name)
            weight = "" if share is None else f"{100 * share:.0f} %"
            lines.append(f"| {parent} | `{name}` | {own_row['settings'][name]} | {value} | {weight} |")
    demo = rows.get("demo")
    if demo is not None and demo["compared"] is not None and demo["compared"]["is_better"]:
        gain = demo["compared"]["gain_ratio"]
        met = "met" if gain >= PROMISED else "missed"
        lines += ["", f"The demo's promise of {100 * PROMISED:.0f} %, or nothing to gain: {met}."]
    return "\n".join([*lines, "", footer(), ""])


def figures(values: list[float]) -> str:
    """The mean, and the worst."""
    return f"{sum(values) / len(values):.4f} ({max(values):.4f})"


if __name__ == "__main__":
    main()
