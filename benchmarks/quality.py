"""What each lever on quality is worth: its KL before and after recovery, and its seconds, beside what it takes the
place of.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/quality.py [--only starts] [--parent stories3M] [--seeds 3]

All of it in one process of one thread, on the pieces that a search is made of. Children are uniform: one variant in
every layer, so that no choice of an architecture stands between a lever and its figure. Every row of a group is trained
on the same tokens in the same order and judged on the same text, which nothing trains on. Rows that are named `(lost)`
are written out here and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
import transformers
from machine import footer
from torch import Tensor

from inlay.distill.globally import distill_globally
from inlay.distill.local import Branch, LayerBatch, train_layer
from inlay.distill.settings import GlobalSettings, LocalSettings
from inlay.distill.text import pack, training_order
from inlay.kernels import kl_loss
from inlay.nas.families import open_parent, subblock_tensors
from inlay.nas.modeling import Ends, InlayForCausalLM, build_layer, make_context
from inlay.nas.modeling.full_inlay import KEY, VALUE
from inlay.nas.modeling.gated_inlay import DOWN, GATE, UP
from inlay.nas.pieces.calibration import statistics_of
from inlay.nas.variants import Place, Variant, parse_variant
from inlay.nas.variants.entries import entries_of
from inlay.nas.variants.kv_heads import MergedHeads
from inlay.nas.variants.statistics import ChannelGram, Sums, gather
from inlay.nas.variants.width import refitted

LENGTH, CHUNK = 256, 16
JUDGED, STOPPED = 16_384, 2_048
CALIBRATED = 65_536
TODAY = {"batch": 8, "cosine": None}
"""How children were recovered before any lever: cosines summed over the layers."""
State = dict[str, Tensor]


class Bench:
    """One parent with its text, its layers and what they read and write on the calibration text."""

    def __init__(self, name: str, tokens: int) -> None:
        self.parent = open_parent(Path(os.environ["INLAY_PARENTS"]) / name)
        self.name, self.tokens, self.shape = name, tokens, self.parent.shape
        (text,) = sorted(Path(os.environ["INLAY_TEXT"]).glob("*.txt"))
        documents = text.read_text().split("<|endoftext|>\n")
        cut = len(documents) * 9 // 10
        tokenizer = self.parent.tokenizer()
        self.train = torch.from_numpy(pack(documents[:cut], tokenizer, LENGTH, max(tokens, CALIBRATED))).long()
        held = torch.from_numpy(pack(documents[cut:], tokenizer, LENGTH, JUDGED + STOPPED)).long()
        self.stop, self.judge = held[: STOPPED // LENGTH], held[STOPPED // LENGTH :]
        self.states = [self.parent.layer_state(layer, torch.float32) for layer in range(self.shape.num_layers)]
        self.whole = self.model("attention:parent", "ffn:parent").requires_grad_(False)

    @cached_property
    def layers(self) -> list[Any]:
        """The parent's layers."""
        slots = [[self.shape.parent_entry(i, slot) for slot in ("attention", "ffn")] for i in range(len(self.states))]
        return [build_layer(self.parent.config, i, *slots[i], self.states[i], torch.float32) for i in range(len(slots))]

    @cached_property
    @torch.no_grad()
    def boundaries(self) -> list[Tensor]:
        """What each layer reads on the calibration text, [N, S, D]."""
        ids = self.train[: CALIBRATED // LENGTH]
        found = [Ends(self.parent.config, self.parent.ends_state(), torch.float32).embed(ids)]
        for layer in self.layers:
            found.append(torch.cat([layer(part, self.context(part)) for part in found[-1].split(CHUNK)]))
        return found

    def context(self, hidden_BSD: Tensor, *entries: Any) -> Any:
        """Positions and masks."""
        own = self.shape.parent_entry(0, "attention")
        return make_context(self.parent.config, len(hidden_BSD), LENGTH, torch.float32, "cpu", [own, *entries])

    @torch.no_grad()
    def sums(self, layer: int, variant: Variant) -> Sums:
        """What a start needs, over the calibration text, in as many passes as calibrate makes."""
        wanted = statistics_of([variant], self.shape, layer)
        total = self._pass(layer, [each for each in wanted if not each.needs])
        later = [each.ready(self.states[layer], total) for each in wanted if each.needs]
        return total | self._pass(layer, later) if later else total

    def _pass(self, layer: int, statistics: Sequence[Any]) -> Sums:
        parts = self.boundaries[layer].split(CHUNK)
        found = [gather(self.layers[layer], part, self.context(part), statistics)[0] for part in parts]
        total = found[0]
        for part in found[1:]:
            total = total + part
        return total

    def start(self, layer: int, label: str) -> State:
        """The start as it is in a search."""
        variant = parse_variant(label)
        sums = self.sums(layer, variant) if variant.statistics(self.shape, layer) else None
        return variant.start(self.shape, layer, self.states[layer], sums)

    def model(self, attention: str, ffn: str, states: Sequence[State] | None = None) -> Any:
        """The uniform child, with `states` in place of the starts of what they hold."""
        return self.assembled([(attention, ffn)] * self.shape.num_layers, states)

    def assembled(self, architecture: Sequence[tuple[str, str]], states: Sequence[State] | None = None) -> Any:
        """A child of any architecture."""
        tensors = dict(self.parent.ends_state())
        for layer, block in enumerate(architecture):
            given = states[layer] if states is not None else {}
            for variant in map(parse_variant, block):
                names = subblock_tensors(self.shape, variant.slot, variant.entry(self.shape, layer))
                own = given if names.keys() <= given.keys() else self.start(layer, variant.label)
                tensors.update({f"model.layers.{layer}.{name}": own[name] for name in names})
        config = self.parent.config.with_blocks(entries_of(self.shape, architecture))
        state = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
        model: Any = InlayForCausalLM
        return model.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)

    @torch.no_grad()
    def kl(self, child: Any) -> float:
        """KL(parent || child), nats per token, on text that nothing is trained on."""
        found = []
        for ids in self.judge.split(CHUNK):
            (_, ours), (_, theirs) = child.forward_hidden(ids), self.whole.forward_hidden(ids)
            heads = self.whole.head_VD, child.head_VD
            found.append(float(kl_loss(theirs.flatten(0, 1), ours.flatten(0, 1), *heads)) * len(ids))
        return sum(found) / len(self.judge)

    def recover(self, child: Any, seed: int, batch: int = 8, cosine: float | None = None, **more: Any) -> float:
        """The KL after global distillation, with each child's own rate found as a search finds it."""
        steps = self.tokens // (batch * LENGTH)
        order = training_order(len(self.train), steps * batch * LENGTH, LENGTH, seed)
        batches = (self.train[order[step * batch : (step + 1) * batch]] for step in range(steps))
        weight = float(self.shape.num_layers) if cosine is None else cosine
        settings = GlobalSettings(
            steps, **{"learning_rate": 1e-3, "rate": "found", **more}, cosine=weight, micro_batch=min(8, batch)
        )
        distill_globally(self.whole, child.requires_grad_(True), batches, list(self.stop.split(batch)), settings)
        return self.kl(child)

    def trained(self, label: str, states: Sequence[State], settings: dict[str, Any]) -> list[State]:
        """A variant of every layer after local distillation on the calibration text."""
        variant = parse_variant(label)
        batch, found = 8, []
        steps = CALIBRATED // LENGTH // batch - LocalSettings.held_out
        for layer, state in enumerate(states):
            entry = variant.entry(self.shape, layer)
            slots = (entry, None) if variant.slot == "attention" else (None, entry)
            own = {name: tensor.clone() for name, tensor in state.items()}
            module = build_layer(self.parent.config, layer, *slots, own, torch.float32).requires_grad_(True)
            more = [entry] if variant.slot == "attention" else []
            parts = self.boundaries[layer].split(batch)
            batches = (LayerBatch(part, self.context(part, *more)) for part in parts)
            branch = Branch(label, variant.slot, module)
            (result,) = train_layer(self.layers[layer], [branch], batches, LocalSettings(steps, **settings))
            found.append(result.state)
        return found


