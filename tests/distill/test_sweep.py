"""The sweep: shared prefixes are computed once, and every architecture comes out as if it ran alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inlay.distill.boundary import BoundaryScratch
from inlay.distill.sweep import Slot, micro_batches, sweep

LAYERS, WIDTH = 3, 8


class Subblock(nn.Module):
    """Adds a linear map of its input; counts its calls."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight_DD = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH
        self.calls = 0

    def attention_update(self, hidden_BSD: Tensor, context: Any) -> Tensor:
        return self.ffn_update(hidden_BSD)

    def ffn_update(self, hidden_BSD: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(hidden_BSD @ self.weight_DD)


class Source:
    """One subblock a (layer, slot, choice); remembers how often each was asked for."""

    num_layers = LAYERS

    def __init__(self) -> None:
        self.made: dict[tuple[int, str, str], Subblock] = {}
        self.asked: list[tuple[int, str, str]] = []

    def subblock(self, index: int, slot: Slot, choice: str) -> Subblock | None:
        self.asked.append((index, slot, choice))
        if choice == "none":
            return None
        key = (index, slot, choice)
        return self.made.setdefault(key, Subblock(hash((index, slot == "ffn", len(choice)))))

    def context(self, batch: int, sequence: int) -> None:
        return None


def alone(source: Source, architecture: list[tuple[str, str]], hidden: Tensor, first: int = 0) -> Tensor:
    for index in range(first, LAYERS):
        for slot, choice in zip(("attention", "ffn"), architecture[index], strict=True):
            module = source.subblock(index, slot, choice)  # type: ignore[arg-type]
            if module is not None:
                hidden = hidden + module.ffn_update(hidden)
    return hidden


PARENT = [("p", "p")] * LAYERS
CHILDREN = [
    PARENT,
    [("p", "p"), ("xx", "p"), ("p", "p")],
    [("p", "p"), ("xx", "p"), ("p", "none")],
    [("none", "none")] * LAYERS,
    [("p", "p"), ("p", "p"), ("p", "yyy")],
]


def test_every_architecture_comes_out_as_if_alone() -> None:
    source = Source()
    hidden_NSD = torch.randn(5, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    outputs = sweep(source, CHILDREN, hidden_NSD, 0, micro_batch=2)
    for architecture, output in zip(CHILDREN, outputs, strict=True):
        torch.testing.assert_close(output, alone(source, architecture, hidden_NSD), rtol=0, atol=1e-6)


def test_what_is_shared_is_computed_once() -> None:
    source = Source()
    sweep(source, CHILDREN, torch.zeros(2, 4, WIDTH), 0, micro_batch=2)
    assert source.made[0, "attention", "p"].calls == 1  # four architectures begin alike
    assert source.made[1, "attention", "p"].calls == 1
    assert source.made[2, "attention", "p"].calls == 2  # the parent and the last child are one here; two others are one
    assert len(source.asked) == len(set(source.asked))  # and each module is loaded once


def test_a_no_op_everywhere_is_its_input() -> None:
    hidden_NSD = torch.randn(2, 3, WIDTH)
    (output,) = sweep(Source(), [CHILDREN[3]], hidden_NSD, 0, micro_batch=1)
    assert torch.equal(output, hidden_NSD)


def test_a_fork_starts_at_its_boundary() -> None:
    source = Source()
    hidden_NSD = torch.randn(3, 4, WIDTH)
    before = alone(source, PARENT[:1] + [("none", "none")] * 2, hidden_NSD)
    source.asked.clear()
    (output,) = sweep(source, [CHILDREN[1]], before, 1, micro_batch=3)
    assert min(index for index, _, _ in source.asked) == 1
    torch.testing.assert_close(output, alone(source, CHILDREN[1], hidden_NSD), rtol=0, atol=1e-6)


def test_micro_batches_cover_everything_once() -> None:
    assert list(micro_batches(5, 2)) == [(0, 2), (2, 4), (4, 5)]
    assert list(micro_batches(0, 2)) == []


def test_boundaries_are_complete_or_absent(tmp_path: Any) -> None:
    scratch = BoundaryScratch(tmp_path / "boundaries", num_shards=2)
    shard_NSD = torch.randn(3, 4, WIDTH)
    scratch.write(1, 0, shard_NSD)
    assert torch.equal(scratch.read(1, 0), shard_NSD)
    assert not scratch.complete(1)
    scratch.write(1, 1, shard_NSD)
    assert scratch.complete(1)
    assert scratch.first_missing(0, 0, 3) == 2
    scratch.write(2, 0, shard_NSD, middle_NSD=shard_NSD + 1)
    assert torch.equal(scratch.read_middle(1, 0), shard_NSD + 1)
    assert torch.equal(scratch.read(2, 0), shard_NSD)
    scratch.free(1)
    assert not scratch.has(1, 0)
    scratch.free(1)
    assert not list(tmp_path.rglob("*.part"))
