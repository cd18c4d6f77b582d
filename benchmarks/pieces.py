"""What each piece is worth: its error after local distillation, its KL, its costs, and children with and without it.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/pieces.py [--parent stories3M] [--seeds 3] [--tokens 120000]

All pieces of a layer are trained on the same batches, sequences as long as the parent's context. KL is on other text of
the same length. Times are of whole models with one piece in every layer, in turns, for a prompt of 2,000 tokens; what a
child takes is added up from them. A piece that is new is a line in `PIECES`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import torch
from machine import footer
from torch import Tensor
from transformers.utils import logging

from inlay.distill.branches import Branch, LayerBatch
from inlay.distill.corpus import Corpus
from inlay.distill.local import train_layer
from inlay.distill.objective import kl_of
from inlay.distill.records import Records, contents
from inlay.distill.settings import LocalSettings
from inlay.distill.text import pack, token_lists
from inlay.nas.engines.eager import random_model, rounds_of
from inlay.nas.engines.timing import Workload, summarise
from inlay.nas.families import Parent, open_parent
from inlay.nas.modeling import Ends, InlayForCausalLM, build_layer, make_context
from inlay.nas.pieces.calibration import statistics_of
from inlay.nas.variants import Place, kv_bytes, parse_variant
from inlay.nas.variants.entries import entries_of
from inlay.nas.variants.statistics import Statistic, Sums, gather

PIECES = ("attention:kv_heads=1", "attention:window=64", "attention:gla", "attention:linear", "attention:no_op")
OWN, FFN, NOTHING, GLA = "attention:parent", "ffn:parent", "attention:no_op", "attention:gla"
BATCH, HELD_OUT, JUDGED = 4, 2, 4
PROMPT, STEPS = 2_000, 32
CALIBRATED = 16
"""Batches that starts are computed from."""
BUDGETS = (("cache", 0.6), ("cache", 0.35), ("runtime", 0.8))


@dataclass
class Piece:
    """What was seen of one kind of piece in one layer."""

    label: str
    start: float
    error: float
    state: dict[str, Tensor] = field(repr=False)
    kl_nats: float = float("nan")


@dataclass
class Told:
    """Of one seed: the pieces of every layer, and children."""

    layers: list[dict[str, Piece]]
    children: list[tuple[str, str, tuple[str, ...], float]] = field(default_factory=list)
    """Budget, space, the attention of every layer, KL."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=["stories3M", "stories260K"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=120_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/pieces.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    lines = ["# Pieces", "", *INTRODUCTION.format(**vars(options), prompt=PROMPT, steps=STEPS).splitlines()]
    for name in options.parent:
        parent = open_parent(Path(os.environ["INLAY_PARENTS"]) / name)
        costs = costs_of(parent)
        told = [of_seed(parent, seed, options.tokens, costs) for seed in range(options.seeds)]
        lines += ["", *page(name, parent, costs, told)]
        # What is done so far is there if the rest is not waited for.
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("\n".join([*lines, "", f"Written by `benchmarks/pieces.py`. {footer()}", ""]))
    print(options.output.read_text())


INTRODUCTION = """\
Every piece trained on {tokens:,} tokens a layer, at a rate found for it, from the same batches; seeds: {seeds}, which
draw other text. *Start* and *error*: of the update on text not trained on, a no-op is 1; *KL*: of the parent with one
block replaced, nats per token; means over the layers, of the seed with the largest. *Cache*: bytes after the parent's
whole context; *prompt* and *step*: the attentions' time in eager PyTorch, one thread, batch 1, for a prompt of
{prompt:,} tokens and for one of {steps} steps behind it; all relative to the parent's attention. The parents' contexts
are shorter than that prompt, so KL is on sequences as long as these are."""


@torch.inference_mode()
def costs_of(parent: Parent) -> dict[str, dict[str, float]]:
    """Of one piece in one layer, and of the ends: cache bytes, ns of the prompt, of a step, and of both together."""
    shape, config = parent.shape, parent.config
    models = {
        label: random_model(
            config.with_blocks(entries_of(shape, [(label, FFN)] * shape.num_layers)), torch.float32, torch.device("cpu")
        )
        for label in (OWN, *PIECES)
    }
    workload = Workload(1, PROMPT, STEPS, 1)
    rounds = rounds_of(models, workload, torch.device("cpu"))
    times = {label: summarise(found, workload) for label, found in rounds.items()}
    ends = times[NOTHING]
    costs: dict[str, dict[str, float]] = {"ends": {"runtime": float(ends.runtime_ns)}}
    for label, own in times.items():
        entry = parse_variant(label).entry(shape, 0)
        costs[label] = {
            "cache": kv_bytes(entry, shape, 1, shape.max_positions),
            "prompt": (own.prefill_ns - ends.prefill_ns) / shape.num_layers,
            "step": (own.decode_ns - ends.decode_ns) / shape.num_layers,
            "runtime": (own.runtime_ns - ends.runtime_ns) / shape.num_layers,
        }
    return costs


