"""Cases that nobody means: job files and identifiers, broken by a seed, and what becomes of them.

A case is right when it is taken, or refused by one of the errors that say what is wrong: in printable text, of bounded
length, in less than a second. Everything else is a find.
"""

from __future__ import annotations

import copy
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from inlay.cluster import ids
from inlay.cluster.errors import ClusterError
from inlay.cluster.on_end import check_url, is_allowed
from inlay.cluster.urls import has_password, redacted
from inlay.nas.cli.init import DEMO
from inlay.nas.cli.limits import parse_asked
from inlay.nas.cli.template import job_text
from inlay.nas.driver import unpacked
from inlay.nas.errors import InlayError
from inlay.nas.families.registered import check_model_alias, check_model_name, check_registered_form
from inlay.nas.hub_ids import has_hub_form
from inlay.nas.job import Job
from inlay.nas.job.budget import parse_budget
from inlay.nas.job.load import read_text
from inlay.nas.variants import parse_variant
from inlay.nas.workspace import Workspace

MOST_SECONDS = 1.0
LONGEST_TEXT = 100_000
MEGABYTE = 1_000_000

REFUSALS = (InlayError, ClusterError, ValueError)
"""ValueError is how the rules of single values refuse; a RecursionError, an OSError, a TypeError is a find."""
IDENTIFIERS: dict[str, Callable[[str], object]] = {
    "job id": ids.parse_job_id,
    "listed id": ids.parse_listed_id,
    "tag": lambda text: ids.parse_tags([text]),
    "wanted tag": lambda text: ids.parse_wanted_tags([text, "team"]),
    "job server": ids.parse_server,
    "new job id": ids.new_job_id,
    "tracking URI": lambda text: (has_password(text), redacted(text)),
    "on_end": check_url,
    "on_end allowed": is_allowed,
    "hub id": has_hub_form,
    "model URI": check_registered_form,
    "model name": check_model_name,
    "model alias": check_model_alias,
    "workspace": lambda text: open_workspace(text),
    "variant": parse_variant,
    "limit": parse_asked,
    "budget value": lambda text: parse_budget({"runtime": text}),
    "submission": lambda text: unpacked({"INLAY_SUBMISSION": text}),
}
EXAMPLES = (
    "night-17",
    "raysubmit_Ab12",
    "team=blue",
    "http://head.example:8265",
    "https://ci.example/hooks/inlay?team=blue",
    "postgresql://me:pa/ss@host:5432/mlflow?sslmode=require&password=x",
    "sqlite:///mlflow.db",
    "owner/name",
    "models:/stories@champion",
    "models:/stories/3",
    "s3://bucket/searches/one",
    "memory://search",
    "file:///tmp/search",
    "zip://one.zip::memory://two",
    "~nobody/search",
    "attention:kv_heads=2",
    "ffn:width=512@q4_K",
    "attention:window=64+kv_heads=1",
    "runtime=0.6x",
    "chat.runtime<=20ms",
    "24GiB",
    "1_000e-3x",
    "eJyrVkrLz1eyUkpKLFKqBQAdegQ0",
)
SHORT = """\
parent: models:/stories@champion
data:
  distill: {path: [{path: a.txt, weight: 2}, s3://bucket/b.jsonl], sequence_length: 128}
  validate: {path: held_out.txt, tokens: 2k}
space:
  attention: [kv_heads: 1, window: 64, no_op]
  ffn: [width: 0.5, linear, no_op]
distill: {tokens: 64k, learning_rate: 1e-3}
hardware: {scenarios: [{name: chat, batch_size: 1, prefill: 16, generate: 8}]}
budget: {chat: {runtime: 0.6x}, memory: 24GiB, throughput: 100}
recover: {tokens: 4k, workers: 2}
rounds: 2
tracking: {experiment: first-steps, uri: "http://mlflow.example:5000"}
cluster: {max_workers: 4, memory_per_worker: 2GiB, on_end: "https://ci.example/hooks/inlay"}
"""
PARTS = (
    *(
        "",
        " ",
        "\n",
        "\r\n",
        "\t",
        "\0",
        "\x1b[2J",
        "\x7f",
        "\u202e",
        "\ufeff",
        "\ud800",
        "é",
        "日本",
        "🦙",
        "ﷺ",
        "\\",
        "'",
        '"',
    ),
    *(
        "{}",
        "[]",
        "%00",
        "%2e%2e",
        "../",
        "/",
        "//",
        "::",
        ":",
        "@",
        "=",
        "&",
        "?",
        "#",
        "<",
        ">",
        "|",
        "$(id)",
        "`id`",
    ),
    *(
        "*",
        "!",
        "-",
        "_",
        ".",
        "+",
        "e",
        "x",
        "0",
        "9" * 30,
        "1e999",
        "-1e999",
        "nan",
        "inf",
        "null",
        "true",
        "a" * 300,
    ),
)
SCHEMES = ("file", "memory", "s3", "zip", "local", "data", "simplecache::memory", "abc", "a" * 200, "é")
"""Of stores that are opened without a network."""
YAML = (
    *(
        "&a ",
        "*a",
        "<<: *a",
        "!!python/object/apply:os.system [id]",
        "!!binary aGk=",
        "!!set {a}",
        "!x ",
        "---\n",
        "...\n",
    ),
    *(
        "%YAML 1.1\n",
        "? ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        "|\n",
        ">\n",
        "# ",
        "~",
        "0o17",
        "0x1F",
        "1:30",
        "2024-01-01",
        ".nan",
    ),
    *("-.inf", "yes", "\\x00", "&a [*a, *a]", "<<: [*a, *a]", "=", "\u2028", "\x85"),
)
BOMBS = (
    lambda: "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 200)),
    lambda: "a: " + "[" * 5000,
    lambda: "a: " + "{a: " * 3000 + "1",
    lambda: "- " * 3000,
    lambda: "a: &a\n  b: *a\n",
    lambda: "a: {" + ", ".join(f"k{n}: 1" for n in range(4_900)) + "}",
    lambda: "\n".join(f"k{n}: 1" for n in range(4_900)),
    lambda: "a: '" + "\\" * MEGABYTE + "'",
    lambda: "? " * 400 + "a",
    lambda: "a: " + "9" * MEGABYTE,
    lambda: "a0: &m {x: 1}\n" + "".join(f"a{n}: {{<<: *m, y{n}: 1}}\n" for n in range(1500)),
    lambda: "a: &a {" + ", ".join(f"k{n}: 1" for n in range(150)) + "}\nb: {<<: [" + ", ".join(["*a"] * 60) + "]}",
)


