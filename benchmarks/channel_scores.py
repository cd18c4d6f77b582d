"""Which channels of an ffn and which groups of query heads stay: scores from the literature beside ours.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/channel_scores.py [--parent stories3M] [--tokens 60000]

In every layer half of the units stay, those of the largest score, and the last matrix is refitted to what all gave, as
in a search. A unit is a channel, or a key head with the query heads that read it. KL is that of the child as it
starts, after local distillation, and after recovery from there. Scores that are named `(lost)` are written out here and
nowhere else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
import transformers
from machine import footer
from quality_bench import Bench, State
from quality_training import BATCH
from torch import Tensor
from torch.nn import functional

from inlay.kernels import kl_loss
from inlay.nas.modeling.full_inlay import KEY, OUTPUT, QUERY, VALUE
from inlay.nas.modeling.gated_inlay import DOWN, GATE, UP
from inlay.nas.variants import Place, parse_variant
from inlay.nas.variants.least_squares import least_missed, refitted
from inlay.nas.variants.statistics import rows_of

SEQUENCES, PART = 32, 4
"""Of 256 tokens each, for what needs gradients; so many at once."""
FREE, FREE_TOKENS = 4, 96
"""Texts that the parent writes, and their length."""
NOISE = 0.01
"""Of SlimSAM's disturbance, beside the size of the embeddings."""
MASK_STEPS, MASK_RATE = 64, 0.02


@dataclass(frozen=True)
class Cut:
    """One slot of every layer with half of its units.

    Args:
        label: the variant's, of a search.
        last: the module that reads the units.
        rows: modules whose rows go with them.
        together: how many of the last matrix's inputs are one unit.
    """

    label: str
    last: str
    rows: Sequence[str]
    together: int

    @property
    def slot(self) -> str:
        """The slot."""
        return parse_variant(self.label).slot


