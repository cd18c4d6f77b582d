"""Rounds: two searches of a tiny parent, the second from the first one's child; uninterrupted, and stopped midway."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from inlay.cluster import Cluster, Resources
from inlay.nas.api import load_child
from inlay.nas.errors import InfeasibleError, UserError
from inlay.nas.families import open_parent
from inlay.nas.job import Job
from inlay.nas.job.budget import parse_budget
from inlay.nas.loop import search as search_module
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.solving import load_problem, solve_pool, store_solution
from inlay.nas.report.page import page_of
from inlay.nas.report.progress import Reporter
from inlay.nas.stages import pipeline as pipeline_module
from inlay.nas.stages import run as run_module
from inlay.nas.stages.chat import open_chat
from inlay.nas.stages.rounds import job_of_round, run_rounds
from inlay.nas.stages.solutions import evaluate_solution
from inlay.nas.workspace import Workspace

TABLES = ("losses", "scores", "recovery")
TIMED = ("measured_runtime_ns", "measured_ratio", "measured_ratio_error", "predicted_runtime_ns")


def values(parent: Path, texts: tuple[Path, Path], **changes: Any) -> dict[str, Any]:
    return {
        "parent": str(parent),
        "data": {
            "distill": {"path": str(texts[0]), "sequence_length": 32},
            "validate": {"path": str(texts[1]), "tokens": 1024},
        },
        "space": {"attention": ["no_op"], "ffn": [{"width": 0.5}]},
        "distill": {"tokens": 1024, "batch_size": 4},
        "score": {"pairs": 2},
        "solve": {"pool": 2, "corrections": 0},
        "hardware": {"scenarios": [{"name": "chat", "batch_size": 1, "prefill": 8, "generate": 4}]},
        "recover": {"tokens": 2048, "probes": 0, "rate": "pinned", "learning_rate": 1e-3},
        "budget": {"parameters": "0.64x"},
        "cluster": {"max_workers": 2},
        "rounds": 2,
        **changes,
    }


Searched = Callable[..., Any]


class Here(Cluster):
    """One worker, which is this process: what starts Ray is left out, since a round's pieces take less time."""

    def preload(self, *modules: str) -> None:
        """Nothing."""

    def check_share(self, patience_seconds: float = 30.0) -> None:
        """Nothing."""

    def check_together(self, count: int, patience_seconds: float = 30.0) -> None:
        """Nothing."""

    def places(self, wish: Resources) -> int:
        return 1


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory, mlflow_db: Callable[[Path], str]) -> Iterator[Searched]:
    """`rounds(job, workspace, reporter)` runs a job whose pieces run in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker does
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "connect", lambda settings: nullcontext(Here(settings)))
        for module in (pipeline_module, search_module):
            patch.setattr(module, "Search", SmallSearch)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_db(tmp_path_factory.mktemp("mlflow")))
        yield run_rounds
    torch.set_num_threads(threads)


class Silent(Reporter):
    """Keeps messages."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)

    def _line(self, name: str, text: str) -> None:
        self.told.append(f"{name} {text}")


class Stopped(Silent):
    """Is interrupted, as by Ctrl-C, when some stage of some round begins."""

    def __init__(self, number: int, stage: str) -> None:
        super().__init__()
        self.at, self.number = (number, stage), 0

    def round_started(self, number: int, rounds: int) -> None:
        super().round_started(number, rounds)
        self.number = number

    def stage_started(self, name: str) -> None:
        if (self.number, name) == self.at:
            raise KeyboardInterrupt
        super().stage_started(name)


@pytest.fixture(scope="module")
def whole(
    rounds: Searched, tiny_parent: Callable[..., Path], texts: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, Silent]:
    """A workspace of two rounds, what they ended with, and what was told."""
    folder, reporter = tmp_path_factory.mktemp("whole") / "search", Silent()
    job = Job.from_dict(values(tiny_parent("llama"), texts))
    return folder, rounds(job, folder, reporter), reporter