@dataclass(frozen=True)
class Case:
    """What is tried, by its subject; `shown` tells it again."""

    subject: str
    call: Callable[[], object]
    shown: str


@dataclass
class Found:
    """What came of cases: how many by subject and end, the slowest of each subject, and the finds."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest: dict[str, tuple[float, str]] = field(default_factory=dict)
    finds: list[str] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Tries a case."""
        # Of this thread, so that a busy machine makes nothing slow.
        begun = time.thread_time()
        end = "taken"
        try:
            case.call()
        except REFUSALS as error:
            end = "refused"
            text = str(error)
            if not text.strip() or len(text) > LONGEST_TEXT:
                self.finds.append(f"{case.subject}: a refusal of {len(text)} characters, for {case.shown}")
            elif odd := re.search(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]", text):
                self.finds.append(f"{case.subject}: {odd[0]!r} stands in the refusal {text[:200]!r}, for {case.shown}")
        except Exception as error:
            end = "failed"
            self.finds.append(f"{case.subject}: {type(error).__name__}: {str(error)[:200]!r}, for {case.shown}")
        seconds = time.thread_time() - begun
        self.ends[case.subject, end] += 1
        if seconds > self.slowest.get(case.subject, (0.0, ""))[0]:
            self.slowest[case.subject] = (seconds, case.shown)
        if seconds > MOST_SECONDS:
            self.finds.append(f"{case.subject}: took {seconds:.1f} s, for {case.shown}")


def cases(seed: int) -> Iterator[Case]:
    """Cases without end, the same for a seed: three of five are job files."""
    chance = random.Random(seed)
    jobs = [job_text(DEMO), SHORT]
    values = [yaml.safe_load(text) for text in jobs]
    kinds = (*["text"] * 2, *["values"] * 4, *["identifier"] * 4)
    while True:
        kind = chance.choice(kinds)
        if kind == "identifier":
            subject = chance.choice(list(IDENTIFIERS))
            text = identifier(chance)
            yield Case(subject, lambda call=IDENTIFIERS[subject], text=text: call(text), _shown(text))
        elif kind == "text":
            text = broken_text(chance, chance.choice(jobs))
            yield Case("job file", lambda text=text: read_job(text), _shown(text))
        else:
            job = broken_values(chance, chance.choice(values))
            yield Case("job", lambda job=job: check_job(Job.from_dict(copy.deepcopy(job))), _shown(job))


