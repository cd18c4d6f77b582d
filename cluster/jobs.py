"""Jobs on a Ray cluster over its Jobs API: submit, look, follow, stop, delete; the job server is Ray's own.

Talks plain HTTP, so that looking costs no import of Ray. User mistakes raise ValueError, the rest ClusterError.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from inlay.cluster.capacity import Amounts, Growth, crowded, live_resources, misfit, read_growth, read_status_text
from inlay.cluster.errors import ClusterError
from inlay.cluster.http import HttpError, request_json
from inlay.cluster.ids import is_loopback, parse_job_id, parse_listed_id, parse_server
from inlay.cluster.job_info import PRIORITY, JobInfo, ahead_of, holder_of
from inlay.cluster.pieces import Resources
from inlay.cluster.ray_token import ray_authorization
from inlay.cluster.services import JOB_SLOT, TURN, find_services, job_token, services_folder, turn_name

_POLL_SECONDS = 1.0
_AGENT_SECONDS = 90.0
_REGISTER_SECONDS = 30.0
_SERVERS_OWN = (" -- Runtime env is setting up.", "Running entrypoint for job ")
_TAG = "tag."


class JobServer:
    """A Ray job server: the given one, RAY_API_SERVER_ADDRESS, or the one of `inlay up`."""

    def __init__(self, address: str | None = None, *, allow_insecure: bool = False) -> None:
        """`allow_insecure` lets a server beyond this machine be spoken to over http without a token."""
        given = address or os.environ.get("RAY_API_SERVER_ADDRESS")
        ray = find_services(services_folder()).ray
        own = [] if ray is None else [ray.url]
        if given is None:
            if ray is None:
                raise ValueError(
                    "no job server is known: start one with `inlay up`, or name one by --address or "
                    "RAY_API_SERVER_ADDRESS"
                )
            given = ray.url
        self.url = parse_server(given)
        self._begun: set[str] = set()
        self._has_answered = False  # one that has may be away for a while: what is only looked at is asked again
        near = is_loopback(self.url)
        # This account's token is that of its own cluster. All others get one only where that is asked for, those on the
        # loopback too: another machine's server may be behind a tunnel.
        self._with_token = self.url in own or os.environ.get("RAY_AUTH_MODE") == "token"
        safe = near or self.url.startswith("https://") or (self._with_token and ray_authorization() is not None)
        if not safe and not allow_insecure:
            raise ValueError(
                f"{self.url} is beyond this machine, and no token is to be sent: whoever reaches it may run code "
                "there; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, use https, or say --insecure"
            )

    def versions(self) -> dict[str, str]:
        """Return the Ray version of the server; raises ClusterError when it is no Ray job server."""
        answer = self._ask("GET", "/api/version")
        if not isinstance(answer, dict) or "ray_version" not in answer:
            raise ClusterError(f"{self.url} answers, but is not a Ray job server")
        return {"ray": str(answer["ray_version"])}

    def submit(
        self,
        job_id: str,
        entrypoint: str,
        environment: Mapping[str, str],
        tags: Mapping[str, str],
        details: Mapping[str, str],
    ) -> None:
        """Submit a command under `job_id`; where the cluster has tokens of its priority, it waits for one of them."""
        if any(job.job_id == job_id for job in self.jobs()):
            raise ValueError(f"there is a job `{job_id}` already; choose another id, or delete that one")
        request: dict[str, Any] = {
            "submission_id": parse_job_id(job_id),
            "entrypoint": entrypoint,
            "runtime_env": {"env_vars": dict(environment)},
            "metadata": {f"{_TAG}{name}": value for name, value in tags.items()} | dict(details),
        }
        token = job_token(details.get(PRIORITY, ""))
        if any(node.get(token) for node in self._known_nodes()):
            request["entrypoint_resources"] = {token: 1}
        deadline = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                self._ask("POST", "/api/jobs/", request)
                return
            except ClusterError as error:
                # A head that has just started answers before the agent that starts jobs is there.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)

    def jobs(
        self,
        tags: Mapping[str, str | None] | None = None,
        *,
        state: str | None = None,
        owner: str | None = None,
        limit: int | None = None,
    ) -> list[JobInfo]:
        """Return the submitted jobs, the newest first, by two requests at most, whatever their number.

        Args:
            tags: only jobs that have all of them; None stands for any value.
            state: only jobs in it.
            owner: only jobs of this account.
            limit: at most so many, the newest.
        """
        answer = self._ask("GET", "/api/jobs/")
        with self._understood():
            found = [self._at_gate(job) for job in self._noted(answer)]
        found = [replace(job, before=len(ahead_of(job, found))) if job.state == "PENDING" else job for job in found]
        asked = [
            job
            for job in found
            if all(name in job.tags and value in (None, job.tags[name]) for name, value in (tags or {}).items())
            and state in (None, job.state)
            and owner in (None, job.owner)
        ]
        return sorted(asked, key=lambda job: (-(job.submitted or 0), job.job_id))[:limit]

    def job(self, job_id: str) -> JobInfo:
        """Return one job; raises ValueError for an unknown one."""
        answer = self._ask("GET", f"/api/jobs/{parse_listed_id(job_id)}", job_id=job_id)
        with self._understood():
            (job,) = self._noted([answer | {"type": "SUBMISSION"}])
            job = self._at_gate(job)
        if job.state != "PENDING":
            return job
        return next((listed for listed in self.jobs() if listed.job_id == job_id), job)

    def logs(self, job_id: str, tail: int | None = None) -> str:
        """Return what a job has written so far, or its last `tail` lines, without those that the job server adds."""
        answer = self._ask("GET", f"/api/jobs/{parse_listed_id(job_id)}/logs", job_id=job_id)
        with self._understood():
            lines = str(answer["logs"] or "").splitlines(keepends=True)
        own = [line for line in lines if not any(text in line for text in _SERVERS_OWN)]
        return "".join(own if tail is None else own[max(0, len(own) - tail) :])

    def follow(
        self, job_id: str, on_wait: Callable[[str], None] = lambda reason: None, tail: int | None = None
    ) -> Iterator[str]:
        """Give what a job writes, as it comes, until it ends; of what is there already only the last `tail` lines.

        `on_wait` is told what it waits for, at every change.
        """
        written, reason = 0, ""
        if tail is not None:
            text = self.logs(job_id)
            lines = text.splitlines(keepends=True)
            written = len("".join(lines[: max(0, len(lines) - tail)]))
        while True:
            job = self.job(job_id)
            over = job.is_over
            if job.state == "PENDING" and (now := self.waits_for(job)) != reason:
                reason = now
                on_wait(reason)
            text = self.logs(job_id)
            if len(text) > written:
                yield text[written:]
                written = len(text)
            if over:
                return
            time.sleep(_POLL_SECONDS)

    def wait(self, job_id: str, timeout_seconds: float | None = None) -> JobInfo:
        """Return the job once it is over, or as it is when the time is up."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            job = self.job(job_id)
            if job.is_over or (deadline is not None and time.monotonic() > deadline):
                return job
            time.sleep(_POLL_SECONDS / 2)

    def stop(self, job_id: str) -> bool:
        """Ask a job to stop; False when it was over already."""
        answer = self._ask("POST", f"/api/jobs/{parse_listed_id(job_id)}/stop", job_id=job_id)
        with self._understood():
            return bool(answer["stopped"])

    def delete(self, job_id: str) -> None:
        """Forget a job that is over, its workspace stays; raises ValueError for one that runs."""
        job = self.job(job_id)
        if not job.is_over:
            raise ValueError(f"the job `{job_id}` is {job.state}; stop it first: inlay stop {job_id}")
        self._ask("DELETE", f"/api/jobs/{parse_listed_id(job_id)}", job_id=job_id)

    def nodes(self) -> list[Amounts]:
        """Return the resources of every live node, by Ray's names."""
        answer = self._ask("GET", "/api/v0/nodes?limit=10000")
        with self._understood():
            return live_resources(answer)

    def growth(self) -> Growth | None:
        """Return what the cluster's autoscaler says, None where there is none."""
        answer = self._ask("GET", "/api/cluster_status")
        with self._understood():
            status = (answer.get("data") or {}).get("clusterStatus") or {}
            # The dashboard writes names in camel case.
            report = {_snake(name): value for name, value in (status.get("autoscalerReport") or {}).items()}
        if report:
            return read_growth({"autoscaler_report": report})
        answer = self._ask("GET", "/api/cluster_status?format=1")
        with self._understood():
            return read_status_text(str((answer.get("data") or {}).get("clusterStatus") or ""))

    def check_share(self, share: Resources) -> None:
        """Raise ValueError when no node can ever hold a worker with this share; a cluster that grows may get one."""
        reason = misfit(self._known_nodes(), share)
        if reason is not None and self.growth() is None:
            raise ValueError(f"cluster: {reason} at {self.url}; ask for less per worker")

    def check_together(self, share: Resources, count: int) -> None:
        """Raise ValueError when `count` workers with this share can never run at once; a cluster that grows may."""
        reason = crowded(self._known_nodes(), share, count)
        if reason is not None and self.growth() is None:
            raise ValueError(f"{reason} at {self.url}")

    def _known_nodes(self) -> list[Amounts]:
        """Return what `nodes` does, once there is one: a job server that has just come up does not know its own yet."""
        deadline = time.monotonic() + _REGISTER_SECONDS
        while not any(nodes := self.nodes()) and self.growth() is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return nodes

    def slots(self) -> int:
        """Return how many jobs run at once; 0 is as many as are submitted."""
        return int(sum(node.get(JOB_SLOT, 0) for node in self.nodes()))

    def turns(self) -> dict[str, str]:
        """Return the ids of the placement groups by which jobs hold their turns, by their names."""
        answer = self._ask("GET", "/api/v0/placement_groups?limit=10000")
        with self._understood():
            found = answer["data"]["result"]["result"]
            return {
                str(group["name"]): str(group["placement_group_id"])
                for group in found
                if group["state"] == "CREATED" and str(group["name"]).startswith(TURN)
            }

    def waits_for(self, job: JobInfo) -> str:
        """Return what a job that has not begun waits for."""
        jobs = self.jobs()
        if (holder := holder_of(job, jobs)) is not None:
            return f"it waits for the end of the job `{holder.job_id}`, which has the same workspace"
        slots, ahead = self.slots(), ahead_of(job, jobs)
        running = [other.job_id for other in jobs if other.state == "RUNNING" and other.priority]
        if slots == 0 or (len(running) < slots and not ahead):
            return "it is being started"
        higher = sum(other.priority != job.priority for other in ahead)
        others = f" behind {len(ahead)} other{'' if len(ahead) == 1 else 's'}" if ahead else ""
        turn = f"it waits for its turn{others}" + (f", {higher} of higher priority" if higher else "")
        shown = ", ".join(running[:5]) + (f" and {len(running) - 5} more" if len(running) > 5 else "")
        many = "job runs" if slots == 1 else "jobs run"
        return f"{turn}: {slots} {many} at once here, now {shown}"

    def _noted(self, answer: Any) -> list[JobInfo]:
        return [_job_info(value) for value in answer if value["type"] == "SUBMISSION"]

    def _at_gate(self, job: JobInfo) -> JobInfo:
        """Return a job as PENDING that Ray has started and whose turn has not come."""
        if job.state != "RUNNING" or not job.priority:
            return job
        if (name := turn_name(job.job_id, job.submitted)) not in self._begun:
            self._begun |= self.turns().keys()  # who has begun does not wait again
        return job if name in self._begun else replace(job, state="PENDING", at_gate=True)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Turn what fails in the body, for an answer of another form, into a ClusterError."""
        try:
            yield
        except (KeyError, TypeError, AttributeError, ValueError, IndexError):
            raise ClusterError(f"{self.url} answers, but is not a Ray job server") from None

    def _ask(self, method: str, path: str, value: Any = None, job_id: str = "") -> Any:
        try:
            header = ray_authorization() if self._with_token else None
            patient = self._has_answered and method == "GET"
            answer = request_json(method, f"{self.url}{path}", value, authorization=header, patient=patient)
        except HttpError as error:
            if error.status == 401:
                raise ClusterError(
                    f"{self.url} asks for a token and there is none here: set RAY_AUTH_MODE=token, and "
                    "RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
                ) from error
            if error.status == 403:
                raise ClusterError(
                    f"{self.url} refuses the token of this side: set RAY_AUTH_TOKEN_PATH to the file with the "
                    "cluster's token"
                ) from error
            if error.status == 404 and job_id:
                raise ValueError(f"{self.url} has no job `{job_id}`; `inlay list` shows those it has") from error
            if error.status == 0:
                raise ClusterError(f"no job server answers at {self.url}; is the cluster up? (`inlay up`)") from error
            if error.status in (200, 404):
                raise ClusterError(f"{self.url} answers, but is not a Ray job server") from error
            raise ClusterError(f"the job server {self.url} failed ({error.status}): {error}") from error
        self._has_answered = True
        return answer


def _job_info(value: Mapping[str, Any]) -> JobInfo:
    metadata = {str(name): str(text) for name, text in (value.get("metadata") or {}).items()}
    message = str(value.get("message") or "").partition(", last available logs")[0]
    variables = (value.get("runtime_env") or {}).get("env_vars") or {}
    return JobInfo(
        job_id=str(value.get("submission_id") or value.get("job_id")),
        state=str(value["status"]),
        message=" ".join(message.split()),
        exit_code=value.get("driver_exit_code"),
        submitted=_seconds(value.get("start_time")),
        ended=_seconds(value.get("end_time")),
        tags={name.removeprefix(_TAG): text for name, text in metadata.items() if name.startswith(_TAG)},
        details={name: text for name, text in metadata.items() if not name.startswith(_TAG)},
        environment={str(name): str(text) for name, text in variables.items()},
    )


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def _seconds(milliseconds: int | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000
