"""Three widths from one training against three trainings of their own: what sharing weights costs, and how to share.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/elastic.py [--parents stories260K] [--tokens 50000] [--seeds 1]

The members of a family are uniform children whose ffns have three quarters, a half and a quarter of the channels. In a
nested one channels are sorted once by what is missed, and each member has a prefix of them; all else is shared. All are
trained by recovery as a search does it, from starts that nothing has trained, on the same text in the same order, and
judged on text that nothing trains on. A row says how many tokens the training reads, and how many pass through members:
three trainings of their own on T tokens pass 3 T. Rows in `--rows` are not made again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
import transformers
from machine import footer
from quality_bench import LENGTH, Bench, Row, State
from torch import Tensor, nn

from inlay.distill.globally import distill_globally
from inlay.distill.settings import GlobalSettings
from inlay.distill.text import training_order
from inlay.nas.job.sections import Recover
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.modeling.gated_inlay import DOWN, GATE, UP
from inlay.nas.variants import parse_variant
from inlay.nas.variants.least_squares import fitted, least_missed, refitted
from inlay.nas.variants.statistics import ChannelGram, Sums

PARTS = (0.75, 0.5, 0.25)
OWN = "own training each"
UNEVEN = (4, 2, 1)
"""About as one over the KL of each."""


@dataclass(frozen=True)
class Way:
    """How a family is trained."""

    passes: tuple[str, ...] = ("0", "1", "2")
    """Members that a step trains: one by its number, `?` any, `<` any but the largest; each is a pass."""
    reads: float = 1.0
    """Tokens that are read, of those of a training of its own."""
    apart: bool = False
    """Whether the members of a step read sequences of their own, not the same."""
    norms: bool = False
    """Whether each member has norms of its own."""
    joint: bool = True
    """Whether the last matrix is fitted at the start for all prefixes at once; else for the largest."""
    counts: tuple[int, ...] = (1, 1, 1)
    """By how much each member's loss counts, in training and where it is judged."""
    last: bool = False
    """Whether each member has a last matrix of its own."""


WAYS: dict[str, Way] = {
    "all three in each step": Way(),
    "all three, norms and last matrix of their own": Way(norms=True, last=True),
    "all three, counted 4 : 2 : 1": Way(counts=UNEVEN),
    "all three, 4 : 2 : 1, norms and last matrix of their own": Way(counts=UNEVEN, norms=True, last=True),
    "all three, 4 : 2 : 1, each its own sequences": Way(reads=3, apart=True, counts=UNEVEN),
    "the largest and another in each step": Way(("0", "<")),
    "all three, 4 : 2 : 1, norms of their own": Way(counts=UNEVEN, norms=True),
    "all three, 4 : 2 : 1, last matrix fitted for the largest": Way(counts=UNEVEN, joint=False),
    "any one in each step": Way(("?",)),
    "any one in each step, all tokens": Way(("?",), reads=3),
}


class Family(nn.Module):
    """Models of which each has prefixes of the largest one's tensors, one at work at a time.

    Args:
        models: the largest first; the others lose what they came with, but for tensors whose names hold one of `own`.
    """

    def __init__(self, models: Sequence[Any], own: Sequence[str], way: Way, seed: int) -> None:
        super().__init__()
        self.models, self.at_work, self.count = nn.ModuleList(models), models[0], 1.0
        self.counts = [each * len(models) / sum(way.counts) for each in way.counts]
        self.plan = planned(way.passes, len(models), seed)
        self.judged = cycle([number for number, times in enumerate(way.counts) for _ in range(times)])
        self.cut: list[list[tuple[Any, str, Any, tuple[slice, ...]]]] = []
        for model in models:
            self.cut.append([])
            for name, tensor in list(model.named_parameters(remove_duplicate=False)):
                if model is models[0]:
                    break
                if any(part in name for part in own):
                    continue
                module, whole = model.get_submodule(name.rpartition(".")[0]), models[0].get_parameter(name)
                attribute = name.rpartition(".")[2]
                if whole.shape == tensor.shape:
                    setattr(module, attribute, whole)
                else:
                    del module._parameters[attribute]
                    self.cut[-1].append((module, attribute, whole, tuple(map(slice, tensor.shape))))

    @property
    def head_VD(self) -> Tensor:
        """Of the one at work."""
        return counted(self.at_work.head_VD, self.count)

    def member(self, number: int) -> Any:
        """One of them, with its weights as they are now."""
        for module, attribute, whole, prefix in self.cut[number]:
            module.__dict__[attribute] = whole[prefix]
        self.at_work = self.models[number]
        return self.at_work

    @torch.no_grad()
    def alone(self, number: int) -> Any:
        """A model of the member's own, cut off by hand: what would be exported."""
        model = self.member(number)
        state = {name: tensor.detach().clone() for name, tensor in model.named_parameters(remove_duplicate=False)}
        for module, attribute, whole, prefix in self.cut[number]:
            place = next(name for name, each in model.named_modules() if each is module)
            state[f"{place}.{attribute}"] = whole[prefix].clone()
        built: Any = InlayForCausalLM
        return built.from_pretrained(None, config=model.config, state_dict=state, dtype=torch.float32)

    def forward_hidden(self, ids_BS: Tensor) -> Any:
        """Of the member whose turn it is: as planned where it trains, one after the other where it is judged."""
        if not torch.is_grad_enabled():
            self.count = 1.0
            return self.member(next(self.judged)).forward_hidden(ids_BS)
        number = next(self.plan)
        self.count = self.counts[number]
        layers, last_BSD = self.member(number).forward_hidden(ids_BS)
        return [counted(each, self.count) for each in layers], counted(last_BSD, self.count)


