"""What runs of neighbouring layers are worth: their error, their KL, and children with and without them.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/layers.py [--parent stories3M] [--tokens 40000] [--seed 0]

Every run is trained on the batches that single layers' pieces are trained on, sequences as long as the parent's
context. Children are the optima of the program that a search solves, over the same choices with the runs and without
them. Times are of whole models with one piece in every layer, in turns; what a child takes is added up from them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
from machine import footer
from pieces import BATCH, CALIBRATED, HELD_OUT, PROMPT, STEPS, Judge, batches_of, gathered
from torch import Tensor
from transformers.utils import logging

from inlay.distill.branches import Branch, LayerBatch, Span
from inlay.distill.local import train_layer
from inlay.distill.settings import LocalSettings
from inlay.nas.engines.eager import random_model, rounds_of
from inlay.nas.engines.timing import Workload, summarise
from inlay.nas.families import Parent, open_parent
from inlay.nas.families.shape import subblock_tensors
from inlay.nas.modeling import Ends, InlayForCausalLM, build_layer, make_context
from inlay.nas.pieces.calibration import statistics_of
from inlay.nas.stages.score import placed
from inlay.nas.tables.architecture import (
    PARENT_BLOCK,
    Block,
    Blocks,
    architecture_of,
    choice_label,
    num_layers,
    spread,
)
from inlay.nas.variants import ends_parameters, parameters, parse_variant
from inlay.nas.variants.entries import entries_of
from inlay.nas.variants.run import run_state
from inlay.nas.variants.statistics import Sums
from inlay.solver import Choice, Limit, Problem, solve

ATTENTION, FFN = PARENT_BLOCK
NOTHING = ("attention:no_op", "ffn:no_op")
RUNS: tuple[Block, ...] = tuple((f"attention:{run}", f"ffn:{run}") for run in ("merge=2", "merge=3", "fuse=2"))
BUDGETS = (("parameters", 0.75), ("parameters", 0.5), ("runtime", 0.8), ("runtime", 0.6))
NANO = 1_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=["stories3M", "stories260K"])
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/layers.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    lines = ["# Runs of layers", "", *INTRODUCTION.format(**vars(options), prompt=PROMPT, steps=STEPS).splitlines()]
    for name in options.parent:
        lines += ["", *page(name, open_parent(Path(os.environ["INLAY_PARENTS"]) / name), options.seed, options.tokens)]
        # What is done so far is there if the rest is not waited for.
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("\n".join([*lines, "", f"Written by `benchmarks/layers.py`. {footer()}", ""]))
    print(options.output.read_text())


INTRODUCTION = """\
Every piece trained on {tokens:,} tokens a layer, at a rate found for it, from the same batches; one seed. *Start* and
*error*: of what the layers add, on text not trained on, leaving them all out is 1; *KL*: of the parent with one choice
made otherwise, nats per token; means over the places where it can stand. *Parameters* and *runtime* (eager PyTorch, one
thread, batch 1, a prompt of {prompt:,} tokens and {steps} steps): relative to the parent's layers in whose place it is.
Children are the program's optima by the sum of KL, ends included in what they take, without recovery."""


@torch.inference_mode()
def runtimes(parent: Parent, labels: Sequence[str]) -> dict[str, float]:
    """Of one subblock in one layer, and of the ends, ns of a prompt and the steps behind it."""
    shape, config = parent.shape, parent.config
    slots = {label: label.partition(":")[0] for label in labels}
    blocks = {
        label: (label, NOTHING[1]) if slot == "attention" else (NOTHING[0], label) for label, slot in slots.items()
    }
    models = {
        label: random_model(
            config.with_blocks(entries_of(shape, [block] * shape.num_layers)), torch.float32, torch.device("cpu")
        )
        for label, block in {**blocks, "ends": NOTHING}.items()
    }
    workload = Workload(1, PROMPT, STEPS, 1)
    rounds = rounds_of(models, workload, torch.device("cpu"))
    whole = {label: float(summarise(found, workload).runtime_ns) for label, found in rounds.items()}
    own = {label: max(0.0, whole[label] - whole["ends"]) / shape.num_layers for label in labels}
    return {**own, "ends": whole["ends"], **dict.fromkeys(NOTHING, 0.0)}


