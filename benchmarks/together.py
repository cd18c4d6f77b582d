"""Three models recovered by one worker, one after the other and beside each other: seconds of its processor.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/together.py [--tokens 40000]

Of every second layer one leaves the ffn out, one the attention, and one leaves out every third layer. All of the stage
counts: assembling, training, judging, storing. Both ways give the same records, which is checked. It is the processor's
time of one thread, so that a busy machine changes little; each is run once.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer
from searches import split_text

import inlay
from inlay.nas.loop import recovery_memory
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.training import recover_models
from inlay.nas.pieces.weights import Library
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.run import open_job_parent
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks
from inlay.nas.workspace import Workspace

PARENTS = ("stories260K", "stories3M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/together.md"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        split_text(Path(folder))
        for parent in PARENTS:
            job = job_of(parent, Path(folder), options.tokens)
            apart, alone = recovered(job, used=0.0)
            together, beside = recovered(job, used=recovery_memory.USED)
            if alone != beside:
                sys.exit(f"{parent}: models that were trained together are not those that were trained apart")
            rows.append(f"| {parent} | {apart:.1f} | {together:.1f} | {together / apart:.2f} |")
    lines = [
        "# Three models recovered by one worker",
        "",
        f"{options.tokens:,} tokens each, in sequences of 256, float32 on one thread; seconds of the processor.",
        "",
        "| parent | one after the other, s | together, s | of that |",
        "|---|---|---|---|",
        *rows,
        "",
        "Together the parent runs once for all three; the records of both ways are equal bit for bit.",
        "",
        f"Written by `benchmarks/together.py`. {footer()}",
        "",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print("\n".join(lines))


def job_of(parent: str, texts: Path, tokens: int) -> inlay.Job:
    return inlay.Job.from_dict(
        {
            "parent": str(Path(os.environ["INLAY_PARENTS"]) / parent),
            "data": {
                "distill": {"path": str(texts / "train.txt")},
                "validate": {"path": str(texts / "held_out.txt"), "tokens": 4_000},
            },
            "space": {"attention": ["no_op"], "ffn": ["no_op"]},
            "recover": {"tokens": tokens, "learning_rate": 1e-3, "rate": "pinned"},
            "budget": {"parameters": "0.9x"},
        }
    )


def recovered(job: inlay.Job, used: float) -> tuple[float, dict[str, Any]]:
    """Seconds, and the records of the models, where so much of the memory may be used for several at once."""
    before, recovery_memory.USED = recovery_memory.USED, used
    try:
        with tempfile.TemporaryDirectory() as folder:
            opened, place = open_job_parent(job), Workspace(Path(folder) / "recovery.search")
            packed = store_texts(pack_texts(job, opened.tokenizer()), place)
            search = SmallSearch(job, place, opened, None, Reporter())
            start = time.process_time()
            records = recover_models(search, packed, Library({}), models_of(opened.shape.num_layers))
            return time.process_time() - start, {name: record.identity() for name, record in records.items()}
    finally:
        recovery_memory.USED = before


def models_of(layers: int) -> dict[str, Blocks]:
    half = range(layers)
    return {
        "child": tuple(("attention:parent", "ffn:no_op" if layer % 2 else "ffn:parent") for layer in half),
        "uniform": tuple(("attention:no_op" if layer % 2 else "attention:parent", "ffn:parent") for layer in half),
        "depth": tuple(("attention:no_op", "ffn:no_op") if layer % 3 == 1 else PARENT_BLOCK for layer in half),
    }


if __name__ == "__main__":
    main()
