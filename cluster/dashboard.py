"""What a cluster's dashboard knows of a task and Ray itself does not tell."""

from __future__ import annotations

from inlay.cluster.http import HttpError, request_json
from inlay.cluster.ray_token import ray_authorization


def read_hand_over(dashboard: str, task_id: str) -> float | None:
    """Return the time, in seconds of the epoch, at which Ray gave a task to a worker; None while it is queued.

    `dashboard` is `host:port`. One that does not answer is taken for a queue, since it is asked again. Not by
    `ray.util.state`: it asks the cluster that an environment variable or a file of this machine names.
    """
    path = f"/api/v0/tasks?detail=true&limit=1&filter_keys=task_id&filter_predicates=%3D&filter_values={task_id}"
    try:
        answer = request_json("GET", f"http://{dashboard}{path}", authorization=ray_authorization())
        events = [event for task in answer["data"]["result"]["result"] for event in task["events"] or []]
        handed = [event["created_ms"] / 1000 for event in events if event["state"] == "SUBMITTED_TO_WORKER"]
    except (HttpError, KeyError, TypeError):
        return None
    return max(handed, default=None)
