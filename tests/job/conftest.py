"""A right job to bend."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def values() -> dict[str, Any]:
    """A job as YAML gives it; it names nothing that must exist."""
    return {
        "parent": "./parents/stories3M",
        "data": {
            "distill": {"path": "stories.txt", "sequence_length": 256},
            "validate": {"path": "held_out.txt", "tokens": "64k"},
        },
        "space": {
            "attention": [{"kv_heads": 1}, {"window": 128}, "linear", "no_op"],
            "ffn": [{"width": 0.75}, {"width": 256}, "linear", "no_op"],
        },
        "distill": {"tokens": "500k", "learning_rate": "1e-3"},
        "hardware": {"scenarios": [{"name": "chat", "batch_size": 8, "prefill": 128, "generate": 128}]},
        "budget": {"runtime": "0.6x", "memory": "0.8x", "chat": {"kv": "24GiB"}},
        "recover": {"tokens": "4M"},
        "tracking": {"experiment": "stories"},
    }
