"""What people are told of a study, and what stands on top of the job that it writes."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from inlay.nas.report.tuning import closing, header, trials_table, verdict

OWN = {"recover.learning_rate": 1e-3, "recover.batch_size": 4}
BEST = {"recover.learning_rate": 2.34e-3, "recover.batch_size": 2}


def told(**changes: Any) -> dict[str, Any]:
    trials = [
        {"number": 0, "end": "complete", "kl_nats": 0.5, "is_job": True, "settings": OWN},
        {"number": 1, "end": "pruned", "kl_nats": None, "is_job": False, "settings": BEST},
        *(
            {"number": n, "end": "complete", "kl_nats": 0.4 + n / 100, "is_job": False, "settings": BEST}
            for n in (5, 2, 3, 4, 6)
        ),
    ]
    compared = {
        "seeds": [1, 2, 3],
        "job_kl_nats": [0.5, 0.5, 0.5],
        "tuned_kl_nats": [0.4, 0.4, 0.4],
        "gain_ratio": 0.2,
        "standard_error": 0.001,
        "is_better": True,
    }
    counts = {"complete": 6, "pruned": 1, "diverged": 2, "failed": 0}
    tokens = {"local distillation": 32_000, "recovery": 60_000}
    found = {"trials": trials, "counts": counts, "importance": {}, "compared": compared, "output": "job.tuned.yaml"}
    return {
        **found,
        "best": {"settings": BEST},
        "tokens": tokens,
        "metric": "kl",
        "study": "s",
        "storage": "u",
        **changes,
    }


def test_the_table_has_the_best_and_the_jobs_own() -> None:
    console = Console(width=80, record=True, file=None)
    with console.capture() as capture:
        console.print(trials_table(told()))
    head, kl, *rows = capture.get().splitlines()
    assert head.split() == ["trial", "2", "3", "4", "5", "the", "job"]
    assert kl.split() == ["KL", "0.4200", "0.4300", "0.4400", "0.4500", "0.5000"]
    assert rows[0].split() == ["recover.learning_rate", *["0.00234"] * 4, "0.001"]


def test_the_closing_lines() -> None:
    found = closing(told(importance={"recover.learning_rate": 0.9, "recover.batch_size": 0.1}))
    assert found == [
        "9 trials, 6 to the end, 1 stopped early, 2 diverged",
        "what decides: recover.learning_rate 90 %, recover.batch_size 10 %",
        "KL 0.5000 with the job's settings, 0.4000 with the best ones: 20 % less (3 seeds, on the score text)",
        "tuned job  job.tuned.yaml",
        "study      s in u",
    ]


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        (None, "nothing to gain: no trial was better than the job's own settings"),
        ({**told()["compared"], "is_better": False},
         "nothing to gain: KL 0.5000 with the job's settings, 0.4000 with the best ones (3 seeds, on the score text), "
         "which is no more than noise"),
    ],
)  # fmt: skip
def test_where_nothing_is_to_be_gained_it_says_so(compared: Any, said: str) -> None:
    assert verdict(told(compared=compared)) == said


def test_the_comment_on_top_says_what_was_gained_and_by_what() -> None:
    assert header(told(), "job.yaml", OWN) == (
        "# Tuned from job.yaml by `inlay tune`, 9 trials (kl):\n"
        "# KL 0.5000 with the job's settings, 0.4000 with the best ones: 20 % less (3 seeds, on the score text), "
        "+- 0.0010;\n"
        "# 32,000 of local distillation and 60,000 of recovery tokens each.\n"
        "#   recover.learning_rate 0.001 -> 0.00234\n"
        "#   recover.batch_size 4 -> 2\n"
    )