def counted(tensor: Tensor, count: float) -> Tensor:
    """The same numbers, whose gradient counts `count` times."""
    return tensor if count == 1.0 else tensor * count + (tensor * (1.0 - count)).detach()


def planned(passes: Sequence[str], count: int, seed: int) -> Iterator[int]:
    """Whose turn it is, pass by pass."""
    drawn = random.Random(seed)
    while True:
        for turn in passes:
            yield int(turn) if turn.isdigit() else drawn.randrange(1 if turn == "<" else 0, count)


def widths_of(bench: Bench) -> list[int]:
    """Channels of the members, the largest first."""
    return [round(bench.shape.parent_entry(0, "ffn")["width"] * part) for part in PARTS]


def own_start(bench: Bench, sums: Sequence[Sums], width: int) -> list[State]:
    """Every layer's ffn of a width, as a search starts it."""
    variant, layers = parse_variant(f"ffn:width={width}"), range(bench.shape.num_layers)
    return [variant.start(bench.shape, layer, bench.states[layer], sums[layer]) for layer in layers]


def nested_start(bench: Bench, sums: Sums, layer: int, widths: Sequence[int], fit: Sequence[int]) -> State:
    """An ffn of the largest width whose prefixes are the others: channels as they go one after the other.

    The last matrix has the least sum of errors of the prefixes `fit`, whose normal equations add up.
    """
    state = dict(bench.states[layer])
    gram_FF, down_DF = sums.of(ChannelGram())["hh"].double(), state[f"{DOWN}.weight"].double()
    left, parts, weight_DF = torch.arange(len(gram_FF)), [], down_DF
    for width in widths:
        kept = least_missed(weight_DF, gram_FF[left][:, left], width, sums.tokens)
        weight_DF = refitted(weight_DF, gram_FF[left][:, left], kept, sums.tokens)
        gone = torch.ones(len(left), dtype=torch.bool)
        gone[kept] = False
        parts.append(left[gone])
        left = left[kept]
    order = torch.cat([left, *reversed(parts[1:])])
    kept_FF, kept_FD = gram_FF[order][:, order], gram_FF[order] @ down_DF.T
    ones = torch.stack([(torch.arange(len(order)) < width).double() for width in fit])
    shared_FF, shared_FD = kept_FF * (ones.T @ ones), torch.zeros_like(kept_FD)
    for width in fit:
        shared_FD[:width] += kept_FD[:width]
    for name, tensor in state.items():
        if name.startswith((f"{GATE}.", f"{UP}.")):
            state[name] = tensor[order]
    state[f"{DOWN}.weight"] = fitted(down_DF[:, order], shared_FF, shared_FD, sums.tokens).float()
    return state


def cut_to(state: State, width: int) -> State:
    """A prefix of a nested ffn."""
    found = dict(state)
    for name, tensor in state.items():
        if name.startswith((f"{GATE}.", f"{UP}.")):
            found[name] = tensor[:width].clone()
    return {**found, f"{DOWN}.weight": state[f"{DOWN}.weight"][:, :width].clone()}


def recover(bench: Bench, child: Any, seed: int, way: Way) -> float:
    """Trains a model or a family as a search recovers a child; the rate that was found."""
    batch, count = Recover(tokens=bench.tokens).step_sequences(LENGTH), len(way.passes)
    together = count if way.apart else 1
    steps = round(bench.tokens * way.reads) // (batch * together * LENGTH)
    order = training_order(len(bench.train), steps * batch * together * LENGTH, LENGTH, seed)
    size = batch * together
    batches = (bench.train[order[step * size : (step + 1) * size]] for step in range(steps))
    fed = (ids if way.apart else ids.repeat(count, 1) for ids in batches)
    judges = sum(way.counts) if isinstance(child, Family) else 1
    held_out = [ids.repeat(judges, 1) for ids in bench.stop.split(batch)]
    settings = GlobalSettings(steps, 3e-3, "found", micro_batch=batch)
    return distill_globally(bench.whole, child.requires_grad_(True), fed, held_out, settings).learning_rate


