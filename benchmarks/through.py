"""What an attention variant should reproduce: its own update, or the layer's through the parent's frozen ffn.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/through.py [--parent stories3M]

Both libraries are trained on the same text from the same starts, then scored on the same text. Lower scores are better;
the default of `distill.through` is what this picks.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer
from searches import split_text

import inlay
from inlay.cluster.runtime import ClusterSettings, connect
from inlay.nas.loop.search import Search
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.distill import build_library, library_of
from inlay.nas.stages.run import open_job_parent
from inlay.nas.stages.score import score_blocks
from inlay.nas.workspace import Workspace

KINDS = ("kv_heads=1", "window=64", "linear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", default="stories3M")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/through.md"))
    options = parser.parse_args()
    lines = [
        "# Attention variants trained through the subblock or through the layer",
        "",
        f"{options.parent}, {options.tokens:,} tokens; mean score over the layers, nats per token.",
        "",
        "| through | " + " | ".join(KINDS) + " | seconds of distill |",
        "|---" * (len(KINDS) + 2) + "|",
    ]
    with connect(ClusterSettings(workers=2)) as cluster, tempfile.TemporaryDirectory() as folder:
        split_text(Path(folder))
        for through in ("subblock", "layer"):
            scores, seconds = library_scores(options.parent, Path(folder), options.tokens, through, cluster)
            lines.append(f"| {through} | " + " | ".join(f"{score:.4f}" for score in scores) + f" | {seconds:.0f} |")
    lines += ["", f"Written by `benchmarks/through.py`. {footer()}", ""]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print("\n".join(lines))


def library_scores(parent: str, texts: Path, tokens: int, through: str, cluster: object) -> tuple[list[float], float]:
    """Mean scores of each kind over the layers, and the seconds that training took."""
    job = inlay.Job.from_dict(
        {
            "parent": str(Path(os.environ["INLAY_PARENTS"]) / parent),
            "data": {
                "distill": {"path": str(texts / "train.txt")},
                "validate": {"path": str(texts / "held_out.txt"), "tokens": 16_000},
            },
            "space": {"attention": [{"kv_heads": 1}, {"window": 64}, "linear"], "ffn": ["no_op"]},
            "distill": {"tokens": tokens, "through": through},
            "recover": {"tokens": tokens},
            "score": {"pairs": 0},
            "budget": {"runtime": "0.6x"},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        opened = open_job_parent(job)
        place = Workspace(Path(folder) / "through.search")
        texts = store_texts(pack_texts(job, opened.tokenizer()), place)
        search = Search(job, place, opened, cluster, Reporter())  # type: ignore[arg-type]
        start = time.monotonic()
        records = build_library(search, texts.distill)
        seconds = time.monotonic() - start
        rows = [scored.row() for scored in score_blocks(search, texts.score, library_of(records))]
    means = []
    for kind in KINDS:
        found = [row["kl_nats"] for row in rows if row["attention"].startswith(f"attention:{kind}")]
        means.append(sum(found) / len(found))
    return means, seconds


if __name__ == "__main__":
    main()
