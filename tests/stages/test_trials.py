"""Trials of settings, one by one, and how a study counts them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inlay.cluster.pieces import Piece, Record
from inlay.nas.errors import InlayError, UserError
from inlay.nas.job import Job
from inlay.nas.loop.search import Search, SmallSearch
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.training import recover_models
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.tuning.child import find_child
from inlay.nas.stages.tuning.compare import Compared
from inlay.nas.stages.tuning.pieces import Trainer
from inlay.nas.stages.tuning.space import job_with, own_settings, search_space, settings_of
from inlay.nas.stages.tuning.study import Study, default_storage, end_of
from inlay.nas.stages.tuning.tracked import TrackedStudy
from inlay.nas.stages.tuning.trials import Trials
from inlay.nas.workspace import Workspace

CHILD = (
    ("attention:linear", "ffn:parent"),
    ("attention:no_op", "ffn:width=24"),
    ("attention:parent", "ffn:no_op"),
)


@pytest.fixture(scope="module")
def tiny_job(tiny_parent: Callable[..., Path], texts: tuple[Path, Path]) -> Job:
    return Job.from_dict(
        {
            "parent": str(tiny_parent("llama")),
            "data": {
                "distill": {"path": str(texts[0]), "sequence_length": 32},
                "validate": {"path": str(texts[1]), "tokens": 512},
            },
            "space": {"attention": ["linear", "no_op"], "ffn": [{"width": 0.5}, "no_op"]},
            "distill": {"tokens": 2048, "batch_size": 4},
            "recover": {"tokens": 2048, "learning_rate": 1e-3, "batch_size": 4},
            "budget": {"parameters": "0.9x"},
        }
    )


@pytest.fixture(scope="module")
def trainer(tiny_job: Job, make_search: Callable[[Job, Path], SmallSearch], tmp_path_factory: Any) -> Trainer:
    search = make_search(tiny_job, tmp_path_factory.mktemp("trials"))
    texts = store_texts(pack_texts(tiny_job, search.parent.tokenizer()), search.workspace)

    @contextmanager
    def timed(name: str) -> Iterator[list[str]]:
        yield []

    return Trainer(search, find_child(search, texts, timed, CHILD), texts, local=True, whole=True)


def run(trainer: Trainer, label: str, settings: dict[str, Any], seed: int = 0, keep: bool = False) -> Record:
    (record,) = trainer.search.run([trainer.piece(label, settings, seed, keep=keep)])
    return record


def own(trainer: Trainer) -> dict[str, Any]:
    job = trainer.search.job
    return own_settings(job, search_space(job, trainer.texts.distill.shape[0], local=True, whole=True))


def test_only_what_the_child_holds_is_trained(trainer: Trainer) -> None:
    held = {layer: each["variants"] for layer, each in trainer.child.trained.items()}
    assert held == {"0": ["attention:linear"], "1": ["ffn:width=24"]}
    assert all(each["sums"] for each in trainer.child.trained.values())


def test_a_trial_of_the_jobs_own_settings_is_what_its_search_does(trainer: Trainer) -> None:
    tried = run(trainer, "own", own(trainer), trainer.search.job.seed, keep=True)
    found = recover_models(trainer.search, trainer.texts, trainer.child.library, {"child": CHILD})["child"]
    assert tried.values["kl_nats"] == found.values["best_kl_nats"]
    assert [kl for _, kl in tried.values["held_out"]] == [each["kl_nats"] for each in found.values["held_out"]]
    assert [place for place, _ in tried.values["held_out"]] == list(range(7))
    assert tried.blobs["model"] == found.blobs["model"], "to the last bit"


def test_other_settings_make_other_children_on_the_same_judge(trainer: Trainer) -> None:
    before = own(trainer)
    local = run(trainer, "local", {**before, "distill.learning_rate": 1e-2})
    whole = run(trainer, "whole", {**before, "recover.learning_rate": 1e-4, "recover.rate": "pinned"})
    other = run(trainer, "batch", {**before, "recover.batch_size": 2, "distill.batch_size": 8})
    first = run(trainer, "own again", before)
    start = first.values["held_out"][0]
    assert whole.values["held_out"][0] == start, "the same variants, the same judge"
    assert local.values["held_out"][0] != start
    assert other.values["held_out"][0] != start
    assert len({record.values["kl_nats"] for record in (local, whole, other, first)}) == 4


def test_another_seed_takes_the_text_in_another_order(trainer: Trainer) -> None:
    one, two = (run(trainer, f"seed {seed}", own(trainer), seed) for seed in (1, 2))
    assert one.values["kl_nats"] != two.values["kl_nats"]


def test_a_rate_that_only_harms_leaves_the_child_as_it_came(trainer: Trainer) -> None:
    rates = {"recover.learning_rate": 1.0, "recover.rate": "pinned", "recover.warmup": 0.0}
    record = run(trainer, "hot", {**own(trainer), **rates})
    start, *later = [kl_nats for _, kl_nats in record.values["held_out"]]
    assert record.values["kl_nats"] == start < min(later)


@dataclass(frozen=True)
class Sabotaged(Trainer):
    """Trains trial 1 at a rate that no job may have, and gives trials from 3 on to a function that breaks."""

    def piece(self, label: str, settings: Mapping[str, Any], seed: int, *, keep: bool = False) -> Piece:
        piece = super().piece(label, settings, seed, keep=keep)
        number = int(label.split()[1])
        if number == 1:
            piece.arguments["whole"]["settings"] |= {"learning_rate": 1e30, "rate": "pinned"}
        if number >= 3:
            piece.arguments["architecture"] = [["attention:unheard_of", "ffn:parent"]]
        return piece


@pytest.fixture(scope="module")
def sabotaged(trainer: Trainer, shared_ray: Any, tmp_path_factory: Any) -> Any:
    """A study whose trials go wrong, after three of them crashed in a row, and the error that ended it."""
    search = Search(
        trainer.search.job, trainer.search.workspace, trainer.search.parent, shared_ray.cluster(), Reporter()
    )
    job = Job.from_dict({**search.job.to_dict(), "tracking": {"uri": f"sqlite:///{tmp_path_factory.mktemp('t')}/m.db"}})
    study = Study(job, "ab" * 32, "kl", f"sqlite:///{tmp_path_factory.mktemp('s')}/tune.db")
    space = search_space(job, trainer.texts.distill.shape[0], local=True, whole=True)
    study.begin(CHILD, space)
    tracked = TrackedStudy(job, search.workspace, study, Reporter())
    bad = Sabotaged(search, trainer.child, trainer.texts, local=True, whole=True)
    with pytest.raises(InlayError) as raised:
        Trials(study, space, bad, tracked, wanted=20, timeout=None).run()
    tracked.end(raised.value)
    return study, str(raised.value)


def test_a_trial_that_diverges_is_pruned_and_counted(sabotaged: Any) -> None:
    study, _ = sabotaged
    counts, hot = study.counts(), study.trials()[1]
    assert counts.diverged == 1
    assert end_of(hot) == "diverged"
    assert "not finite" in study.reason_of(hot)
    assert hot.state.name == "PRUNED"


def test_crashes_are_counted_and_three_in_a_row_end_the_study(sabotaged: Any) -> None:
    study, said = sabotaged
    counts = study.counts()
    assert counts.complete == 2, "trials 0 and 2"
    assert counts.failed == 3
    assert said.startswith("tune: 3 trials failed in a row, the last since tune, trial ")
    assert said.endswith("; what finished is kept, the same command goes on from there")
    assert study.best().number in (0, 2)
    assert len(study.crashes()) == 3


def test_what_a_dead_run_left_is_done_again_with_its_settings(trainer: Trainer, tmp_path: Path) -> None:
    job, url = trainer.search.job, f"sqlite:///{tmp_path}/tune.db"
    space = search_space(job, trainer.texts.distill.shape[0], local=True, whole=True)
    dead = Study(job, "cd" * 32, "kl", url)
    assert dead.begin(CHILD, space) == []
    dead.complete(dead.ask(space), 1.0)
    left = dead.ask(space)
    next_run = Study(job, "cd" * 32, "kl", url)
    assert next_run.architecture == CHILD
    assert next_run.begin(CHILD, space) == [left.number]
    assert next_run.counts().finished == 1, "what is left is not finished"
    again = next_run.ask(space)
    assert again.params == left.params
    assert again.user_attrs["inlay.first_number"] == left.number
    assert next_run.ask(space).params != again.params
    with pytest.raises(UserError, match="holds the study of another job"):
        Study(job, "ef" * 32, "kl", url)


def test_a_workspace_that_is_no_folder_needs_a_database(tmp_path: Path) -> None:
    assert default_storage(Workspace(tmp_path / "w")) == f"sqlite:///{tmp_path}/w/tune.db"
    with pytest.raises(UserError) as raised:
        default_storage(Workspace("memory://bucket/w"))
    assert str(raised.value) == (
        "--storage: the workspace memory://bucket/w is no folder that could hold an SQLite file; name a database, such "
        "as postgresql://host/name"
    )


def test_the_jobs_own_settings_are_in_the_space(trainer: Trainer) -> None:
    job = trainer.search.job
    for changed in ({}, {"learning_rate": 0.7, "batch_size": 3, "warmup": 0.9}):
        values = job.to_dict()
        values["recover"] |= changed
        other = Job.from_dict(values)
        space = search_space(other, 80, local=True, whole=True)
        settings = own_settings(other, space)
        assert all(space[name]._contains(space[name].to_internal_repr(value)) for name, value in settings.items())
        assert job_with(other, settings).to_dict() == other.to_dict()
        assert settings_of(other, settings) == settings
    with pytest.raises(UserError, match="learning_rate"):
        job_with(job, {"recover.learning_rate": 7.0})


def test_the_page_has_every_setting_that_is_searched(trainer: Trainer) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tune.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+\.\w+)`", row)) == sorted(own(trainer))


def test_a_gain_counts_where_the_seeds_agree() -> None:
    assert Compared((1, 2, 3), (0.50, 0.52, 0.54), (0.45, 0.47, 0.48)).is_better
    noise = Compared((1, 2, 3), (0.50, 0.52, 0.54), (0.53, 0.45, 0.52))
    assert noise.gain_nats > 0
    assert not noise.is_better
    assert not Compared((1, 2, 3), (0.5, 0.5, 0.5), (0.6, 0.6, 0.6)).is_better
