"""Which experts stay, and who decides how many: half of a parent's experts lost in several ways.

    python benchmarks/experts_parent.py FOLDER/qwen3_moe
    INLAY_PARENTS=FOLDER INLAY_TEXT=... python benchmarks/expert_rules.py [--tokens 80000] [--seeds 3]

Every child of the first table has half of the experts. The rules are how often the router picks an expert, how much of
the tokens it takes by the router's probability, and what the KL becomes without it; either the same number stays in
every layer, or the program of a search says how many, from the KL of single layers with fewer. Rules that are named
`(here only)` are in no search.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
from machine import footer
from quality_bench import CALIBRATED, CHUNK, LENGTH, Bench, State
from quality_training import BATCH
from torch import Tensor
from transformers.utils import logging

from inlay.kernels import kl_loss
from inlay.nas.modeling.experts_inlay import ACTIVE, EXPERTS
from inlay.nas.variants import parameters, parse_variant
from inlay.nas.variants.experts import ExpertShares
from inlay.nas.variants.statistics import Sums, gather
from inlay.solver import Choice, Limit, Problem, solve

SCORED = 32
"""Sequences, behind those of calibration, that removals and the program's scores are judged on."""
NANO = 1_000_000_000
PARENT = ("attention:parent", "ffn:parent")
UNIFORM = ("ffn:expert_width=32", "ffn:active=1")
"""Other children that are the same in every layer, for the second table."""


@dataclass(frozen=True)
class TimesTaken(ExpertShares):
    """How many tokens take each expert, [E]."""

    name: str = "ffn.taken"

    def sums(self, seen: Any) -> dict[str, Tensor]:
        """`e`."""
        return {"e": (seen["shares"] > 0).float().sum(dim=0)}


