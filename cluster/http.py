"""JSON over HTTP to the job server, with its token; one error with one sentence for all that can go wrong."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
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


def get_json(url: str) -> Any:
    """Return the JSON value at `url`; raises HttpError."""
    return request_json("GET", url)


def request_json(method: str, url: str, value: Any = None, *, with_token: bool = True) -> Any:
    """Send a request, with `value` as its JSON body, and return the JSON answer; raises HttpError."""
    request = urllib.request.Request(url, method=method)
    if value is not None:
        request.data = json.dumps(value).encode()
        request.add_header("Content-Type", "application/json")
    token = ray_token() if with_token else None
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
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


def ray_token() -> str | None:
    """Return the token for Ray's servers: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or this account's."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _direct() -> urllib.request.OpenerDirector:
    """Open without a proxy: what listens on the loopback or inside a cluster is not behind one."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
