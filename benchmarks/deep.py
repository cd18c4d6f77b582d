"""A parent of 64 layers through every stage on workers that could not hold its weights.

    python benchmarks/deep.py [--layers 64] [--output benchmarks/results/deep.md]

The same search runs on a parent of two such layers first, and what its processes map at most is noted. Then the address
space of a worker is limited to that plus an allowance that does not grow with depth and is smaller than the parent's
weights; that of a rank of recovery to its own share of what is trained besides. The limits are set from outside
(prlimit) as processes appear, and follow what each is doing. Two controls must fail under the same limits, else they
prove nothing: a sweep by a worker that holds the whole parent, and recovery by one process. Times are given, since who
measures a model holds it.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import psutil
import yaml
from machine import footer

from inlay.cluster.errors import PieceError
from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.cluster.runtime import ClusterSettings, connect
from inlay.nas.embedded import embedded_parent
from inlay.nas.job import Job
from inlay.nas.loop.search import Search
from inlay.nas.pieces.comparison import compare_architectures
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.weights import parent_of
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.run import open_job_parent
from inlay.nas.tables.architecture import PARENT_BLOCK
from inlay.nas.workspace import Workspace

MIB = 1 << 20
ALLOWANCE_BYTES = 160 * MIB
"""Slack for what depth may add: longer lists, fragments; less than the weights, or nothing is proven."""
TRAINED_BYTES = 16
"""Of each number that is trained, in float32: itself, its gradient and two moments."""
RANKS = 2
WORKER, RANK = "worker", "rank"


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


def values_of(parent: Path, ranks: int) -> dict[str, Any]:
    """A small search of it: depth is what is tried here. By one process recovery has other tokens, so that it is done
    once more."""
    recover: dict[str, Any] = {"tokens": 1024 * ranks, "batch_size": 2, "probes": 0, "workers": ranks}
    return {
        "parent": str(parent),
        "data": {
            "distill": {"path": "inlay:pystdlib/train", "sequence_length": 128},
            "validate": {"path": "inlay:pystdlib/held_out", "tokens": 1024},
        },
        "space": {"attention": [{"kv_heads": 1}], "ffn": [{"width": 0.5}]},
        "distill": {"tokens": 4096, "batch_size": 4},
        "score": {"pairs": 0},
        "solve": {"pool": 2},
        "recover": recover | ({"sharding": "full"} if ranks > 1 else {}),
        "hardware": {"scenarios": [{"prefill": 32, "generate": 8}]},
        "budget": {"parameters": "0.7x"},
        "cluster": {"max_workers": 2},
    }


def mapped_bytes(process: psutil.Process) -> int:
    """What a process has mapped; 0 where it is gone."""
    try:
        return int(process.memory_info().vms)
    except psutil.Error:
        return 0


def role_of(process: psutil.Process) -> str | None:
    """What a process of Ray's works on, by the title that Ray gives it; None where it only waits."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return None
    if not title.startswith("ray::") or title.startswith("ray::IDLE"):
        return None
    return RANK if "TrainWorker" in title else WORKER


@contextmanager
def watched(see: Callable[[psutil.Process, str], None]) -> Iterator[None]:
    """Shows every working process of Ray's below this one, some twenty times a second."""
    own, over = psutil.Process(), threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for process in own.children(recursive=True):
                if (role := role_of(process)) is not None:
                    see(process, role)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def limited(limits: dict[str, int]) -> Callable[[psutil.Process, str], None]:
    """Sets the limit of its role to a process."""

    def see(process: psutil.Process, role: str) -> None:
        try:
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_AS)
            resource.prlimit(process.pid, resource.RLIMIT_AS, (limits[role], hard))
        except ProcessLookupError:
            pass

    return see


def inlay(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "inlay.nas.cli", *words], cwd=folder, capture_output=True, text=True, check=False
    )


def search(folder: Path, name: str, ranks: int = RANKS) -> subprocess.CompletedProcess[str]:
    """A search of a parent in the folder, its times given."""
    values, job = values_of(folder / name, ranks), folder / f"{name}.yaml"
    job.write_text(yaml.safe_dump(values))
    costs = folder / f"{name}.parquet"
    if not costs.exists():
        done = inlay(folder, "measure", job.name, "--output", costs.name)
        assert done.returncode == 0, done.stderr
    values["hardware"]["costs"] = costs.name
    job.write_text(yaml.safe_dump(values))
    return inlay(folder, "run", job.name)


