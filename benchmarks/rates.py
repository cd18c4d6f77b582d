"""Searches at every learning rate: what is kept must not depend on how well the user guessed it.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/rates.py [--parent stories260K] [--rates 1e-4 1e-3]

One workspace a parent: library and scores are shared, and only what depends on the rate is trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer
from searches import SETTINGS, job_of, split_text

from inlay.nas.report.progress import Reporter
from inlay.nas.stages.run import run_job
from inlay.nas.workspace import Workspace

BUDGET = {"parameters": "0.7x"}
RATES = (1e-5, 1e-4, 1e-3, 1e-2)
ALLOWED = 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=list(SETTINGS))
    parser.add_argument("--rates", nargs="*", type=float, default=list(RATES))
    parser.add_argument("--folder", type=Path, default=Path("rates.search"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "rates.md")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    os.environ["INLAY_MEASURED"] = str((options.folder / "measured").absolute())
    split_text(options.folder)
    results = options.folder / "results.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    for parent in options.parent:
        for rate in options.rates:
            job = job_of(parent, BUDGET, 0, options.folder)
            values = job.to_dict()
            values["recover"] |= {"learning_rate": rate}
            place = options.folder / parent
            job = type(job).from_dict(values, folder=options.folder)
            run_job(job, place, Reporter())
            rows = [row for row in rows if (row["parent"], row["rate"]) != (parent, rate)]
            rows.append({"parent": parent, "rate": rate, **outcome(Workspace(place))})
            results.write_text(json.dumps(rows))
            options.output.write_text(page(rows))


def outcome(place: Workspace) -> dict[str, Any]:
    """KL on the score text of what is kept, and of the best that was seen untrained and after a probe."""
    pool = [row for row in place.read_table("pool") if row["parameters"] <= limit(place)]
    probed = [row["probe_kl_nats"] for row in pool if row["probe_kl_nats"] is not None]
    evaluation = place.read_json("evaluation.json")
    return {
        "kept": evaluation["chosen"],
        "kl_nats": evaluation["score_kl_nats"][evaluation["chosen"]],
        "untrained": min(row["kl_nats"] for row in pool),
        "probed": min(probed, default=math.inf),
        "report": evaluation[evaluation["chosen"]]["kl_nats"],
    }


def limit(place: Workspace) -> float:
    """Parameters that the budget allows."""
    return 0.7 * float(place.read_json("evaluation.json")["parent"]["parameters"])


def page(rows: list[dict[str, Any]]) -> str:
    """The table, and how far each row is above the best of its parent."""
    lines = [
        "# What is kept at every learning rate",
        "",
        f"Budget {', '.join(f'{name} {value}' for name, value in BUDGET.items())}; KL in nats per token on the score "
        "text, the last column on the report text.",
        "`recover.learning_rate` is the upper end of what is tried. *Above best*: over the least KL of all rates.",
        "Written by `benchmarks/rates.py`.",
        "",
        "| parent | rate | kept | KL kept | best untrained | best probed | above best | report text |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        best = min(other["kl_nats"] for other in rows if other["parent"] == row["parent"])
        above = row["kl_nats"] / best - 1
        lines.append(
            f"| {row['parent']} | {row['rate']:g} | {row['kept']} | {row['kl_nats']:.4f} | {row['untrained']:.4f} "
            f"| {row['probed']:.4f} | {100 * above:.0f} % | {row['report']:.4f} |"
        )
    return "\n".join([*lines, "", footer(), ""])


if __name__ == "__main__":
    main()
