"""MLflow tracking that never stops a search: every entry goes to a file first, and a thread sends it on.

A tracker that is down is told once; its entries wait in the file and are sent when it is back, by this search or the
next one of the workspace. An entry may be sent twice after a kill, so every kind of entry is harmless when repeated.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inlay.cluster.store import Store, digest_of
from inlay.cluster.tracking_buffer import Buffer
from inlay.cluster.tracking_model import SLOWEST_BYTES_PER_SECOND, ServedModel
from inlay.cluster.tracking_send import SEARCH, Entry, Sender, TrackerDownError, prepare_environment, redacted_values
from inlay.cluster.urls import redacted

TAGS_VARIABLE = "INLAY_JOB_TAGS"
JOB_TAG = "inlay.job"
_RETRY_SECONDS = 15.0
_CLOSING_SECONDS = 1.0
_TRIES = 4
"""Of one entry, while the tracker itself answers; then it is put aside."""
STOPPED_SECONDS = 5.0
"""For what is left to be sent once the search is stopped: Ray ends a stopped job by force after 8 seconds."""


class TrackedRun:
    """One MLflow run; its methods return at once, what they say is sent by the tracker's thread."""

    def __init__(self, add: Callable[..., None], ref: str) -> None:
        self._add = add
        self.ref = ref

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings; MLflow keeps the first value of each for ever, a later one becomes the tag `changed.<name>`."""
        self._add(self.ref, "params", values={name: str(value) for name, value in values.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._add(self.ref, "tags", values=dict(values))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step."""
        numbers = {name: float(value) for name, value in values.items()}
        self._add(self.ref, "metrics", values=numbers, step=step, at=_now_ms())

    def text(self, path: str, content: str) -> None:
        """Keep text as the artifact `path`."""
        self._add(self.ref, "text", path=path, content=content)

    def json(self, path: str, value: Any) -> None:
        """Keep a JSON value as the artifact `path`."""
        self.text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False))

    def table(self, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep rows as the artifact `path` (.json), which MLflow's pages show as a table."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        data = [[row.get(name) for name in columns] for row in rows]
        self._add(self.ref, "table", path=path, content=json.dumps({"columns": columns, "data": data}))

    def figure(self, path: str, figure: Any) -> None:
        """Keep a matplotlib figure as the artifact `path`, in the format of its ending."""
        stream = io.BytesIO()
        figure.savefig(stream, format=Path(path).suffix.lstrip("."), bbox_inches="tight")
        self._add(self.ref, "bytes", path=path, content=base64.b64encode(stream.getvalue()).decode())

    def file(self, local: Path, folder: str = "") -> None:
        """Keep a local file, which must stay until it is sent, in the artifact folder `folder`."""
        self._add(self.ref, "file", local=str(Path(local).absolute()), folder=folder)

    def dataset(self, name: str, digest: str, profile: Mapping[str, Any], source: str = "") -> None:
        """Name a data set as an input of the run, by the context `name`; `profile` says its sizes."""
        # MLflow keeps at most 36 characters of a data set's digest.
        self._add(self.ref, "dataset", name=name, digest=digest[:36], profile=dict(profile), source=source)

    def model(self, model: ServedModel) -> None:
        """Make a logged model of the run, which the search's run shows too."""
        self._add(self.ref, "model", **asdict(model))

    def rename(self, name: str) -> None:
        """Give the run another name."""
        self._add(self.ref, "name", name=name)

    def end(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED; starting it again continues it."""
        self._add(self.ref, "end", status=status, at=_now_ms())


class Tracker(TrackedRun):
    """The MLflow run of a search and the way to it; cheap to make, since its thread imports mlflow."""

    def __init__(
        self,
        uri: str | None,
        experiment: str,
        on_warning: Callable[[str], None] = lambda text: None,
        *,
        spool: Store | Path,
    ) -> None:
        """`uri` None is MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` here; `spool` keeps what is not sent yet."""
        super().__init__(self._queue, SEARCH)
        prepare_environment()
        self.uri = tracking_uri(uri)
        folder = spool_folder(spool)
        self._on_warning = on_warning
        self._sender = Sender(self.uri, experiment, folder)
        self._buffer = Buffer(folder)
        self._entries = self._buffer.unsent()
        self._changed = threading.Condition()
        self._closing = False
        self._failures = 0
        self._progress_at = time.monotonic()
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._work, daemon=True, name="inlay-tracking")
        self._thread.start()

    def start(
        self,
        name: str,
        tags: Mapping[str, str] | None = None,
        resume_run_id: str | None = None,
        creation: str | None = None,
    ) -> str | None:
        """Make the search's run, or continue the one of this workspace; returns its MLflow id once that is known.

        `resume_run_id` is continued where the spool knows of none. `creation` names the run to be made, so that it is
        found again by those who have the name and nothing else; by default the spool keeps such a name.
        """
        tags = dict(tags or {}) | submitted_tags()
        told = {"name": name, "tags": tags, "parent": None, "resume": resume_run_id, "creation": creation}
        self._queue(self.ref, "run", **told, at=_now_ms())
        return self.run_id()

    def child(
        self, ref: str, name: str, tags: Mapping[str, str] | None = None, creation: str | None = None
    ) -> TrackedRun:
        """Make, or continue, a run below the search's; `ref` names it in this workspace, `creation` as in `start`."""
        told = {"name": name, "tags": dict(tags or {}), "parent": self.ref, "resume": None, "creation": creation}
        self._queue(ref, "run", **told, at=_now_ms())
        return TrackedRun(self._queue, ref)

    def run_id(self, ref: str = SEARCH) -> str | None:
        """Return MLflow's id of a run, None while the tracker has not made it."""
        return self._sender.run_ids().get(ref)

    def link(self) -> str | None:
        """Return the page of the search's run; None where the tracker is no server or has not made it."""
        identifier = self.run_id()
        if identifier is None or not self.uri.startswith("http"):
            return None
        return run_page(redacted(self.uri), self._sender.experiment_id, identifier)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything is sent; False when that did not happen in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._entries, timeout_seconds)

    def end(self, status: str = "FINISHED") -> None:
        """End the search's run and close the tracker; a KILLED one waits for `STOPPED_SECONDS` at most."""
        super().end(status)
        if status == "KILLED":
            self.close(STOPPED_SECONDS, STOPPED_SECONDS)
        else:
            self.close()

    def close(self, patience_seconds: float = 60.0, longest_seconds: float = math.inf) -> None:
        """Send what is left, or leave it in the file with a warning; never raises for a tracker that is down.

        Waits as long as entries leave, and `patience_seconds` after the last one that did, more where that is a model's
        weights, but never longer than `longest_seconds`.
        """
        end = time.monotonic() + longest_seconds
        with self._changed:
            self._closing = True
            self._progress_at = time.monotonic()
            self._changed.notify_all()
        while self._thread.is_alive():
            patience = patience_seconds + self._weights_bytes() / SLOWEST_BYTES_PER_SECOND
            if time.monotonic() >= min(self._progress_at + patience, end):
                break
            self._thread.join(0.2)
        if self._entries:
            self._on_warning(
                f"{len(self._entries)} tracking entries could not be sent to {redacted(self.uri)}; they are kept in "
                f"{self._buffer.path}, and sent when the same command is given again"
            )

    def _weights_bytes(self) -> int:
        """Of the model that is being sent."""
        with self._changed:
            first = self._entries[0] if self._entries else None
        return int(first.values["weights_bytes"]) if first and first.kind == "model" and first.values["uploaded"] else 0

    def _queue(self, ref: str, kind: str, **values: Any) -> None:
        entry = Entry(ref, kind, redacted_values(values))
        with self._changed:
            try:
                self._buffer.append(entry)
            except OSError as error:
                self._warn("buffer", f"tracking entries cannot be kept in a file ({error}); they wait in memory only")
            self._entries.append(entry)
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closing)
                if not self._entries:
                    return
                batch = list(self._entries[:1000])
            try:
                sent = self._sender.send(batch)
            except TrackerDownError as error:
                self._failures += 1
                if self._failures >= _TRIES and self._sender.answers():
                    self._put_aside(batch[0], error)
                    sent = 1
                else:
                    self._warn("down", f"the tracker {redacted(self.uri)} does not answer, the search goes on: {error}")
                    if self._pause():
                        return
                    continue
            self._failures = 0
            for warning in self._sender.take_warnings():
                self._warn(warning, warning)
            with self._changed:
                del self._entries[:sent]
                with contextlib.suppress(OSError):  # told when the entry was added; what is sent twice is harmless
                    self._buffer.mark_sent(sent, empty=not self._entries)
                self._progress_at = time.monotonic()
                self._changed.notify_all()

    def _put_aside(self, entry: Entry, error: Exception) -> None:
        what = f"one entry ({entry.kind} of the run `{entry.ref}`) cannot be sent to {redacted(self.uri)}: {error}"
        try:
            self._buffer.put_aside(entry)
            self._on_warning(f"{what}; it is put aside in {self._buffer.aside_path}, and the others are sent")
        except OSError:
            self._on_warning(f"{what}; it is left out")

    def _pause(self) -> bool:
        """Wait before the next try; True when the tracker is closing and there is none, since it does not answer."""
        with self._changed:
            if not self._closing:
                self._changed.wait_for(lambda: self._closing, _RETRY_SECONDS)
                return False
        if not self._sender.answers():
            return True
        time.sleep(_CLOSING_SECONDS)
        return False

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._on_warning(text)


def _now_ms() -> int:
    """What was told and not yet sent says when it was told."""
    return int(time.time() * 1000)


def submitted_tags() -> dict[str, str]:
    """Return the tags of the job that this process runs for on a cluster, its id among them; none elsewhere."""
    return dict(json.loads(os.environ.get(TAGS_VARIABLE, "{}")))


def tracking_uri(uri: str | None) -> str:
    """Return the tracking URI to use: the given one, MLFLOW_TRACKING_URI, or an sqlite file in the current folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page; MLflow opens it among its pages for language models unless told otherwise."""
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def spool_folder(spool: Store | Path) -> Path:
    """Return the local folder for unsent entries: in the workspace where that is a folder, else in the user's cache."""
    if isinstance(spool, Path):
        return spool
    if spool.folder is not None:
        return spool.folder / "tracking"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "inlay" / "tracking" / digest_of(spool.url)[:16]