def whole_parent(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """The control: a sweep in a worker that holds every layer of the parent."""
    parent = parent_of(arguments["parent"])
    held = [
        {name: tensor.clone() for name, tensor in parent.layer_state(layer).items()}
        for layer in range(parent.shape.num_layers)
    ]
    output = compare_architectures(arguments, context)
    return PieceOutput(values={**output.values, "layers": len(held)}, blobs=output.blobs)


def sweep_holding_all(folder: Path, limit: int) -> str:
    """How the first control ends."""
    job = Job.load(folder / "deep.yaml")
    parent, place = open_job_parent(job), Workspace(folder / "deep.search")
    texts = place.read_json("texts.json")
    with connect(ClusterSettings(workers=1, memory_limit_bytes=limit)) as cluster:
        rows = texts["score"]["shards"]
        given = {
            "store": place.url,
            "ids": texts["score"]["digest"],
            "rows": list(rows),
            "shards": list(range(len(rows))),
            "num_shards": len(rows),
            "first_layer": 0,
            "architectures": [[list(PARENT_BLOCK)] * parent.shape.num_layers],
            "labels": ["parent"],
            "library": {},
        }
        own = Search(job, place, parent, cluster, Reporter())
        try:
            own.run([own.piece(Stage("control", 1, whole_parent), "whole parent", given, {})])
        except PieceError as error:
            return f"fails ({error.kind})"
    return "did not fail: the limit proves nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/deep.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        most = {WORKER: 0, RANK: 0}

        def note(process: psutil.Process, role: str) -> None:
            most[role] = max(most[role], mapped_bytes(process))

        write_parent(folder / "shallow", 2)
        with watched(note):
            done = search(folder, "shallow")
        assert done.returncode == 0, done.stderr
        assert all(most.values()), "no process was seen at work"
        write_parent(folder / "deep", options.layers)
        weights = sum(path.stat().st_size for path in (folder / "deep").glob("*.safetensors"))
        assert weights > ALLOWANCE_BYTES, "the parent is too small to prove anything"
        # A rank holds its part of the parent, and of what is trained of the child.
        trained = weights + 0.7 * weights / 4 * TRAINED_BYTES
        limits = {
            WORKER: most[WORKER] + ALLOWANCE_BYTES,
            RANK: most[RANK] + round(trained / RANKS) + ALLOWANCE_BYTES,
        }
        assert trained / RANKS > ALLOWANCE_BYTES, "one process would fit too"
        with watched(limited(limits)):
            done = search(folder, "deep")
        assert done.returncode == 0, done.stderr
        stages = json.loads((folder / "deep.search" / "run.json").read_text())["stages"]
        seconds = {stage["name"]: stage["seconds"] for stage in stages}
        whole_sweep = sweep_holding_all(folder, limits[WORKER])
        with watched(limited(limits | {WORKER: limits[RANK]})):
            alone = search(folder, "deep", ranks=1)
        said = (re.findall(r"^inlay: (.*)$", alone.stderr, re.M) or [alone.stderr.strip()[-200:]])[0]
    one = (
        f"ends with exit code {alone.returncode} ({said})"
        if alone.returncode
        else "did not fail: the limit proves nothing"
    )
    lines = [
        "# A deep parent on small workers",
        "",
        f"{options.layers} layers, width 256: {weights / MIB:.0f} MiB of weights. A worker's address space is limited "
        f"to the {most[WORKER] / MIB:.0f} MiB that one maps for a parent of two layers plus {ALLOWANCE_BYTES // MIB} "
        f"MiB, less than the weights; that of each of {RANKS} sharded ranks of recovery to the {most[RANK] / MIB:.0f} "
        f"MiB of two layers plus the same and {trained / RANKS / MIB:.0f} MiB, its part of parent, child, gradients "
        f"and moments.",
        "",
        f"- All stages complete: {', '.join(f'{name} {spent:.0f} s' for name, spent in seconds.items())}.",
        f"- Control: a sweep by a worker that holds the whole parent, under the same limit, {whole_sweep}.",
        f"- Control: recovery by one process, under the limit of a rank, {one}.",
        "",
        f"Written by `benchmarks/deep.py`. {footer()}",
        "",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print("\n".join(lines))
    if any("did not" in line for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
