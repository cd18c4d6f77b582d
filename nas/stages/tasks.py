"""Tasks of lm-evaluation-harness for parent and child: from a folder of task files, or those that it brings."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inlay.nas.errors import InlayError, UserError
from inlay.nas.problems import did_you_mean

EXTRA = "lm-evaluation-harness is not installed here; install inlay with its extra: pip install 'inlay[tasks]'"
BOOTSTRAPS = 1000
"""Draws where the harness has no formula for a standard error."""
BATCH = 8
"""Requests at a time; fixed, so that the same model always finds the same."""
LISTED = 12
"""Names of tasks that are listed for one that is not there."""


class Tasks:
    """Some tasks, found and checked before a model is loaded."""

    def __init__(self, names: Sequence[str], folder: Path | None) -> None:
        """Finds them.

        Args:
            names: of tasks, groups or tags.
            folder: where they stand, in YAML files; None: those that the harness brings.

        Raises:
            UserError: the harness is not installed, the folder has no tasks, or a name is none of them.
        """
        manager_of = _harness().tasks.TaskManager
        if folder is not None and not folder.is_dir():
            raise UserError(f"--task-folder: {folder} is not a folder; name the one that holds the task files (.yaml)")
        try:
            with _quiet():
                self.manager = manager_of(include_path=folder and folder.resolve(), include_defaults=folder is None)
        except Exception as error:  # what reads YAML raises what it likes
            reason = " ".join(str(error).split())
            raise UserError(
                f"--task-folder: {folder} has a task file that cannot be read ({reason[:300]}); mend it"
            ) from None
        self.names, self.folder = list(dict.fromkeys(names)), folder
        there = list(self.manager.all_tasks)
        if not there:
            raise UserError(f"--task-folder: {folder} has no task files; each is a .yaml file that names its `task`")
        for name in self.names:
            if name not in there:
                known = f"the harness brings {len(there):,}" if folder is None else _listed(there)
                raise UserError(f"--tasks: there is no task `{name}`; {did_you_mean(name, there)}{known}")

    def run(self, model: Any, tokenizer: Any) -> Mapping[str, Any]:
        """What the harness finds for one model: its `results` and `samples`.

        Raises:
            InlayError: the harness fails, such as for data that is not there.
        """
        harness = _harness()
        from lm_eval.models.huggingface import HFLM

        try:
            # Files that tasks name stand beside them.
            with _quiet(), contextlib.chdir(self.folder or "."):
                wrapped = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=BATCH)
                found = harness.simple_evaluate(
                    model=wrapped, tasks=self.names, task_manager=self.manager, bootstrap_iters=BOOTSTRAPS
                )
        except Exception as error:  # tasks are programs of their authors', and raise what they like
            reason = " ".join(str(error).split()) or type(error).__name__
            where = "" if self.folder is None else f" in {self.folder}"
            raise InlayError(
                f"--tasks: {', '.join(self.names)}{where} cannot be run ({reason[:300]}); mend the task, or its data"
            ) from None
        results: Mapping[str, Any] = found
        return results


def task_rows(parent: Mapping[str, Any], child: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every metric of every task for both models, with standard errors.

    `difference` is the child's minus the parent's; its error is that of the paired samples where each sample has the
    metric, else None.
    """
    rows = []
    for task, figures in child["results"].items():
        for metric, own, error in _metrics(figures):
            value = parent["results"][task][metric]
            apart = _paired(parent, child, task, metric)
            rows.append(
                {
                    "task": task,
                    "metric": _shown(metric),
                    "samples": figures.get("sample_len"),
                    "parent": float(value),
                    "parent_standard_error": _error(parent["results"][task], metric),
                    "child": own,
                    "child_standard_error": error,
                    "difference": own - float(value),
                    "difference_standard_error": apart,
                }
            )
    return rows


def _metrics(figures: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """Of one task: each metric by the harness's own key (`acc,none`), its value and standard error."""
    for key, value in figures.items():
        metric, _, kept = key.partition(",")
        if kept and not metric.endswith("_stderr") and isinstance(value, int | float):
            yield key, float(value), _error(figures, key)


def _error(figures: Mapping[str, Any], key: str) -> float | None:
    metric, _, kept = key.partition(",")
    error = figures.get(f"{metric}_stderr,{kept}")
    return float(error) if isinstance(error, int | float) and math.isfinite(error) else None


def _paired(parent: Mapping[str, Any], child: Mapping[str, Any], task: str, key: str) -> float | None:
    """The standard error of the mean difference of samples."""
    metric, _, kept = key.partition(",")
    first, second = (
        {s["doc_id"]: s.get(metric) for s in each["samples"].get(task, ()) if s["filter"] == kept}
        for each in (parent, child)
    )
    apart = [own - first[number] for number, own in second.items() if isinstance(own, int | float)]
    if len(apart) < max(2, len(second)):
        return None
    return float(np.std(apart, ddof=1) / math.sqrt(len(apart)))


def _shown(key: str) -> str:
    """`acc,none` is `acc`; a filter that does something is told."""
    metric, _, kept = key.partition(",")
    return metric if kept == "none" else f"{metric} ({kept})"


def _listed(there: Sequence[str]) -> str:
    more = f" and {len(there) - LISTED:,} more" if len(there) > LISTED else ""
    return f"there are {', '.join(there[:LISTED])}{more}"


def _harness() -> Any:
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        raise UserError(f"--tasks: {EXTRA} ({error})") from None
    return lm_eval


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's own words and bars: what it finds is shown by us."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
