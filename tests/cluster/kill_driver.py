"""Run as a program by test_kill.py: a search of small pieces on real Ray, that can be killed at any moment."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from inlay.cluster import (
    ClusterSettings,
    Piece,
    PieceContext,
    PieceEvent,
    PieceOutput,
    Store,
    connect,
    piece_key,
    piece_seed,
    run_pieces,
)


def work(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """Append to a log that the piece was begun, take a while, and return what depends on the seed alone."""
    with Path(arguments["log"]).open("a") as log:
        log.write(f"{arguments['index']}\n")
    for step in range(5):
        time.sleep(arguments["seconds"] / 5)
        context.progress(step / 5)
    return PieceOutput({"value": context.seed % 1000}, {"data": str(context.seed).encode() * 1000})


def tell(event: PieceEvent) -> None:
    print(event.kind, event.label, flush=True)


def main() -> None:
    folder, count, workers, seconds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    pieces = [
        Piece(
            key=piece_key("work", 1, {}, [], f"piece {index}"),
            label=f"piece {index}",
            stage="work",
            version=1,
            function=work,
            arguments={"log": str(folder / "begun.txt"), "index": index, "seconds": seconds},
            seed=piece_seed(0, f"piece {index}"),
        )
        for index in range(count)
    ]
    with connect(ClusterSettings(workers=workers)) as cluster:
        run_pieces(Store(folder / "store"), pieces, cluster, on_event=tell)


if __name__ == "__main__":
    main()
