"""Global distillation on two real processes over gloo, whole and sharded with FSDP2, beside one process.

Tolerances: two ranks with whole weights add the same two numbers as one process that works in two parts, so they are
equal bit for bit. FSDP2 takes the norm of the gradients from its shards, in another order; AdamW turns a last bit of a
gradient near zero into a step of any size up to the rate (3e-3), so weights are compared within 1e-3 and losses within
one in a thousand.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from inlay.distill.parallel import Ranks
from inlay.distill.tensor_files import cut

DRIVER = Path(__file__).with_name("ranks_driver.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two ranks wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(DRIVER), str(index), "2", port, str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        for rank in ranks:
            said, _ = rank.communicate(timeout=300)
            assert rank.returncode == 0, said
    finally:
        for rank in ranks:
            rank.kill()
    return folder


def weights(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return dict(load_file(folder / f"{name}_{rank}.safetensors"))


def result(folder: Path, name: str, rank: int = 0) -> Any:
    return json.loads((folder / f"{name}_{rank}.json").read_text())


def began(folder: Path, name: str) -> int:
    """The first step that was done after a kill."""
    return int((folder / f"{name}_0.first").read_text())


def assert_same(folder: Path, one: str, other: str, rank: int = 0) -> None:
    ours, theirs = weights(folder, one), weights(folder, other, rank)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert result(folder, one) == result(folder, other, rank)


def assert_close(folder: Path, one: str, other: str) -> None:
    ours, theirs = weights(folder, one), weights(folder, other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-3)
    for step, expected in zip(result(folder, one)["curve"], result(folder, other)["curve"], strict=True):
        assert step == pytest.approx(expected, rel=1e-3)


def test_two_ranks_are_one_process_bit_for_bit(trained: Path) -> None:
    assert_same(trained, "alone", "whole")


def test_unequal_parts_count_by_their_sequences(trained: Path) -> None:
    assert_close(trained, "alone_uneven", "uneven")  # 3 and 2 of 5


def test_sharded_ranks_are_close_to_one_process(trained: Path) -> None:
    assert_close(trained, "alone", "sharded")
    assert_close(trained, "alone_untied", "sharded_untied")
    assert_close(trained, "alone_untied", "often")  # gradients added up after every part, layers computed twice


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_gathered_in_bfloat16_and_trained_in_float32(tied: bool, trained: Path) -> None:
    """Beside one process under autocast, which rounds all but norms and embedding alike."""
    ours, theirs = result(trained, f"narrow_{tied}"), result(trained, f"alone_narrow_{tied}")
    for step, expected in zip(ours["curve"], theirs["curve"], strict=True):
        assert step == pytest.approx(expected, rel=2e-2)
    own = weights(trained, f"narrow_{tied}")
    assert all(tensor.dtype is torch.float32 for tensor in own.values())
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in own.values())
    assert_same(trained, f"narrow_{tied}", f"narrow_{tied}", rank=1)


@pytest.mark.parametrize("name", ["whole", "sharded", "uneven", "diverged", "harmed"])
def test_all_ranks_hold_the_same(trained: Path, name: str) -> None:
    assert_same(trained, name, name, rank=1)


@pytest.mark.parametrize("name", ["whole", "sharded"])
def test_killed_ranks_go_on_bit_for_bit(trained: Path, name: str) -> None:
    assert began(trained, f"{name}_resumed") in (3, 5)
    assert_same(trained, name, f"{name}_resumed")


@pytest.mark.parametrize("name", ["moved", "cut"])
def test_another_number_of_ranks_or_layout_goes_on_from_what_there_is(trained: Path, name: str) -> None:
    assert began(trained, name) in (3, 5)
    assert_close(trained, "sharded", name)


@pytest.mark.parametrize("name", ["sharded", "sharded_untied", "whole", "alone"])
def test_files_of_weights_are_those_of_one_process(name: str, trained: Path) -> None:
    """Byte for byte, whoever held which rows; ranks write them in turn."""
    state = weights(trained, name)
    groups = cut({each: state[each].nbytes for each in sorted(state)}, 8_000)
    assert len(groups) > 2
    for number, names in enumerate(groups):
        (path,) = trained.glob(f"{name}_{number:02}_by_*.weights")
        assert path.name.endswith(f"by_{0 if name == 'alone' else number % 2}.weights")
        assert path.read_bytes() == save({each: state[each] for each in names})


def test_a_divergence_fails_every_rank_alike(trained: Path) -> None:
    told = result(trained, "diverged", rank=1)
    assert told["status"] == "failed"
    assert told["reason"].startswith("loss was not finite at step 2 of 6")


def test_a_training_that_only_harms_gives_every_rank_its_shard_of_the_start(trained: Path) -> None:
    told = result(trained, "harmed", rank=1)
    assert (told["status"], told["best_step"]) == ("trained", 0)
    assert len(told["held_out"]) == 7
    start, kept = weights(trained, "start"), weights(trained, "harmed", rank=1)
    assert start.keys() == kept.keys()
    assert all(torch.equal(start[name], kept[name]) for name in start)


def test_each_rank_writes_its_rows_and_nothing_is_pickled(trained: Path) -> None:
    folders = {name: trained / f"{name}_state" for name in ("whole", "sharded")}
    last = {name: folder / (folder / "last").read_text() for name, folder in folders.items()}
    assert {path.suffix for folder in last.values() for path in folder.iterdir()} == {".safetensors", ".json"}
    (whole,) = last["whole"].glob("*.safetensors")
    first, second = sorted(last["sharded"].glob("*.safetensors"))
    assert max(path.stat().st_size for path in (first, second)) < 0.6 * whole.stat().st_size
    with safe_open(second, framework="pt") as file:
        assert not [name for name in file.keys() if name.startswith("step.")]  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize(
    ("ranks", "size", "message"),
    [
        (Ranks(1, 3), 2, "a batch of 2 sequences for 3 ranks: give at least as many"),
        (Ranks(0, 2, sharded=True), 5, "a batch of 5 sequences for 2 ranks: give a multiple of it"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_named(ranks: Ranks, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranks.part(torch.zeros(size, 8))


def test_parts_make_up_the_batch_in_its_order() -> None:
    batch = torch.arange(7)[:, None]
    parts = [Ranks(index, 3).part(batch) for index in range(3)]
    assert [len(part) for part in parts] == [3, 2, 2]
    assert torch.equal(torch.cat(parts), batch)
