"""A search from a child whose original teaches and judges: scores, costs and recovery are against the original."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay.nas.check import check_job
from inlay.nas.errors import InfeasibleError, UserError
from inlay.nas.export.hf import write_folder
from inlay.nas.job import Job
from inlay.nas.loop.excess import excess_of
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.solving import Tables, solve_pool
from inlay.nas.loop.texts import pack_texts, store_texts
from inlay.nas.loop.training import train_models
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.pieces.assembled import TrainedModel, build_whole
from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.weights import Library
from inlay.nas.stages.measure import cost_rows
from inlay.nas.stages.plan import make_plan
from inlay.nas.stages.run import original_of
from inlay.nas.stages.score import score_blocks
from inlay.nas.stages.solutions import blob_of_solution
from inlay.nas.tables.architecture import ORIGINAL_BLOCK, PARENT_BLOCK
from inlay.nas.tables.costs import CostTable
from inlay.nas.tables.scores import ScoreTable

NOTHING = Library({})
DROPPED = (("attention:no_op", "ffn:parent"), ("attention:parent", "ffn:no_op"), PARENT_BLOCK)


def job_of(parent: Path, texts: tuple[Path, Path], **changes: Any) -> Job:
    values = {
        "parent": str(parent),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 32},
            "validate": {"path": str(texts[1]), "tokens": 1024},
        },
        "space": {"attention": ["no_op"], "ffn": ["no_op"]},
        "distill": {"tokens": 0},
        "score": {"pairs": 1},
        "hardware": {"scenarios": [{"name": "chat", "batch_size": 2, "prefill": 8, "generate": 4}]},
        "recover": {"tokens": 1024, "probes": 0, "rate": "pinned", "learning_rate": 3e-3},
        "budget": {"parameters": "0.5x"},
        "cluster": {"max_workers": 1},
    }
    return Job.from_dict({**values, **changes})


@pytest.fixture(scope="module")
def first(tiny_parent: Callable[..., Path]) -> Path:
    return tiny_parent("llama")


@pytest.fixture(scope="module")
def child(first: Path, texts: Any, tmp_path_factory: pytest.TempPathFactory, make_search: Any) -> Path:
    """The folder of a child that lacks an attention and an ffn of the first parent."""
    folder = tmp_path_factory.mktemp("child")
    search = make_search(job_of(first, texts), folder / "search")
    search.workspace.write_json("library.json", {})
    model = TrainedModel(DROPPED, blob_of_solution(search.workspace, search.parent, DROPPED))
    return write_folder(search.workspace, search.parent, model, folder / "child", "", search.job)


def searched(make_search: Any, job: Job, folder: Path) -> tuple[SmallSearch, Texts]:
    search: SmallSearch = make_search(job, folder)
    search.original = original_of(job, search.workspace)
    return search, store_texts(pack_texts(job, search.parent.tokenizer()), search.workspace)


def test_the_plan_tells_the_least_as_ratios_to_the_original(first: Path, child: Path, texts: Any) -> None:
    """All layers can be dropped, so that only the ends are left: of the child a larger part than of the original."""
    plans = {
        name: make_plan(job_of(child, texts, **more))
        for name, more in (("child", {}), ("first", {"original": str(first)}))
    }
    told = {name: dict(plan["facts"])["least"] for name, plan in plans.items()}
    least = {name: float(text.split("parameters ")[1].split("x")[0]) for name, text in told.items()}
    plans["first"] = make_plan(job_of(first, texts))
    sizes = {name: plan["parent"]["parameters"] for name, plan in plans.items()}
    assert least["child"] / least["first"] == pytest.approx(sizes["first"] / sizes["child"], rel=0.01)
    tight = job_of(child, texts, original=str(first), budget={"parameters": f"{least['first'] - 0.01:.3f}x"})
    (warning,) = [text for text in make_plan(tight)["warnings"] if "cannot be met" in text]
    assert warning.endswith(f"the least that the space reaches is {least['first']:.3f}x")


def test_an_original_that_is_the_parent_changes_nothing(
    first: Path, texts: Any, tmp_path: Path, make_search: Any
) -> None:
    rows, totals = [], []
    for name, original in (("without", None), ("with", str(first))):
        search, found = searched(make_search, job_of(first, texts, original=original), tmp_path / name)
        rows.append([one.row() for one in score_blocks(search, found.score, NOTHING)])
        costs = CostTable(cost_rows(search))
        totals.append(costs.total("chat", costs.reference(3)))
    assert {row.pop("base_kl_nats") for row in rows[1]} == {0.0}
    assert rows[0] == rows[1]
    assert totals[0] == totals[1]
    assert CostTable(cost_rows(search)).reference(3) == (ORIGINAL_BLOCK,) * 3


def kl_by_hand(parent: Any, child: Any, ids_NS: torch.Tensor) -> float:
    """Mean KL of the next-token distributions, nats per token."""
    with torch.no_grad():
        p, q = (model(ids_NS, use_cache=False).logits[:, :-1].double().log_softmax(-1) for model in (parent, child))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_scores_are_what_blocks_add_to_the_childs_own_kl(
    first: Path, child: Path, texts: Any, tmp_path: Path, make_search: Any
) -> None:
    search, found = searched(make_search, job_of(child, texts, original=str(first)), tmp_path)
    rows = [one.row() for one in score_blocks(search, found.score, NOTHING)]
    ids_NS = torch.from_numpy(found.score.load(search.workspace.store).astype("int64"))
    parent, own = (
        InlayForCausalLM.from_pretrained(None, **whole(search, first)),
        InlayForCausalLM.from_pretrained(child),
    )
    base = kl_by_hand(parent, own, ids_NS)
    assert base > 0.01
    assert [row["base_kl_nats"] for row in rows] == pytest.approx([base] * len(rows), rel=1e-4)
    source = worker_source({**search.base, "store": search.workspace.url}, NOTHING)
    blocks = {(row["layer"], (row["attention"], row["ffn"])): row["kl_nats"] for row in rows}
    assert len(blocks) == len(rows) == 5  # two subblocks in the last layer and their pair, one in each of the others
    for (layer, block), added in blocks.items():
        architecture = tuple(block if place == layer else PARENT_BLOCK for place in range(3))
        replaced = build_whole(source, architecture, torch.float32)
        assert base + added == pytest.approx(kl_by_hand(parent, replaced, ids_NS), rel=1e-4), block
    # What the program predicts is against the first parent, too.
    table = ScoreTable.of(rows)
    assert table.predict([PARENT_BLOCK] * 3) == pytest.approx(base, rel=1e-4)
    both = [("attention:parent", "ffn:no_op"), PARENT_BLOCK, PARENT_BLOCK]
    assert table.predict(both) == pytest.approx(base + max(0.0, blocks[0, both[0]]), rel=1e-4)
    itself, whole_child = true_scores(search, found.report, NOTHING, [(ORIGINAL_BLOCK,) * 3, (PARENT_BLOCK,) * 3])
    assert itself.kl_nats == 0
    assert itself.top1_agreement == 1
    assert whole_child.kl_nats > 0.01
    assert itself.perplexity == pytest.approx(math.exp(math.log(whole_child.perplexity) - whole_child.lm_loss_change))


def whole(search: SmallSearch, folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {"config": search.reference.config, "state_dict": load_file(folder / "model.safetensors")}


def test_budgets_are_relative_to_the_original(
    first: Path, child: Path, texts: Any, tmp_path: Path, make_search: Any
) -> None:
    search, _ = searched(make_search, job_of(child, texts, original=str(first)), tmp_path)
    costs = CostTable(cost_rows(search))
    parameters = costs.total("chat", costs.reference(3))["parameters"]
    assert parameters == sum(tensor.numel() for tensor in whole(search, first)["state_dict"].values())
    own = costs.total("chat", (PARENT_BLOCK,) * 3)["parameters"]
    assert own < parameters
    (excess,) = excess_of(search, costs, (PARENT_BLOCK,) * 3, None)
    assert excess.ratio == pytest.approx(own / (0.5 * parameters), rel=1e-4)


def test_an_impossible_budget_is_told_in_ratios_to_the_original(
    first: Path, child: Path, texts: Any, tmp_path: Path, make_search: Any
) -> None:
    search, packed = searched(make_search, job_of(child, texts, original=str(first)), tmp_path)
    rows = [each.row() for each in score_blocks(search, packed.score, NOTHING)]
    costs = CostTable(cost_rows(search))
    tables = Tables(ScoreTable.of(rows), costs, {"chat": 8})
    job = job_of(child, texts, original=str(first), budget={"parameters": "0.001x"})
    with pytest.raises(InfeasibleError) as caught:
        solve_pool(tables.problem(job.budget), 1, 0.0, 10.0)
    whole = costs.total("chat", costs.reference(3))["parameters"]
    least = costs.total("chat", (("attention:no_op", "ffn:no_op"),) * 3)["parameters"]
    assert f"at least ({least / whole:.3f}x of the parent; limit" in str(caught.value)


def test_recovery_learns_from_the_original(
    first: Path, child: Path, texts: Any, tmp_path: Path, make_search: Any
) -> None:
    unchanged = {"child": (PARENT_BLOCK,) * 3}
    starts, ends = {}, {}
    for name, original in (("itself", None), ("first", str(first))):
        search, found = searched(make_search, job_of(child, texts, original=original), tmp_path / name)
        record = train_models(search, found, NOTHING, unchanged, 1024, "training")["child"]
        starts[name], ends[name] = record.values["start_kl_nats"], record.values["best_kl_nats"]
    # A child has nothing to learn from itself; of its original it lacks something.
    assert starts["itself"] == ends["itself"] == pytest.approx(0, abs=1e-6)
    assert 0.01 < ends["first"] < starts["first"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"num_hidden_layers": 2},
            "has 2 layers of width 32 and 288 tokens, and the parent 3 layers of width 32 and 288",
        ),
        ({"hidden_size": 64}, "has 3 layers of width 64 and 288 tokens, and the parent 3 layers of width 32 and 288"),
    ],
)
def test_another_model_is_no_original(
    child: Path, texts: Any, tiny_parent: Callable[..., Path], changes: Any, sentence: str
) -> None:
    other = tiny_parent("llama", **changes)
    with pytest.raises(UserError) as caught:
        check_job(job_of(child, texts, original=str(other)))
    assert f"original: '{other}' {sentence}" in str(caught.value)
    assert str(caught.value).endswith("name the model that the parent is a child of, or leave it out")


def test_an_original_that_is_not_there(child: Path, texts: Any) -> None:
    with pytest.raises(UserError, match=r"original: there is no folder `.*nothing`; give a model folder"):
        check_job(job_of(child, texts, original="./nothing"))
