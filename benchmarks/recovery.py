"""Recovery on two ranks of one thread over gloo against one worker of one thread: the wall time of the stage.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/recovery.py [--parent stories3M] [--tokens 40000]

The same child, text, order and batch each time: the stage as a search runs it, from the piece sent to the record
committed, so that starting Ray Train counts. The time of the training itself is read off its progress, from the first
step that is told to the last, and the last loss of each says that they trained the same. Each is run once; nothing else
may run.
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
from inlay.cluster.runtime import Cluster, ClusterSettings, connect
from inlay.nas.loop.search import Search
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.training import recover_models
from inlay.nas.pieces.weights import Library
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.run import open_job_parent
from inlay.nas.workspace import Workspace

WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("one worker", {}),
    ("two ranks, whole weights", {"workers": 2}),
    ("two ranks, FSDP2", {"workers": 2, "sharding": "full"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", default="stories3M")
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/recovery.md"))
    options = parser.parse_args()
    rows = []
    with connect(ClusterSettings(workers=2)) as cluster, tempfile.TemporaryDirectory() as folder:
        split_text(Path(folder))
        cluster.preload("inlay.nas.pieces.training")
        # Else the one worker's stage has in it what it imports; ranks are new processes each time.
        stage_seconds(options.parent, Path(folder), 2_048, {}, cluster)
        for name, recovery in WAYS:
            rows.append((name, *stage_seconds(options.parent, Path(folder), options.tokens, recovery, cluster)))
    first = rows[0]
    lines = [
        "# Recovery on two ranks",
        "",
        f"{options.parent}, {options.tokens:,} tokens in batches of 8 sequences of 256; one thread each, gloo on one "
        "machine.",
        "",
        "| trained by | stage, s | to one worker | training alone, s | to one worker | last loss |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {stage:.1f} | {stage / first[1]:.2f} | {alone:.1f} | {alone / first[2]:.2f} | {loss:.5f} |"
            for name, stage, alone, loss in rows
        ),
        "",
        "The difference of the two times is what starting and ending Ray Train takes, and loading the models; it does "
        "not grow with the training.",
        "",
        f"Written by `benchmarks/recovery.py`. {footer()}",
        "",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print("\n".join(lines))
    if rows[1][2] >= first[2]:
        sys.exit("two ranks were not faster than one worker")


class Watch(Reporter):
    """Notes when how much of a training was done."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, float]] = []

    def piece_event(self, event: Any) -> None:
        if event.kind == "progress":
            self.seen.append((time.monotonic(), event.fraction))
        super().piece_event(event)

    def training_seconds(self) -> float:
        """The time of the whole training at the pace between the first and the last step that was told."""
        if len(self.seen) < 2:
            return 0.0
        (first, done_first), (last, done_last) = self.seen[0], self.seen[-1]
        return (last - first) / (done_last - done_first)


def stage_seconds(
    parent: str, texts: Path, tokens: int, recovery: dict[str, Any], cluster: Cluster
) -> tuple[float, float, float]:
    """Seconds of the recover stage of a child without every second ffn, those of its training, and its last loss."""
    job = inlay.Job.from_dict(
        {
            "parent": str(Path(os.environ["INLAY_PARENTS"]) / parent),
            "data": {
                "distill": {"path": str(texts / "train.txt")},
                "validate": {"path": str(texts / "held_out.txt"), "tokens": 4_000},
            },
            "space": {"attention": ["no_op"], "ffn": ["no_op"]},
            "recover": {"tokens": tokens, "learning_rate": 1e-3, "rate": "pinned", **recovery},
            "budget": {"parameters": "0.9x"},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        opened = open_job_parent(job)
        place = Workspace(Path(folder) / "recovery.search")
        packed = store_texts(pack_texts(job, opened.tokenizer()), place)
        watch = Watch()
        search = Search(job, place, opened, cluster, watch)
        child = tuple(
            ("attention:parent", "ffn:no_op" if layer % 2 else "ffn:parent") for layer in range(opened.shape.num_layers)
        )
        start = time.monotonic()
        record = recover_models(search, packed, Library({}), {"child": child})["child"]
        return time.monotonic() - start, watch.training_seconds(), float(record.values["curve"][-1]["loss"])


if __name__ == "__main__":
    main()
