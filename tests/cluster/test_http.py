"""Tokens and passwords go to the server that was named, and nowhere else."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from inlay.cluster.http import HttpError, mlflow_authorization, request_json
from inlay.cluster.jobs import JobServer
from inlay.cluster.ray_token import ray_authorization


class Listener(BaseHTTPRequestHandler):
    """Notes the headers of what it is asked; below /away it answers with the way to another server."""

    heard: list[tuple[str, str | None]]
    away: str

    def do_GET(self) -> None:
        self.heard.append((self.path, self.headers.get("Authorization")))
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", self.away)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def listener() -> Iterator[type[Listener]]:
    handler = type("Handler", (Listener,), {"heard": [], "away": ""})
    server = HTTPServer(("127.0.0.1", 0), handler)
    handler.url = f"http://127.0.0.1:{server.server_port}"
    handler.away = f"http://localhost:{server.server_port}/elsewhere"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()
    server.server_close()


def test_a_redirect_does_not_take_the_token_along(listener: type[Listener]) -> None:
    with pytest.raises(HttpError) as caught:
        request_json("GET", f"{listener.url}/away", authorization="Bearer secret")
    assert caught.value.status == 302
    assert listener.heard == [("/away", "Bearer secret")]


def test_this_accounts_token_goes_beyond_this_machine_only_when_asked(
    listener: type[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert JobServer(listener.url).jobs() == []
    # Another name of the loopback that is not known as one stands for another machine.
    server = HTTPServer(("127.0.0.2", 0), listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    beyond = f"http://127.0.0.2:{server.server_port}"
    JobServer(beyond, allow_insecure=True).jobs()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    JobServer(beyond).jobs()
    server.shutdown()
    server.server_close()
    assert [header for _, header in listener.heard] == [None, None, "Bearer secret"]


def test_mlflows_credentials_are_for_the_server_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass")
    assert mlflow_authorization("http://mlflow:5000") is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000/")
    assert mlflow_authorization("http://mlflow:5000") == "Basic YWRhOnBhc3M="
    assert mlflow_authorization("http://elsewhere:5000") is None
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "word")
    assert mlflow_authorization("http://mlflow:5000") == "Bearer word"


def test_no_token_is_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert ray_authorization() is None


def test_this_accounts_token_goes_to_no_tunnel_unless_asked(
    listener: type[Listener], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What listens on the loopback may be another machine's server behind `ssh -L`."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("INLAY_SERVICES", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert JobServer(listener.url).jobs() == []
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert JobServer(listener.url).jobs() == []
    assert listener.heard == [("/api/jobs/", None), ("/api/jobs/", "Bearer secret")]


def test_this_accounts_token_goes_to_the_ray_that_inlay_up_started(
    listener: type[Listener], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    myself = {"pid": os.getpid(), "started": psutil.Process().create_time()}
    ray = {"process": myself, "url": listener.url, "log": "", "address": ""}
    (tmp_path / "services.json").write_text(json.dumps({"schema": 1, "ray": ray, "mlflow": None}))
    monkeypatch.setenv("INLAY_SERVICES", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert JobServer().jobs() == JobServer(listener.url).jobs() == []
    assert listener.heard == [("/api/jobs/", "Bearer secret")] * 2
