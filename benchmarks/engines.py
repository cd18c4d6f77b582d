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
from collections.abc import Sequence
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
from inlay.nas.engines.timing import Workload
from inlay.nas.families import Parent
from inlay.nas.families.source import open_source, unpacked
from inlay.nas.modeling import InlayForCausalLM

CHILDREN = 10
WIDTHS = (1.0, 0.75, 0.5, 0.25)
GREEDY = 40
TEXT_TOKENS = 64
WORKLOAD = Workload(batch_size=1, prefill=128, generate=64, threads=1)
ENGINE = LlamaCppEngine()
PARTS = (0, 1)  # prefill, decode


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


def space_of(parent: Parent) -> dict[str, tuple[str, dict[str, Any]]]:
    """Subblocks by a short name: the parent's, fewer KV heads, linear maps, narrower ffns."""
    own, width = parent.shape.parent_entry(0, "attention"), parent.shape.parent_entry(0, "ffn")["width"]
    found: dict[str, tuple[str, dict[str, Any]]] = {"attention": ("attention", own)}
    if own["kv_heads"] > 1:
        found["kv 1"] = ("attention", {**own, "kv_heads": 1})
    found["map"] = ("attention", {"kind": "linear"})
    for share in WIDTHS:
        found[f"ffn {share:g}"] = ("ffn", {"kind": "gated", "width": round(width * share)})
    return found


def children_of(parent: Parent) -> dict[str, list[dict[str, Any]]]:
    """Children of different shapes, from nearly whole to less than half, chosen by chance."""
    space = space_of(parent)
    attentions = [entry for slot, entry in space.values() if slot == "attention"]
    ffns = [entry for slot, entry in space.values() if slot == "ffn"]
    made = {}
    for number in range(CHILDREN):
        chance = random.Random(number)
        changed = (number + 1) / CHILDREN
        blocks = []
        for layer in range(parent.shape.num_layers):
            block = {slot: parent.shape.parent_entry(layer, slot) for slot in ("attention", "ffn")}
            if chance.random() < changed:
                block["attention"] = chance.choice([*attentions, {"kind": "no_op"}])
            if chance.random() < changed:
                block["ffn"] = chance.choice([*ffns, {"kind": "no_op"}])
            blocks.append(block)
        made[f"child {number}"] = blocks
    return made


