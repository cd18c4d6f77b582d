"""Models that one worker trains together have the records that they have when each is trained by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from inlay.cluster import Record
from inlay.nas.job import Job
from inlay.nas.loop import recovery_memory
from inlay.nas.loop.recovery_memory import fit_together
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.training import recover_models
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import PARENT_BLOCK
from inlay.nas.variants.entries import entries_of

NO_ATTENTION = ("attention:no_op", "ffn:parent")
MODELS = {
    "child": (PARENT_BLOCK, NO_ATTENTION, ("attention:parent", "ffn:no_op")),
    "uniform": (NO_ATTENTION,) * 3,
    "depth": (PARENT_BLOCK, ("attention:no_op", "ffn:no_op"), PARENT_BLOCK),
}


@pytest.fixture
def job(tiny_parent: Callable[..., Path], texts: tuple[Path, Path]) -> Job:
    return Job.from_dict(
        {
            "parent": str(tiny_parent("llama")),
            "data": {
                "distill": {"path": str(texts[0]), "sequence_length": 32},
                "validate": {"path": str(texts[1]), "tokens": 512},
            },
            "space": {"attention": ["no_op"], "ffn": ["no_op"]},
            "recover": {"tokens": 2560, "learning_rate": 1e-2, "batch_size": 4},
            "budget": {"parameters": "0.9x"},
        }
    )


def recovered(search: SmallSearch) -> dict[str, Record]:
    texts = store_texts(pack_texts(search.job, search.parent.tokenizer()), search.workspace)
    return recover_models(search, texts, Library({}), MODELS)


def stages(search: SmallSearch) -> set[str]:
    return {key.split("/")[1] for key in search.workspace.store.list("records/")}


def test_records_are_the_same_bit_for_bit(
    job: Job, make_search: Callable[[Job, Path], SmallSearch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, apart = make_search(job, tmp_path / "beside"), make_search(job, tmp_path / "apart")
    together = recovered(beside)
    with monkeypatch.context() as patch:
        patch.setattr(recovery_memory, "USED", 0.0)
        alone = recovered(apart)
    assert stages(beside) == {"recover", "recover_together"}
    assert stages(apart) == {"recover"}
    for name, record in alone.items():
        assert together[name].identity() == record.identity()
        assert record.values["improved"]
        assert all(map(beside.workspace.store.has_blob, together[name].blobs.values()))
    assert len({record.blobs["model"] for record in alone.values()}) == 3
    assert not list((beside.scratch / "recover").iterdir())


def test_what_is_there_is_not_trained_again_beside_the_others(
    job: Job, make_search: Callable[[Job, Path], SmallSearch], tmp_path: Path
) -> None:
    search = make_search(job, tmp_path)
    texts = store_texts(pack_texts(job, search.parent.tokenizer()), search.workspace)
    (first,) = recover_models(search, texts, Library({}), {"depth": MODELS["depth"]}).values()
    assert stages(search) == {"recover"}
    found = recover_models(search, texts, Library({}), MODELS)
    assert found["depth"] == first
    (key,) = search.workspace.store.list("records/recover_together/")
    assert first.key not in search.workspace.store.get(key).decode()


def test_as_many_are_trained_together_as_fit(job: Job, make_search: Callable[[Job, Path], SmallSearch], tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    parent = make_search(job, tmp_path).parent
    entries = [tuple(entries_of(parent.shape, blocks)) for blocks in MODELS.values()]
    counts = []
    for bytes_there in (2**40, 1_500_000, 1):
        monkeypatch.setattr(recovery_memory, "memory_of_rank", lambda job, size=bytes_there: (size, "it has so much"))
        counts.append(fit_together(job, parent, parent.shape, entries))
    assert (counts[0], counts[2]) == (3, 1)
    assert counts[0] >= counts[1] >= counts[2]
    monkeypatch.setattr(recovery_memory, "memory_of_rank", lambda job: None)
    assert fit_together(job, parent, parent.shape, entries) == 1
