"""Activation checkpointing: what a layer computes in between is not kept for the backward but computed again there.

A step takes a third longer, and its gradients are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint


def recompute(layers: Iterable[Any]) -> None:
    """Has these modules compute their forward again in every backward, in place, sharded ones too.

    Nothing in them may draw random numbers.
    """
    for layer in layers:
        # Beneath the hooks of FSDP, which gather the layer's weights before its backward.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
