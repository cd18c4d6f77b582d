"""Folders of children whose weights are their parent's as far as those fit: what a search exports, without one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.nas.export.hf import AUTO_MAP, COPIED
from inlay.nas.families import Parent, layer_prefix, open_parent, subblock_tensors
from inlay.nas.families.shape import SLOTS
from inlay.nas.modeling import InlayForCausalLM

Changes = Mapping[tuple[int, str], Mapping[str, Any]]
"""Entries by layer and slot, of the subblocks that are not the parent's own."""


def write_child(parent_folder: Path, changes: Changes, folder: Path) -> InlayForCausalLM:
    """The child, ready to generate, and its folder."""
    parent = open_parent(parent_folder)
    generator = torch.Generator().manual_seed(0)
    state, blocks = parent.ends_state(), []
    for layer in range(parent.shape.num_layers):
        blocks.append(
            {slot: dict(changes.get((layer, slot), parent.shape.parent_entry(layer, slot))) for slot in SLOTS}
        )
        for slot in SLOTS:
            state |= _subblock_state(parent, layer, slot, blocks[-1][slot], generator)
    if parent.shape.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    config = parent.config.with_blocks(blocks)
    config.auto_map = AUTO_MAP
    child = InlayForCausalLM(config).eval()
    child.load_state_dict(state)
    child.save_pretrained(folder)
    for name in COPIED:
        if (parent_folder / name).is_file():
            shutil.copyfile(parent_folder / name, folder / name)
    return child


def _subblock_state(
    parent: Parent, layer: int, slot: Any, entry: Mapping[str, Any], generator: torch.Generator
) -> dict[str, Tensor]:
    own = parent.layer_state(layer)
    state = {}
    for name, size in subblock_tensors(parent.shape, slot, entry).items():
        tensor = own.get(name)
        if tensor is None:  # the matrix of a linear
            tensor = torch.randn(size, generator=generator) * 0.5 * size[-1] ** -0.5
        for dimension, length in enumerate(size):
            # More KV heads than the parent's repeat them; fewer, and fewer channels, are its first.
            places = torch.arange(length) % tensor.shape[dimension]
            tensor = tensor.index_select(dimension, places)
        state[layer_prefix(layer) + name] = tensor
    return state
