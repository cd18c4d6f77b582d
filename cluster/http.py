"""JSON over HTTP to the job server and MLflow, with what they ask for; one error with one sentence for all that can go
wrong.

Neither a proxy nor a redirect is followed: a token goes to the address that was named and nowhere else.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inlay.cluster.errors import ClusterError

_TIMEOUT_SECONDS = 30.0
_RETRIES = 12
"""Of a patient request: with pauses of half a second to 15, for about two minutes."""
_PASSING = (502, 503, 504)
"""What a server or the proxy before it says while it is restarted."""


class HttpError(ClusterError):
    """A server did not answer as it should; `status` is 0 when it did not answer at all."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[HttpError], tuple[str, int]]:
        return HttpError, (str(self), self.status)


def request_json(
    method: str, url: str, value: Any = None, *, authorization: str | None = None, patient: bool = False
) -> Any:
    """Send a request, with `value` as its JSON body, and return the JSON answer; raises HttpError.

    A `patient` one is sent again for about two minutes while the server is away or breaks off; nothing else than GET
    ever is.
    """
    import requests

    headers = {} if authorization is None else {"Authorization": authorization}
    try:
        with _session(_RETRIES if patient else 0) as session:
            answer = session.request(
                method, url, json=value, headers=headers, timeout=_TIMEOUT_SECONDS, allow_redirects=False
            )
    except (requests.RequestException, ValueError) as error:
        raise HttpError(f"nothing answers at {url} ({_reason(error)})") from error
    if not 200 <= answer.status_code < 300:
        raise HttpError(_last_line(answer.text) or str(answer.reason), answer.status_code)
    try:
        return json.loads(answer.content) if answer.content else None
    except ValueError:
        raise HttpError(f"{url} answers, but not with JSON", 200) from None


def post_json(url: str, value: Any, timeout_seconds: float) -> int:
    """Send `value` once and return the status of the answer, which is not read; raises HttpError if there is none."""
    import requests

    try:
        with (
            _session(0) as session,
            session.post(url, json=value, timeout=timeout_seconds, allow_redirects=False, stream=True) as answer,
        ):
            return int(answer.status_code)
    except (requests.RequestException, ValueError) as error:
        raise HttpError(f"nothing answers at {url} ({_reason(error)})") from error


def is_healthy(url: str) -> bool:
    """Tell whether `url` answers with success."""
    import requests

    try:
        with _session(0) as session:
            return bool(session.get(url, timeout=5, allow_redirects=False).status_code == 200)
    except (requests.RequestException, ValueError):
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


@contextmanager
def _session(retries: int) -> Iterator[Any]:
    """Open without a proxy: what listens on the loopback or inside a cluster is not behind one."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retry = Retry(
        total=retries,
        redirect=0,
        status_forcelist=_PASSING,
        allowed_methods=["GET"],
        backoff_factor=0.5,
        backoff_max=15.0,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    with requests.Session() as session:
        session.trust_env = False  # neither proxies, nor passwords of ~/.netrc
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or True
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        yield session


def _reason(error: BaseException) -> str:
    """Return the system's words, which requests and urllib3 wrap several times, else the innermost ones."""
    innermost: BaseException = error
    while (inner := innermost.__cause__ or innermost.__context__) is not None:
        innermost = inner
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    return " ".join(str(innermost).split())[:200] or type(innermost).__name__


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