class Cuts:
    """A parent whose experts go by scores, [layer][E]: those of the largest stay."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.layers = bench, range(bench.shape.num_layers)
        own = bench.shape.parent_entry(0, "ffn")
        self.experts, self.active = int(own[EXPERTS]), int(own[ACTIVE])
        self.scored = bench.train[CALIBRATED // LENGTH :][:SCORED]
        with torch.no_grad():
            self.theirs = torch.cat([bench.whole.forward_hidden(ids)[1] for ids in self.scored.split(CHUNK)])

    def counted(self, statistic: ExpertShares) -> list[Tensor]:
        """What a statistic says of every layer's experts."""
        found = []
        for layer in self.layers:
            parts = self.bench.boundaries[layer].split(CHUNK)
            each = [gather(self.bench.layers[layer], part, self.bench.context(part), [statistic])[0] for part in parts]
            found.append(sum(each[1:], each[0]).of(statistic)["e"])
        return found

    def missed(self) -> list[Tensor]:
        """The KL without each expert alone."""
        found = []
        for layer in self.layers:
            scores = [
                self.score({layer: self.started(layer, self.experts - 1, 1.0 - one)}) for one in torch.eye(self.experts)
            ]
            found.append(torch.tensor(scores))
        return found

    def started(self, layer: int, count: int, score_E: Tensor) -> State:
        """A layer's start with so many experts, as a search makes it of other sums."""
        if count == self.experts:
            return dict(self.bench.states[layer])
        sums = Sums(CALIBRATED, {f"{ExpertShares().name}.e": score_E})
        return parse_variant(f"ffn:experts={count}").start(self.bench.shape, layer, self.bench.states[layer], sums)

    def child(self, states: dict[int, State]) -> Any:
        """The parent with other experts in the layers of `states`."""
        architecture, given = [], []
        for layer in self.layers:
            count = len(states[layer]["mlp.gate.weight"]) if layer in states else self.experts
            architecture.append(("attention:parent", f"ffn:experts={count}") if count < self.experts else PARENT)
            given.append(self.bench.states[layer] | states.get(layer, {}))
        return self.bench.assembled(architecture, given)

    @torch.no_grad()
    def score(self, states: dict[int, State]) -> float:
        """KL to the parent on the text that children are chosen by."""
        child, found = self.child(states), 0.0
        for ids, theirs in zip(self.scored.split(CHUNK), self.theirs.split(CHUNK), strict=True):
            ours = child.forward_hidden(ids)[1].flatten(0, 1)
            heads = self.bench.whole.head_VD, child.head_VD
            found += float(kl_loss(theirs.flatten(0, 1), ours, *heads)) * len(ids)
        return found / len(self.scored)

    def chosen(self, scores: Sequence[Tensor]) -> list[int]:
        """How many experts the program leaves in each layer, half of all at most."""
        shape, counts = self.bench.shape, range(self.active, self.experts + 1)
        numbers = {
            count: parameters(parse_variant(f"ffn:experts={count}").entry(shape, 0), "ffn", shape) for count in counts
        }
        layers = tuple(
            tuple(
                Choice(
                    str(count),
                    0
                    if count == self.experts
                    else max(0, round(self.score({layer: self.started(layer, count, scores[layer])}) * NANO)),
                    (numbers[count],),
                )
                for count in counts
            )
            for layer in self.layers
        )
        problem = Problem(("parameters",), layers, (0,))
        (solution,) = solve(problem.with_limits(Limit("parameters", upper=len(layers) * numbers[self.experts // 2])))
        return [int(label) for label in solution.labels]

    def cut(self, counts: Sequence[int], scores: Sequence[Tensor]) -> Any:
        """The child."""
        return self.child({layer: self.started(layer, counts[layer], scores[layer]) for layer in self.layers})


def page(bench: Bench, seeds: int) -> Iterator[str]:
    """Both tables of one parent."""
    cuts = Cuts(bench)
    half = [cuts.experts // 2] * len(cuts.layers)
    times, shares, missed = cuts.counted(TimesTaken()), cuts.counted(ExpertShares()), cuts.missed()
    numbers = cuts.chosen(shares)
    told = " ".join(map(str, numbers))
    children: dict[str, Callable[[], Any]] = {
        "the same in every layer, by times taken (here only)": lambda: cuts.cut(half, times),
        "the same in every layer, by shares": lambda: cuts.cut(half, shares),
        "the same in every layer, by the KL without it (here only)": lambda: cuts.cut(half, missed),
        f"{told} by the program, by times taken (here only)": lambda: cuts.cut(numbers, times),
        f"{told} by the program, by shares, as a search does it": lambda: cuts.cut(numbers, shares),
        f"{told} by the program, by the KL without it (here only)": lambda: cuts.cut(numbers, missed),
    }
    yield from HEAD
    for name, make in children.items():
        yield row(bench, name, make, seeds)
    yield from ("", "Other children of the same parent.", "", *HEAD)
    for label in UNIFORM:
        yield row(bench, f"`{label}` in every layer", partial(bench.model, "attention:parent", label), seeds)


HEAD = ("| child | parameters | KL | recovered, worst | of all seeds | seconds |", "|---|---:|---:|---:|---|---:|")


def row(bench: Bench, name: str, make: Callable[[], Any], seeds: int) -> str:
    """A child before recovery, and after it with each seed."""
    begun, recovered = time.process_time(), []
    for seed in range(seeds):
        child = make()
        before = bench.kl(child)
        recovered.append(bench.recover(child, seed, BATCH, 3.0, learning_rate=3e-3))
    size, whole = (sum(each.numel() for each in model.parameters()) for model in (child, bench.whole))
    shown = ", ".join(f"{each:.4f}" for each in recovered)
    seconds = (time.process_time() - begun) / seeds
    line = f"| {name} | {size / whole:.3f} | {before:.4f} | {max(recovered):.4f} | {shown} | {seconds:.0f} |"
    print(line, flush=True)
    return line


INTRODUCTION = """\
A parent of {layers} layers with {experts} experts each, {active} of them for a token, trained by
`benchmarks/experts_parent.py`. Half of all experts stay. *Times taken*: how many tokens take an expert; *shares*: the
same by the router's probability; *the KL without it*: of the parent with that expert alone gone; *the program*: as in
a search, from the KL of single layers with fewer experts. What is *here only* is in no search. KL to the parent, nats
per token, on text that nothing else uses, as the child starts and after recovery with {tokens:,} tokens, the same for
all. There is no local distillation. A seed is an order of recovery's text; seconds are of one seed, one thread."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", default="qwen3_moe")
    parser.add_argument("--tokens", type=int, default=80_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "expert_rules.md")
    options = parser.parse_args()
    least = CALIBRATED + SCORED * LENGTH
    if options.tokens < least:
        parser.error(f"--tokens {options.tokens} is too few; children are chosen on some of them: at least {least}")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    bench = Bench(options.parent, options.tokens)
    own = bench.shape.parent_entry(0, "ffn")
    told = {"layers": bench.shape.num_layers, "experts": own[EXPERTS], "active": own[ACTIVE], "tokens": options.tokens}
    lines = ["# Which experts stay", "", *INTRODUCTION.format(**told).splitlines(), ""]
    for line in page(bench, options.seeds):
        lines.append(line)
        # What is done so far is there if the rest is not waited for.
        options.output.write_text("\n".join([*lines, "", f"Written by `benchmarks/expert_rules.py`. {footer()}", ""]))


if __name__ == "__main__":
    main()
