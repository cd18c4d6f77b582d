"""Run as a program by test_recover.py, one process a rank: builds a sharded parent and says what that took."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save

from inlay.cluster.store import Store
from inlay.distill.parallel import Ranks, local, whole_head
from inlay.nas.families import open_parent
from inlay.nas.pieces.assembled import build_sharded, build_whole, own_state
from inlay.nas.pieces.model_files import ModelFiles, store_tensors
from inlay.nas.pieces.rounding import MODEL, trained_rows
from inlay.nas.pieces.weights import Library, WorkerSource
from inlay.nas.tables.architecture import PARENT_BLOCK

INDEX, COUNT, PORT, PARENT, STORE = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]


class Peak(threading.Thread):
    """The most memory of its own (not of mapped files) that this process had, looked at every millisecond."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.on = 0, True

    def run(self) -> None:
        while self.on:
            self.bytes = max(self.bytes, anonymous_bytes())
            time.sleep(0.001)


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def main() -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=PORT)
    dist.init_process_group("gloo", rank=INDEX, world_size=COUNT)
    source = WorkerSource(open_parent(PARENT), Library({}), Store(STORE), torch.float32, torch.device("cpu"))
    blocks = [PARENT_BLOCK] * source.num_layers
    ids_BS = torch.arange(24).reshape(2, 12)
    before, peak = anonymous_bytes(), Peak()
    peak.start()
    model = build_sharded(source, blocks, torch.float32, trained="all")
    peak.on = False
    weights, before = {}, anonymous_bytes()
    writing = Peak()
    writing.start()
    for most in (8_000_000, 1_000_000_000):
        rows = trained_rows(own_state(model), {}, torch.bfloat16)[MODEL]
        weights[most] = store_tensors(source.store, rows, source.device, Ranks(INDEX, COUNT, sharded=True), most)
    writing.on = False
    gathered = writing.bytes - before
    held = sum(local(tensor).nbytes for tensor in model.parameters())
    with torch.no_grad():
        layers, hidden_BSD = model.forward_hidden(ids_BS)
        whole = build_whole(source, blocks, torch.float32)
        expected_layers, expected_BSD = whole.forward_hidden(ids_BS)
        equal = torch.equal(hidden_BSD, expected_BSD) and all(map(torch.equal, layers, expected_layers))
        with whole_head(model) as head_VD:
            heads = torch.equal(head_VD, whole.head_VD)
    names = [name for name, _ in model.named_parameters()] == [name for name, _ in whole.named_parameters()]
    expected = {name: tensor.bfloat16() for name, tensor in own_state(whole).items()}
    stored = [ModelFiles(source.store, digest) for digest in weights.values()]
    files = [len(each.in_folder) for each in stored]
    same = all(
        each.keys() == expected.keys() and all(torch.equal(each[name], expected[name]) for name in expected)
        for each in stored
    )
    same &= weights[1_000_000_000] == Store(STORE).put_blob(save(expected))
    total = sum(tensor.nbytes for tensor in whole.parameters())
    told = {"peak": peak.bytes - before, "held": held, "total": total, "equal": equal and heads, "names": names}
    told |= {"files": files, "stored": same, "gathered": gathered}
    print(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
