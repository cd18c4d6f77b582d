"""What gated linear attention is made of, choice by choice: the error of its update with each choice made otherwise.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/gla.py [--parent stories3M] [--layers 0 1 4]

All are trained on the same batches as `benchmarks/pieces.py` trains pieces; a no-op's error is 1.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
from machine import footer
from pieces import BATCH, GLA, HELD_OUT, batches_of, gathered
from torch import Tensor

from inlay.distill.branches import Branch, LayerBatch
from inlay.distill.local import train_layer
from inlay.distill.settings import LocalSettings
from inlay.nas.families import Parent, open_parent
from inlay.nas.modeling import Ends, build_layer, make_context
from inlay.nas.modeling.full_inlay import OUTPUT
from inlay.nas.modeling.gla_inlay import GATE_UP
from inlay.nas.modeling.gla_modules_inlay import TEMPERATURE, GlaMixer
from inlay.nas.pieces.calibration import statistics_of
from inlay.nas.variants import parse_variant

SHORT = 4
"""Sequences of the last row are shorter by this factor."""


class Unrotated(GlaMixer):
    """Without positions, but for how states fade."""

    def rotated(self, normed_BSD: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """Queries and keys as they are projected."""
        split = (project(normed_BSD).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj))
        query_BHSK, key_BGSK = (states.transpose(1, 2).float() for states in split)
        return query_BHSK, key_BGSK


class Softmax(GlaMixer):
    """Softmax over the numbers of a query and of a key."""

    def features(self, states: Tensor) -> Tensor:
        """All above 0."""
        return states.softmax(dim=-1)


def spread(layer: Any, own: dict[str, Tensor]) -> None:
    """Half-lives of 2 to 1,024 tokens in every head."""
    size = layer.self_attn.head_dim
    half_lives = torch.exp2(torch.linspace(1, 10, size))
    biases = -torch.log(torch.expm1(math.log(2) * TEMPERATURE / half_lives))
    layer.get_submodule(GATE_UP).bias.data = biases.repeat(len(layer.get_submodule(GATE_UP).bias) // size)


def unfitted(layer: Any, own: dict[str, Tensor]) -> None:
    """The parent's output projection."""
    layer.get_submodule(OUTPUT).weight.data = own[f"{OUTPUT}.weight"].clone()


def made_of(cls: type[GlaMixer]) -> Callable[[Any, dict[str, Tensor]], None]:
    """Another mixer with the same weights."""

    def change(layer: Any, own: dict[str, Tensor]) -> None:
        layer.self_attn.__class__ = cls

    return change


CHOICES: dict[str, Callable[[Any, dict[str, Tensor]], None]] = {
    "as it is": lambda layer, own: None,
    "output projection not fitted": unfitted,
    "half-lives of 2 to 1,024 tokens in every head": spread,
    "softmax of keys and queries in place of the cut": made_of(Softmax),
    "no rotary positions": made_of(Unrotated),
}
SHORT_ROW = f"trained on sequences a {SHORT}th as long"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", default="stories3M")
    parser.add_argument("--layers", type=int, nargs="*", default=[0, 1, 4])
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gla.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    parent = open_parent(Path(os.environ["INLAY_PARENTS"]) / options.parent)
    rows = errors(parent, options.layers, options.tokens)
    lines = [
        "# Gated linear attention, choice by choice",
        "",
        f"{options.parent}, sequences of {parent.shape.max_positions} tokens, one seed; error of the update on text",
        f"not trained on, at the start and after {options.tokens:,} tokens, a no-op is 1.",
        "",
        "| choice | " + " | ".join(f"layer {index}: start | trained" for index in options.layers) + " |",
        "|---" * (1 + 2 * len(options.layers)) + "|",
        *(f"| {name} | " + " | ".join(f"{error:.3f}" for error in found) + " |" for name, found in rows.items()),
        "",
        f"Written by `benchmarks/gla.py`. {footer()}",
        "",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print("\n".join(lines))


def errors(parent: Parent, layers: list[int], tokens: int) -> dict[str, list[float]]:
    """Start and end of every choice, layer by layer."""
    shape, length, variant = parent.shape, parent.shape.max_positions, parse_variant(GLA)
    steps = tokens // (BATCH * length)
    ids_NBS, _ = batches_of(parent, 0, length, steps + HELD_OUT)
    settings = LocalSettings(steps, learning_rate=3e-3, rate="found", held_out=HELD_OUT)
    with torch.no_grad():
        hidden = list(Ends(parent.config, parent.ends_state(), torch.float32).embed(ids_NBS))
    rows: dict[str, list[float]] = {name: [] for name in (*CHOICES, SHORT_ROW)}
    for index in range(max(layers) + 1):
        state = parent.layer_state(index, torch.float32)
        own = [shape.parent_entry(index, slot) for slot in ("attention", "ffn")]
        layer = build_layer(parent.config, index, *own, state, torch.float32)
        context = make_context(parent.config, BATCH, length, torch.float32, "cpu", [own[0]])
        if index in layers:
            mixing, mixed = sorted(statistics_of([variant], shape, index), key=lambda each: bool(each.needs))
            sums = gathered(layer, hidden, context, [mixing])
            sums |= gathered(layer, hidden, context, [mixed.ready(state, sums)])
            start = variant.start(shape, index, state, sums)
            branches = []
            for name in (*CHOICES, SHORT_ROW):
                copies = {each: tensor.clone() for each, tensor in start.items()}
                built = build_layer(parent.config, index, variant.entry(shape, index), None, copies, torch.float32)
                CHOICES.get(name, CHOICES["as it is"])(built, state)
                branches.append(Branch(name, "attention", built.requires_grad_(True)))
            batches = [LayerBatch(each, context) for each in hidden]
            for result in train_layer(layer, branches[:-1], batches, settings):
                rows[result.label] += [result.start_loss, result.final_loss]
            # The same tokens, cut into sequences of their own.
            part = make_context(parent.config, BATCH * SHORT, length // SHORT, torch.float32, "cpu", [own[0]])
            short = [LayerBatch(each.reshape(BATCH * SHORT, length // SHORT, -1), part) for each in hidden[:-HELD_OUT]]
            (result,) = train_layer(layer, branches[-1:], [*short, *batches[-HELD_OUT:]], settings)
            rows[SHORT_ROW] += [result.start_loss, result.final_loss]
        with torch.no_grad():
            hidden = [layer(each, context) for each in hidden]
    return rows


if __name__ == "__main__":
    main()