def contributing(bench: Bench, layer: int, label: str, refit: bool) -> State:
    """Channels kept by Channel Contribution (Puzzle, arXiv 2411.19146): their mean size times their column's norm."""
    variant, state = parse_variant(label), bench.states[layer]
    sums, width = bench.sums(layer, variant), variant.entry(bench.shape, layer)["width"]
    ffn, sizes = bench.layers[layer], []
    hook = ffn.get_submodule(DOWN).register_forward_pre_hook(
        lambda _, inputs: sizes.append(inputs[0].abs().sum((0, 1)))
    )
    for part in bench.boundaries[layer].split(CHUNK):
        with torch.no_grad():
            ffn(part, bench.context(part))
    hook.remove()
    down_DF = state[f"{DOWN}.weight"]
    kept = (torch.stack(sizes).sum(0) * down_DF.norm(dim=0)).argsort(descending=True, stable=True)[:width].msort()
    rows = {name: tensor[kept] for name, tensor in state.items() if name.startswith((f"{GATE}.", f"{UP}."))}
    columns = refitted(down_DF, sums.of(ChannelGram())["hh"], kept, sums.tokens).float() if refit else down_DF[:, kept]
    return variant.start(bench.shape, layer, state, sums) | rows | {f"{DOWN}.weight": columns}


