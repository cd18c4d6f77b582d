"""The recover stage with ranks: the same piece as one worker's, close to it in every number, and found again by it.

Tolerance: the sums of two ranks, and FSDP2's norm of the gradients, differ from one worker's in the last bits; losses
are compared within one in a thousand, weights within a third of what the training moves them by.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from inlay.cluster import Cluster, ClusterSettings, Record, connect
from inlay.nas.job import Job
from inlay.nas.loop.search import Search, SmallSearch
from inlay.nas.loop.texts import Packed, held_out_batches, pack_texts, store_texts
from inlay.nas.loop.training import RECOVER, held_out_for, recover_models, tail_for
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.texts import TEXTS
from inlay.nas.pieces.training import batches_of, held_out_of
from inlay.nas.pieces.weights import Library
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.run import open_job_parent
from inlay.nas.variants import Place
from inlay.nas.variants.entries import entries_of
from inlay.nas.variants.linear import linear_from_products
from inlay.nas.workspace import Workspace

DRIVER = Path(__file__).with_name("build_driver.py")
PARENT = (("attention:parent", "ffn:parent"),) * 3
CHILD = (("attention:parent", "ffn:parent"), ("attention:no_op", "ffn:parent"), ("attention:parent", "ffn:no_op"))


@pytest.fixture(scope="module")
def cluster(shared_ray: Any) -> Cluster:
    running: Cluster = shared_ray.cluster()
    return running


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster, small_job: Callable[..., Job]) -> Any:
    """The workspace and the record of one worker."""
    place = Workspace(tmp_path_factory.mktemp("one"))
    return place, trained(place, small_job(), cluster)


@pytest.fixture(scope="module")
def small_job(tiny_parent: Callable[..., Path], texts: tuple[Path, Path]) -> Callable[..., Job]:
    """`small_job(workers=2)`: a job on a tiny parent, with these keys under `recover`."""

    def make(**recovery: Any) -> Job:
        return Job.from_dict(
            {
                "parent": str(tiny_parent("llama")),
                "data": {
                    "distill": {"path": str(texts[0]), "sequence_length": 32},
                    "validate": {"path": str(texts[1]), "tokens": 512},
                },
                "space": {"attention": ["no_op"], "ffn": ["no_op"]},
                "recover": {"tokens": 2560, "learning_rate": 1e-3, "batch_size": 4, **recovery},
                "budget": {"parameters": "0.9x"},
            }
        )

    return make


def trained(place: Workspace, job: Job, cluster: Cluster) -> Record:
    return trained_by(Search(job, place, open_job_parent(job), cluster, Reporter()))


def trained_by(search: Search) -> Record:
    texts = store_texts(pack_texts(search.job, search.parent.tokenizer()), search.workspace)
    record = recover_models(search, texts, Library({}), {"child": CHILD, "uniform": CHILD})["child"]
    assert not list((search.scratch / "recover").iterdir())
    return record


def test_one_loss_that_is_not_finite_is_survived_and_recorded(
    tmp_path: Path, cluster: Cluster, tiny_parent: Callable[..., Path], small_job: Callable[..., Job]
) -> None:
    folder = Path(shutil.copytree(tiny_parent("qwen2"), tmp_path / "parent"))
    overflow_on(200, folder)
    job = small_job(rate="pinned").model_copy(update={"parent": str(folder)})
    random = np.random.default_rng(0)
    ids = {name: random.integers(3, 200, (80, 32), dtype=np.int32) for name in TEXTS}
    ids["recover"][13, 5] = 200
    place, parent = Workspace(tmp_path / "search"), open_job_parent(job)
    child = (("attention:parent", "ffn:no_op"), *[("attention:parent", "ffn:parent")] * 2)
    search = Search(job, place, parent, cluster, Reporter())
    record = recover_models(search, store_texts(Packed(ids, {}, []), place), Library({}), {"child": child})["child"]
    found = record.values
    assert (found["status"], found["reason"], found["tokens"]) == ("trained", "", 2560)
    assert len(found["curve"]) == 19
    assert {point["step"] for point in found["curve"]} < set(range(1, 21))
    assert found["learning_rate"] == pytest.approx(1e-3 / 3)
    assert found["improved"]
    assert found["best_kl_nats"] < found["start_kl_nats"]
    assert all(tensor.isfinite().all() for tensor in weights(place, record).values())


def test_a_tail_is_trained_in_longer_sequences(
    tmp_path: Path, make_search: Callable[[Job, Path], SmallSearch], small_job: Callable[..., Job]
) -> None:
    """The same number of tokens, other batches at the end, and judged on text of the tail's length."""
    job = small_job(tail={"tokens": 1280, "sequence_length": 64}, rate="pinned")
    search = make_search(job, tmp_path)
    record = trained_by(search)
    assert (record.values["status"], record.values["tokens"]) == ("trained", 2560)
    texts = store_texts(pack_texts(job, search.parent.tokenizer()), search.workspace)
    source = worker_source(search.piece(RECOVER, "x", {"store": search.workspace.url}, {}).arguments, Library({}))
    told = {
        "ids": texts.recover.digest,
        "batch_size": 4,
        "seed": job.seed,
        "tail": tail_for(job, texts, 2560),
        "held_out": held_out_for(job, texts, 2560),
    }
    shapes = [tuple(batch.shape) for batch in batches_of(source, told, 20)]
    assert shapes == [(4, 32)] * 10 + [(2, 64)] * 10
    assert {tuple(batch.shape) for batch in held_out_of(source, told)} == {(2, 64)}


