"""`inlay ...` as a process of its own that starts at once: forked from one that imported, once, what commands import.

A test of what a start loads or of what the environment says while modules are imported needs a fresh interpreter.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

IMPORTED = (
    "inlay.nas.cli.app",
    "inlay.nas.stages.pipeline",
    "inlay.nas.stages.plan",
    "matplotlib.pyplot",
    "pandas",
    "pyarrow.parquet",
)

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(list(IMPORTED))


class Command:
    """A running command; stdout and stderr go to files.

    Args:
        words: what stands behind `inlay`.
        cwd: its working folder, by default this process's.
        env: its whole environment, by default this process's.
        session: whether it leads a session and process group of its own.
    """

    def __init__(
        self,
        *words: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        session: bool = False,
    ) -> None:
        self.words = ["inlay", *map(str, words)]
        self._folder = tempfile.TemporaryDirectory(prefix="command-")
        self.out, self.err = (Path(self._folder.name) / name for name in ("out", "err"))
        for file in (self.out, self.err):
            file.touch()
        environment = dict(os.environ if env is None else env)
        told = (self.words, str(cwd or Path.cwd()), environment, str(self.out), str(self.err), session)
        self._process = _forks.Process(target=_run, args=told)
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """The exit code, minus the signal's number where one ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended; raises TimeoutExpired."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self.words, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def completed(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """What it printed, once it has ended; it is killed when it takes longer."""
        try:
            code = self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(self.words, code, self.out.read_text(), self.err.read_text())


def run(
    *words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 540
) -> subprocess.CompletedProcess[str]:
    """Runs `inlay ...` to its end."""
    return Command(*words, cwd=cwd, env=env).completed(timeout)


def _run(words: list[str], cwd: str, environment: dict[str, str], out: str, err: str, session: bool) -> None:
    from inlay.nas.cli import main

    if session:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in ((1, out), (2, err)):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = words
    code = main()
    atexit._run_exitfuncs()  # a process that multiprocessing has forked leaves them out
    sys.exit(code)