def plain_cut(bench: Bench, layer: int, label: str) -> State:
    """(lost) The columns of those kept left as they are."""
    return contributing(bench, layer, label, refit=False)


def contributing_refitted(bench: Bench, layer: int, label: str) -> State:
    """(lost) The columns of those kept refitted."""
    return contributing(bench, layer, label, refit=True)


def mean_of_neighbours(bench: Bench, layer: int, label: str) -> State:
    """(lost) Keys and values of neighbouring heads averaged (arXiv 2305.13245, section 2.1)."""
    variant, shape = parse_variant(label), bench.shape
    heads = variant.entry(shape, layer)["kv_heads"]
    state = dict(Place(shape, layer, "attention").tensors(bench.states[layer]))
    for name in (f"{KEY}.weight", f"{VALUE}.weight"):
        state[name] = state[name].view(heads, -1, shape.head_dim, shape.hidden).mean(1).flatten(0, 1)
    return state


def not_fitted(bench: Bench, layer: int, label: str) -> State:
    """Heads merged, and the output projection only changed to read them."""
    variant = parse_variant(label)
    heads = variant.entry(bench.shape, layer)["kv_heads"]
    merged: Any = MergedHeads(Place(bench.shape, layer, "attention"), heads)
    return dict(merged.ready(bench.states[layer], bench.sums(layer, variant)).started)


def as_searched(bench: Bench, layer: int, label: str) -> State:
    """The start of a search."""
    return bench.start(layer, label)


Row = dict[str, Any]
Start = Callable[[Bench, int, str], State]