class Library:
    """Every choice of every layer, trained on the parent's own inputs."""

    def __init__(self, parent: Parent, ids_NBS: Tensor, steps: int, half: str) -> None:
        self.parent, shape = parent, parent.shape
        self.singles: list[Block] = [(NOTHING[0], FFN), (ATTENTION, NOTHING[1]), (ATTENTION, half), NOTHING]
        self.states: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.losses: dict[tuple[int, Block], tuple[float, float]] = {}
        _, batch, length = ids_NBS.shape
        settings = LocalSettings(steps, learning_rate=3e-3, rate="found", held_out=HELD_OUT)
        context = make_context(parent.config, batch, length, torch.float32, "cpu", [shape.parent_entry(0, "attention")])
        hidden = list(Ends(parent.config, parent.ends_state(), torch.float32).embed(ids_NBS))
        own = [parent.layer_state(index, torch.float32) for index in range(shape.num_layers)]
        layers = [
            build_layer(
                parent.config,
                index,
                shape.parent_entry(index, "attention"),
                shape.parent_entry(index, "ffn"),
                state,
                torch.float32,
            )
            for index, state in enumerate(own)
        ]
        for index, layer in enumerate(layers):
            runs = [run for run in RUNS if index + num_layers(run) <= shape.num_layers]
            variant = parse_variant(half)
            given = run_state(own[index : index + max(map(num_layers, runs), default=1)])
            asked = statistics_of([variant, *(parse_variant(run[1]) for run in runs)], shape, index)
            sums = gathered(layer, hidden[:CALIBRATED], context, [each.ready(given, Sums()) for each in asked])
            start = variant.start(shape, index, {name: each.clone() for name, each in own[index].items()}, sums)
            module = build_layer(parent.config, index, None, variant.entry(shape, index), start, torch.float32)
            branches = [Branch(half, "ffn", module.requires_grad_(True))]
            branches += [self._branch(run, index, own[index : index + num_layers(run)], sums) for run in runs]
            following = layers[index + 1 : index + max(map(num_layers, runs), default=1)]
            batches = [LayerBatch(each, context) for each in hidden]
            for found in train_layer(layer, branches, batches, settings, following=following):
                block = tuple(found.label.split(" + ")) if " + " in found.label else (ATTENTION, found.label)
                self.losses[index, block] = found.start_loss, found.final_loss
                for label in block:
                    self.states[index, label] = found.state
            with torch.no_grad():
                hidden = [layer(each, context) for each in hidden]

    def _branch(self, run: Block, index: int, states: Sequence[Mapping[str, Tensor]], sums: Sums) -> Branch:
        shape, given = self.parent.shape, run_state(states)
        variants = [parse_variant(label) for label in run]
        start = {n: t.clone() for each in variants for n, t in each.start(shape, index, given, sums).items()}
        entries = [each.entry(shape, index) for each in variants]
        module = build_layer(self.parent.config, index, *entries, start, torch.float32).requires_grad_(True)
        return Branch(choice_label(run), "ffn", module, spans=(Span(module, 0, num_layers(run)),))

    def blocks(self, layer: int, runs: Sequence[Block]) -> list[Block]:
        """What can be chosen at a layer."""
        return [PARENT_BLOCK, *self.singles, *(run for run in runs if (layer, run) in self.losses)]

    def whole(self, architecture: Blocks) -> Any:
        """The model."""
        parent, shape = self.parent, self.parent.shape
        state = dict(parent.ends_state())
        for index, block in enumerate(architecture):
            for variant in map(parse_variant, block):
                if variant.is_absent(shape, index):
                    continue
                names = subblock_tensors(shape, variant.slot, variant.entry(shape, index))
                held = parent.layer_state(index) if variant.is_own else self.states[index, variant.label]
                state |= {f"model.layers.{index}.{name}": held[name] for name in names}
        config = parent.config.with_blocks(entries_of(shape, architecture))
        return InlayForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()


