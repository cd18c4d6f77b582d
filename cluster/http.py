"""JSON over HTTP to the job server and MLflow, with what they ask for; one error with one sentence for all that can go
wrong.

Neither a proxy nor a redirect is followed: a token goes to the address that was named and nowhere else.
"""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from typing import Any

from inlay.cluster.errors import ClusterError

_TIMEOUT_SECONDS = 30.0


class HttpError(ClusterError):
    """A server did not answer as it should; `status` is 0 when it did not answer at all."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[HttpError], tuple[str, int]]:
        return HttpError, (str(self), self.status)


def request_json(method: str, url: str, value: Any = None, *, authorization: str | None = None) -> Any:
    """Send a request, with `value` as its JSON body, and return the JSON answer; raises HttpError."""
    request = urllib.request.Request(url, method=method)
    if value is not None:
        request.data = json.dumps(value).encode()
        request.add_header("Content-Type", "application/json")
    if authorization is not None:
        request.add_header("Authorization", authorization)
    try:
        with _direct().open(request, timeout=_TIMEOUT_SECONDS) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace").strip()
        raise HttpError(_last_line(text) or str(error.reason), error.code) from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise HttpError(f"nothing answers at {url} ({getattr(error, 'reason', error)})") from error
    try:
        return json.loads(content) if content else None
    except ValueError:
        raise HttpError(f"{url} answers, but not with JSON", 200) from None


def is_healthy(url: str) -> bool:
    """Tell whether `url` answers with success."""
    try:
        with _direct().open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def mlflow_authorization(uri: str) -> str | None:
    """Return the header for the MLflow server at `uri`; only the one that MLFLOW_TRACKING_URI names gets one."""
    if uri.rstrip("/") != os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/"):
        return None
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return f"Bearer {token}"
    name, password = (os.environ.get(f"MLFLOW_TRACKING_{part}") for part in ("USERNAME", "PASSWORD"))
    if name is None or password is None:
        return None
    return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


def _direct() -> urllib.request.OpenerDirector:
    """Open without a proxy: what listens on the loopback or inside a cluster is not behind one."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect as the failure it then is: urllib would take the token along to the other host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
