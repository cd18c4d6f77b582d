"""A wrong job: every problem at once, each with its path, the value given and a way out."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inlay.nas.errors import UserError
from inlay.nas.job import Job, JobError

Path = tuple[str | int, ...]

CASES: list[tuple[Path, object, str]] = [
    (("distil",), {}, "distil: unknown key; did you mean `distill`?"),
    (("data", "distill", "sequence_lenth"), 3, "data.distill.sequence_lenth: unknown key; did you mean `sequence"),
    (("hardware", "scenarios", 0, "prefil"), 3, "hardware.scenarios[0].prefil: unknown key; did you mean `prefill`?"),
    (("distill", "tokens"), -5, "distill.tokens: -5 is out of range; it must be at least 0"),
    (("distill", "tokens"), "5 kk", "distill.tokens: '5 kk' has the unit `kk`"),
    (("distill", "tokens"), True, "distill.tokens: True is not a number"),
    (("distill", "tokens"), "100", "distill.tokens: 100 is less than one sequence of 256 tokens"),
    (("data", "validate", "tokens"), 300, "data.validate.tokens: 300 is less than 2 sequences of 256 tokens"),
    (("distill", "learning_rate"), "nan", "distill.learning_rate: 'nan' is not a number"),
    (("distill", "learning_rate"), 0, "distill.learning_rate: 0 is out of range; it must be greater than 0"),
    (("distill", "warmup"), 1, "distill.warmup: 1 is out of range; it must be less than 1"),
    (("distill", "through"), "layr", "distill.through: 'layr' is not known here; write 'subblock' or 'layer'"),
    (("distill",), "4M", "distill: '4M' is not a mapping"),
    (("solve", "time_limit"), "60sec", "solve.time_limit: '60sec' has the unit `sec`"),
    (("solve", "min_difference"), 1.5, "solve.min_difference: 1.5 is out of range; it must be at most 1"),
    (("hardware", "device"), "gpu", "hardware.device: 'gpu' does not have the right form; write cpu, cuda or cuda:0"),
    (("hardware", "dtype"), "fp16", "hardware.dtype: 'fp16' is not known here"),
    (("hardware", "scenarios"), [], "hardware.scenarios: [] is empty; give at least 1"),
    (("hardware", "scenarios", 0, "generate"), 0, "hardware.scenarios[0].generate: 0 is out of range"),
    (("hardware", "scenarios", 0, "name"), "a b", "hardware.scenarios[0].name: 'a b' does not have the right form"),
    (("hardware", "scenarios", 1), {"name": "chat"}, "hardware.scenarios[1].name: 'chat' is there twice"),
    (("budget",), {}, "budget: is empty; name at least one limit"),
    (
        ("tracking",),
        {"register": "team/stories"},
        "tracking.register: 'team/stories' is no name for a registered model; use letters, digits, spaces and _ - .",
    ),
    (("tracking",), {"register": ".."}, "tracking.register: '..' is no name for a registered model"),
    (
        ("tracking",),
        {"register": "stories", "alias": "the best"},
        "tracking.alias: 'the best' is no alias; use letters, digits, _ and - only",
    ),
    (
        ("tracking",),
        {"register": "stories", "alias": "v3"},
        "tracking.alias: 'v3' is kept by MLflow for itself; write another, such as champion",
    ),
    (
        ("tracking",),
        {"alias": "champion"},
        "tracking.alias: 'champion' is the alias of nothing, since tracking.register names no model; set it too",
    ),
    (
        ("tracking",),
        {"register": "stories", "uri": "file:///mlruns"},
        "tracking.register: 'stories' needs a registry of models, and the store file:///mlruns has none; set "
        "tracking.uri to a server, a database or sqlite:///mlflow.db",
    ),
    (
        ("parent",),
        "models:/stories",
        "parent: 'models:/stories' names no version of a registered model; write models:/NAME@ALIAS or "
        "models:/NAME/VERSION",
    ),
    (("budget", "runtime"), 0.6, "budget.runtime: 0.6 has no unit"),
    (("budget", "runtime"), "-1ms", "budget.runtime: '-1ms' is not positive"),
    (("budget", "runtime"), "0x", "budget.runtime: '0x' is not positive"),
    (("budget", "runtime"), "1.5x", "budget.runtime: '1.5x' is more than the parent needs"),
    (("budget", "throughput"), "0.5x", "budget.throughput: '0.5x' is less than the parent gives"),
    (("budget", "memory"), "24G", "budget.memory: '24G' has the unit `G`, which is not known here; did you mean `GB`?"),
    (("budget", "memory"), "20ms", "budget.memory: '20ms' has the unit `ms`"),
    (("budget", "latency"), "20ms", "budget.latency: unknown limit"),
    (("budget", "throghput"), 3, "budget.throghput: unknown limit; did you mean `throughput`?"),
    (("budget", "chatt"), {"kv": "1GiB"}, "budget.chatt: no such scenario; did you mean `chat`?"),
    (("budget", "chat"), {"weights": "1GiB"}, "budget.chat.weights: does not depend on a scenario"),
    (("space",), {}, "space: {} offers no alternative"),
    (("space", "formats"), "q8_0", "space.formats: 'q8_0' is not a list; write for example [q8_0, q4_K]"),
    (("space", "formats"), ["q4_k"], "space.formats[0]: 'q4_k' is not a format; did you mean `q4_K`? there are f32"),
    (("space", "formats"), ["q8_0"] * 501, "space.formats: has 501 entries; at most 500 are searched"),
    (("space", "ffn"), [{"width": n} for n in range(1, 1002)], "space.ffn: has 1,001 entries; at most 500 are"),
    (("space", "formats"), [["q8_0"]], "space.formats[0]: ['q8_0'] is not a format; did you mean `q8_0`?"),
    (("space", "formats"), ["q8_0", "q8_0"], "space.formats[1]: 'q8_0' is there twice"),
    (("hardware", "format"), "q4_k", "hardware.format: 'q4_k' is not a format; did you mean `q4_K`? there are auto"),
    (("space", "multiple"), 0, "space.multiple: 0 is out of range"),
    (("space", "attention"), "linear", "space.attention: 'linear' is not a list"),
    (("space", "attention", 4), {"kv_heads": 0}, "space.attention[4].kv_heads: 0 is out of range"),
    (("space", "attention", 4), {"window": -3}, "space.attention[4].window: -3 is out of range"),
    (("space", "attention", 4), {"width": 3}, "space.attention[4]: `width` belongs to ffn"),
    (("space", "attention", 4), "no_op", "space.attention[4]: 'no_op' is there twice"),
    (("space", "attention", 4), "lineer", "space.attention[4]: 'lineer' is no attention alternative; did you mean"),
    (("space", "attention", 4), "parent", "space.attention[4]: 'parent' is always among the alternatives"),
    (
        ("space", "attention", 4),
        {"kv_heads": 1, "heads": 2},
        "space.attention[4]: {'kv_heads': 1, 'heads': 2} is not one alternative; write one of [kv_heads: 1, heads: 4, "
        "window: 128, gla, linear, no_op], or {kv_heads: 1, window: 128}, or {heads: 4, window: 128}",
    ),
    (("space", "attention", 4), {"kv_heads": 1, "window": 0}, "space.attention[4].window: 0 is out of range"),
    (("space", "attention", 4), {"heads": 0}, "space.attention[4].heads: 0 is out of range"),
    (("space", "attention", 4), {"kv_heads": 1, "no_op": 1}, "space.attention[4]: `no_op` takes no value"),
    (("space", "attention", 4), {"gla": 16}, "space.attention[4]: `gla` takes no value; write gla alone"),
    (("space", "ffn", 4), "gla", "space.ffn[4]: 'gla' is no ffn alternative"),
    (("space", "ffn", 4), {"width": 0}, "space.ffn[4].width: 0 is not a width"),
    (("space", "ffn", 4), {"width": 1.5}, "space.ffn[4].width: 1.5 is more than the parent has"),
    (("space", "ffn", 4), {"width": -0.5}, "space.ffn[4].width: -0.5 is not a width"),
    (("space", "ffn", 4), {"width": 1.0}, "space.ffn[4].width: 1.0 is the parent's own width or a single channel"),
    (("space", "ffn", 4), {"no_op": 1}, "space.ffn[4]: `no_op` takes no value"),
    (("parent",), "owner/model", "revision: is missing; the hub id owner/model needs its commit"),
    (("parent",), "inlay:other", "parent: 'inlay:other' does not ship with inlay; write inlay:pystdlib"),
    (("parent",), 3, "parent: 3 is not a text"),
    (("revision",), "abc", "revision: 'abc' has no meaning for the folder ./parents/stories3M"),
    (("data", "validate", "path"), "./stories.txt", "data.validate.path: './stories.txt' is the text that is trained"),
    (("data", "distill", "path"), "inlay:other/train", "data.distill.path: 'inlay:other/train' does not ship"),
    (("seed",), -1, "seed: -1 is out of range"),
    (("recover", "workers"), 0, "recover.workers: 0 is out of range; it must be at least 1"),
    (
        ("recover", "tail"),
        {"tokens": 5_000_000},
        "recover.tail.tokens: 5000000 is more than recover.tokens, 4000000, of which they are the last; lower it",
    ),
    (
        ("recover", "tail"),
        {"tokens": 1_000, "sequence_length": 256},
        "recover.tail.sequence_length: 256 is not more than data.distill.sequence_length, 256; raise it",
    ),
    (("recover", "sharding"), "full", "recover.sharding: 'full' has nothing to share the weights with; set"),
    (("recover", "sharding"), "half", "recover.sharding: 'half' is not known here; write 'none' or 'full'"),
    (("recover",), {"workers": 4, "batch_size": 6}, "recover.workers: 4 ranks cannot share a batch of 6 sequences"),
    (("cluster", "memory_per_worker"), "2G", "cluster.memory_per_worker: '2G' has the unit `G`"),
    (("tracking",), {"uri": "postgresql://ada:word@db/x"}, "tracking.uri: has a password in it, which would be kept"),
    (("tracking",), {"uri": "postgresql://ada:wo/rd@db"}, "tracking.uri: has a password in it, which would be kept"),
    (("tracking",), {"uri": "mysql://db/x?password=word"}, "tracking.uri: has a password in it, which would be kept"),
    (("data", "distill", "path"), "s3://key:word@b/x", "data.distill.path: has a password in it"),
]  # fmt: skip


def changed(values: dict[str, Any], path: Path, value: object) -> dict[str, Any]:
    """A copy with one field set."""
    copied = copy.deepcopy(values)
    place: Any = copied
    for part in path[:-1]:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    if isinstance(place, list) and path[-1] == len(place):
        place.append(value)
    else:
        place[path[-1]] = value
    return copied


@pytest.mark.parametrize(("path", "value", "start"), CASES, ids=[case[2][:60] for case in CASES])
def test_one_mistake_is_one_line(values: dict[str, Any], path: Path, value: object, start: str) -> None:
    with pytest.raises(UserError) as caught:
        Job.from_dict(changed(values, path, value))
    assert str(caught.value).startswith(f"job: {start}")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_without_training_only_what_needs_none_is_searched(values: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        Job.from_dict({**values, "space": {"ffn": ["linear", "no_op"]}, "distill": {"tokens": 0}})
    told = (
        "space.ffn[0]: linear is nothing before it is trained, and distill.tokens is 0; leave it out, or give it tokens"
    )
    assert str(caught.value) == f"job: {told}"


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            "cluster",
            {"max_workers": 2},
            "4 ranks need as many of the job's workers, and cluster.max_workers is 2; raise it",
        ),
        (
            "cluster",
            {"max_workers": 1},
            "4 ranks need as many of the job's workers, and cluster.max_workers is 1; raise it",
        ),
        (
            "hardware",
            {"device": "cuda:1"},
            "4 ranks cannot all use the device cuda:1; set hardware.device to cuda, and",
        ),
    ],
)
def test_ranks_must_find_their_places(
    values: dict[str, Any], section: str, change: dict[str, Any], message: str
) -> None:
    wrong = values | {"recover": {"workers": 4}, section: values.get(section, {}) | change}
    with pytest.raises(UserError) as caught:
        Job.from_dict(wrong)
    assert str(caught.value).startswith(f"job: recover.workers: {message}")
    assert Job.from_dict(wrong | {"recover": {"workers": 1}}).recover.workers == 1


def test_what_is_replaced_must_exist_to_be_trained_alone(values: dict[str, Any]) -> None:
    wrong = values | {"space": {"formats": ["q8_0"]}, "recover": {"train": "replaced"}}
    with pytest.raises(UserError) as caught:
        Job.from_dict(wrong)
    assert str(caught.value).startswith(
        "job: recover.train: 'replaced' would train nothing: with formats alone nothing replaces the parent's; leave"
    )
    assert Job.from_dict(wrong | {"space": values["space"]}).recover.train == "replaced"
    with pytest.raises(UserError, match=r"recover\.train: 'adapters' leave the matrices as they are, .* set it to all"):
        Job.from_dict(wrong | {"recover": {"train": "adapters"}})


_TEXTS = [
    (("parent",), 4096), (("revision",), 200), (("data", "distill", "path"), 4096),
    (("data", "validate", "path"), 4096),
    (("data", "distill", "separator"), 1000), (("data", "validate", "field"), 200), (("hardware", "python"), 4096),
    (("hardware", "costs"), 4096), (("tracking", "uri"), 4096), (("tracking", "experiment"), 200),
    (("cluster", "address"), 300), (("cluster", "scratch"), 4096),
]  # fmt: skip


@pytest.mark.parametrize(("path", "longest"), _TEXTS, ids=[".".join(path) for path, _ in _TEXTS])
def test_a_text_without_end_is_refused(values: dict[str, Any], path: Path, longest: int) -> None:
    with pytest.raises(UserError) as caught:
        Job.from_dict(changed(values, path, "a" * 900_000))
    assert f"is too long; at most {longest} characters are read" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", ["1" * 900_000 + "!", "1" + " " * 900_000 + "!", "1_" * 450_000])
@pytest.mark.parametrize(
    "path", [("budget", "runtime"), ("distill", "tokens"), ("solve", "time_limit"), ("cluster", "memory_per_worker")]
)
def test_a_number_without_end_is_refused(values: dict[str, Any], path: Path, value: str) -> None:
    with pytest.raises(UserError, match=rf"{'.'.join(path)}: .* is 90000[012] characters long, at most 100 are read; "):
        Job.from_dict(changed(values, path, value))


def test_all_at_once_and_in_their_words(values: dict[str, Any]) -> None:
    wrong = values
    for path, value, _ in CASES[:4]:
        wrong = changed(wrong, path, value)
    with pytest.raises(JobError) as caught:
        Job.from_dict(changed(wrong, ("budget", "chatt"), {"kv": "1GiB"}))
    fields = {problem.field for problem in caught.value.problems}
    assert {"distil", "data.distill.sequence_lenth", "hardware.scenarios[0].prefil", "distill.tokens"} <= fields
    assert str(caught.value).splitlines()[0].startswith("job has ")
    assert "parent" in caught.value.sections
    assert "distill" not in caught.value.sections


def test_more_problems_than_are_read_are_counted(values: dict[str, Any]) -> None:
    values |= {f"key{number}": 1 for number in range(1, 1502)}
    with pytest.raises(JobError) as caught:
        Job.from_dict(values)
    headline, *lines, last = str(caught.value).splitlines()
    assert headline == "job has 1,501 problems:"
    assert len(lines) == 100
    assert last == "  and 1,401 more"
    assert len(caught.value.problems) == 1501


def test_checks_between_fields_run_beside_wrong_fields(values: dict[str, Any]) -> None:
    wrong = changed(changed(values, ("seed",), -1), ("budget", "chatt"), {"kv": "1GiB"})
    with pytest.raises(JobError) as caught:
        Job.from_dict(wrong)
    assert {problem.field for problem in caught.value.problems} == {"seed", "budget.chatt"}


def test_a_misspelt_key_is_not_missing_too(values: dict[str, Any]) -> None:
    wrong = {("parnet" if key == "parent" else key): value for key, value in values.items()}
    with pytest.raises(JobError) as caught:
        Job.from_dict(wrong)
    assert [problem.field for problem in caught.value.problems] == ["parnet"]


def test_from_python_the_same(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="job: seed: -1 is out of range"):
        Job(**values | {"seed": -1})


def test_the_error_crosses_processes(values: dict[str, Any]) -> None:
    with pytest.raises(JobError) as caught:
        Job.from_dict(values | {"seed": -1})
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.problems == caught.value.problems


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
_PLACES = st.sampled_from([
    ("parent",), ("revision",), ("data",), ("data", "distill", "sequence_length"), ("space",), ("space", "attention"),
    ("space", "ffn"), ("space", "ffn", 0), ("hardware",), ("hardware", "scenarios"), ("hardware", "scenarios", 0),
    ("budget",),
    ("budget", "runtime"), ("budget", "chat"), ("solve", "time_limit"), ("cluster",), ("seed",), ("anything",),
])  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(path=_PLACES, value=_JSON)
def test_anything_is_a_job_or_a_user_error(values: dict[str, Any], path: Path, value: object) -> None:
    refusal, job = None, None
    try:
        job = Job.from_dict(changed(values, path, value))
    except UserError as error:
        refusal = str(error)
    if job is None:
        assert refusal
        assert all(line.isprintable() for line in refusal.splitlines())
    else:
        assert Job.from_dict(job.to_dict()) == job


def test_a_tail_that_ranks_or_a_text_cannot_give(values: dict[str, Any]) -> None:
    tail = {"tokens": 1_000, "sequence_length": 1024}
    recover = {"tail": tail, "workers": 2, "batch_size": 4}
    wrong = values | {"recover": recover, "data": {**values["data"], "distill": {"sample": "1M"}}}
    with pytest.raises(JobError) as caught:
        Job.from_dict(wrong)
    assert [str(problem) for problem in caught.value.problems] == [
        "recover.tail.sequence_length: 2 ranks cannot share the tail's batches of one sequence evenly; lower it, or "
        "raise recover.batch_size",
        "recover.tail.tokens: the parent writes no longer sequences for a tail; name a text in data.distill.path, or "
        "leave it out",
    ]


def test_a_step_of_recovery_has_what_leaves_many_steps_and_every_rank_as_much(values: dict[str, Any]) -> None:
    def batch(**recover: Any) -> tuple[int, int]:
        job = Job.from_dict(values | {"recover": recover})
        return job.recover_batch, job.recover.tail_batch(job.data.distill.sequence_length)

    length = Job.from_dict(values).data.distill.sequence_length
    assert batch(tokens=100 * length)[0] == 1
    assert batch(tokens=1300 * length)[0] == 3
    assert batch(tokens=1300 * length, workers=2)[0] == 4
    assert batch(tokens=1_000_000 * length)[0] == 8
    assert batch(tokens=100 * length, batch_size=6)[0] == 6
    tail = {"tokens": 10 * length, "sequence_length": 4 * length}
    assert batch(tokens=100 * length, tail=tail) == (4, 1)
    assert batch(tokens=100 * length, tail=tail, workers=2) == (8, 2)