def of_seed(parent: Parent, seed: int, tokens: int, costs: Mapping[str, Mapping[str, float]]) -> Told:
    """Trains, scores, and puts children together."""
    length = parent.shape.max_positions
    steps = tokens // (BATCH * length)
    trained_NBS, judged_NBS = batches_of(parent, seed, length, steps + HELD_OUT)
    layers = library(parent, trained_NBS, steps)
    judge = Judge(whole_model(parent, layers, [OWN] * len(layers)), judged_NBS)
    for index, pieces in enumerate(layers):
        for label, piece in pieces.items():
            chosen = [label if layer == index else OWN for layer in range(len(layers))]
            piece.kl_nats = judge.kl_nats(whole_model(parent, layers, chosen))
    told = Told(layers)
    found: dict[tuple[str, ...], float] = {}
    for budget, space, chosen in children(layers, costs):
        if chosen not in found:
            found[chosen] = judge.kl_nats(whole_model(parent, layers, chosen))
        told.children.append((budget, space, chosen, found[chosen]))
    return told


def batches_of(parent: Parent, seed: int, length: int, count: int) -> tuple[Tensor, Tensor]:
    """Ids to train on, which the seed draws, and the same ones to judge on for every seed."""
    text = Path(os.environ["INLAY_TEXT"]) / "tinystories_distill.txt"
    corpus = Corpus(text, "<|endoftext|>", Records(None, contents))
    documents = corpus.texts(index := corpus.index(), np.arange(len(index.places_N4)))
    documents = list(itertools.islice(documents, 8_000))
    kept, drawn = documents[: len(documents) // 8], documents[len(documents) // 8 :]
    random.Random(seed).shuffle(drawn)
    found = []
    for own, batches in ((drawn, count), (kept, JUDGED)):
        ids = pack(token_lists(own, parent.tokenizer()), length, tokens=batches * BATCH * length)
        found.append(torch.from_numpy(ids).long()[: batches * BATCH].reshape(batches, BATCH, length))
    return found[0], found[1]


def library(parent: Parent, ids_NBS: Tensor, steps: int) -> list[dict[str, Piece]]:
    """Every piece of every layer, from its start, on the parent's own inputs."""
    shape, (_, batch, length) = parent.shape, ids_NBS.shape
    settings = LocalSettings(steps, learning_rate=3e-3, rate="found", held_out=HELD_OUT)
    hidden = list(Ends(parent.config, parent.ends_state(), torch.float32).embed(ids_NBS))
    layers: list[dict[str, Piece]] = []
    for index in range(shape.num_layers):
        state = parent.layer_state(index, torch.float32)
        own = [shape.parent_entry(index, slot) for slot in ("attention", "ffn")]
        layer = build_layer(parent.config, index, *own, state, torch.float32)
        variants = {label: parse_variant(label) for label in PIECES}
        entries = {label: variant.entry(shape, index) for label, variant in variants.items()}
        context = make_context(parent.config, batch, length, torch.float32, "cpu", [own[0], *entries.values()])
        asked = statistics_of(list(variants.values()), shape, index)
        sums = gathered(layer, hidden[:CALIBRATED], context, [each for each in asked if not each.needs])
        later = [each.ready(state, sums) for each in asked if each.needs]
        sums |= gathered(layer, hidden[:CALIBRATED], context, later)
        branches = []
        for label in PIECES:
            if variants[label].trained:
                copies = {
                    name: tensor.clone() for name, tensor in Place(shape, index, "attention").tensors(state).items()
                }
                start = variants[label].start(shape, index, copies, sums)
                module = build_layer(parent.config, index, entries[label], None, start, torch.float32)
                branches.append(Branch(label, "attention", module.requires_grad_(True)))
        found = train_layer(layer, branches, [LayerBatch(each, context) for each in hidden], settings)
        pieces = {each.label: Piece(each.label, each.start_loss, each.final_loss, each.state) for each in found}
        layers.append({label: pieces.get(label) or Piece(label, 1.0, 1.0, {}) for label in PIECES})
        with torch.no_grad():
            hidden = [layer(each, context) for each in hidden]
    return layers


def gathered(layer: Any, hidden: Sequence[Tensor], context: Any, asked: Sequence[Statistic]) -> Sums:
    """The sums of all batches."""
    first, *others = (gather(layer, each, context, asked)[0] for each in hidden)
    return sum(others, start=first)


def whole_model(parent: Parent, layers: Sequence[Mapping[str, Piece]], chosen: Sequence[str]) -> Any:
    """The parent with these attentions."""
    config = parent.config.with_blocks(entries_of(parent.shape, [(label, FFN) for label in chosen]))
    state = dict(parent.ends_state())
    for index, label in enumerate(chosen):
        slots = [parent.slot_state(index, "ffn"), parent.slot_state(index, "attention")]
        if label != OWN:
            slots[1] = layers[index][label].state
        state |= {f"model.layers.{index}.{name}": tensor for slot in slots for name, tensor in slot.items()}
    return InlayForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()


class Judge:
    """Mean KL(parent || child) over a text, nats per token."""

    @torch.no_grad()
    def __init__(self, parent: Any, ids_NBS: Tensor) -> None:
        self.parent, self.ids_NBS = parent, ids_NBS
        self.hidden = [parent.forward_hidden(ids_BS)[1] for ids_BS in ids_NBS]

    @torch.no_grad()
    def kl_nats(self, child: Any) -> float:
        """That of one child."""
        return statistics.fmean(
            float(kl_of(self.parent, child, hidden_BSD, child.forward_hidden(ids_BS)[1]))
            for hidden_BSD, ids_BS in zip(self.hidden, self.ids_NBS, strict=True)
        )


def children(
    layers: Sequence[Mapping[str, Piece]], costs: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, str, tuple[str, ...]]]:
    """What is best by the sum of blocks' KL: within each budget, with every piece and without each; GLA in a third."""
    found = []
    every = (OWN, *PIECES)
    for name, ratio in BUDGETS:
        limit = ratio * total((OWN,) * len(layers), costs, name)
        for left_out in (None, *PIECES):
            space = [label for label in every if label != left_out]
            best = least(layers, costs, space, name, limit)
            if best is not None:
                found.append((f"{name} {ratio:g}x", "all" if left_out is None else f"without {left_out}", best))
    third = -(-len(layers) // 3)
    ranked = sorted(range(len(layers)), key=lambda index: layers[index][GLA].kl_nats)
    own = tuple(GLA if index in ranked[:third] else OWN for index in range(len(layers)))
    for name in ("cache", "runtime"):
        limit = total(own, costs, name)
        against = least(layers, costs, (OWN, NOTHING), name, limit)
        ratio = limit / total((OWN,) * len(layers), costs, name)
        found.append((f"{name} of GLA in a third, {ratio:.3f}x", "GLA in a third", own))
        if against is not None:
            found.append((f"{name} of GLA in a third, {ratio:.3f}x", "no_op instead", against))
    return found


def total(chosen: Sequence[str], costs: Mapping[str, Mapping[str, float]], name: str) -> float:
    """What a child takes."""
    return costs["ends"].get(name, 0.0) + sum(costs[label][name] for label in chosen)


def least(
    layers: Sequence[Mapping[str, Piece]],
    costs: Mapping[str, Mapping[str, float]],
    space: Sequence[str],
    name: str,
    limit: float,
) -> tuple[str, ...] | None:
    """Of all architectures within the limit that of the least sum; None where there is none."""
    fitting = (chosen for chosen in itertools.product(space, repeat=len(layers)) if total(chosen, costs, name) <= limit)
    return min(
        fitting,
        key=lambda chosen: sum(
            layer[label].kl_nats for layer, label in zip(layers, chosen, strict=True) if label != OWN
        ),
        default=None,
    )


def page(name: str, parent: Parent, costs: Mapping[str, Mapping[str, float]], told: Sequence[Told]) -> list[str]:
    """The tables of one parent."""
    lines = [
        f"## {name}, sequences of {parent.shape.max_positions} tokens",
        "",
        "| piece | start | error | KL | cache | prompt | step |",
        "|---" * 7 + "|",
    ]
    for label in PIECES:
        means = [
            [statistics.fmean(getattr(layer[label], what) for layer in each.layers) for each in told]
            for what in ("start", "error", "kl_nats")
        ]
        shares = [costs[label][what] / costs[OWN][what] for what in ("cache", "prompt", "step")]
        figures = [f"{max(own):.3f}" for own in means[:2]] + [f"{max(means[2]):.4f}"]
        lines.append(f"| `{label}` | " + " | ".join([*figures, *(f"{share:.3f}" for share in shares)]) + " |")
    lines += [
        "",
        "Children that are best by the sum of their blocks' KL, and their true KL, without recovery: least and largest",
        "over the seeds. *Layers*: those of the last seed, `.` is the parent's own.",
        "",
        "| budget | space | KL | layers |",
        "|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[tuple[float, tuple[str, ...]]]] = {}
    for each in told:
        for budget, space, chosen, kl in each.children:
            groups.setdefault((budget, space), []).append((kl, chosen))
    for (budget, space), found in groups.items():
        shown = " ".join("." if label == OWN else label.partition(":")[2] for label in found[-1][1])
        kls = [kl for kl, _ in found]
        lines.append(f"| {budget} | {space.replace('attention:', '')} | {min(kls):.4f} to {max(kls):.4f} | {shown} |")
    return lines


if __name__ == "__main__":
    main()