class Seen:
    """What one parent's units do on calibration text, [layer][N, O] inputs z of the last matrices and what is known
    of the loss there."""

    def __init__(self, bench: Bench, cut: Cut) -> None:
        self.bench, self.cut = bench, cut
        self.ids = bench.train[:SEQUENCES]
        self.modules = [layer.get_submodule(cut.last) for layer in bench.whole.model.layers]

    def passed(
        self, loss_of: Callable[[Any, Tensor, Tensor], Tensor], disturb: float = 0.0
    ) -> list[tuple[Tensor, ...]]:
        """By layer: inputs z [N, O], the loss's derivative by them, and by what the matrix gives [N, D]."""
        whole, found = self.bench.whole, [([], [], []) for _ in self.modules]
        drawn = torch.Generator().manual_seed(0)
        for ids in self.ids.split(PART):
            held: list[tuple[Tensor, Tensor]] = []
            with torch.no_grad():
                still = whole.forward_hidden(ids)[1]

            def keep(module: Any, inputs: Any, output: Tensor, held: Any = held) -> None:
                inputs[0].retain_grad()
                output.retain_grad()
                held.append((inputs[0], output))

            def start(module: Any, inputs: Any, output: Tensor) -> Tensor:
                noise = disturb * output.std() * torch.randn(output.shape, generator=drawn)
                return (output + noise).requires_grad_(True)

            hooks = [module.register_forward_hook(keep) for module in self.modules]
            hooks.append(whole.model.embed_tokens.register_forward_hook(start))
            with torch.enable_grad():
                loss_of(whole, ids, still).backward()
            for hook in hooks:
                hook.remove()
            for parts, (z, y) in zip(found, held, strict=True):
                for part, tensor in zip(parts, (z, z.grad, y.grad), strict=True):
                    part.append(rows_of(tensor.detach()))
        return [tuple(torch.cat(part) for part in parts) for parts in found]

    @cached_property
    def fisher(self) -> list[tuple[Tensor, ...]]:
        """The loss is that of labels which the parent draws."""
        drawn = torch.Generator().manual_seed(1)

        def loss(whole: Any, ids: Tensor, still: Tensor) -> Tensor:
            logits = functional.linear(whole.forward_hidden(ids)[1], whole.head_VD).flatten(0, 1)
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=drawn)[:, 0]
            return functional.cross_entropy(logits, labels, reduction="sum")

        return self.passed(loss)

    @cached_property
    def disturbed(self) -> list[tuple[Tensor, ...]]:
        """The loss is how far noise on the embeddings moves the last hidden states: without it nothing moves."""

        def loss(whole: Any, ids: Tensor, still: Tensor) -> Tensor:
            return (whole.forward_hidden(ids)[1] - still).square().sum()

        return self.passed(loss, NOISE)

    def columns(self, layer: int) -> Tensor:
        """The last matrix, [D, O]."""
        weight: Tensor = self.modules[layer].weight.detach()
        return weight

    def units(self, score_O: Tensor) -> Tensor:
        """The inputs, ascending, of the half of the units with the largest sums."""
        units = score_O.view(-1, self.cut.together).sum(1)
        kept = units.topk(len(units) // 2).indices.msort()
        return torch.arange(len(score_O)).view(-1, self.cut.together)[kept].flatten()


Score = Callable[[Seen], list[Tensor]]


def contribution(seen: Seen) -> list[Tensor]:
    """Channel Contribution (Puzzle, arXiv 2411.19146): mean size times the column's norm."""
    return [
        seen.units(z.abs().mean(0) * seen.columns(layer).norm(dim=0)) for layer, (z, _, _) in enumerate(seen.fisher)
    ]


def taylor(seen: Seen) -> list[Tensor]:
    """Second-order Taylor (Molchanov et al., arXiv 1906.10771): the square of what a unit's loss would be."""
    return [seen.units((z * g).square().sum(0)) for z, g, _ in seen.fisher]


def disturbed_taylor(seen: Seen) -> list[Tensor]:
    """Disturbed Taylor (SlimSAM, arXiv 2312.05284): first order, of the distance that noise makes."""
    return [seen.units((z * g).sum(0).abs()) for z, g, _ in seen.disturbed]


def early_masks(seen: Seen, penalty: float) -> list[Tensor]:
    """Early masks (Light-PEFT, arXiv 2406.03792): a factor for every unit, trained with a penalty on its size."""
    whole, together = seen.bench.whole, seen.cut.together
    masks = [torch.ones(module.in_features // together, requires_grad=True) for module in seen.modules]

    def masked(mask: Tensor) -> Callable[[Any, Any], tuple[Tensor]]:
        return lambda module, inputs: (inputs[0] * mask.repeat_interleave(together),)

    optimizer = torch.optim.Adam(masks, MASK_RATE)
    for step in range(MASK_STEPS):
        ids = seen.bench.train[(step * PART) % SEQUENCES :][:PART]
        with torch.no_grad():
            theirs = whole.forward_hidden(ids)[1].flatten(0, 1)
        hooks = [m.register_forward_pre_hook(masked(mask)) for m, mask in zip(seen.modules, masks, strict=True)]
        with torch.enable_grad():
            ours = whole.forward_hidden(ids)[1].flatten(0, 1)
            size = sum(mask.abs().sum() for mask in masks)
            optimizer.zero_grad()
            (kl_loss(theirs, ours, whole.head_VD, whole.head_VD) + penalty * size).backward()
        for hook in hooks:
            hook.remove()
        optimizer.step()
    return [seen.units(mask.detach().abs().repeat_interleave(together)) for mask in masks]


@torch.no_grad()
def free_running(seen: Seen) -> list[Tensor]:
    """Statistics of free runs (LD-Pruner, arXiv 2404.11936): how far mean and deviation of the last hidden states move
    on what the parent itself writes, one unit left out after the other."""
    whole, together, found = seen.bench.whole, seen.cut.together, []
    first = seen.bench.train[:FREE, :1]
    torch.manual_seed(0)
    ids = whole.generate(first, max_new_tokens=FREE_TOKENS - 1, do_sample=True, eos_token_id=-1)

    def told(hidden_BSD: Tensor) -> Tensor:
        rows = hidden_BSD.flatten(0, -2)
        return torch.cat([rows.mean(0), rows.std(0)])

    own = told(whole.forward_hidden(ids)[1])
    for module in seen.modules:
        scores = []
        for unit in range(module.in_features // together):
            place = slice(unit * together, (unit + 1) * together)

            def without(_: Any, inputs: Any, place: slice = place) -> tuple[Tensor]:
                return (inputs[0].index_fill(-1, torch.arange(place.start, place.stop), 0.0),)

            hook = module.register_forward_pre_hook(without)
            scores.append((told(whole.forward_hidden(ids)[1]) - own).norm())
            hook.remove()
        found.append(seen.units(torch.stack(scores).repeat_interleave(together)))
    return found


def missed(seen: Seen) -> list[Tensor]:
    """What a search does: those that go are missed least once the others are fitted anew."""
    half = [module.in_features // 2 for module in seen.modules]
    return [
        least_missed(seen.columns(layer), z.T @ z, half[layer], len(z), seen.cut.together)
        for layer, (z, _, _) in enumerate(seen.fisher)
    ]


def missed_where_it_counts(seen: Seen) -> list[Tensor]:
    """The same, each token weighed by the square of the loss's gradient there, half of the mean added to it."""
    found = []
    for layer, (z, _, g) in enumerate(seen.fisher):
        size = g.square().sum(1)
        weighed = z * (size / size.mean() + 0.5).sqrt()[:, None]
        gram, half = weighed.T @ weighed, seen.modules[layer].in_features // 2
        found.append(least_missed(seen.columns(layer), gram, half, len(z), seen.cut.together))
    return found


SCORES: dict[str, Score] = {
    "contribution (lost)": contribution,
    "Taylor, second order (lost)": taylor,
    "disturbed Taylor (lost)": disturbed_taylor,
    "early masks, a penalty of 1e-4 (lost)": partial(early_masks, penalty=1e-4),
    "early masks, a penalty of 1e-3 (lost)": partial(early_masks, penalty=1e-3),
    "free runs (lost)": free_running,
    "missed most, tokens by their gradients (lost)": missed_where_it_counts,
    "missed most: the default": missed,
}


def started(bench: Bench, cut: Cut, layer: int, kept: Tensor) -> State:
    """The parent's subblock with the units kept, its last matrix refitted on the bench's calibration text."""
    state = dict(Place(bench.shape, layer, cut.slot).tensors(bench.states[layer]))
    sums, weight_DO = grams(bench, cut)[layer], state[f"{cut.last}.weight"]
    width = len(kept)
    for name in [name for name in state if name.removesuffix(".weight").removesuffix(".bias") in cut.rows]:
        rows, inputs = len(state[name]), weight_DO.shape[1]
        # Keys and values have one head where queries have several.
        taken = kept if rows == inputs else kept.view(-1, cut.together)[:, 0].div(inputs // rows, rounding_mode="floor")
        if rows != inputs:
            size = cut.together * rows // inputs
            taken = (taken[:, None] // size * size + torch.arange(size)).flatten()
        state[name] = state[name][taken]
    state[f"{cut.last}.weight"] = refitted(weight_DO, sums, kept, SEQUENCES * bench.train.shape[1]).float()
    assert state[f"{cut.last}.weight"].shape[1] == width
    return state


def grams(bench: Bench, cut: Cut) -> list[Tensor]:
    """Z'Z of every layer, kept with the bench."""
    held: dict[str, list[Tensor]] = bench.__dict__.setdefault("grams", {})
    if cut.last not in held:
        held[cut.last] = [z.T @ z for z, _, _ in Seen(bench, cut).fisher]
    return held[cut.last]


def cuts(bench: Bench) -> list[Cut]:
    """Half of the channels, and half of the groups of heads."""
    width, shape = bench.shape.parent_entry(0, "ffn")["width"], bench.shape
    kv_heads = shape.parent_entry(0, "attention")["kv_heads"]
    group = shape.q_heads // kv_heads * shape.head_dim
    found = [Cut(f"ffn:width={width // 2}", DOWN, (GATE, UP), 1)]
    if kv_heads > 1:
        found.append(Cut(f"attention:heads={shape.q_heads // 2}", OUTPUT, (QUERY, KEY, VALUE), group))
    return found


def page(rows: Sequence[dict[str, Any]], told: str) -> str:
    """All scores of all parents."""
    lines = [
        "# Which channels and heads stay",
        "",
        "Half of the units of every layer stay, those of the largest score, and the last matrix is refitted. KL to the",
        "parent, nats a token, on text that nothing else uses: as the child starts, after local distillation, and",
        "after recovery from there, one seed. Seconds are the scores'. Written by `benchmarks/channel_scores.py`.",
        "",
        "| parent | child | score | tokens | start | trained locally | recovered | seconds |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['parent']} | {row['child']} | {row['score']} | {row['tokens']:,} | {row['start']:.4f} "
        f"| {row['local']:.4f} | {row['recovered']:.4f} | {row['seconds']:.1f} |"
        for row in rows
    ]
    return "\n".join([*lines, "", told, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=["stories260K", "stories3M"])
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "channel_scores.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    rows: list[dict[str, Any]] = []
    for name in options.parent:
        bench = Bench(name, options.tokens)
        for cut in cuts(bench):
            seen = Seen(bench, cut)
            grams(bench, cut)
            seen.fisher, seen.disturbed  # noqa: B018 (made before the clock runs)
            for score, chosen in SCORES.items():
                begun = time.process_time()
                kept = chosen(seen)
                seconds = time.process_time() - begun
                states = [started(bench, cut, layer, own) for layer, own in enumerate(kept)]
                whole = (cut.label, "ffn:parent") if cut.slot == "attention" else ("attention:parent", cut.label)
                start = bench.kl(bench.model(*whole, states))
                trained = bench.trained(cut.label, states, {})
                child = bench.model(*whole, trained)
                local = bench.kl(child)
                recovered = bench.recover(child, 0, BATCH, 3.0, learning_rate=3e-3)
                row = {"parent": name, "child": cut.label, "score": score, "tokens": options.tokens, "start": start}
                rows.append(row | {"local": local, "recovered": recovered, "seconds": seconds})
                print(json.dumps(rows[-1]), flush=True)
                options.output.write_text(page(rows, footer()))


if __name__ == "__main__":
    main()
