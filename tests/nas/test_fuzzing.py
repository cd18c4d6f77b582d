"""A short form of benchmarks/fuzz.py: what nobody means is taken, or refused in a sentence, within a second."""

from __future__ import annotations

from itertools import islice

import fuzzing
import pytest

from inlay.nas.errors import UserError
from inlay.nas.workspace import Workspace


def test_nothing_is_found() -> None:
    found = fuzzing.Found()
    for case in islice(fuzzing.cases(seed=20261130), 1000):
        found.add(case)
    assert found.finds == []
    taken = {subject for subject, end in found.ends if end == "taken"}
    refused = {subject for subject, end in found.ends if end == "refused"}
    assert {"job", "job file", "listed id", "model name"} <= taken & refused
    assert set(fuzzing.IDENTIFIERS) | {"job file"} <= taken | refused


def test_a_find_is_seen() -> None:
    found = fuzzing.Found()
    found.add(fuzzing.Case("a", lambda: {}["absent"], "an error that tells nothing"))
    found.add(fuzzing.Case("b", lambda: int("\x1b[2J"), "a refusal that quotes it"))
    found.add(fuzzing.Case("c", lambda: int("x"), "a refusal"))
    assert [find.split(":")[0] for find in found.finds] == ["a"]
    assert found.ends == {("a", "failed"): 1, ("b", "refused"): 1, ("c", "refused"): 1}


def test_a_workspace_longer_than_any_path_is_refused_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Workspace("a/" * 500_000)
    assert str(caught.value).startswith("workspace: 'a/a/")
    assert str(caught.value).endswith("... is longer than 4,096 characters; name a shorter place")
