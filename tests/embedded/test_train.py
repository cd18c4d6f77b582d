"""The training script: killed and resumed it ends bit for bit where an uninterrupted run does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from inlay.nas.embedded.llama import Llama, Shape
from inlay.nas.embedded.muon import Optimizer, Rates, orthogonalise
from inlay.nas.embedded.packing import Packer, inputs_of
from inlay.nas.embedded.train import STATE_FILE, Recipe, rate_scale, train
from inlay.nas.errors import UserError

SHAPE = Shape(vocabulary=300, hidden=16, layers=2, heads=4, kv_heads=2, ffn=24, positions=32)
RECIPE = Recipe(shape=SHAPE, steps=4, sequences=2, length=16, warmup_steps=2, seed=3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors only: a second thread would spend its time waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, (length,), generator=generator) for length in (40, 5, 61)]


def run(documents: list[Tensor], state: Path, stop_after: int | None = None, recipe: Recipe = RECIPE) -> Llama:
    return train(recipe, documents, state, stop_after=stop_after, report=lambda line: None)


def test_resumed_run_equals_a_straight_one(documents: list[Tensor], tmp_path: Path) -> None:
    straight = run(documents, tmp_path / "straight")
    run(documents, tmp_path / "resumed", stop_after=2)
    resumed = run(documents, tmp_path / "resumed")
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    states = [load_file(tmp_path / folder / STATE_FILE) for folder in ("straight", "resumed")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_finished_run_only_loads(documents: list[Tensor], tmp_path: Path) -> None:
    first, again = run(documents, tmp_path), run(documents, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_every_parameter_moves(documents: list[Tensor], tmp_path: Path) -> None:
    trained, start = run(documents, tmp_path), Llama(SHAPE, RECIPE.seed)
    moved = {
        name: not torch.equal(a, b) for (name, a), b in zip(trained.named_parameters(), start.parameters(), strict=True)
    }
    assert all(moved.values()), moved


def test_state_of_another_text_is_refused(documents: list[Tensor], tmp_path: Path) -> None:
    run(documents, tmp_path, stop_after=1)
    with pytest.raises(UserError, match=r"is of another recipe or another text: give an empty folder as `--state`"):
        run([documents[0] + 0, documents[1]], tmp_path)


def test_state_of_another_recipe_is_refused(documents: list[Tensor], tmp_path: Path) -> None:
    run(documents, tmp_path, stop_after=1)
    with pytest.raises(UserError, match="is of another recipe or another text"):
        run(documents, tmp_path, recipe=Recipe(shape=SHAPE, steps=5, sequences=2, length=16, warmup_steps=2, seed=3))


def test_loss_falls(documents: list[Tensor], tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = Recipe(shape=SHAPE, rates=Rates(adam=0.01), steps=120, sequences=4, length=16, warmup_steps=5)
    train(recipe, documents, tmp_path, report=lines.append)
    losses_nats = [float(line.split("loss ")[1].split()[0]) for line in lines]
    assert losses_nats[-1] < 0.5 * losses_nats[0]


def test_a_pass_holds_every_sequence_once_and_the_next_packs_anew(documents: list[Tensor]) -> None:
    packer = Packer(documents, length=16, seed=1)
    assert packer.windows == 106 // 16 - 1
    first, second = (packer.targets(epoch * packer.windows, packer.windows) for epoch in (0, 1))
    assert len({tuple(row) for row in first.tolist()}) == packer.windows
    assert not torch.equal(first, second)
    assert torch.equal(first, packer.targets(0, packer.windows))


def test_inputs_open_with_bos() -> None:
    assert inputs_of(torch.tensor([[7, 8, 9]])).tolist() == [[1, 7, 8]]


def test_text_of_one_sequence_is_refused() -> None:
    with pytest.raises(UserError, match=r"^The text is too short: it must hold at least two sequences of 16 tokens\.$"):
        Packer([torch.zeros(31, dtype=torch.int64)], length=16, seed=0)


def test_rates_rise_stay_and_fall_to_zero() -> None:
    recipe = Recipe(steps=100, warmup_steps=10, stable_share=0.4)
    scales = [rate_scale(recipe, step) for step in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[9:41] == [1.0] * 32
    assert scales[70] == pytest.approx(0.5)
    assert scales[99] == pytest.approx(1 / 60)


@pytest.mark.parametrize("shape", [(3, 16, 40), (3, 40, 16), (1, 24, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices, steps=8))
    assert 0.5 < values.min() < values.max() < 1.35


def test_parameter_without_gradient_is_named() -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(ValueError, match=r"^The parameter `w` has no gradient"):
        Optimizer({"w": weight}, frozenset({"w"}), Rates()).step(1, 1.0)