def test_each_round_is_a_search_from_the_last_ones_child(
    whole: tuple[Path, Any, Silent], tiny_parent: Callable[..., Path]
) -> None:
    folder, result, reporter = whole
    first, second = (json.loads((folder / "rounds" / n / "run.json").read_text())["job"] for n in ("1", "2"))
    assert (first["parent"], first["original"]) == (str(tiny_parent("llama")), None)
    assert (second["parent"], second["original"]) == (str(folder / "rounds/1/child"), str(tiny_parent("llama")))
    assert [job["budget"] for job in (first, second)] == [{"parameters": "0.8x"}, {"parameters": "0.64x"}]
    assert [job["recover"]["tokens"] for job in (first, second)] == [1024, 1024]
    assert [job["distill"]["tokens"] for job in (first, second)] == [512, 512]
    parameters = [number_of(folder / place) for place in ("rounds/1/child", "rounds/2/child")]
    whole_parent = number_of(tiny_parent("llama"))
    assert parameters[1] <= 0.64 * whole_parent < parameters[0] <= 0.8 * whole_parent
    # Of the rounds' workspace the last one's figures and child are its own.
    assert result.workspace == str(folder)
    assert result.evaluation == json.loads((folder / "evaluation.json").read_text())
    assert result.evaluation["parent"]["parameters"] == whole_parent
    assert result.evaluation["parent"]["kl_nats"] == 0
    chosen = result.evaluation[result.evaluation["chosen"]]
    assert chosen["limits"]["chat.parameters"]["ratio"] == pytest.approx(
        parameters[1] / (0.64 * whole_parent), rel=1e-3
    )
    assert number_of(folder / "child") == parameters[1]
    assert load_child(folder).num_parameters() == parameters[1]
    assert [text for text in reporter.told if text.startswith("round")] == ["round 1 of 2", "round 2 of 2"]
    assert any(" · round 2 of 2 · search " in text for text in reporter.told)


def number_of(folder: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())


def test_figures_are_against_the_first_parent(
    whole: tuple[Path, Any, Silent], tiny_parent: Callable[..., Path]
) -> None:
    folder, result, _ = whole
    texts = json.loads((folder / "rounds/2/texts.json").read_text())
    store = Workspace(folder / "rounds/2").store
    from inlay.nas.pieces.texts import load_ids

    ids_NS = torch.from_numpy(load_ids(store, texts["report"]["digest"]).astype("int64"))
    from transformers import AutoModelForCausalLM

    models = (AutoModelForCausalLM.from_pretrained(tiny_parent("llama")), load_child(folder))
    with torch.no_grad():
        p, q = (model(ids_NS, use_cache=False).logits[:, :-1].double().log_softmax(-1) for model in models)
    by_hand = float((p.exp() * (p - q)).sum(-1).mean())
    chosen = result.evaluation[result.evaluation["chosen"]]
    assert chosen["kl_nats"] == pytest.approx(by_hand, rel=1e-3)
    known = Workspace(folder / "rounds/2").own_round()
    assert known is not None
    assert [each["round"] for each in known.known] == [1, 2]
    assert known.known[1]["kl_nats"] == chosen["kl_nats"]


def test_the_report_says_which_round_it_is(whole: tuple[Path, Any, Silent]) -> None:
    place = Workspace(whole[0]).last_round()
    assert place.url.endswith("rounds/2")
    page = page_of(place, {})
    assert "This is round 2 of 2: its parent is the child of the one before" in page
    assert "parameters 0.8x" in page
    assert "This is round 1 of 2.<" in page_of(Workspace(whole[0] / "rounds/1"), {})


def test_what_is_asked_later_is_against_the_first_parent_too(whole: tuple[Path, Any, Silent]) -> None:
    place = Workspace(whole[0]).last_round()
    problem, _ = load_problem(place, parse_budget({"parameters": "0.6x"}))
    (solution,) = solve_pool(problem, 1, 0.2, 60.0)
    found = evaluate_solution(place, store_solution(place, problem, solution))
    assert found["parent"]["parameters"] == whole[1].evaluation["parent"]["parameters"]
    assert found["parent"]["kl_nats"] == 0
    assert found["child"]["parameters"] <= 0.6 * found["parent"]["parameters"]
    with open_chat(place, None, 4, True) as chat:
        exchange = chat.exchange("Once")
    assert exchange.child.tokens + exchange.parent.tokens > 0