def starts(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """Starts of one kind in all layers, without training, and after recovery from there."""
    own = bench.shape.parent_entry(0, "ffn")["width"], bench.shape.parent_entry(0, "attention")["kv_heads"]
    ways: list[tuple[str, str, Start]] = [
        (f"ffn:width={own[0] // 2}", "channels that contribute most, plain cut (lost)", plain_cut),
        (f"ffn:width={own[0] // 2}", "channels that contribute most, refitted (lost)", contributing_refitted),
        (f"ffn:width={own[0] // 2}", "channels that are missed most, refitted: the default", as_searched),
        *(
            (f"attention:kv_heads={heads}", name, start)
            for heads in {own[1] // 2, 1}
            for name, start in (
                ("mean of neighbours (lost)", mean_of_neighbours),
                ("merged by damage", not_fitted),
                ("merged, output fitted: the default", as_searched),
            )
        ),
    ]
    for label, lever, start in ways:
        begun = time.perf_counter()
        states = [start(bench, layer, label) for layer in range(bench.shape.num_layers)]
        seconds = time.perf_counter() - begun
        block = (label, "ffn:parent") if parse_variant(label).slot == "attention" else ("attention:parent", label)
        before = bench.kl(bench.model(*block, states))
        trained = bench.trained(label, states, {})
        local = bench.kl(bench.model(*block, trained))
        for seed in seeds:
            after = bench.recover(bench.model(*block, trained), seed, **TODAY)
            yield {"child": label, "lever": lever, "seed": seed, "seconds": seconds} | {
                "start": before, "before": local, "after": after,
            }  # fmt: skip


def alone(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """Attention left out of one layer after the other, nothing trained: each layer's KL with each ffn behind it."""
    own = bench.shape.parent_entry(0, "ffn")["width"]
    for width in (own, own // 2):
        behind = "ffn:parent" if width == own else f"ffn:width={width}"
        for lever, label in (("as it stands beside attention", behind), ("alone: fitted", f"ffn:alone={width}")):
            begun = time.perf_counter()
            found = []
            for layer in range(bench.shape.num_layers):
                architecture = [("attention:parent", "ffn:parent")] * bench.shape.num_layers
                architecture[layer] = ("attention:no_op", label)
                found.append(bench.kl(bench.assembled(architecture)))
            told = f"{lever}; by layer {' '.join(f'{kl:.2f}' for kl in found)}"
            yield {"child": f"one attention:no_op + {width} channels", "lever": told, "seed": 0} | {
                "start": sum(found) / len(found), "seconds": time.perf_counter() - begun,
            }  # fmt: skip


def recovery(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """How the same half-width child with one KV head is recovered."""
    width = bench.shape.parent_entry(0, "ffn")["width"] // 2
    block = ("attention:kv_heads=1", f"ffn:width={width}")
    states = [bench.start(layer, block[0]) | bench.start(layer, block[1]) for layer in range(bench.shape.num_layers)]
    before = bench.kl(bench.model(*block, states))
    deep = bench.shape.num_layers
    ways = [
        ("batches of 8, cosines summed", {"batch": 8, "cosine": deep}),
        ("batches of 4, cosines summed", {"batch": 4, "cosine": deep}),
        ("batches of 4, mean cosine x 3", {"batch": 4, "cosine": 3.0}),
        ("batches of 4, mean cosine x 1", {"batch": 4, "cosine": 1.0}),
        ("batches of 4, no cosine", {"batch": 4, "cosine": 0.0}),
        ("batches of 2, mean cosine x 3", {"batch": 2, "cosine": 3.0}),
        ("batches of 8, mean cosine x 3", {"batch": 8, "cosine": 3.0}),
    ]
    for lever, how in ways:
        for seed in seeds:
            begun = time.perf_counter()
            after = bench.recover(bench.model(*block, states), seed, **how)
            yield {"child": " + ".join(block), "lever": lever, "seed": seed, "before": before, "after": after} | {
                "seconds": time.perf_counter() - begun
            }


GROUPS = {"starts": starts, "alone": alone, "recovery": recovery}
TITLES = {
    "starts": "Starts: KL untrained, after local distillation, and after recovery from there; seconds are the start's",
    "alone": "One layer without attention, untrained, mean over the layers; seconds are those of starts and KL",
    "recovery": "Recovery of one child, untrained before; seconds are those of the training",
}


def page(rows: list[Row], told: dict[str, str]) -> str:
    """All groups as tables, the seeds of a case in one line: the worst one's KL."""
    lines = [
        "# What each lever on quality is worth",
        "",
        "KL to the parent in nats per token on text that nothing trained on, lower is better; of several seeds the "
        "worst. Written by `benchmarks/quality.py`.",
    ]
    for group, title in TITLES.items():
        held = [row for row in rows if row["group"] == group]
        if not held:
            continue
        columns = (
            "parent",
            "child",
            "lever",
            "tokens",
            "seeds",
            "start",
            "before recovery",
            "after recovery",
            "seconds",
        )
        lines += ["", f"## {title}", "", f"| {' | '.join(columns)} |"]
        lines.append("|---" * len(columns) + "|")
        for key in dict.fromkeys((row["parent"], row["child"], row["lever"], row["tokens"]) for row in held):
            own = [row for row in held if (row["parent"], row["child"], row["lever"], row["tokens"]) == key]
            worst = max(own, key=lambda row: row.get("after", 0.0))
            figures = [f"{worst[name]:.4f}" if name in worst else "" for name in ("start", "before", "after")]
            parent, child, lever, tokens = key
            lines.append(
                f"| {parent} | {child} | {lever} | {tokens:,} | {len(own)} | {' | '.join(figures)} "
                f"| {worst['seconds']:.1f} |"
            )
        lines += ["", told[group]]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=["stories3M", "stories260K"])
    parser.add_argument("--only", nargs="*", default=list(GROUPS))
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=Path, default=Path("quality.json"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "quality.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for name in options.parent:
        bench = Bench(name, options.tokens)
        for group in options.only:
            for row in GROUPS[group](bench, range(options.seeds)):
                tokens = options.tokens if "after" in row else 0
                row |= {"group": group, "parent": name, "tokens": tokens}
                print(json.dumps(row), flush=True)
                held = json.loads(options.rows.read_text()) if options.rows.exists() else {"rows": [], "told": {}}
                key = ("group", "parent", "tokens", "child", "lever", "seed")
                held["rows"] = [old for old in held["rows"] if any(old[name] != row[name] for name in key)] + [row]
                held["told"][group] = footer()
                options.rows.write_text(json.dumps(held))
                options.output.write_text(page(held["rows"], held["told"]))


if __name__ == "__main__":
    main()
