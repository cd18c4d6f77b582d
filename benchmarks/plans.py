"""What `inlay plan` says of published shapes on clusters of GPUs: nothing is run, and no weights are needed.

python benchmarks/plans.py --output benchmarks/results/plans.md
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from machine import footer

from inlay.nas.errors import UserError
from inlay.nas.job import Job
from inlay.nas.quantities import show_bytes, show_count, show_operations, show_seconds
from inlay.nas.stages.machines import READ_BYTES_PER_SECOND, UTILISED, WORKER_SECONDS
from inlay.nas.stages.plan import make_plan

COMMON = {"num_key_value_heads": 8, "head_dim": 128, "dtype": "bfloat16", "max_position_embeddings": 40_960}
SHAPES = {
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "num_hidden_layers": 28,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_attention_heads": 32,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
    },
    "Llama-3.3-70B": {
        "model_type": "llama",
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_attention_heads": 64,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
    },
}
"""From their config.json."""
GPUS = ("A10G", "H100")
"""Of 24 and of 80 GB."""
WORKERS = (1, 8, 64)


def planned(folder: Path, name: str, gpu: str, workers: int) -> dict[str, Any]:
    """The plan of one search: 20M tokens to distill, 1M to judge, 100M to recover."""
    parent = folder / name
    parent.mkdir(exist_ok=True)
    (parent / "config.json").write_text(json.dumps({**COMMON, **SHAPES[name]}))
    values = {
        "parent": str(parent),
        "data": {
            "distill": {"path": "inlay:pystdlib/train", "sequence_length": 4096},
            "validate": {"path": "inlay:pystdlib/held_out", "tokens": "1M"},
        },
        "space": {
            "attention": [{"kv_heads": 4}, {"kv_heads": 2}, {"window": 1024}, "linear", "no_op"],
            "ffn": [{"width": 0.75}, {"width": 0.5}, {"width": 0.25}, "linear", "no_op"],
        },
        "distill": {"tokens": "20M"},
        "recover": {"tokens": "100M"},
        "hardware": {
            "device": "cuda",
            "gpu": gpu,
            "scenarios": [{"name": "chat", "batch_size": 32, "prefill": 2048, "generate": 512}],
        },
        "budget": {"runtime": "0.6x"},
        "cluster": {"max_workers": workers},
    }
    if workers > 1:
        values["recover"] |= {"workers": max(4, workers // 4), "sharding": "full"}
    return make_plan(Job.from_dict(values, folder=folder))


def main() -> None:
    """Prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = [
        "# Plans of published shapes",
        "",
        "From config.json alone: attention with 4 and 2 KV heads, a window, linear, no-op; ffn of 3 widths, linear,",
        "no-op; 20M tokens to distill, 1M to judge, 100M to recover, sequences of 4,096. Nothing here was run: times",
        f"follow from data sheets at {UTILISED:.0%} of their peak, {READ_BYTES_PER_SECOND / 1e9:.0f} GB/s of reading a",
        f"worker and {WORKER_SECONDS:.0f} s until a worker is there; they say what limits a search, not how long it",
        "will take to the minute.",
        "",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for name in SHAPES:
            for gpu in GPUS:
                lines += table(Path(scratch), name, gpu)
    lines += [footer(), ""]
    text = "\n".join(lines)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def table(folder: Path, name: str, gpu: str) -> list[str]:
    """Stages of one parent on one kind of GPU, in columns by the number of workers."""
    plans, refused = [], []
    for workers in WORKERS:
        try:
            plans.append((workers, planned(folder, name, gpu, workers)))
        except UserError as error:
            refused += [f"{_gpus(workers)}: refused. {error}", ""]
    if not plans:
        return [f"## {name} on {gpu}", "", *refused]
    parent = plans[0][1]["parent"]
    sizes = f"{show_count(parent['parameters'])} parameters, {show_bytes(parent['weights_bytes'])}"
    titles = [_gpus(workers) for workers, _ in plans]
    lines = [
        f"## {name} ({sizes}) on {gpu}",
        "",
        *refused,
        f"| stage | FLOPs | weights read | mostly | {' | '.join(titles)} |",
        f"|---|---|---|---|{'---|' * len(titles)}",
    ]
    for stages in zip(*(plan["stages"] for _, plan in plans), strict=True):
        first = stages[0]
        if first["seconds"] is None:
            continue
        times = " | ".join(show_seconds(stage["seconds"]) for stage in stages)
        work = (
            show_operations(first["operations"]) if first["operations"] else "",
            show_bytes(first["read_bytes"]) if first["read_bytes"] else "",
        )
        lines.append(f"| {first['name']} | {' | '.join(work)} | {first['limit']} | {times} |")
    totals = " | ".join(show_seconds(sum(s["seconds"] or 0 for s in plan["stages"])) for _, plan in plans)
    return [*lines, f"| total | | | | {totals} |", ""]


def _gpus(workers: int) -> str:
    return f"{workers} GPU{'s' if workers > 1 else ''}"


if __name__ == "__main__":
    main()
