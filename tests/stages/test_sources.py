"""Texts of several sources: by weight, conversations in the parent's template, and the same for the same job."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from inlay.nas.errors import UserError
from inlay.nas.families import open_parent
from inlay.nas.job import Job
from inlay.nas.loop.sources import changed_sources
from inlay.nas.loop.texts import Packed, pack_texts

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ message['role'] }}]{{ message['content'] }}\n{% endfor %}"
)
Make = Callable[..., Job]


def conversation(number: int) -> dict[str, Any]:
    said = [("user", f"question {number}"), ("assistant", "!" * 20)]
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def write_jsonl(file: Path, records: list[Any]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(tmp_path: Path, tiny_parent: Callable[..., Path]) -> Path:
    """A parent with a chat template, a Parquet file of texts, JSONL of conversations, and a text to judge on."""
    shutil.copytree(tiny_parent("llama"), tmp_path / "parent")
    (tmp_path / "parent" / "chat_template.jinja").write_text(TEMPLATE)
    texts = [f"document {number} " + "?" * (number % 9) for number in range(400)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "web.parquet", row_group_size=64)
    write_jsonl(tmp_path / "chats.jsonl", [*map(conversation, range(400)), {"messages": []}])
    (tmp_path / "judge.txt").write_text("<|endoftext|>\n".join(f"{number} judges this\n" for number in range(200)))
    return tmp_path


@pytest.fixture
def make(folder: Path) -> Make:
    """`make(path)`: a job in the folder that trains on this; more are values of the job."""

    def job(path: Any, **values: Any) -> Job:
        text = {"distill": {"path": path, "sequence_length": 32}, "validate": {"path": "judge.txt", "tokens": 256}}
        sizes = {"tokens": 6400, "batch_size": 2}
        return Job.from_dict(
            {
                "parent": "./parent",
                "data": text,
                "space": {"ffn": ["no_op"]},
                "distill": sizes,
                "recover": sizes,
                "hardware": {"scenarios": [{"prefill": 16, "generate": 16}]},
                "budget": {"parameters": "0.9x"},
                **values,
            },
            folder=folder,
        )

    return job


def packed(job: Job) -> Packed:
    return pack_texts(job, open_parent(job.resolve(job.parent)).tokenizer())


def same(one: Packed, other: Packed, names: set[str] | None = None) -> bool:
    return all(np.array_equal(one.ids[name], other.ids[name]) for name in names or one.ids)


def refused(job: Job) -> str:
    with pytest.raises(UserError) as caught:
        packed(job)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_conversations_are_what_the_template_makes_of_them(make: Make, folder: Path) -> None:
    job = make("chats.jsonl")
    tokenizer = open_parent(folder / "parent").tokenizer()
    told = pack_texts(job, tokenizer)
    told_source = told.sources["data.distill.path"]
    assert (told_source["documents"], told_source["empty"]) == (400, 1)
    text = tokenizer.decode(told.ids["distill"].ravel().tolist())
    whole = [part for part in text.split("<s>") if part.startswith("[user]") and part.endswith("!\n")]
    assert whole == []  # each is longer than a sequence, so that its rest opens the next one
    opens = told.ids["distill"] == tokenizer.bos_token_id
    assert not (opens[:, 1:] & opens[:, :-1]).any(), "the template's own BOS is not there twice"
    starts = [part for part in text.split("<s>") if part.startswith("[user]question ")]
    assert len(starts) > 50
    assert told.notes == [
        f"data.distill.path: 1 of 401 documents are empty and left out; of {told_source['read']} documents read "
        f"{told_source['longer']} are longer than a sequence of 32 tokens and continued in the next"
    ]
    assert told_source["longer"] == told_source["read"] > 100


def test_sources_give_tokens_by_weight(make: Make) -> None:
    told = packed(make([{"path": "web.parquet", "weight": 3}, {"path": "chats.jsonl", "weight": 1}]))
    web, chats = (told.sources[f"data.distill.path[{place}].path"]["tokens"] for place in (0, 1))
    assert web / (web + chats) == pytest.approx(0.75, abs=0.02)
    ids = told.ids["recover"]
    assert 0.9 * ids.size < web + chats < 1.3 * ids.size
    exclamations, questions = ((ids == code).sum() for code in _codes("!?", told))
    assert exclamations > 100
    assert questions > 100


def _codes(characters: str, told: Packed) -> list[int]:
    """The tokens of characters: the tiny parent has one a byte, in the order of its alphabet, behind three others."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    return [3 + alphabet.index(character) for character in characters]