def test_run_again_nothing_is_left_to_do(whole: tuple[Path, Any, Silent], rounds: Searched, texts: Any) -> None:
    folder, result, _ = whole
    job = Job.from_dict(values(Path(json.loads((folder / "rounds/1/run.json").read_text())["job"]["parent"]), texts))
    again = rounds(job, folder, Silent())
    assert again.already_done
    assert again.evaluation == result.evaluation


@pytest.mark.slow
@pytest.mark.parametrize(
    "at", [(1, "recover"), (2, "score"), (2, "export")], ids=lambda at: f"{at[1]} of round {at[0]}"
)
def test_stopped_and_resumed_is_uninterrupted(
    whole: tuple[Path, Any, Silent],
    rounds: Searched,
    tiny_parent: Callable[..., Path],
    texts: Any,
    tmp_path: Path,
    at: tuple[int, str],
) -> None:
    job = Job.from_dict(values(tiny_parent("llama"), texts))
    with pytest.raises(KeyboardInterrupt):
        rounds(job, tmp_path / "search", Stopped(*at))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "search").glob("rounds/*/records/**/*.json")}
    known = Workspace(tmp_path / "search")
    assert known.last_round().url.endswith(f"rounds/{at[0]}")
    resumed = rounds(job, tmp_path / "search", Silent())
    assert before
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()), "a finished piece was done again"
    for number in (1, 2):
        ours, theirs = (Workspace(place / "rounds" / str(number)) for place in (tmp_path / "search", whole[0]))
        for table in TABLES:
            name = f"tables/{table}.parquet"
            assert ours.store.get(name) == theirs.store.get(name), (number, table)
        assert steady(ours.read_table("pool")) == steady(theirs.read_table("pool"))
        assert (tmp_path / f"search/rounds/{number}/child/model.safetensors").read_bytes() == (
            whole[0] / f"rounds/{number}/child/model.safetensors"
        ).read_bytes()
    names = ("child", "uniform", "depth")
    assert [resumed.evaluation[n]["kl_nats"] for n in names] == [whole[1].evaluation[n]["kl_nats"] for n in names]


