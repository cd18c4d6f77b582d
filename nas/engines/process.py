"""An engine's process: started by its path under the interpreter that has the engine, told what to do line by line.

Engines pin their own torch, and some abort on a bad file: nothing of theirs is loaded into ours, and theirs needs
nothing of ours but the script.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inlay.nas.errors import UserError

PATIENCE_SECONDS = 600.0
"""How long one request may take before the engine counts as hung."""
ENDING_SECONDS = 5.0
_TAIL_BYTES = 4000


class EngineProcess:
    """One engine that answers requests; a context manager, so that no process is left.

    Args:
        name: of the engine, for messages.
        script: what runs, by its path.
        python: its interpreter; None: this one.
        extra: what installs the engine, for messages.
        patience_seconds: how long one request may take.
        environment: variables that it gets beside ours.

    Raises:
        UserError: the interpreter is not there.
    """

    def __init__(
        self,
        name: str,
        script: Path,
        python: str | None = None,
        extra: str = "",
        patience_seconds: float = PATIENCE_SECONDS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self._extra, self._patience = name, extra, patience_seconds
        self.python = python or sys.executable
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        try:
            self._process = subprocess.Popen(
                [self.python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                start_new_session=True,
                env=_environment() | dict(environment or {}),
            )
        except OSError as error:
            self._stderr.close()
            raise UserError(
                f"hardware.python: {self.python} cannot be started ({error.strerror}); give the interpreter of the "
                f"environment that {name} is installed in"
            ) from None
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its number, which is that of its group of processes too."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """The engine's answer to a request.

        Raises:
            UserError: it refuses, is not installed there, died or hangs; the process is gone then.
        """
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self._patience)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            self.close()
            raise UserError(
                f"{self.name} gave no answer to `{do}` within {self._patience:g} s and was stopped; nothing that was "
                "computed is lost: run again, or take another engine"
            ) from None
        if line is None:
            raise self._death(do)
        answer = json.loads(line)
        if "error" in answer:
            self.close()
            way_out = f"; {self._extra}" if answer.get("missing") else ""
            raise UserError(f"{self.name}: {answer['error']}{way_out}")
        found: dict[str, Any] = answer["ok"]
        return found

    def close(self) -> None:
        """Ends the process and all that it started."""
        if self._stderr.closed:
            return
        process = self._process
        if process.poll() is None:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                self._end_group()
        self._watcher.join()
        self._stderr.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _watch(self) -> None:
        """What it started ends with it: it would hold our end of the pipe open, and memory."""
        self._process.wait()
        self._end_group()

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _death(self, do: str) -> UserError:
        code = self._process.wait()
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _TAIL_BYTES))
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self.close()
        last = f": {said[-1].strip()}" if said else ""
        return UserError(f"{self.name} {how} at `{do}`{last}; nothing that was computed is lost")


def worker_script(name: str) -> Path:
    """Where a script of `workers/` lies."""
    return Path(__file__).parent / "workers" / name


def _environment() -> dict[str, str]:
    """Ours, without what would lead another interpreter to this one's packages, or away from what lies by a script."""
    foreign: Sequence[str] = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV")
    kept: Mapping[str, str] = {name: value for name, value in os.environ.items() if name not in foreign}
    return dict(kept)
