"""On how many examples a property is tried: few for every commit, five times as many before a release."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def examples(share: float) -> settings:
    """So many times the profile's own number (tests/conftest.py), with as much time as they take."""
    number = round(share * settings().max_examples)
    return settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))