def steady(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def test_a_workspace_is_of_one_search_or_of_rounds(
    whole: tuple[Path, Any, Silent], rounds: Searched, tiny_parent: Callable[..., Path], texts: Any, tmp_path: Path
) -> None:
    parent = tiny_parent("llama")
    with pytest.raises(UserError, match=r"rounds: .* holds a search in several rounds; give another --workspace"):
        rounds(Job.from_dict(values(parent, texts, rounds=1)), whole[0], Silent())
    place = Workspace(tmp_path)
    place.claim("0" * 64, "other")
    place.write_json("run.json", {})
    with pytest.raises(UserError, match=r"rounds: .* holds a search in one round; give another --workspace, or write"):
        rounds(Job.from_dict(values(parent, texts)), tmp_path, Silent())


def test_what_a_child_cannot_take_is_left_out(tiny_parent: Callable[..., Path], texts: Any, tmp_path: Path) -> None:
    parent, place = tiny_parent("llama"), Workspace(tmp_path)
    space = {"attention": [{"kv_heads": 1}, "no_op"], "ffn": [{"width": 0.5}, {"width": 40}]}
    job = Job.from_dict(values(parent, texts, space=space))
    merged = tiny_parent("llama", num_key_value_heads=1, intermediate_size=32)
    reporter = Silent()
    left = job_of_round(job, place, 2, merged, {}, reporter)
    assert left.to_dict()["space"]["attention"] == ["no_op"]
    assert left.to_dict()["space"]["ffn"] == [{"width": 0.5}]
    assert reporter.told == [
        "round 2 of 2: no layer of its parent can take attention kv_heads: 1 any more",
        "round 2 of 2: no layer of its parent can take ffn width: 40 any more",
    ]
    nothing = Job.from_dict(values(parent, texts, space={"attention": [{"kv_heads": 1}]}))
    with pytest.raises(UserError) as caught:
        job_of_round(nothing, place, 2, merged, {}, reporter)
    assert str(caught.value) == (
        "rounds: no layer of the child of round 1 can take any alternative of `space`; write rounds: 1, or give "
        "`space` smaller ones"
    )


def test_a_budget_out_of_reach_names_its_round(
    rounds: Searched, tiny_parent: Callable[..., Path], texts: Any, tmp_path: Path
) -> None:
    job = Job.from_dict(values(tiny_parent("llama"), texts, budget={"parameters": "0.01x"}))
    with pytest.raises(InfeasibleError, match=r"^round 1 of 2: budget: no architecture of the search space meets it"):
        rounds(job, tmp_path / "search", Silent())


def test_absolute_times_lie_between_the_parents_and_the_jobs(
    rounds: Searched, tiny_parent: Callable[..., Path], texts: Any, tmp_path: Path
) -> None:
    budget = {"runtime": "1ns"}
    with pytest.raises(InfeasibleError, match=r"^round 1 of 2: budget"):
        rounds(Job.from_dict(values(tiny_parent("llama"), texts, budget=budget)), tmp_path / "search", Silent())
    own = json.loads((tmp_path / "search/parent.json").read_text())["values"]["chat"]["runtime"]
    (told,) = json.loads((tmp_path / "search/rounds.json").read_text())["rounds"]
    assert told["budget"] == {"runtime": f"{round(own**0.5)}ns"}
    times = Workspace(tmp_path / "search/rounds/1").read_table("costs")
    summed = sum(row["runtime_ns"] for row in times if row["variant"] in ("attention:parent", "ffn:parent", "ends"))
    assert summed == own


@pytest.mark.slow
def test_the_whole_command(
    whole: tuple[Path, Any, Silent], tiny_parent: Callable[..., Path], texts: Any, tmp_path: Path, inlay_command: Any
) -> None:
    """By two workers on Ray it comes to the same."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values(tiny_parent("llama"), texts)))
    done = inlay_command("run", "job.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/job.search/child" in done.stdout
    ours, theirs = (Workspace(place / "rounds/2") for place in (tmp_path / "job.search", whole[0]))
    for table in TABLES:
        assert ours.store.get(f"tables/{table}.parquet") == theirs.store.get(f"tables/{table}.parquet")
    for verb in (("report",), ("evaluate",), ("export", "-o", "exported"), ("solve", "--limit", "parameters=0.6x")):
        told = inlay_command(verb[0], "job.search", *verb[1:], cwd=tmp_path)
        assert told.returncode == 0, told.stderr
    assert (tmp_path / "job.search" / "report.html").exists()
    assert number_of(tmp_path / "exported") == number_of(whole[0] / "child")


def test_the_plan_is_of_the_first_round(
    tiny_parent: Callable[..., Path], texts: Any, tmp_path: Path, inlay_here: Any
) -> None:
    job = values(tiny_parent("llama"), texts, budget={"parameters": "0.64x", "runtime": "20ms"})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    plan = json.loads(inlay_here("plan", "job.yaml", "--json", cwd=tmp_path).stdout)
    facts = dict(map(tuple, plan["facts"]))
    assert facts["round 1"] == "parameters 0.8x, runtime on the way to 20ms"
    assert facts["round 2"] == "parameters 0.64x, runtime 20ms"
    assert "1,024 tokens each" in next(stage["what"] for stage in plan["stages"] if stage["name"] == "recover")
    valid = inlay_here("validate", "job.yaml", cwd=tmp_path)
    assert valid.stdout == "job.yaml is right; it has 2 rounds, whose budgets `inlay plan` shows\n"


def test_a_child_of_rounds_opens_as_a_parent(whole: tuple[Path, Any, Silent]) -> None:
    shutil.copytree(whole[0] / "child", whole[0].parent / "copied")
    assert open_parent(whole[0].parent / "copied").shape.num_layers == 3
