"""doctor: what it finds, and that it never shows a secret."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from inlay.nas.cli import main
from inlay.nas.cli.checkup import mlflow_check, ray_token_check


def test_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert {"python", "inlay", "libraries", "processors", "devices", "mlflow", "ray", "ray auth"} <= set(checks)
    assert checks["mlflow"]["state"] == "ok"
    assert not (tmp_path / "mlflow.db").exists()


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    """A server that is healthy."""
    http = HTTPServer(("127.0.0.1", 0), _Healthy)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def test_an_mlflow_server(server: str) -> None:
    check = mlflow_check(f"http://user:secret@{server}")
    assert "secret" not in check.text
    assert mlflow_check(f"http://{server}").state == "ok"


def test_no_mlflow_server(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "broken" in told
    assert "does not answer" in told
    assert "secret" not in told


def test_a_folder_that_cannot_be_written() -> None:
    assert mlflow_check("sqlite:////proc/nowhere/mlflow.db").state == "broken"


def test_ray_tokens(tmp_path: Path) -> None:
    path = tmp_path / "token"
    environment = {"RAY_AUTH_TOKEN_PATH": str(path)}
    assert "no token yet" in ray_token_check(environment).text
    path.write_text("hush")
    path.chmod(0o644)
    check = ray_token_check(environment)
    assert check.state == "look"
    assert f"chmod 600 {path}" in check.text
    path.chmod(0o600)
    assert ray_token_check(environment | {"RAY_AUTH_MODE": "token"}).state == "ok"
    assert "hush" not in ray_token_check(environment).text
    assert ray_token_check({"RAY_AUTH_MODE": "disabled"}).state == "look"
    shown = ray_token_check({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "hush"})
    assert (shown.state, "hush" in shown.text) == ("ok", False)
