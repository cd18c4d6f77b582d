"""What a worker times: architectures beside the parent, all at once or one at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from inlay.cluster.pieces import PieceContext
from inlay.cluster.store import Store
from inlay.nas.modeling.no_op_inlay import ABSENT
from inlay.nas.pieces.measuring import Measured, measure_subblocks, time_architectures
from inlay.nas.pieces.weights import parent_of

ENGINE = {"engine": "transformers", "target": {"device": "cpu", "dtype": "float32", "format": "parent"}}
WORKLOAD = {"batch_size": 1, "prefill": 8, "generate": 4, "threads": 1}


@pytest.fixture(scope="module")
def parent(tiny_parent: Any) -> str:
    """Wide enough for half of its layers to take half of its time."""
    return str(tiny_parent("llama", num_hidden_layers=8, hidden_size=256, intermediate_size=512))


def context(folder: Path, memory_retries: int) -> PieceContext:
    return PieceContext(
        0, Store(str(folder)), folder, 1, memory_retries + 1, memory_retries, lambda fraction, numbers=None: None
    )


@pytest.mark.parametrize("memory_retries", [0, 1])
def test_all_architectures_are_timed_beside_one_parent(parent: str, tmp_path: Path, memory_retries: int) -> None:
    """After an attempt that ran out of memory each model is made anew for its turn, and what is told is the same."""
    own = list(parent_of(parent).config.blocks)
    half = [block if layer % 2 else {"attention": ABSENT, "ffn": ABSENT} for layer, block in enumerate(own)]
    arguments = {"parent": parent, **ENGINE, "workload": WORKLOAD, "conditions": "these"}
    arguments["architectures"] = {"same": own, "half": half}
    arguments["whole"] = {"same": [None, None], "half": [None, None]}
    output = time_architectures(arguments, context(tmp_path, memory_retries))
    assert output.values["conditions"] == "these"
    same, less = (Measured(**output.values["measured"][name]) for name in ("same", "half"))
    assert same.parent == less.parent
    assert less.ratios["runtime"] < 0.85 * same.ratios["runtime"]
    for found in (same, less):
        assert found.runtime_ns == found.prefill_ns + 4 * found.decode_ns
        assert all(math.isfinite(error) and error >= 0 for error in found.ratio_errors.values())
        assert set(found.time_errors) == set(found.ratio_errors) == {"prefill", "decode", "runtime"}


def test_a_subblock_has_the_time_that_it_adds_to_the_ends(parent: str, tmp_path: Path) -> None:
    entries = ['ffn {"kind": "gated", "width": 512}', 'ffn {"kind": "gated", "width": 16}']
    arguments = {"parent": parent, **ENGINE, "workload": WORKLOAD, "entries": entries}
    times = measure_subblocks(arguments, context(tmp_path, 0)).values["times"]
    assert set(times) == {"ends", *entries}
    assert times[entries[0]]["runtime_ns"] > times[entries[1]]["runtime_ns"]
    for own in times.values():
        assert own["runtime_ns"] == own["prefill_ns"] + 4 * own["decode_ns"]