def test_every_token_of_the_report_knows_its_document_and_source(make: Make, folder: Path) -> None:
    texts = [f"number {number} of the second " + "!" * (3 * number % 70) for number in range(80)]
    write_jsonl(folder / "second.jsonl", [{"text": text} for text in texts])
    sources = [{"path": "judge.txt", "weight": 1}, {"path": "second.jsonl", "weight": 2}]
    data = {"validate": {"path": sources, "tokens": 6000}}
    job = make("web.parquet")
    values = job.to_dict()
    told = packed(Job.from_dict({**values, "data": {**values["data"], **data}}, folder=folder))
    report = told.report
    assert report is not None
    assert report.names == ("judge.txt", "second.jsonl")
    ids = told.ids["report"]
    assert report.documents_NS.shape == ids.shape
    tokenizer = open_parent(folder / "parent").tokenizer()
    special = tokenizer.bos_token_id
    read = {0: [], 1: []}
    for number in range(report.documents_NS.max() + 1):
        own = ids[report.documents_NS == number]
        read[int(report.sources_D[number])].append(tokenizer.decode(own[own != special].tolist()))
    reported = texts[3::4]
    assert len(read[1]) > 10
    assert read[1][:-1] == reported[: len(read[1]) - 1]
    assert reported[len(read[1]) - 1].startswith(read[1][-1])
    assert read[0][:-1] == [f"{number} judges this\n" for number in range(3, 4 * len(read[0]) - 4, 4)]


def test_a_source_of_no_weight_is_not_read(make: Make) -> None:
    one = packed(make([{"path": "web.parquet"}, {"path": "nowhere.txt", "weight": 0}]))
    assert same(one, packed(make("web.parquet")))
    assert set(one.sources) == {"data.distill.path[0].path", "data.validate.path"}


def test_the_text_ends_with_its_first_source_and_says_so(make: Make, folder: Path) -> None:
    write_jsonl(folder / "few.jsonl", [{"text": f"few {number}"} for number in range(60)])
    told = packed(make([{"path": "web.parquet", "weight": 1}, {"path": "few.jsonl", "weight": 1}]))
    web, few = (told.sources[f"data.distill.path[{place}].path"]["tokens"] for place in (0, 1))
    assert web == pytest.approx(few, abs=40)
    size = sum(told.ids[name].size for name in ("recover", "held_out"))
    assert told.notes == [
        f"data.distill.path[1].path: few.jsonl ends after {few} tokens, and the whole text with it, after {size:,} of "
        "6,912, since the weights would not hold without it; give more of it, or lower its weight"
    ]


def test_the_same_text_whatever_the_workers_and_wherever_it_lies(make: Make, folder: Path) -> None:
    sources = [{"path": "web.parquet", "weight": 3}, {"path": "chats.jsonl"}]
    first = packed(make(sources, cluster={"max_workers": 1}))
    assert same(first, packed(make(sources, cluster={"max_workers": 7})))
    assert not same(first, packed(make(sources, seed=1)), {"distill"})
    (folder / "elsewhere").mkdir()
    shutil.copy(folder / "web.parquet", folder / "elsewhere" / "renamed.parquet")
    moved = packed(make([{"path": "elsewhere/renamed.parquet", "weight": 3}, {"path": "chats.jsonl"}]))
    assert same(first, moved)
    assert list(changed_sources(first.sources, moved.sources)) == []


def test_a_changed_source_is_another_text_and_is_told(make: Make, folder: Path) -> None:
    """Records are keyed by the packed ids: those of the text that judges stay as they are."""
    sources = [{"path": "web.parquet", "weight": 3}, {"path": "chats.jsonl"}]
    first = packed(make(sources))
    with (folder / "chats.jsonl").open("a") as file:
        file.write(json.dumps(conversation(400)) + "\n")
    second = packed(make(sources))
    assert not same(first, second, {"distill"})
    assert same(first, second, {"score", "report"})
    assert list(changed_sources(first.sources, second.sources)) == [
        "data.distill.path[1].path: chats.jsonl changed since the last run here; what was trained or judged on other "
        "documents than are drawn from it now is done again (to have that refused, write its `digest` beside the path)"
    ]


def test_a_source_with_a_digest_must_have_it(make: Make, folder: Path) -> None:
    digest = packed(make("chats.jsonl")).sources["data.distill.path"]["digest"]
    job = make([{"path": "chats.jsonl", "digest": digest}])
    packed(job)
    write_jsonl(folder / "chats.jsonl", [conversation(number) for number in range(300)])
    assert refused(job).startswith("data.distill.path: chats.jsonl is not the text that was meant: its sha256 is ")
    assert refused(job).endswith("put the text back, or write the new digest to train on this one")


def test_a_template_that_fails_is_told_with_the_conversation(make: Make, folder: Path) -> None:
    write_jsonl(folder / "chats.jsonl", [{"messages": [{"role": "tool", "content": "x" * 50}]}] * 50)
    assert refused(make("chats.jsonl")) == (
        f"data.distill.path: {folder / 'chats.jsonl'}, the line at byte 0: the parent's chat template fails on this "
        "conversation (no tools here); correct it or leave it out"
    )


def test_conversations_need_a_template(make: Make, folder: Path) -> None:
    (folder / "parent" / "chat_template.jinja").unlink()
    assert refused(make("chats.jsonl")) == (
        f"data.distill.path: {folder / 'chats.jsonl'}, the line at byte 0: a conversation, and the parent's tokenizer "
        "has no chat template; put the model's own chat_template.jinja beside the tokenizer, or give plain text"
    )


def test_each_source_that_judges_has_two_documents(make: Make, folder: Path) -> None:
    (folder / "judge.txt").write_text("a single document " * 100)
    assert refused(make("web.parquet")).startswith(
        "data.validate.path: judge.txt: the validation text has 1 document(s) but is cut by documents in two parts"
    )