def row_of(bench: Bench, sums: Sequence[Sums], name: str, seed: int) -> Row:
    """One way on one parent; `sums` are those of its layers' channels."""
    widths, began = widths_of(bench), time.thread_time()
    way = WAYS.get(name, Way(("0",)))
    if name == OWN:
        starts = [own_start(bench, sums, width) for width in widths]
    else:
        starts = []
        for width in widths:
            fit = [width] if way.last else widths if way.joint else widths[:1]
            whole = [nested_start(bench, each, layer, widths, fit) for layer, each in enumerate(sums)]
            starts.append([cut_to(state, width) for state in whole])
    labels = [f"ffn:width={width}" for width in widths]
    models = [bench.model("attention:parent", label, states) for label, states in zip(labels, starts, strict=True)]
    first = [bench.kl(model) for model in models]
    if name == OWN:
        rates = [recover(bench, model, seed, way) for model in models]
    else:
        own = (("norm",) if way.norms else ()) + ((DOWN,) if way.last else ())
        family = Family(models, own, way, seed)
        rates = [recover(bench, family, seed, way)]
        models = [family.alone(number) for number in range(len(PARTS))]
    reads = round(bench.tokens * way.reads)
    passes = len(models) * reads if name == OWN else reads * (1 if way.apart else len(way.passes))
    return {
        "parent": bench.name, "way": name, "seed": seed, "tokens": bench.tokens, "reads": reads, "passes": passes,
        "start": first, "kl": [bench.kl(model) for model in models], "rates": rates,
        "seconds": time.thread_time() - began,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parents", nargs="*", default=["stories260K"])
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--rows", type=Path, default=Path("elastic_rows.json"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/elastic.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    rows = json.loads(options.rows.read_text()) if options.rows.exists() else []
    done = {(row["parent"], row["tokens"], row["way"], row["seed"]) for row in rows}
    most = max(WAYS[way].reads for way in options.ways)
    for parent in options.parents:
        bench = Bench(parent, round(options.tokens * most))
        bench.tokens = options.tokens
        channels = parse_variant(f"ffn:width={widths_of(bench)[0]}")
        sums = [bench.sums(layer, channels) for layer in range(bench.shape.num_layers)]
        for seed in range(options.seeds):
            for way in (OWN, *options.ways):
                if (parent, options.tokens, way, seed) not in done:
                    rows.append(row_of(bench, sums, way, seed))
                    print(rows[-1], flush=True)
                    options.rows.write_text(json.dumps(rows, indent=1))
                    options.output.write_text(table(rows))


def table(rows: Sequence[Row]) -> str:
    """The results file."""
    lines = [
        "# Three widths of an ffn from one training",
        "",
        "Uniform children with three quarters, a half and a quarter of the channels; KL to the parent in nats per",
        "token on text that nothing trained on, of several seeds the mean, and in brackets its ratio to that of the",
        "same width trained on its own. `read` are the tokens that a training reads,",
        "`passed` those that go through members.",
        "",
    ]
    for parent, tokens in dict.fromkeys((row["parent"], row["tokens"]) for row in rows):
        own = [row for row in rows if (row["parent"], row["tokens"]) == (parent, tokens)]
        base = _mean([row["kl"] for row in own if row["way"] == OWN])
        lines += [
            f"## {parent}, {tokens:,} tokens for a training of its own",
            "",
            f"| way | read | passed | seeds | {' | '.join(map(str, PARTS))} | worst ratio | seconds |",
            "|---" * (6 + len(PARTS)) + "|",
        ]
        for way in dict.fromkeys(row["way"] for row in own):
            found = [row for row in own if row["way"] == way]
            means = _mean([row["kl"] for row in found])
            ratios = [mean / other for mean, other in zip(means, base, strict=True)]
            cells = [f"{mean:.4f} ({ratio:.2f})" for mean, ratio in zip(means, ratios, strict=True)]
            seconds = sum(row["seconds"] for row in found) / len(found)
            lines.append(
                f"| {way} | {found[0]['reads']:,} | {found[0]['passes']:,} | {len(found)} | "
                f"{' | '.join(cells)} | {max(ratios):.2f} | {seconds:.0f} |"
            )
        lines.append("")
    return "\n".join([*lines, f"Written by `benchmarks/elastic.py`. {footer()}", ""])


def _mean(figures: Sequence[Sequence[float]]) -> list[float]:
    return [sum(each) / len(each) for each in zip(*figures, strict=True)]


if __name__ == "__main__":
    main()
