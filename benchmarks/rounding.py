"""What rounding all matrices of a model to one format costs, by how their codes are chosen.

    python benchmarks/rounding.py [PARENT ...] [--formats q4_0 q4_K ...] [--output results/rounding.md]

Every layer's matrices are rounded, embedding and head are not. `nearest` is the format's own rounding (ggml's of its
types), `importance` the same weighed by the mean square of each input channel, `fitted` what a search does
(nas/formats/fitting.py). Statistics are of 8,192 tokens; KL is to the parent, nats a token, on 8,192 others.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
import torch
from machine import footer
from torch import Tensor
from transformers import AutoModelForCausalLM

from inlay.nas.embedded import PARENTS, corpus, embedded_parent
from inlay.nas.families import open_parent
from inlay.nas.formats import FORMATS
from inlay.nas.formats.format import Format
from inlay.nas.formats.inputs import Inputs
from inlay.nas.formats.tensors import rounded, weighed

TOKENS, LENGTH = 8192, 256
HOW: dict[str, Callable[[Tensor, Format, Inputs], Tensor]] = {
    "nearest": lambda weights, form, inputs: rounded(weights, form),
    "importance": weighed,
    "fitted": rounded,
}
USUAL = ("q8_0", "q6_K", "q5_K", "q5_0", "q4_K", "q4_0", "q3_K")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parents", nargs="*", type=Path)
    parser.add_argument("--formats", nargs="+", default=USUAL, choices=list(FORMATS))
    parser.add_argument("--text", type=Path, help="a text file, for parents that are given; by default INLAY_TEXT's")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "rounding.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# Rounding", "", str(__doc__).split("\n\n")[2].strip(), ""]
    lines += ["| parent | format | nearest | importance | fitted | fitted / nearest | fitted / importance | seconds |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|"]
    for folder, text in named(chosen.parents, chosen.text):
        for line in rows(folder, text, chosen.formats):
            print(line, flush=True)
            lines.append(line)
    chosen.output.write_text("\n".join([*lines, "", footer()]) + "\n")


def named(parents: list[Path], text: Path | None) -> Iterator[tuple[Path, str]]:
    """Folders and the text for each: those given, else what ships and what INLAY_PARENTS has."""
    own = Path(os.environ["INLAY_TEXT"]) if text is None and "INLAY_TEXT" in os.environ else None
    files = [text] if text else sorted(own.glob("*.txt")) if own else []
    if not parents:
        yield embedded_parent(PARENTS[0]), corpus.text("held_out")
        parents = sorted(Path(os.environ["INLAY_PARENTS"]).iterdir()) if "INLAY_PARENTS" in os.environ else []
    for folder in parents:
        yield folder, files[0].read_text(encoding="utf-8")


def rows(folder: Path, text: str, formats: list[str]) -> Iterator[str]:
    """A line of the table for each format."""
    tokenizer = open_parent(folder).tokenizer()
    # Some characters a token; the second half is for the KL.
    half = len(text) // 2
    told_NS, judged_NS = (
        torch.tensor(tokenizer(part[: TOKENS * 12])["input_ids"][:TOKENS]).view(-1, LENGTH)
        for part in (text[:half], text[half:])
    )
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    matrices = {name: module for name, module in model.model.named_modules() if isinstance(module, torch.nn.Linear)}
    inputs = inputs_of(model, matrices, told_NS)
    parent = [torch.log_softmax(logits, -1) for logits in outputs(model, judged_NS)]
    own = {name: module.weight.detach().clone() for name, module in matrices.items()}
    for name in formats:
        found: dict[str, float] = {}
        for how, rounding in HOW.items():
            begun = time.process_time()
            for place, module in matrices.items():
                form = FORMATS[name].holding(module.in_features)
                module.weight.data = rounding(own[place], form, inputs[place])
            seconds = time.process_time() - begun
            found[how] = kl_nats(parent, outputs(model, judged_NS))
        cells = [folder.name, name, *(f"{kl:.4f}" for kl in found.values())]
        cells += [f"{found['fitted'] / found[how]:.2f}" for how in ("nearest", "importance")]
        yield f"| {' | '.join(cells)} | {seconds:.1f} |"


def inputs_of(model: Any, matrices: dict[str, torch.nn.Linear], ids_NS: Tensor) -> dict[str, Inputs]:
    total: dict[str, Tensor] = {}

    def adds(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            rows_ND = inputs[0].flatten(0, -2)
            total[name] = total.get(name, 0) + rows_ND.T @ rows_ND

        return hook

    hooks = [module.register_forward_pre_hook(adds(name)) for name, module in matrices.items()]
    for _ in outputs(model, ids_NS):
        pass
    for hook in hooks:
        hook.remove()
    return {name: Inputs(name, products / ids_NS.numel()) for name, products in total.items()}


def outputs(model: Any, ids_NS: Tensor) -> Iterator[Tensor]:
    """Logits of eight sequences at a time."""
    for part in ids_NS.split(8):
        with torch.inference_mode():
            yield model(part).logits


def kl_nats(parent: list[Tensor], logits: Iterator[Tensor]) -> float:
    parts = []
    for own, other in zip(parent, logits, strict=True):
        parts.append((own.exp() * (own - torch.log_softmax(other, -1))).sum(-1).flatten())
    return float(torch.cat(parts).mean())


if __name__ == "__main__":
    main()
