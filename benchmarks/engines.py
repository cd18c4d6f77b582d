"""How true what is promised of a child is in the engine that serves it: times, bytes, and the exported file itself.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/engines.py [--parent FOLDER|FILE.gguf ...] [--part times exports]

Without `--parent`: `stories3M` of INLAY_PARENTS, and the file that INLAY_SMOLLM2 names where it is set.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import torch
from machine import footer

from inlay.nas.engines.engine import Target
from inlay.nas.engines.gguf.fields import NO_TOKENIZER
from inlay.nas.engines.gguf.metadata import model_fields, rotation_of
from inlay.nas.engines.gguf.packing import pack
from inlay.nas.engines.gguf.writer import file_bytes, write_file
from inlay.nas.engines.llama_cpp import CELLS, LlamaCppEngine, process
from inlay.nas.engines.timing import Workload, runtimes
from inlay.nas.families import Parent
from inlay.nas.families.source import open_source, unpacked
from inlay.nas.job.budget import parse_limit
from inlay.nas.job.sections import Scenario
from inlay.nas.job.space import Space
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.pieces.subblock_times import SubblockBench
from inlay.nas.stages.measure import CostRows
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks, architecture_of, blocks_of
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.problem import build_problem
from inlay.nas.tables.scores import ScoreTable
from inlay.nas.variants import parameters, variants_of
from inlay.nas.variants.entries import entries_of
from inlay.solver import solve

CHILDREN = 10
WIDTHS = (0.75, 0.5, 0.25)
GREEDY = 40
HALF = "runtime: 0.5x"
TEXT_TOKENS = 64
WORKLOAD = Workload(batch_size=1, prefill=128, generate=64, threads=1)
ENGINE = LlamaCppEngine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", type=Path, default=None)
    parser.add_argument("--form", nargs="*", default=["f16", "q8_0"])
    parser.add_argument("--part", nargs="*", default=["times", "exports"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "engines.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# What is promised of a child, in llama.cpp", "", "Written by `benchmarks/engines.py`.", ""]
    for path in options.parent or default_parents():
        lines += [f"## {path.stem}", ""]
        with tempfile.TemporaryDirectory() as folder, unpacked(open_source(path), Path(folder)) as parent:
            if "times" in options.part:
                for form in options.form:
                    lines += times(parent, form)
            if "exports" in options.part:
                lines += exports(parent)
        options.output.write_text("\n".join([*lines, footer(), ""]))
    print("\n".join(lines))


def default_parents() -> list[Path]:
    """The parents that the environment names."""
    found = [Path(os.environ["INLAY_PARENTS"]) / "stories3M"]
    return [*found, Path(os.environ["INLAY_SMOLLM2"])] if "INLAY_SMOLLM2" in os.environ else found


def space_of(parent: Parent) -> Space:
    """What children are made of: fewer KV heads, linear maps, narrower ffns, nothing."""
    fewer = [{"kv_heads": 1}] if parent.shape.parent_entry(0, "attention")["kv_heads"] > 1 else []
    return Space(
        attention=[*fewer, "linear", "no_op"], ffn=[*({"width": share} for share in WIDTHS), "linear", "no_op"]
    )


def children_of(parent: Parent) -> dict[str, Blocks]:
    """Children of different shapes, from nearly whole to less than half, chosen by chance; and those whose times add up
    otherwise: layers dropped at the end, and a first layer without attention."""
    variants = variants_of(space_of(parent), parent.shape, 0)
    labels = [[v.label for v in variants if v.slot == slot] for slot in ("attention", "ffn")]
    whole = [PARENT_BLOCK] * parent.shape.num_layers
    made: dict[str, Blocks] = {}
    for number in range(CHILDREN):
        chance = random.Random(number)
        changed = (number + 1) / CHILDREN
        blocks = [
            tuple(
                chance.choice(own) if chance.random() < changed else kept
                for own, kept in zip(labels, block, strict=True)
            )
            for block in whole
        ]
        made[f"child {number}"] = blocks_of(blocks)
    nothing = ("attention:no_op", "ffn:no_op")
    half = len(whole) // 2
    made["without its last layer"] = blocks_of([*whole[:-1], nothing])
    made["without its last half"] = blocks_of([*whole[:half], *[nothing] * (len(whole) - half)])
    made["without its last ffn"] = blocks_of([*whole[:-1], (PARENT_BLOCK[0], nothing[1])])
    made["without its first attention"] = blocks_of([(nothing[0], PARENT_BLOCK[1]), *whole[1:]])
    return made


def times(parent: Parent, form: str) -> list[str]:
    """Predicted and measured times of children; both are relative to the parent, which took turns."""
    target = Target("cpu", "float32", form)
    begun = time.monotonic()
    made = CostRows(space_of(parent), parent.shape, ENGINE, form, ENGINE.storage(form, "cpu"))
    bench = SubblockBench(ENGINE, target, parent.config, WORKLOAD)
    found = bench.times(made.entries(), lambda share: None, again=True)
    table = time.monotonic() - begun
    scenario = Scenario(name="one", **asdict(WORKLOAD))
    costs = CostTable(made.of(scenario, found, bench.compute_bytes(made.entries())))
    whole = costs.total("one", [PARENT_BLOCK] * parent.shape.num_layers)
    architectures = {**children_of(parent), HALF: half_the_runtime(parent, costs)}
    children = {name: entries_of(parent.shape, labels) for name, labels in architectures.items()}
    configs = {"parent": parent.config} | {name: parent.config.with_blocks(blocks) for name, blocks in children.items()}
    measured = ENGINE.rounds(configs, WORKLOAD, target, lambda share: None).rounds
    lines = [
        f"### Times, {form}",
        "",
        f"The table of {len(made.entries())} distinct subblocks and the ends took {table:.0f} s. Ratios to the parent, "
        f"one thread, prompt {WORKLOAD.prefill}, {WORKLOAD.generate} generated.",
        "",
        "| child | prefill predicted | measured | off | decode predicted | measured | off | file bytes | exact |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    errors: dict[str, list[float]] = {"prefill": [], "decode": []}
    for name, labels in architectures.items():
        cells = []
        total = costs.total("one", labels)
        for part, term in enumerate(errors):
            promise = total[f"{term}_ns"] / whole[f"{term}_ns"]
            pairs = zip(measured[name], measured["parent"], strict=True)
            truth = statistics.median(mine[part] / theirs[part] for mine, theirs in pairs)
            errors[term].append(abs(promise / truth - 1))
            cells.append(f"{promise:.3f} | {truth:.3f} | {100 * (promise / truth - 1):+.1f} %")
        size, exact = promised_bytes(parent, children[name], form)
        exact = exact and total["weights_bytes"] == ENGINE.storage(form, "cpu").model(parent.shape, children[name])
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {size:,} | {'yes' if exact else 'NO'} |")
    for term, off in errors.items():
        told = f"{term}: off by {100 * statistics.median(off):.1f} % in the median, {100 * max(off):.1f} % at worst."
        lines += ["", told.capitalize()]
    own, theirs = (runtimes(measured[name], WORKLOAD) for name in (HALF, "parent"))
    fast = statistics.median(whole / mine for mine, whole in zip(own, theirs, strict=True))
    return [*lines, "", f"`{HALF}` is {fast:.2f} times as fast as the parent.", ""]


def half_the_runtime(parent: Parent, costs: CostTable) -> Blocks:
    """What the program chooses under that budget, where a block is worth its parameters, and attention twice that."""
    measured: dict[int, dict[tuple[str, str], float]] = {}
    for layer in range(parent.shape.num_layers):
        measured[layer] = {}
        for variant in variants_of(space_of(parent), parent.shape, layer):
            own = parameters(variant.entry(parent.shape, layer), variant.slot, parent.shape)
            whole = parameters(parent.shape.parent_entry(layer, variant.slot), variant.slot, parent.shape)
            block = [*PARENT_BLOCK]
            block[variant.slot == "ffn"] = variant.label
            measured[layer][block[0], block[1]] = (2 if variant.slot == "attention" else 1) * (1 - own / whole)
    problem = build_problem(ScoreTable(measured), costs, [parse_limit("runtime", "0.5x")], {"one": WORKLOAD.generate})
    return architecture_of(solve(problem, time_limit=30)[0].labels)


def promised_bytes(parent: Parent, blocks: list[dict[str, Any]], form: str) -> tuple[int, bool]:
    """Bytes of the child's file, and whether file, weights and cache are what was promised before it was written."""
    with tempfile.TemporaryDirectory() as folder, process(None) as engine:
        path = Path(folder) / "child.gguf"
        promise, packed = write(path, parent, blocks, form, {})
        length = WORKLOAD.prefill + WORKLOAD.generate
        sizes = engine.ask("open", models={"m": str(path)}, tokens=length, sequences=1, threads=1)["m"]
        storage = ENGINE.storage(form, "cpu")
        kv = packed.kv_bytes(-(-length // CELLS) * CELLS)
        exact = (
            promise == path.stat().st_size
            and sizes["weights_bytes"] == storage.model(parent.shape, blocks)
            and sizes["kv_mib"] == round(kv / 2**20, 2)
        )
        return path.stat().st_size, exact


def write(
    path: Path, parent: Parent, blocks: list[dict[str, Any]], form: str, state: dict[str, Any]
) -> tuple[int, Any]:
    """Writes a child; zeros where there is no state. Returns the promised bytes and how it is packed."""
    packed = pack(parent.shape, blocks, form)
    config = parent.config
    rotation = rotation_of(config.rope_parameters, config.head_dim)
    fields = model_fields(packed, rotation, config.max_position_embeddings, config.rms_norm_eps, "child")
    sizes = {source: tensor.shape for tensor in packed.tensors for source in tensor.sources}
    read = (lambda name: state[name].float().numpy()) if state else (lambda name: np.zeros(sizes[name], np.float32))
    write_file(path, packed, rotation, [*fields, NO_TOKENIZER], read, {})
    return file_bytes(packed, rotation, [*fields, NO_TOKENIZER]), packed


def exports(parent: Parent) -> list[str]:
    """Logits and greedy tokens of the parent and of children cut from it, in llama.cpp and in PyTorch.

    Which of two float32 results is right is told by the same child in float64.
    """
    lines = [
        "### Exports",
        "",
        "Logits, at most so far from the child's in float64; KL from those of float64.",
        "",
        "| child | PyTorch, f32 | llama.cpp, f32 | between the two | greedy, f32 | KL, f16 | KL, q8_0 |",
        "|---|---|---|---|---|---|---|",
    ]
    ids = text_of(parent)
    whole = {"parent": [PARENT_BLOCK] * parent.shape.num_layers}
    for name, labels in [*whole.items(), *list(children_of(parent).items())[:CHILDREN:3]]:
        blocks = entries_of(parent.shape, labels)
        model = cut(parent, blocks)
        with torch.inference_mode():
            own = model(torch.tensor([ids])).logits[0].numpy()
        greedy = greedy_tokens(model, ids)
        with tempfile.TemporaryDirectory() as folder, process(None) as engine:
            state = model.state_dict()
            found = {}
            for form in ("f32", "f16", "q8_0"):
                path = Path(folder) / f"{form}.gguf"
                write(path, parent, blocks, form, state)
                length = len(ids) + GREEDY + 1
                opened = {form: str(path)}
                engine.ask("open", models=opened, tokens=length, sequences=1, threads=1, exact=form == "f32")
                engine.ask("logits", model=form, ids=ids, output=str(path.with_suffix(".npy")))
                found[form] = np.load(path.with_suffix(".npy"))
            engine.ask("prefill", models=["f32"], ids=ids, clock="thread")
            (told,) = engine.ask("generate", models=["f32"], count=GREEDY, stops=[], clock="thread")["ids"]
        with torch.inference_mode():
            exact = model.double()(torch.tensor([ids])).logits[0].numpy()
        differences = (own - exact, found["f32"] - exact, own - found["f32"])
        apart = " | ".join(f"{abs(each).max():.1e}" for each in differences)
        same = sum(a == b for a, b in zip(told, greedy, strict=True))
        kl = " | ".join(f"{kl_of(exact, found[form]):.4f}" for form in ("f16", "q8_0"))
        lines.append(f"| {name} | {apart} | {same} of {GREEDY} | {kl} |")
    return [*lines, ""]


def kl_of(right: Any, other: Any) -> float:
    """Mean KL of logits [T, V] from the right ones, nats."""
    p, q = (torch.log_softmax(torch.tensor(each).double(), -1) for each in (right, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def text_of(parent: Parent) -> list[int]:
    """Some tokens of real text."""
    source = next(iter(sorted(Path(os.environ["INLAY_TEXT"]).glob("*.txt"))))
    return list(parent.tokenizer()(source.read_text(encoding="utf-8")[:2000])["input_ids"][:TEXT_TOKENS])


def cut(parent: Parent, blocks: list[dict[str, Any]]) -> Any:
    """A child with the parent's weights where they fit, its first channels and heads where fewer are left."""
    model: Any = InlayForCausalLM(parent.config.with_blocks(blocks)).float().eval()
    own = dict(parent.ends_state(torch.float32))
    for layer in range(parent.shape.num_layers):
        own |= {
            f"model.layers.{layer}.{name}": value for name, value in parent.layer_state(layer, torch.float32).items()
        }
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in own:
                tensor.copy_(own[name][tuple(slice(size) for size in tensor.shape)])
    return model


@torch.inference_mode()
def greedy_tokens(model: Any, ids: list[int]) -> list[int]:
    """The child's own choices."""
    cache = model.new_cache()
    token = model(torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0, -1].argmax()
    found = []
    for _ in range(GREEDY):
        found.append(int(token))
        token = model(token.view(1, 1), past_key_values=cache, use_cache=True).logits[0, -1].argmax()
    return found


if __name__ == "__main__":
    main()
