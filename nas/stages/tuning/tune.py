"""tune: better settings for a job's local and global distillation, and what they are worth.

Every trial trains one child, what the search has kept or what its first solve picks, with other settings: its variants,
then the whole of it. What decides is the KL that is left in the end, and not a loss on the way; at the end the job's
settings and the best ones are compared by seeds and on a text that no trial has seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from inlay.cluster.errors import ClusterError, LockedError
from inlay.cluster.urls import redacted
from inlay.nas.check import check_job
from inlay.nas.errors import InlayError, UserError
from inlay.nas.job import Job
from inlay.nas.job.edit import with_values
from inlay.nas.loop.sampling import sampled
from inlay.nas.loop.search import Search
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.report.progress import Reporter
from inlay.nas.report.tuning import TUNED_FROM, header
from inlay.nas.stages.run import Begun, begin, open_job_parent
from inlay.nas.stages.tuning.child import Timed, find_child, kept_architecture
from inlay.nas.stages.tuning.compare import Compared, compare
from inlay.nas.stages.tuning.pieces import Trainer
from inlay.nas.stages.tuning.space import own_settings, search_space, settings_of
from inlay.nas.stages.tuning.study import Study, default_storage, end_of, identity_of, open_storage, told
from inlay.nas.stages.tuning.tracked import TrackedStudy
from inlay.nas.stages.tuning.trials import Trials
from inlay.nas.workspace import Workspace

Metric = Literal["kl", "assembled"]
"""`kl`: on held-out text after recovery; `assembled`: before it, which tunes local distillation alone."""
STAGES = ("measure", "distill", "score", "tune", "compare")
GOING_ON = ("distill", "tune", "compare")
"""Where a child is known already."""


def tune_job(
    job: Job,
    workspace: str | None,
    reporter: Reporter,
    *,
    trials: int,
    timeout: float | None,
    metric: Metric,
    storage: str | None,
    output: Path,
) -> dict[str, Any]:
    """Tries settings until so many trials are finished, and writes the best ones as a job file if they are better.

    Args:
        job: whose settings are tuned; of a file.
        workspace: folder or URL; by default `<job file's stem>.search` beside the job file.
        reporter: told of stages and trials.
        trials: finished ones in all, those of earlier calls included.
        timeout: seconds after which no trial is begun.
        metric: what is lowered.
        storage: the study's, an SQLAlchemy URL; by default an SQLite file in the workspace.
        output: the job file to write.

    Returns:
        JSON-able: `study`, `storage`, `metric`, `workspace`, `tokens`, `trials`, `counts`, `importance`, `best`,
        `compared` (None where no trial was better than the job's settings) and `output` (None: nothing to gain).

    Raises:
        UserError: the job, the storage or the output is wrong.
        InfeasibleError: no architecture meets the budget.
        InlayError: no trial came to its end, or the cluster failed; what finished is kept.
    """
    place = Workspace(workspace if workspace is not None else job.default_workspace())
    url = storage or default_storage(place)
    check_tunable(job, metric, output)
    source = open_job_parent(job)
    for warning in check_job(job):
        reporter.warning(warning)
    if storage is not None:
        open_storage(storage)  # before minutes are spent
    try:
        with (
            begin(job, place, source, reporter, f"tune {job.file or place.url}", job.cluster.address) as begun,
            told(url),
        ):
            return _tune(job, begun, reporter, trials, timeout, metric, url, output)
    except LockedError as error:
        raise UserError(f"workspace: {error}") from error
    except ClusterError as error:
        raise InlayError(
            f"{error}; finished trials are kept in {redacted(url)}, the same command goes on from there"
        ) from error


def check_tunable(job: Job, metric: Metric, output: Path) -> None:
    """Raises UserError where there is nothing to tune, or no place for the result."""
    if job.rounds > 1:
        raise UserError(
            f"rounds: is {job.rounds}, and trials are of one search; set it to 1, and give what is found to all rounds"
        )
    if metric == "kl" and not job.recover.tokens:
        raise UserError(
            "recover.tokens: is 0, so that nothing is trained after assembly; give it tokens, or --metric assembled"
        )
    if metric == "assembled" and not job.distill.tokens:
        raise UserError("distill.tokens: is 0, so that no variant is trained before assembly; give it tokens")
    if job.recover.workers > 1:
        raise UserError(
            f"recover.workers: is {job.recover.workers}, and a trial trains in one worker; set it to 1 where the model "
            "fits on one, else tune on a smaller parent of the family"
        )
    if output.exists() and not _is_ours(output):
        raise UserError(f"--output: {output} is already there; name another file, or remove it")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output: there is no folder {output.absolute().parent}; name a file in one that is there")


def _is_ours(output: Path) -> bool:
    """Whether a file was written by an earlier call."""
    try:
        return output.read_text(encoding="utf-8").startswith(f"# {TUNED_FROM}")
    except (OSError, UnicodeDecodeError):
        return False


def _tune(
    job: Job,
    begun: Begun,
    reporter: Reporter,
    trials: int,
    timeout: float | None,
    metric: Metric,
    url: str,
    output: Path,
) -> dict[str, Any]:
    search = Search(job, begun.place, begun.parent, begun.cluster, reporter, original=begun.original)

    @contextmanager
    def timed(name: str) -> Iterator[list[str]]:
        reporter.stage_started(name)
        started, notes = time.monotonic(), list[str]()
        search.records.clear()
        yield notes
        peak = max((record.peak_bytes for record in search.records.values()), default=0)
        reporter.stage_finished(name, time.monotonic() - started, peak or None, ", ".join(notes))

    packed = begun.packed
    if packed is None:
        tokenizer = begun.parent.tokenizer()
        with timed("sample"):
            packed = pack_texts(job, tokenizer, sampled(search, tokenizer))
    texts = store_texts(packed, begun.place)
    digests = {name: ids.digest for name, ids in texts.by_name.items()}
    study = Study(job, identity_of(job, begun.place, search.identity, digests), metric, url)

    known = study.architecture or kept_architecture(search)
    reporter.search_started(STAGES if known is None else GOING_ON, {})
    child = find_child(search, texts, timed, known)
    local, whole = bool(job.distill.tokens and child.trained), metric == "kl"
    space = search_space(job, texts.distill.shape[0], local=local, whole=whole)
    if not space:
        raise UserError("space: the search's child has no variant that is trained, so that nothing is to be tuned")
    trainer = Trainer(search, child, texts, local, whole)
    with _tracked(TrackedStudy(job, begun.place, study, reporter)) as tracked:
        tracked.left(study.begin(child.architecture, space))
        with timed("tune") as notes:
            Trials(study, space, trainer, tracked, trials, timeout).run()
            best = study.best()
            if best is None:
                raise InlayError(
                    f"tune: none of {len(study.trials())} trials came to its end; lower the rates of the job, or give "
                    "more --trials"
                )
            notes.append(f"best KL {best.value:.4f}")
        own, tuned = own_settings(job, space), settings_of(job, best.params)
        compared = _compared(study, trainer, own, tuned, best.number, timed) if tuned != own else None
        result = {
            "study": study.name,
            "storage": redacted(url),
            "metric": metric,
            "workspace": begun.place.url,
            "tokens": {
                "local distillation": local * job.distill.tokens,
                "recovery": whole * job.recover.tokens,
            },
            "trials": _rows(job, study, own),
            "counts": asdict(study.counts()),
            "importance": study.importance(),
            "best": {"number": best.number, "kl_nats": best.value, "settings": tuned},
            "compared": compared.to_dict() if compared else None,
            "output": None,
        }
        if compared is not None and compared.is_better:
            write_tuned(job, result, own, output)
            result["output"] = str(output)
        tracked.result(result, study)
    return result


def _compared(
    study: Study, trainer: Trainer, own: dict[str, Any], tuned: dict[str, Any], number: int, timed: Timed
) -> Compared:
    """What an earlier call found, else both settings are trained."""
    if (held := study.compared(number)) is not None:
        return Compared.of(held)
    with timed("compare"):
        found = compare(trainer, own, tuned)
    study.note_compared(number, found.to_dict())
    return found


@contextmanager
def _tracked(study: TrackedStudy) -> Iterator[TrackedStudy]:
    with ExitStack() as stack:
        stack.push(lambda kind, error, traceback: study.end(error))
        yield study


def _rows(job: Job, study: Study, own: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for trial in study.trials():
        settings, end = settings_of(job, trial.params), end_of(trial)
        rows.append(
            {
                "number": trial.number,
                "end": end,
                "kl_nats": trial.value if end == "complete" else None,
                "reason": study.reason_of(trial),
                "is_job": settings == own,
                "settings": settings,
            }
        )
    return rows


def write_tuned(job: Job, result: dict[str, Any], own: dict[str, Any], output: Path) -> None:
    """Writes the job file with the best settings, what was gained on top; the rest of it stays as it is.

    Raises:
        UserError: it cannot be written.
    """
    assert job.file is not None
    changed = {name: value for name, value in result["best"]["settings"].items() if value != own[name]}
    text = with_values(job.file.read_text(encoding="utf-8-sig"), changed)
    try:
        output.write_text(header(result, job.file.name, own) + text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written: {error.strerror}") from None