def times(parent: Parent, form: str) -> list[str]:
    """Predicted and measured times of ten children; both are relative to the parent, which took turns."""
    target = Target("cpu", "float32", form)
    space, children = space_of(parent), children_of(parent)
    begun = time.monotonic()
    skeletons = ENGINE.skeletons(parent.config, space)
    rounds = ENGINE.rounds({**skeletons.references, **skeletons.models}, WORKLOAD, target, lambda share: None)
    table = time.monotonic() - begun
    own = {
        key: [
            statistics.median(sum(w * rounds[n][i][p] for w, n in terms) for i in range(len(rounds["base"])))
            for p in PARTS
        ]
        for key, terms in skeletons.terms.items()
    }
    whole = [
        {slot: parent.shape.parent_entry(i, slot) for slot in ("attention", "ffn")}
        for i in range(parent.shape.num_layers)
    ]
    predicted = {name: predict(own, space, blocks) for name, blocks in {"parent": whole, **children}.items()}
    configs = {"parent": parent.config} | {name: parent.config.with_blocks(blocks) for name, blocks in children.items()}
    measured = ENGINE.rounds(configs, WORKLOAD, target, lambda share: None)
    lines = [
        f"### Times, {form}",
        "",
        f"The table of {len(space)} distinct subblocks and the ends took {table:.0f} s. Ratios to the parent, one "
        f"thread, prompt {WORKLOAD.prefill}, {WORKLOAD.generate} generated.",
        "",
        "| child | prefill predicted | measured | off | decode predicted | measured | off | file bytes | exact |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    errors: list[float] = []
    for name, blocks in children.items():
        cells = []
        for part in PARTS:
            promise = predicted[name][part] / predicted["parent"][part]
            pairs = zip(measured[name], measured["parent"], strict=True)
            truth = statistics.median(mine[part] / theirs[part] for mine, theirs in pairs)
            errors.append(abs(promise / truth - 1))
            cells.append(f"{promise:.3f} | {truth:.3f} | {100 * (promise / truth - 1):+.1f} %")
        size, exact = promised_bytes(parent, blocks, form)
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {size:,} | {'yes' if exact else 'NO'} |")
    lines += [
        "",
        f"Off by {100 * statistics.median(errors):.1f} % in the median, {100 * max(errors):.1f} % at worst.",
        "",
    ]
    return lines


def predict(own: dict[str, list[float]], space: dict[str, Any], blocks: Sequence[dict[str, Any]]) -> list[float]:
    """(prefill, decode) as a search adds them."""
    names = {(slot, str(sorted(entry.items()))): key for key, (slot, entry) in space.items()}
    total = list(own["ends"])
    for layer, block in enumerate(blocks):
        for slot, entry in block.items():
            if (key := names.get((slot, str(sorted(entry.items()))))) is None:
                continue
            found = dict(zip(("prefill_ns", "decode_ns"), map(round, own[key]), strict=True))
            placed = ENGINE.times_at(found, slot, layer == len(blocks) - 1)
            total[0] += placed["prefill_ns"]
            total[1] += placed["decode_ns"]
    return total


def promised_bytes(parent: Parent, blocks: list[dict[str, Any]], form: str) -> tuple[int, bool]:
    """Bytes of the child's file, and whether file, weights and cache are what was promised before it was written."""
    with tempfile.TemporaryDirectory() as folder, process(None) as engine:
        path = Path(folder) / "child.gguf"
        promise, packed = write(path, parent, blocks, form, {})
        length = WORKLOAD.prefill + WORKLOAD.generate
        sizes = engine.ask("open", models={"m": str(path)}, tokens=length, sequences=1, threads=1)["m"]
        storage = ENGINE.storage(form)
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
    write_file(path, packed, rotation, [*fields, NO_TOKENIZER], read)
    return file_bytes(packed, rotation, [*fields, NO_TOKENIZER]), packed


def exports(parent: Parent) -> list[str]:
    """Logits and greedy tokens of children cut from the parent, in llama.cpp and in PyTorch."""
    lines = ["### Exports", "", "| child | largest difference, f32 | greedy, f32 | KL, q8_0 |", "|---|---|---|---|"]
    ids = text_of(parent)
    for name, blocks in list(children_of(parent).items())[::3]:
        model = cut(parent, blocks)
        with torch.inference_mode():
            own = model(torch.tensor([ids])).logits[0].numpy()
        greedy = greedy_tokens(model, ids)
        with tempfile.TemporaryDirectory() as folder, process(None) as engine:
            state = model.state_dict()
            found = {}
            for form in ("f32", "q8_0"):
                path = Path(folder) / f"{form}.gguf"
                write(path, parent, blocks, form, state)
                length = len(ids) + GREEDY + 1
                opened = {form: str(path)}
                engine.ask("open", models=opened, tokens=length, sequences=1, threads=1, exact=form == "f32")
                engine.ask("logits", model=form, ids=ids, output=str(path.with_suffix(".npy")))
                found[form] = np.load(path.with_suffix(".npy"))
            engine.ask("prefill", models=["f32"], ids=ids, clock="thread")
            (told,) = engine.ask("generate", models=["f32"], count=GREEDY, stops=[], clock="thread")["ids"]
        p, q = (torch.log_softmax(torch.tensor(each).double(), -1) for each in (own, found["q8_0"]))
        kl = float((p.exp() * (p - q)).sum(-1).mean())
        same = sum(a == b for a, b in zip(told, greedy, strict=True))
        lines.append(f"| {name} | {abs(own - found['f32']).max():.1e} | {same} of {GREEDY} | {kl:.4f} |")
    return [*lines, ""]


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
