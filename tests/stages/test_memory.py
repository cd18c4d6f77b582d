"""A piece that ran out of memory is done in smaller parts: the same bits while its products keep their shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay.cluster.pieces import Piece, PieceContext, PieceOutput
from inlay.nas.job import Job
from inlay.nas.loop.search import Search
from inlay.nas.loop.spans import scratch_of, spans_with_boundaries
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.pieces.boundaries import micro_batch
from inlay.nas.pieces.library import in_groups
from inlay.nas.pieces.piece_text import shares_of
from inlay.nas.pieces.weights import Library
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.calibrate import calibrate_piece, sums_of
from inlay.nas.stages.distill import distill_piece, keeps_outcomes, layer_variants
from inlay.nas.stages.run import open_job_parent
from inlay.nas.stages.score import layer_blocks, score_piece
from inlay.nas.workspace import Workspace

Attempts = dict[str, list[PieceOutput]]
TRIES = 5


@pytest.fixture(scope="module")
def attempts(
    tiny_parent: Callable[..., Path],
    texts: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    shared_ray: Any,
) -> Attempts:
    """What the pieces of one layer give at their first attempt and after each want of memory."""
    train, held_out = map(str, texts)
    job = Job.from_dict(
        {
            "parent": str(tiny_parent("llama")),
            "data": {
                "distill": {"path": train, "sequence_length": 32},
                "validate": {"path": held_out, "tokens": "32k"},
            },
            "space": {"attention": [{"kv_heads": 1}, "linear", "no_op"], "ffn": [{"width": 16}, "linear", "no_op"]},
            "distill": {"tokens": 16_000, "batch_size": 8},
            "recover": {"tokens": 1024},
            "budget": {"parameters": "0.9x"},
        }
    )
    folder = tmp_path_factory.mktemp("memory")
    parent, place = open_job_parent(job), Workspace(folder / "w")
    packed = store_texts(pack_texts(job, parent.tokenizer()), place)
    found: Attempts = {}

    def attempt(piece: Piece) -> list[PieceOutput]:
        return [piece.function(piece.arguments, context(place, folder, tries)) for tries in range(TRIES)]

    search = Search(job, place, parent, shared_ray.cluster(), Reporter())
    variants = layer_variants(search, 1)
    outcomes = keeps_outcomes(search)
    for _ in spans_with_boundaries(search, packed.distill, [1], outcomes):
        piece = calibrate_piece(search, packed.distill, 1, variants, scratch_of(search, packed.distill, outcomes))
        found["calibrate"] = attempt(piece)
        (sums,) = search.run([piece])
        found["distill"] = attempt(distill_piece(search, packed.distill, 1, variants, sums_of(sums)))
    library = Library({})
    for _ in spans_with_boundaries(search, packed.score, [1]):
        blocks = layer_blocks(search, 1, library)
        found["score"] = attempt(score_piece(search, packed.score, 1, blocks, library))
    return found


def context(place: Workspace, folder: Path, memory_retries: int) -> PieceContext:
    return PieceContext(
        0, place.store, folder, 1, memory_retries + 1, memory_retries, lambda fraction, numbers=None: None
    )


def tensors(output: PieceOutput) -> dict[str, torch.Tensor]:
    """Every tensor of an output by its place."""
    found: dict[str, torch.Tensor] = {}
    for blob, content in output.blobs.items():
        assert not isinstance(content, bytes)
        found |= {f"{blob} {name}": tensor for name, tensor in content.items()}
    return found


def test_a_library_of_fewer_variants_at_once_has_the_same_bits(attempts: Attempts) -> None:
    first, *later = attempts["distill"]
    assert len(first.blobs) == 4
    for output in later[:2]:
        assert output.values == first.values
        assert all(torch.equal(tensor, tensors(first)[name]) for name, tensor in tensors(output).items())


def test_then_batches_are_cut_and_the_effective_batch_stays(attempts: Attempts) -> None:
    first, *_, last = attempts["distill"]
    assert last.values["variants"].keys() == first.values["variants"].keys()
    for label, result in last.values["variants"].items():
        assert result["loss"] == pytest.approx(first.values["variants"][label]["loss"], rel=1e-3)
        assert len(result["curve"]) == len(first.values["variants"][label]["curve"])
    for name, tensor in tensors(last).items():
        torch.testing.assert_close(tensor, tensors(first)[name], rtol=1e-2, atol=1e-3)


def test_scores_of_fewer_sequences_at_once_have_the_same_bits(attempts: Attempts) -> None:
    first, *later = attempts["score"]
    for output in later[:2]:
        assert all(torch.equal(tensor, tensors(first)[name]) for name, tensor in tensors(output).items())
    for name, tensor in tensors(later[-1]).items():
        torch.testing.assert_close(tensor, tensors(first)[name], rtol=1e-4, atol=1e-6)


def test_sums_stay_close(attempts: Attempts) -> None:
    first, *later = attempts["calibrate"]
    for name, tensor in tensors(later[-1]).items():
        # A second pass sums what heads give that were merged by the first one's sums: their rounding is magnified.
        tolerance = 1e-3 if "kv_heads" in name else 1e-4
        torch.testing.assert_close(tensor, tensors(first)[name], rtol=tolerance, atol=tolerance)


def test_groups_hold_every_variant_once() -> None:
    labels = [str(number) for number in range(5)]
    for count in (1, 2, 4, 8):
        groups = in_groups(labels, count)
        assert [label for group in groups for label in group] == labels
        assert len(groups) == min(count, 5)
    assert in_groups([], 4) == []


@pytest.mark.parametrize("num", [1, 5, 64, 100])
def test_shares_hold_every_sequence_once_and_halve(num: int) -> None:
    whole = shares_of(num, 512, 0, 1000)
    assert whole == [(0, num, 8)]
    for tries in range(1, 8):
        shares = shares_of(num, 512, tries, 1000)
        assert [start for start, _, _ in shares] == [0, *(end for _, end, _ in shares[:-1])]
        assert shares[-1][1] == num
        assert all(size <= micro_batch(512) for _, _, size in shares)
    assert shares_of(64, 512, 3, 1000) == [(start, start + 8, 8) for start in range(0, 64, 8)]
    assert shares_of(64, 512, 4, 1000)[0] == (0, 4, 4)


def test_shares_are_whole_micro_batches_and_fit_where_they_can() -> None:
    assert shares_of(64, 512, 0, 30) == [(0, 24, 8), (24, 48, 8), (48, 64, 8)]
    assert shares_of(64, 512, 1, 30)[:2] == [(0, 8, 8), (8, 16, 8)]
    assert shares_of(64, 512, 0, 3) == [(start, start + 8, 8) for start in range(0, 64, 8)], "one at least"
