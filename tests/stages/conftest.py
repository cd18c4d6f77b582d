"""A small job on a trained parent, the command that runs it as a user would, and one Ray for what needs no command."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
import yaml

from inlay.cluster import Cluster, ClusterSettings, connect
from inlay.nas.cli import main
from inlay.nas.job import Job
from inlay.nas.loop.search import SmallSearch
from inlay.nas.report.progress import Reporter
from inlay.nas.stages import run as run_module
from inlay.nas.stages.run import open_job_parent
from inlay.nas.workspace import Workspace

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SearchedAgain = Callable[[Callable[[Path, dict[str, Any]], None]], Path]


@pytest.fixture(scope="session")
def texts(text_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A text to train on and one to judge on, without a document in common."""
    folder = tmp_path_factory.mktemp("texts")
    documents = sorted(text_dir.glob("*.txt"))[0].read_text().split("<|endoftext|>\n")
    cut = len(documents) * 4 // 5
    for name, part in (("train.txt", documents[:cut]), ("held_out.txt", documents[cut:])):
        (folder / name).write_text("<|endoftext|>\n".join(part))
    return folder / "train.txt", folder / "held_out.txt"


def job_values(parent: Path, texts: tuple[Path, Path]) -> dict[str, Any]:
    """A whole search of a few minutes on two slow cores, of a minute on two good ones."""
    return {
        "parent": str(parent),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 128},
            "validate": {"path": str(texts[1]), "tokens": "6k"},
        },
        "space": {
            "attention": [{"kv_heads": 2}, {"window": 32}, "linear", "no_op"],
            "ffn": [{"width": 0.5}, "linear", "no_op"],
        },
        "distill": {"tokens": "8k"},
        "score": {"pairs": 4},
        "solve": {"pool": 4},
        "hardware": {"scenarios": [{"name": "chat", "batch_size": 2, "prefill": 32, "generate": 16}]},
        "budget": {"parameters": "0.8x"},
        "recover": {"tokens": "16k", "learning_rate": 1e-3, "probes": 2},
        "cluster": {"max_workers": 2},
    }


@pytest.fixture(scope="session")
def small_job_of(texts: tuple[Path, Path]) -> Callable[[Path], Job]:
    """`small_job_of(parent)`: a job that is checked and written about, and never run."""

    def make(parent: Path) -> Job:
        return Job.from_dict(
            {
                "parent": str(parent),
                "data": {
                    "distill": {"path": str(texts[0]), "sequence_length": 32},
                    "validate": {"path": str(texts[1])},
                },
                "space": {"attention": ["no_op"]},
                "budget": {"parameters": "0.9x"},
            }
        )

    return make


@pytest.fixture(scope="session")
def whole_job(trained_parent: Path, texts: tuple[Path, Path]) -> Callable[[], dict[str, Any]]:
    """`whole_job()`: the values of such a job, free to be changed."""
    return lambda: job_values(trained_parent, texts)


@pytest.fixture(scope="module")
def make_search() -> Iterator[Callable[[Job, Path], SmallSearch]]:
    """`make_search(job, folder)`: the job's search on a new workspace, without Ray."""

    def make(job: Job, folder: Path) -> SmallSearch:
        nobody: Any = None
        return SmallSearch(job, Workspace(folder), open_job_parent(job), nobody, Reporter())

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker does
    yield make
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def inlay_command(mlflow_db: Callable[[Path], str]) -> Run:
    """Runs the command line as a process of its own."""

    def run(*words: str | Path, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        if words[0] == "run":
            mlflow_db(cwd)
        return commands.run(*words, cwd=cwd, **options)

    return run


class SharedRay:
    """Two workers on a Ray of this process, started when first asked for: each worker's imports take seconds."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._cluster: Cluster | None = None

    def cluster(self) -> Cluster:
        """The one that runs, else a new one."""
        if self._cluster is None:
            self._cluster = self._stack.enter_context(connect(ClusterSettings(workers=2)))
        return self._cluster

    def end(self) -> None:
        """Ends it, before what needs a Ray of its own: a process holds one."""
        self._cluster = None
        self._stack.close()


_SHARED_RAY = pytest.StashKey[SharedRay]()


@pytest.fixture(scope="session")
def shared_ray(pytestconfig: pytest.Config) -> SharedRay:
    """One Ray for the whole folder."""
    return pytestconfig.stash.setdefault(_SHARED_RAY, SharedRay())


@pytest.fixture(scope="session")
def inlay_here(shared_ray: SharedRay, mlflow_db: Callable[[Path], str]) -> Run:
    """Runs the command line in this process, on the folder's Ray: for what a process of its own would not show."""

    def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        if words[0] == "run":
            mlflow_db(cwd)
        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(run_module, "connect", lambda settings: nullcontext(shared_ray.cluster()))
            stack.enter_context(chdir(cwd))
            stack.enter_context(redirect_stdout(out))
            stack.enter_context(redirect_stderr(err))
            code = main([*map(str, words)])
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    return run


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends it with the folder's last test: other folders start a Ray of their own in this process."""
    if nextitem is None or nextitem.path.parent != item.path.parent:
        item.config.stash.setdefault(_SHARED_RAY, SharedRay()).end()


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, trained_parent: Path, texts: tuple[Path, Path], inlay_command: Run
) -> Path:
    """The folder of a finished search: job.yaml, job.search and mlflow.db lie in it."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "job.yaml").write_text(yaml.safe_dump(job_values(trained_parent, texts)))
    done = inlay_command("run", "job.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.fixture(scope="session")
def searched_again(finished: Path, tmp_path_factory: pytest.TempPathFactory, inlay_here: Run) -> SearchedAgain:
    """`searched_again(change)`: the finished search in a new folder, once more for the job that `change` makes of its
    own. What was trained there is used again, and little is added to it."""

    def search(change: Callable[[Path, dict[str, Any]], None]) -> Path:
        folder = tmp_path_factory.mktemp("again") / "copy"
        shutil.copytree(finished, folder)
        values: dict[str, Any] = yaml.safe_load((folder / "job.yaml").read_text())
        values["solve"] = {"pool": 2, "corrections": 0}
        values["recover"] = {"tokens": "4k", "probes": 0}
        change(folder, values)
        (folder / "job.yaml").write_text(yaml.safe_dump(values))
        done = inlay_here("run", "job.yaml", cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / "stdout").write_text(done.stdout)
        return folder

    return search