def read_job(text: str) -> None:
    """As from a file, where the text can be one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.yaml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        read_text(file)
        check_job(Job.load(file))


def open_workspace(url: str) -> Workspace:
    """A store that would be asked over the network is not what is tried here."""
    schemes = [link.partition("://")[0] for link in url.split("::") if "://" in link]
    return Workspace(url if set(schemes) <= set(SCHEMES) else url.replace("://", ""))


def check_job(job: Job) -> None:
    """A job that was taken is JSON, says the same when it is read again, and has its names."""
    values = job.to_dict()
    json.dumps(values, allow_nan=False).encode()
    assert Job.from_dict(values, job.folder).to_dict() == values, "it reads differently the second time"
    job.search_digest()


def identifier(chance: random.Random) -> str:
    """An example with something done to it, or something else altogether."""
    if chance.random() < 0.02:
        part = chance.choice(PARTS) or " "
        return part * (MEGABYTE // len(part))
    text = chance.choice((*EXAMPLES, *PARTS))
    for _ in range(chance.randrange(4)):
        text = _broken(chance, text, PARTS)
    return f"{chance.choice(SCHEMES)}://{text}" if chance.random() < 0.1 else text


def broken_text(chance: random.Random, text: str) -> str:
    """A job file with something done to its text."""
    if chance.random() < 0.01:
        return chance.choice(BOMBS)()
    lines = text.splitlines(keepends=True)
    if chance.random() < 0.5:
        lines = [lines[place] for place in sorted(chance.sample(range(len(lines)), chance.randrange(1, len(lines))))]
    for _ in range(chance.randrange(3)):
        place = chance.randrange(len(lines) + 1)
        lines[place:place] = [f"{' ' * chance.randrange(6)}{chance.choice((*YAML, *PARTS))}{chance.choice(YAML)}\n"]
    text = "".join(lines)
    for _ in range(chance.randrange(3)):
        text = _broken(chance, text, (*YAML, *PARTS))
    return text[: MEGABYTE + 1]


def broken_values(chance: random.Random, job: dict[str, Any]) -> Any:
    """A job as values, one to three of them something else."""
    job = copy.deepcopy(job)
    for _ in range(chance.randrange(1, 4)):
        places = list(_places(job))
        if not places:
            return _odd(chance)
        inside, key = chance.choice(places)
        how = chance.randrange(4)
        if how == 0:
            del inside[key]
        elif how == 1 and isinstance(inside, dict):
            inside[chance.choice((str(key)[:-1], f"{key}s", *PARTS))] = inside[key]
        elif how == 2 and isinstance(inside[key], str):
            inside[key] = _broken(chance, inside[key], PARTS)
        else:
            inside[key] = _odd(chance)
    return job


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _odd(chance: random.Random) -> Any:
    """A value that hardly any field takes."""
    text = chance.choice((*PARTS, *EXAMPLES))
    whole = chance.choice((0, -1, 1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400))
    many = chance.choice((3, 3, 3, MEGABYTE // 400))
    makers: tuple[Callable[[], Any], ...] = (
        lambda: chance.choice((None, True, False, [], {}, {"": None})),
        lambda: whole,
        lambda: float(chance.choice(("nan", "inf", "-inf", "1e308", "-0.0", "5e-324"))),
        lambda: text,
        lambda: text * many,
        lambda: [text] * many,
        lambda: {text: text},
        lambda: {f"k{n}": n for n in range(many)},
        lambda: f"{whole}{chance.choice(('x', 'GiB', 'ms', 'k', '%', ' tokens'))}",
        lambda: _nested(chance, text),
    )
    return chance.choice(makers)()


def _nested(chance: random.Random, value: Any) -> Any:
    for _ in range(chance.choice((1, 5, 200))):
        value = [value] if chance.random() < 0.5 else {"a": value}
    return value


def _broken(chance: random.Random, text: str, parts: tuple[str, ...]) -> str:
    """Something put in, taken out, given twice or changed."""
    low = chance.randrange(len(text) + 1)
    high = min(len(text), low + chance.randrange(1, 9))
    how = chance.randrange(4)
    middle = (chance.choice(parts), "", text[low:high] * 2, chr(chance.choice((chance.randrange(256), 0x10FFFF))))[how]
    return text[:low] + middle + (text[low:] if how == 0 else text[high:])


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else ascii(value)
    return text if len(text) <= 300 else f"{text[:200]}... ({len(text)} characters)"
