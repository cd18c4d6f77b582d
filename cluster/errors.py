"""The errors of the cluster room: one sentence each, picklable, turned into exit codes by nas."""

from __future__ import annotations


class ClusterError(Exception):
    """Something outside the search failed: a store, a worker, a service, a lock."""


class StoreError(ClusterError):
    """A file of the workspace could not be read or written, or is damaged."""


class AbsentError(StoreError):
    """There is nothing under that name."""


class LockedError(ClusterError):
    """The workspace is held by another live run; the text names its owner."""


class ConnectError(ClusterError):
    """No Ray cluster could be started or reached."""


class PieceError(ClusterError):
    """A piece could not be finished; `kept` pieces of this call are committed and stay.

    `label` names the piece, `kind` is the type name of what was raised, or of how the worker was lost, `details` its
    traceback.
    """

    def __init__(self, message: str, label: str = "", kept: int = 0, kind: str = "", details: str = "") -> None:
        super().__init__(message)
        self.label = label
        self.kept = kept
        self.kind = kind
        self.details = details

    def __reduce__(self) -> tuple[type[PieceError], tuple[str, str, int, str, str]]:
        return PieceError, (str(self), self.label, self.kept, self.kind, self.details)
