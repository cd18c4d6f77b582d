"""What a finished search could not tell its tracker is sent when its command is given again."""

from __future__ import annotations

from inlay.cluster.errors import ClusterError
from inlay.cluster.lock import locked
from inlay.cluster.tracking import Tracker, spool_folder
from inlay.cluster.tracking_buffer import Buffer
from inlay.nas.job import Job
from inlay.nas.report.progress import Reporter
from inlay.nas.workspace import Workspace


def send_unsent(job: Job, place: Workspace, reporter: Reporter) -> None:
    """Sends what waits beside the workspace of a finished search of this job, and says so; nothing is made where
    nothing waits, and a tracker that is still away is told as during a search."""
    spool = spool_folder(place.store) / place.read_json("run.json")["job_digest"][:16]
    if Buffer(spool).is_empty():
        return
    try:
        with locked(place.store, "a run that sends what its tracker has not got", reporter.message):
            tracker = Tracker(job.tracking.uri, job.tracking.experiment, reporter.warning, spool=spool)
            tracker.close()
    except ClusterError as error:  # another run has the workspace, and sends it itself
        reporter.warning(f"what waits for the tracker is not sent: {error}")
        return
    if Buffer(spool).is_empty():
        reporter.message("the tracker has got what it did not answer for when the search ran")
