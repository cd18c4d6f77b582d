"""What each lever on quality is worth: its KL before and after recovery, and its seconds, beside what it takes the
place of.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/quality.py [--only starts] [--parent stories3M] [--seeds 3]

A group's table replaces the one that was there; rows in `--rows` are not made again.

All of it in one process of one thread, on the pieces that a search is made of. Children are uniform: one variant in
every layer, so that no choice of an architecture stands between a lever and its figure. Every row of a group is trained
on the same tokens in the same order and judged on the same text, which nothing trains on. Rows that are named `(lost)`
are written out here and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
import transformers
from machine import footer
from quality_bench import CHUNK, Bench, Row, State
from quality_training import TITLES as TRAINING_TITLES
from quality_training import TRAINING

from inlay.nas.modeling.full_inlay import KEY, OUTPUT, QUERY, VALUE
from inlay.nas.modeling.gated_inlay import DOWN, GATE, UP
from inlay.nas.variants import Place, parse_variant
from inlay.nas.variants.kv_heads import MergedHeads
from inlay.nas.variants.least_squares import refitted
from inlay.nas.variants.statistics import ChannelGram

TODAY = {"batch": 8, "cosine": None}
"""How children were recovered before any lever: cosines summed over the layers."""


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


def largest_columns(bench: Bench, layer: int, label: str) -> State:
    """(lost) The groups of heads whose columns of the output projection are largest, which are left as they are."""
    variant, shape = parse_variant(label), bench.shape
    state = dict(Place(shape, layer, "attention").tensors(bench.states[layer]))
    own, stay = shape.parent_entry(layer, "attention")["kv_heads"], variant.entry(shape, layer)["kv_heads"]
    output_DO = state[f"{OUTPUT}.weight"]
    groups = output_DO.view(shape.hidden, own, -1).square().sum((0, 2)).topk(stay).indices.msort()
    for name in (QUERY, KEY, VALUE):
        for part in [part for part in state if part.startswith(f"{name}.")]:
            state[part] = state[part].unflatten(0, (own, -1))[groups].flatten(0, 1)
    return state | {f"{OUTPUT}.weight": output_DO.unflatten(1, (own, -1))[:, groups].flatten(1)}


def as_searched(bench: Bench, layer: int, label: str) -> State:
    """The start of a search."""
    return bench.start(layer, label)


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
    yield from _started(bench, seeds, ways)


def heads(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """Query heads that go with their group, and two kinds in one slot beside each of them."""
    half = f"attention:heads={bench.shape.q_heads // 2}"
    merged = f"attention:kv_heads={bench.shape.parent_entry(0, 'attention')['kv_heads'] // 2}"
    ways: list[tuple[str, str, Start]] = [
        (half, "heads of the largest columns, plain cut (lost)", largest_columns),
        (half, "heads that are missed most, refitted: the default", as_searched),
        (merged, "as searched", as_searched),
        ("attention:window=16", "as searched", as_searched),
        (f"{merged}+window=16", "as searched", as_searched),
        (f"{half}+window=16", "as searched", as_searched),
    ]
    yield from _started(bench, seeds, ways)


def _started(bench: Bench, seeds: Iterable[int], ways: Iterable[tuple[str, str, Start]]) -> Iterator[Row]:
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


GROUPS = {"starts": starts, "heads": heads, "alone": alone, "recovery": recovery, **TRAINING}
TITLES = {
    "starts": "Starts: KL untrained, after local distillation, and after recovery from there; seconds are the start's",
    "heads": "Query heads that go, and two kinds in one slot, in all layers; seconds are the start's",
    "alone": "One layer without attention, untrained, mean over the layers; seconds are those of starts and KL",
    "recovery": "Recovery of one child, untrained before; seconds are those of the training",
    **TRAINING_TITLES,
}


def page(rows: list[Row], told: dict[str, str], before: str) -> str:
    """All groups as tables, those without rows as they were before."""
    lines = [
        "# What each lever on quality is worth",
        "",
        "KL to the parent in nats per token on text that nothing trained on, lower is better; of several seeds the "
        "worst. Written by `benchmarks/quality.py`.",
    ]
    kept = {part.partition("\n")[0]: part for part in before.split("\n## ")[1:]}
    for group, title in TITLES.items():
        held = [row for row in rows if row["group"] == group]
        if held:
            lines += ["", f"## {title}", "", *table(held), "", told[group]]
        elif title in kept:
            lines += ["", f"## {kept[title].rstrip()}"]
    return "\n".join([*lines, ""])


def table(rows: list[Row]) -> list[str]:
    """One group, the seeds of a case in one line: the worst one's KL."""
    columns = ("parent", "child", "lever", "tokens", "seeds", "start", "before recovery", "after recovery", "seconds")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for key in dict.fromkeys((row["parent"], row["child"], row["lever"], row["tokens"]) for row in rows):
        own = [row for row in rows if (row["parent"], row["child"], row["lever"], row["tokens"]) == key]
        worst = max(own, key=lambda row: row.get("after", 0.0))
        figures = [f"{worst[name]:.4f}" if name in worst else "" for name in ("start", "before", "after")]
        parent, child, lever, tokens = key
        lines.append(
            f"| {parent} | {child} | {lever} | {tokens:,} | {len(own)} | {' | '.join(figures)} "
            f"| {worst['seconds']:.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=["stories3M", "stories260K"])
    parser.add_argument("--only", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--lever", nargs="*", default=[""], help="only rows whose lever has one of these in it")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=Path, default=Path("quality.json"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "quality.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    before = options.output.read_text() if options.output.exists() else ""
    held = json.loads(options.rows.read_text()) if options.rows.exists() else {"rows": [], "told": {}}
    for name in options.parent:
        for group in options.only:
            made = {
                (row["child"], row["lever"], row["seed"])
                for row in held["rows"]
                if (row["group"], row["parent"], row["tokens"] or options.tokens) == (group, name, options.tokens)
            }

            def wanted(child: str, lever: str, seed: int, made: set[Any] = made) -> bool:
                return (child, lever, seed) not in made and any(part in lever for part in options.lever)

            for row in GROUPS[group](Bench(name, options.tokens, wanted), range(options.seeds)):
                row |= {"group": group, "parent": name, "tokens": options.tokens if "after" in row else 0}
                print(json.dumps(row), flush=True)
                key = ("group", "parent", "tokens", "child", "lever", "seed")
                held["rows"] = [old for old in held["rows"] if any(old[name] != row[name] for name in key)] + [row]
                held["told"][group] = footer()
                options.rows.write_text(json.dumps(held))
                options.output.write_text(page(held["rows"], held["told"], before))


if __name__ == "__main__":
    main()
