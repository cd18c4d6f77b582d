"""The workspace: the folder or URL that holds every search of one parent.

    workspace.json        schema version and the digest of the parent it belongs to
    records/, blobs/      what pieces produced (cluster/pieces.py, cluster/store.py)
    shards/               records of searches that have thousands (cluster/records.py)
    tables/*.parquet      scores, costs, pool
    solutions/*.json      answers of the solver; solution.json is the chosen one
    library.json          digests of the trained variants by layer; texts.json those of the packed texts;
                          inputs.json     the one of what the parent's matrices read
    sources.json          digest, documents and tokens of each source of text
    evaluation.json       child, parent and baselines side by side
    run.json              stages with time and memory, the MLflow run, what the last run was
    child/                the exported child
    logs/                 what each search said
    tune.db               Optuna's study of the job's settings
    rounds.json           of a search in rounds: what each of them is and came to; then `rounds/<number>/` is the
                          workspace of each, and `evaluation.json` and `child/` are links to the last one's

Reads and writes need neither torch nor transformers.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from inlay.cluster.lock import Lock
from inlay.cluster.store import Store
from inlay.cluster.urls import has_password
from inlay.nas.errors import InlayError, UserError
from inlay.nas.problems import show

SCHEMA = 1
INPUTS_FILE = "inputs.json"
ROUNDS_FILE = "rounds.json"
_ROUND = re.compile(r"(?P<whole>.+)/rounds/(?P<number>[1-9][0-9]*)")
OWN_BEFORE_CLAIM = frozenset({".tmp", "lock", "scratch"})


LONGEST_URL = 4_096
"""Finding out which folder a longer path leads to takes time by its square."""


def check_workspace_url(url: str) -> None:
    """Raises UserError for a URL with a password in it, or one that is longer than any place."""
    if len(url) > LONGEST_URL:
        raise UserError(f"workspace: {show(url)} is longer than {LONGEST_URL:,} characters; name a shorter place")
    if has_password(url):
        raise UserError(
            "workspace: the URL has a password in it, which would be kept with the results; leave it out and set the "
            "store's own variables, such as AWS_SECRET_ACCESS_KEY"
        )


@dataclass(frozen=True)
class Round:
    """One round of a search in several.

    Args:
        number: of it, from 1.
        of: how many there are.
        search: what the whole search is called.
        known: of each that has begun its number, budget and parent, and once it is finished what it came to.
    """

    number: int
    of: int
    search: str
    known: list[dict[str, Any]]


class Workspace:
    """Names and formats of what lies in a workspace.

    Args:
        url: a local folder or any fsspec URL; it need not exist yet.
        lock: held on it by a run, which loses it to another that takes it for dead: asked before every commit.

    Raises:
        UserError: the URL has a password in it, or is too long.
    """

    def __init__(self, url: str | Path, lock: Lock | None = None) -> None:
        check_workspace_url(str(url))
        self.url = str(url) if "://" in str(url) else str(Path(url).resolve())
        self.store = Store(self.url)
        self._lock = lock

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a URL."""
        return None if "://" in self.url else Path(self.url)

    def round(self, number: int) -> Workspace:
        """The workspace of one round of a search that has several."""
        return Workspace(f"{self.url}/rounds/{number}")

    def last_round(self) -> Workspace:
        """Where a search is to be looked at: itself, or of several rounds the last that has begun."""
        rounds = self.find_json(ROUNDS_FILE)
        return self if rounds is None else self.round(len(rounds["rounds"]))

    def own_round(self) -> Round | None:
        """Which round of a search in several this is; None where it is none."""
        found = _ROUND.fullmatch(self.url)
        rounds = None if found is None else Workspace(found["whole"]).find_json(ROUNDS_FILE)
        if found is None or rounds is None:
            return None
        return Round(int(found["number"]), rounds["of"], PurePosixPath(found["whole"]).stem, rounds["rounds"])

    def check_held(self) -> None:
        """Raises LockedError when another run has taken the workspace over; to be called right before a commit."""
        if self._lock is not None:
            self._lock.check()

    def exists(self) -> bool:
        """Whether a search was ever started here."""
        return self.store.exists("workspace.json")

    def require(self) -> None:
        """Raises UserError unless this is a workspace."""
        if not self.exists():
            raise UserError(
                f"workspace: {self.url} has no workspace.json; give the folder that `inlay run` printed, "
                "by default <job name>.search beside the job file"
            )

    def check_parent(self, parent_digest: str, parent_name: str) -> None:
        """Raises UserError when a search of this parent cannot live here: another parent's, or another thing."""
        self.check_free()
        if not self.exists():
            return
        held = self.read_json("workspace.json")
        if held["schema"] != SCHEMA:
            raise UserError(
                f"workspace: {self.url} has schema {held['schema']}, this inlay reads {SCHEMA}; start a new workspace"
            )
        if held["parent_digest"] != parent_digest:
            raise UserError(
                f"workspace: {self.url} belongs to the parent {held['parent']} ({held['parent_digest'][:12]}), the job "
                f"names {parent_name} ({parent_digest[:12]}); give another --workspace"
            )

    def check_free(self) -> None:
        """Raises UserError when this is neither a workspace nor empty."""
        stranger = None if self.exists() else self._stranger()
        if stranger is not None:
            raise UserError(
                f"workspace: {self.url} holds {stranger} and is not a workspace; name an empty folder or a new one"
            )

    def claim(self, parent_digest: str, parent_name: str) -> None:
        """Makes this the workspace of a parent; raises as `check_parent` does."""
        self.check_parent(parent_digest, parent_name)
        if not self.exists():
            self._claim(parent_digest, parent_name)

    def adopt(self, parent_digest: str, parent_name: str) -> None:
        """Makes the workspace of a round this parent's, whichever child of the round before it was: what was computed
        for another is kept by keys that this one does not have."""
        if self.exists() and self.read_json("workspace.json")["parent_digest"] != parent_digest:
            self._claim(parent_digest, parent_name)

    def _claim(self, parent_digest: str, parent_name: str) -> None:
        self.write_json("workspace.json", {"schema": SCHEMA, "parent_digest": parent_digest, "parent": parent_name})

    def read_json(self, name: str) -> Any:
        """A JSON document; raises InlayError naming the file when it is damaged."""
        try:
            return json.loads(self.store.get(name))
        except (ValueError, UnicodeDecodeError) as error:
            raise InlayError(f"{self.url}/{name} is damaged ({error}); delete it and run the job again") from error

    def find_json(self, name: str) -> Any | None:
        """A JSON document, or None when it was not written yet."""
        return self.read_json(name) if self.store.exists(name) else None

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON document whole; keys sorted, so equal values are equal bytes; raises as `check_held` does."""
        self.check_held()
        self.store.put(name, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())

    def read_table(self, name: str) -> list[dict[str, Any]]:
        """The rows of `tables/<name>.parquet`."""
        import pyarrow.parquet as parquet

        file = f"tables/{name}.parquet"
        if not self.store.exists(file):
            raise UserError(f"workspace: {self.url} has no table `{name}` yet; run the job until that stage is done")
        rows: list[dict[str, Any]] = parquet.read_table(io.BytesIO(self.store.get(file))).to_pylist()
        return rows

    def write_table(self, name: str, rows: Sequence[dict[str, Any]], told: Mapping[bytes, bytes] | None = None) -> None:
        """Writes rows (all with the same keys) as `tables/<name>.parquet`, with `told` as its metadata; raises as
        `check_held` does."""
        import pyarrow
        import pyarrow.parquet as parquet

        buffer = io.BytesIO()
        table = pyarrow.Table.from_pylist(list(rows))
        parquet.write_table(table.replace_schema_metadata(dict(told)) if told else table, buffer)
        self.check_held()
        self.store.put(f"tables/{name}.parquet", buffer.getvalue())

    def scratch(self, configured: Path | None) -> Path:
        """The folder for what can be computed again; raises UserError when a remote workspace names none."""
        if configured is not None:
            return configured
        if self.folder is None:
            raise UserError(
                f"cluster.scratch: the workspace {self.url} is not a folder; scratch needs one that every worker can "
                "read and write; set cluster.scratch"
            )
        return self.folder / "scratch"

    def _stranger(self) -> str | None:
        """Something in the folder that inlay did not put there."""
        folder = self.folder
        if folder is None or not folder.exists():
            return None
        if not folder.is_dir():
            return "a file"
        return next((path.name for path in sorted(folder.iterdir()) if path.name not in OWN_BEFORE_CLAIM), None)