def page(name: str, parent: Parent, seed: int, tokens: int) -> list[str]:
    """The tables of one parent."""
    shape, length = parent.shape, parent.shape.max_positions
    steps = tokens // (BATCH * length)
    trained_NBS, judged_NBS = batches_of(parent, seed, length, steps + HELD_OUT)
    half = f"ffn:width={shape.parent_entry(0, 'ffn')['width'] // 2}"
    times = runtimes(parent, sorted({ATTENTION, FFN, half, *(label for run in RUNS for label in run)}))
    library = Library(parent, trained_NBS, steps, half)
    judge = Judge(library.whole((PARENT_BLOCK,) * shape.num_layers), judged_NBS)
    scores = {
        (layer, block): 0.0
        if block == PARENT_BLOCK
        else judge.kl_nats(library.whole(placed(shape.num_layers, layer, block)))
        for layer in range(shape.num_layers)
        for block in library.blocks(layer, RUNS)
    }

    def costs(layer: int, block: Block) -> tuple[int, int]:
        filled = [(layer + place, parse_variant(label)) for place, own in enumerate(spread(block)) for label in own]
        numbers = sum(parameters(each.entry(shape, at), each.slot, shape) for at, each in filled)
        return numbers, round(sum(times[each.label] for _, each in filled))

    lines = [
        f"## {name}, {shape.num_layers} layers, sequences of {length} tokens",
        "",
        "| piece | start | error | KL | parameters | runtime |",
        "|---" * 6 + "|",
    ]
    for block in [*library.singles, *RUNS]:
        at = [layer for layer in range(shape.num_layers) if (layer, block) in scores]
        replaced = [costs(at[0] + place, PARENT_BLOCK) for place in range(num_layers(block))]
        shares = [own / sum(each) for own, each in zip(costs(at[0], block), zip(*replaced, strict=True), strict=True)]
        losses = [library.losses[layer, block] for layer in at if (layer, block) in library.losses]
        error = [f"{statistics.fmean(each):.3f}" for each in zip(*losses, strict=True)] or ["", ""]
        kl = statistics.fmean(scores[layer, block] for layer in at)
        shown = " + ".join(f"`{label}`" for label in block if label not in PARENT_BLOCK)
        lines.append(f"| {shown} | {' | '.join(error)} | {kl:.4f} | {shares[0]:.3f} | {shares[1]:.3f} |")
    lines += ["", "| budget | space | KL | layers |", "|---|---|---|---|"]
    for what, ratio in BUDGETS:
        for told, runs in (
            ("all", RUNS),
            ("without runs", ()),
            *((f"only {run[0].partition(':')[2]} of runs", (run,)) for run in RUNS),
        ):
            problem = Problem(
                ("parameters", "runtime"),
                tuple(
                    tuple(
                        Choice(
                            choice_label(block),
                            max(0, round(scores[layer, block] * NANO)),
                            costs(layer, block),
                            num_layers(block),
                        )
                        for block in library.blocks(layer, runs)
                    )
                    for layer in range(shape.num_layers)
                ),
                (ends_parameters(shape), round(times["ends"])),
            )
            place = problem.cost_names.index(what)
            full = problem.base_costs[place] + sum(own[0].costs[place] for own in problem.layers)
            (solution,) = solve(problem.with_limits(Limit(what, upper=int(ratio * full))))
            if solution.status != "optimal":
                lines.append(f"| {what} {ratio:g}x | {told} | none | |")
                continue
            chosen = architecture_of(solution.labels)
            kl = judge.kl_nats(library.whole(chosen))
            lines.append(f"| {what} {ratio:g}x | {told} | {kl:.4f} | {shown_layers(chosen)} |")
    return lines


def shown_layers(architecture: Blocks) -> str:
    """The layers of a child, `.` is the parent's own, `–` none at all."""
    found = []
    for block in architecture:
        own = [label.partition(":")[2] for label in block if label not in PARENT_BLOCK]
        found.append("." if not own else "–" if block == NOTHING else own[0] if own[0] == own[-1] else "/".join(own))
        if len(own) == 1 and block[1] in PARENT_BLOCK:
            found[-1] = f"attention {own[0]}"
    return " ".join(found)


if __name__ == "__main__":
    main()
