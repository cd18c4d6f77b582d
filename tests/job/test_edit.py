"""Other values in a job file: what people wrote beside them stays."""

from __future__ import annotations

import pytest
import yaml

from inlay.nas.errors import UserError
from inlay.nas.job.edit import with_values

WRITTEN = """\
# My search
parent: ./p   # the small one
recover:
  tokens: 4M          # a night's worth
  learning_rate: 1e-3   # found by hand

  # as many as fit
  batch_size: 4
data: {distill: {path: a.txt}}
"""


def test_comments_order_and_units_stay() -> None:
    changed = with_values(WRITTEN, {"recover.learning_rate": 0.0023, "recover.batch_size": 2})
    assert changed == WRITTEN.replace("1e-3 ", "0.0023 ").replace("size: 4", "size: 2")


def test_a_key_that_is_not_there_is_added_beside_the_others() -> None:
    changed = with_values(WRITTEN, {"recover.rate": "pinned", "distill.warmup": 0.1})
    assert yaml.safe_load(changed)["recover"]["rate"] == "pinned"
    assert yaml.safe_load(changed)["distill"] == {"warmup": 0.1}
    kept = [line for line in changed.splitlines() if line not in WRITTEN.splitlines()]
    assert kept == ["  rate: pinned", "distill:", "  warmup: 0.1"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("recover: {tokens: 4M}  # c\n", "recover: {tokens: 4M, batch_size: 2}  # c\n"),
        ("recover: {}\n", "recover: {batch_size: 2}\n"),
        ("recover:  # nothing yet\nseed: 1\n", "recover: {batch_size: 2}  # nothing yet\nseed: 1\n"),
        ("recover: {batch_size: 8, tokens: 1}\n", "recover: {batch_size: 2, tokens: 1}\n"),
        ("{seed: 1}\n", "{seed: 1, recover: {batch_size: 2}}\n"),
    ],
)
def test_sections_in_braces_and_empty_ones(before: str, after: str) -> None:
    assert with_values(before, {"recover.batch_size": 2}) == after


def test_what_others_share_is_written_out() -> None:
    shared = "distill: &same {batch_size: 8}\nrecover: *same\n"
    changed = yaml.safe_load(with_values(shared, {"recover.batch_size": 2}))
    assert changed == {"distill": {"batch_size": 8}, "recover": {"batch_size": 2}}


def test_what_is_no_job_file_is_refused() -> None:
    with pytest.raises(UserError, match="holds 'text', not a mapping of keys"):
        with_values("text", {"recover.batch_size": 2})
