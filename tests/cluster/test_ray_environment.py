"""What workers inherit of a submitted job is not given to them twice, which Ray refuses."""

from __future__ import annotations

import json

import pytest

from inlay.cluster.ray_environment import worker_variables


def test_what_the_jobs_environment_has_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = worker_variables({"HF_HOME": "/models"})
    assert alone["RAY_worker_niceness"] == "0"
    assert alone["HF_HOME"] == "/models"
    given = {"runtime_env": {"env_vars": {"RAY_worker_niceness": "0", "HF_HOME": "/others"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(given))
    inside = worker_variables({"HF_HOME": "/models"})
    assert set(alone) - set(inside) == {"RAY_worker_niceness", "HF_HOME"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}}))
    assert worker_variables({}) == {name: value for name, value in alone.items() if name != "HF_HOME"}