def overflow_on(token: int, folder: Path) -> None:
    """Changes a parent so that its first ffn overflows on this token, and is as before on any other."""
    file = folder / "model.safetensors"
    state = dict(load_file(file))
    embedding_VD = state["model.embed_tokens.weight"]
    embedding_VD[:, 0] = 0.0
    embedding_VD[token] = 0.0
    embedding_VD[token, 0] = 1.0
    layer = "model.layers.0."
    state[f"{layer}self_attn.o_proj.weight"][0] = 0.0
    for name in ("gate_proj", "up_proj"):
        state[f"{layer}mlp.{name}.weight"][:, 0] = 1e19
    save_file(state, file, {"format": "pt"})


def weights(place: Workspace, record: Record) -> dict[str, torch.Tensor]:
    return dict(load_file(place.store.blob_path(record.blobs["model"])))


@pytest.mark.parametrize(
    "ranks", [{}, pytest.param({"workers": 2, "sharding": "full"}, marks=pytest.mark.slow)], ids=["one", "sharded"]
)
def test_only_what_replaces_the_parents_own_is_trained(
    ranks: dict[str, Any], tmp_path: Path, cluster: Cluster, small_job: Callable[..., Job]
) -> None:
    job = small_job(train="replaced", **ranks)
    parent, place = open_job_parent(job), Workspace(tmp_path)
    own = parent.slot_state(1, "attention")
    started = {name: tensor.float() for name, tensor in own.items()}
    linear = linear_from_products(Place(parent.shape, 1, "attention"), started)
    library = Library({1: {"attention:linear": place.store.put_blob(save(linear))}})
    child = (CHILD[0], ("attention:linear", "ffn:parent"), CHILD[0])
    search = Search(job, place, parent, cluster, Reporter())
    texts = store_texts(pack_texts(job, parent.tokenizer()), place)
    # Besides one that has nothing to train.
    records = recover_models(search, texts, library, {"child": child, "uniform": CHILD})
    assert records["child"].values["improved"]
    now, before = weights(place, records["child"]), {**parent.ends_state()}
    for layer in range(3):
        before |= {f"model.layers.{layer}.{name}": tensor for name, tensor in parent.layer_state(layer).items()}
    changed = {name for name, tensor in now.items() if name not in before or not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.1.{name}" for name in linear}
    assert (records["uniform"].values["tokens"], records["uniform"].values["improved"]) == (0, False)
    as_it_came = weights(place, records["uniform"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in as_it_came.items())
    assert "model.layers.0.mlp.down_proj.weight" in as_it_came
    assert "model.layers.2.mlp.down_proj.weight" not in as_it_came


@pytest.mark.parametrize(
    "ranks",
    [
        {},
        pytest.param({"workers": 2}, marks=pytest.mark.slow),
        pytest.param({"workers": 2, "sharding": "full"}, marks=pytest.mark.slow),
    ],
    ids=["one", "two", "sharded"],
)
def test_adapters_are_in_the_weights_that_are_kept(
    ranks: dict[str, Any],
    tmp_path: Path,
    make_search: Callable[[Job, Path], SmallSearch],
    small_job: Callable[..., Job],
    request: pytest.FixtureRequest,
) -> None:
    """Every matrix of every layer has changed and nothing else; the weights alone have the KL that was reached."""
    pytest.importorskip("peft", reason="PEFT is not installed (pip install 'inlay[adapters]')")
    job = small_job(train="adapters", **ranks)
    search = make_search(job, tmp_path)
    parent, place = search.parent, search.workspace
    record = trained(place, job, request.getfixturevalue("cluster")) if ranks else trained_by(search)
    assert record.values["improved"]
    now, before = weights(place, record), {**parent.ends_state()}
    for layer in range(3):
        before |= {f"model.layers.{layer}.{name}": tensor for name, tensor in parent.layer_state(layer).items()}
    assert now.keys() < before.keys()
    changed = {name for name, tensor in now.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in now if name.endswith("_proj.weight")}
    texts = store_texts(pack_texts(job, parent.tokenizer()), place)
    held_out = np.load(place.store.blob_path(texts.held_out.digest))[: held_out_batches(job, 2560) * 4]
    kl_nats = kl_of_weights(parent, now, torch.from_numpy(held_out.astype(np.int64)))
    assert kl_nats == pytest.approx(record.values["best_kl_nats"], rel=1e-3)


def kl_of_weights(parent: Any, state: dict[str, torch.Tensor], ids_NS: torch.Tensor) -> float:
    """Of plain models: the parent's, and one of these weights."""
    logs = []
    for blocks, tensors in ((PARENT, None), (CHILD, state)):
        model: Any = InlayForCausalLM(parent.config.with_blocks(entries_of(parent.shape, blocks))).eval()
        if tensors is None:
            tensors = {**parent.ends_state()}
            for layer in range(3):
                own = parent.layer_state(layer)
                tensors |= {f"model.layers.{layer}.{name}": tensor for name, tensor in own.items()}
        missing = model.load_state_dict(tensors, strict=False)
        assert not missing.unexpected_keys
        assert set(missing.missing_keys) <= {"lm_head.weight"}
        model.tie_weights()
        with torch.inference_mode():
            logs.append(torch.log_softmax(model(ids_NS).logits.double(), -1))
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_ranks_train_the_same_piece(
    sharding: str, one: Any, tmp_path: Path, cluster: Cluster, small_job: Callable[..., Job]
) -> None:
    place, record = Workspace(tmp_path), one[1]
    ours = trained(place, small_job(workers=2, sharding=sharding), cluster)
    assert (ours.key, ours.label, ours.seed, ours.state) == (record.key, record.label, record.seed, record.state)
    assert (ours.values["status"], ours.values["tokens"]) == ("trained", record.values["tokens"])
    assert len(ours.values["trials"]) == len(record.values["trials"]) == 2
    for name in ("learning_rate", "best_step", "improved"):
        assert ours.values[name] == record.values[name]
    assert ours.values["best_kl_nats"] == pytest.approx(record.values["best_kl_nats"], rel=1e-3)
    for step, expected in zip(ours.values["curve"], record.values["curve"], strict=True):
        assert step == pytest.approx(expected, rel=1e-3)
    theirs, mine = weights(one[0], record), weights(place, ours)
    assert {name: (t.shape, t.dtype) for name, t in mine.items()} == {
        name: (t.shape, t.dtype) for name, t in theirs.items()
    }
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-4)


def test_what_one_worker_trained_is_not_trained_again(one: Any, small_job: Callable[..., Job]) -> None:
    place, record = one
    with connect(ClusterSettings(workers=2)) as untouched:
        assert trained(place, small_job(workers=2, sharding="full"), untouched) == record
        assert not untouched.started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        # 60 MB of weights that are tied, and a family with biases, untied, whose rows two ranks cannot share evenly.
        ("llama", {"num_hidden_layers": 12, "hidden_size": 320, "intermediate_size": 1024}),
        pytest.param("qwen2", {"num_hidden_layers": 2, "intermediate_size": 49}, marks=pytest.mark.slow),
    ],
)
def test_a_sharded_model_is_the_whole_one_and_takes_its_shard(
    family: str, sizes: dict[str, int], tmp_path: Path, tiny_parent: Callable[..., Path]
) -> None:
    folder = tiny_parent(family, **sizes)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(DRIVER), str(index), "2", port, str(folder), str(tmp_path)],
            stdout=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        told = [json.loads(rank.communicate(timeout=200)[0].splitlines()[-1]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    total = told[0]["total"]
    assert sum(each["held"] for each in told) == total
    for each in told:
        assert each["equal"]
        assert each["names"]
        assert each["stored"], "weights that ranks store are not those of one process"
        assert each["files"][1] == 1
        if total > 50_000_000:
            assert each["held"] < 0.51 * total
            assert each["files"][0] > 3
            assert each["gathered"] < 0.1 * total, "more than some rows was held to write the weights"
            assert each["peak"] < 0.8 * total, "more than a shard, one layer and the ends was held at once"
