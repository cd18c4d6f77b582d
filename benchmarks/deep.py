"""A parent of 64 layers through distill and score on workers that could not hold its weights.

    python benchmarks/deep.py [--layers 64] [--output benchmarks/results/deep.md]

Each worker's address space is limited to what it has mapped after the same stages on a parent of two such layers, plus
an allowance that does not grow with depth and is smaller than the parent's weights. A control piece that reads the
whole parent under the same limit must fail, else the limit proves nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer

import inlay
from inlay.cluster.errors import PieceError
from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.cluster.runtime import ClusterSettings, connect
from inlay.nas.embedded import embedded_parent
from inlay.nas.loop.search import Search
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.pieces.comparison import compare_architectures
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.weights import parent_of
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.distill import build_library, library_of
from inlay.nas.stages.run import open_job_parent
from inlay.nas.stages.score import score_blocks
from inlay.nas.tables.architecture import PARENT_BLOCK
from inlay.nas.workspace import Workspace

MIB = 1 << 20
ALLOWANCE_BYTES = 160 * MIB
"""Slack for what depth may add: longer lists, fragments; less than the weights, or nothing is proven."""


def write_parent(folder: Path, layers: int) -> None:
    """A random Llama of width 256 with the embedded parent's tokenizer, in shards of 32 MB."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    embedded = embedded_parent("pystdlib")
    config = LlamaConfig(
        vocab_size=3072,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="32MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(embedded / name, folder / name)


def job_of(parent: Path) -> inlay.Job:
    """A small search of it: depth is what is tried here."""
    return inlay.Job.from_dict(
        {
            "parent": str(parent),
            "data": {
                "distill": {"path": "inlay:pystdlib/train", "sequence_length": 128},
                "validate": {"path": "inlay:pystdlib/held_out", "tokens": 1024},
            },
            "space": {"attention": [{"kv_heads": 1}, "no_op"], "ffn": [{"width": 0.5}, "no_op"]},
            "distill": {"tokens": 4096, "batch_size": 4},
            "budget": {"parameters": "0.7x"},
            "cluster": {"max_workers": 2},
        }
    )


def mapped(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """What this worker has mapped by now, bytes."""
    return PieceOutput(values={"bytes": int(Path("/proc/self/statm").read_text().split()[0]) * 4096})


def whole_parent(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """The control: a sweep in a worker that holds every layer of the parent."""
    parent = parent_of(arguments["parent"])
    held = [
        {name: tensor.clone() for name, tensor in parent.layer_state(layer).items()}
        for layer in range(parent.shape.num_layers)
    ]
    output = compare_architectures(arguments, context)
    return PieceOutput(values={**output.values, "layers": len(held)}, blobs=output.blobs)


def swept(place: Workspace, texts: Texts, layers: int) -> dict[str, Any]:
    """What a piece needs to sweep the parent over the score text."""
    rows = list(texts.score.shards)
    return {
        "store": place.url,
        "ids": texts.score.digest,
        "rows": rows,
        "shards": list(range(len(rows))),
        "num_shards": len(rows),
        "first_layer": 0,
        "architectures": [[list(PARENT_BLOCK)] * layers],
        "labels": ["parent"],
        "library": {},
    }


def mapped_after_shallow(folder: Path) -> int:
    """The most that a worker has mapped after distill and score of a parent of two layers."""
    write_parent(folder / "shallow", 2)
    job = job_of(folder / "shallow")
    parent = open_job_parent(job)
    place = Workspace(folder / "shallow.search")
    texts = store_texts(pack_texts(job, parent.tokenizer()), place)
    with connect(ClusterSettings(workers=2)) as cluster:
        search = Search(job, place, parent, cluster, Reporter())
        score_blocks(search, texts.score, library_of(build_library(search, texts.distill)))
        pieces = [search.piece(Stage("mapped", 1, mapped), f"worker {n}", {}, {"n": n}) for n in range(4)]
        return max(int(record.values["bytes"]) for record in search.run(pieces))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/deep.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_parent(folder / "parent", options.layers)
        weights = sum(path.stat().st_size for path in (folder / "parent").glob("*.safetensors"))
        job = job_of(folder / "parent")
        parent = open_job_parent(job)
        place = Workspace(folder / "deep.search")
        texts = store_texts(pack_texts(job, parent.tokenizer()), place)
        base = mapped_after_shallow(folder)
        limit = base + ALLOWANCE_BYTES
        with connect(ClusterSettings(workers=2, memory_limit_bytes=limit)) as cluster:
            search = Search(job, place, parent, cluster, Reporter())
            start = time.monotonic()
            records = build_library(search, texts.distill)
            distilled = time.monotonic()
            rows = [scored.row() for scored in score_blocks(search, texts.score, library_of(records))]
            scored = time.monotonic()
            try:
                search.run(
                    [
                        search.piece(
                            Stage("control", 1, whole_parent), "whole parent", swept(place, texts, options.layers), {}
                        )
                    ]
                )
                control = "did not fail: the limit proves nothing"
            except PieceError as error:
                control = f"fails ({error.kind})"
    assert weights > ALLOWANCE_BYTES, "the parent is too small to prove anything"
    lines = [
        "# A deep parent on small workers",
        "",
        f"{options.layers} layers, width 256: {weights / MIB:.0f} MiB of weights. A worker's address space is limited "
        f"to the {base / MIB:.0f} MiB that it maps for a parent of two layers plus {ALLOWANCE_BYTES // MIB} MiB, "
        "less than the weights.",
        "",
        f"- distill: {len(records)} layers in {distilled - start:.0f} s; score: {len(rows)} blocks in "
        f"{scored - distilled:.0f} s; both complete.",
        f"- control: a sweep by a worker that holds the whole parent, under the same limit, {control}.",
        "",
        f"Written by `benchmarks/deep.py`. {footer()}",
        "",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print("\n".join(lines))
    if "did not" in control:
        sys.exit(1)


if __name__ == "__main__":
    main()
