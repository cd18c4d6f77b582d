"""Checks that need more than one section of a job, run on whichever sections are right on their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inlay.cluster.urls import has_password
from inlay.nas.families.registered import check_registered_form, is_registered
from inlay.nas.job.locations import EMBEDDED, is_hub_id, resolve
from inlay.nas.job.sections import sources_by_field
from inlay.nas.problems import Problem, did_you_mean, plain_key, show
from inlay.nas.variants.kind import LISTS
from inlay.nas.variants.registry import KINDS

_STORE_KEYS = "the store's own variables, such as AWS_SECRET_ACCESS_KEY"
_URLS = {
    "parent": _STORE_KEYS,
    "original": _STORE_KEYS,
    "hardware.costs": _STORE_KEYS,
    "tracking.uri": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI",
    "cluster.address": "RAY_AUTH_TOKEN_PATH",
}
_WITH_REGISTRY = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc")
"""Kinds of MLflow stores that have one."""
EMBEDDED_PARENT = "inlay:pystdlib"
EMBEDDED_TEXTS = ("inlay:pystdlib/train", "inlay:pystdlib/held_out")


def cross_problems(sections: Mapping[str, Any], folder: Path) -> list[Problem]:
    """Problems between fields; a check whose sections are not there is left out."""
    found = _passwords(sections)
    if "parent" in sections:
        found += _parents(sections["parent"], sections.get("original"), sections.get("revision"), folder)
    if "data" in sections:
        found += _texts(sections["data"], folder)
        found += _token_counts(sections)
    if "hardware" in sections and "cluster" in sections:
        found += _shares(sections["cluster"], sections["hardware"])
    if "hardware" in sections:
        found += _scenarios(sections["hardware"])
        if "budget" in sections:
            found += _budget(sections["budget"], [scenario.name for scenario in sections["hardware"].scenarios])
    if "recover" in sections:
        found += _ranks(sections)
        if "data" in sections and sections["recover"].tail.tokens:
            found += _tail(sections["recover"], sections["data"].distill)
    if "tracking" in sections:
        found += _registry(sections["tracking"])
    if "space" in sections and "distill" in sections and not sections["distill"].tokens:
        found += _untrained(sections["space"])
    given = "hardware" in sections and sections["hardware"].costs is not None
    if given and "space" in sections and sections["space"].mixes_forms:
        text = "has no times of subblocks whose matrices differ, which are found in the search; leave it out, or set"
        found.append(Problem("hardware.costs", f"{text} space.formats.by to subblock"))
    if sections.get("rounds", 1) > 1:
        found += _rounds(sections)
    elif sections.get("original") is not None and "hardware" in sections and sections["hardware"].costs is not None:
        text = "has no times of the original, which budgets and figures are relative to; leave it out"
        found.append(Problem("hardware.costs", text))
    return found


def _passwords(sections: Mapping[str, Any]) -> list[Problem]:
    """URLs with a password: a job is kept with its results and shown in MLflow."""
    found = []
    if "data" in sections:
        sources = _sources(sections["data"])
        found += [Problem(field, _password(_STORE_KEYS)) for field, path in sources if has_password(path)]
    for field, way_out in _URLS.items():
        value: Any = sections
        for name in field.split("."):
            value = value.get(name) if isinstance(value, Mapping) else getattr(value, name)
            if value is None:
                break
        if isinstance(value, str) and has_password(value):
            found.append(Problem(field, _password(way_out)))
    return found


def _password(way_out: str) -> str:
    return f"has a password in it, which would be kept with the results; leave it out and set {way_out}"


def _sources(data: Any) -> list[tuple[str, str]]:
    """Field and path of every source."""
    named = {**sources_by_field(data.distill, "distill"), **sources_by_field(data.validate, "validate")}
    return [(field, source.path) for field, source in named.items()]


def _parents(parent: str, original: str | None, revision: str | None, folder: Path) -> list[Problem]:
    named = {"parent": parent} if original is None else {"parent": parent, "original": original}
    for field, name in named.items():
        if name.startswith(EMBEDDED) and name != EMBEDDED_PARENT:
            return [Problem(field, f"{show(name)} does not ship with inlay; write {EMBEDDED_PARENT}")]
        if is_registered(name):
            try:
                check_registered_form(name)
            except ValueError as error:
                return [Problem(field, f"{show(name)} {error}")]
    hubs = [name for name in named.values() if is_hub_id(name, folder)]
    if hubs and not revision:
        text = f"is missing; the hub id {hubs[0]} needs its commit, so that the parent stays the same"
        return [Problem("revision", f"{text} (if a folder was meant: {folder / hubs[0]} is not there)")]
    if len(hubs) > 1:
        return [
            Problem("original", f"{show(hubs[1])} is a hub id, and so is the parent; name a folder for one of them")
        ]
    if revision and not hubs:
        what = "registered model" if is_registered(parent) else "folder"
        return [Problem("revision", f"{show(revision)} has no meaning for the {what} {parent}; leave it out")]
    return []


def _rounds(sections: Mapping[str, Any]) -> list[Problem]:
    rounds, found = sections["rounds"], []
    if "recover" in sections and not sections["recover"].tokens:
        text = f"{rounds} rounds go on from recovered children, and recover.tokens is 0; give it tokens, or write 1"
        found.append(Problem("rounds", text))
    if "data" in sections:
        length = sections["data"].distill.sequence_length
        counts = {f"{name}.tokens": sections[name].tokens for name in ("distill", "recover") if name in sections}
        found += [
            Problem(
                "rounds",
                f"{rounds} leave {tokens // rounds} of {field} to each, less than one sequence of {length} tokens; "
                f"raise {field}, or write fewer rounds",
            )
            for field, tokens in counts.items()
            if tokens // rounds < length <= tokens
        ]
    if "space" in sections and sections["space"].formats:
        text = "are chosen anew by every search, and what rounds hand on is not stored in them; leave them out"
        found.append(Problem("space.formats", f"{text}, and search for formats from the last child"))
    if "hardware" in sections and sections["hardware"].costs is not None:
        text = "has no times of what children of children are made of; leave it out, or write rounds: 1"
        found.append(Problem("hardware.costs", text))
    if sections.get("original") is not None:
        found.append(Problem("original", "is what the rounds set themselves; leave it out, or write rounds: 1"))
    return found


def _registry(tracking: Any) -> list[Problem]:
    if tracking.register is None:
        if tracking.alias is None:
            return []
        text = f"{show(tracking.alias)} is the alias of nothing, since tracking.register names no model; set it too"
        return [Problem("tracking.alias", text)]
    scheme = tracking.uri.partition(":")[0].partition("+")[0] if tracking.uri is not None else None
    if scheme is None or scheme in _WITH_REGISTRY:
        return []
    text = f"{show(tracking.register)} needs a registry of models, and the store {tracking.uri} has none; set"
    return [Problem("tracking.register", f"{text} tracking.uri to a server, a database or sqlite:///mlflow.db")]


def _texts(data: Any, folder: Path) -> list[Problem]:
    found = [
        Problem(field, f"{show(path)} does not ship with inlay; write {' or '.join(EMBEDDED_TEXTS)}")
        for field, path in _sources(data)
        if path.startswith(EMBEDDED) and path not in EMBEDDED_TEXTS
    ]
    trained = {resolve(source.path, folder) for source in sources_by_field(data.distill, "distill").values()}
    for field, source in sources_by_field(data.validate, "validate").items():
        if resolve(source.path, folder) in trained:
            text = f"{show(source.path)} is the text that is trained on; name another, else quality looks better"
            found.append(Problem(field, f"{text} than it is"))
    return found


def _token_counts(sections: Mapping[str, Any]) -> list[Problem]:
    data = sections["data"]
    length, own = data.distill.sequence_length, data.validate.sequence_length
    if own is not None and own < length:
        text = f"{own} is less than data.distill.sequence_length; write at least {length}, or leave it out"
        return [Problem("data.validate.sequence_length", text)]
    judged = data.judged_length(sections["hardware"].scenarios if "hardware" in sections else ())
    found = []
    if (tokens := data.validate.tokens) < 2 * judged:
        served = own is None and judged > length
        way_out = (
            " (the longest scenario's); raise it, or set data.validate.sequence_length" if served else "; raise it"
        )
        text = f"{tokens} is less than {_sequences(2)} of {judged} tokens{way_out}"
        found.append(Problem("data.validate.tokens", text))
    counts = {f"{name}.tokens": sections[name].tokens for name in ("distill", "recover") if name in sections}
    return found + [
        Problem(
            field, f"{tokens} is less than {_sequences(1)} of {length} tokens; raise it, or write 0 to train nothing"
        )
        for field, tokens in counts.items()
        if 0 < tokens < length
    ]


def _shares(cluster: Any, hardware: Any) -> list[Problem]:
    if hardware.device != "cpu":
        return []
    found = []
    if cluster.gpus_per_worker:
        text = f"{cluster.gpus_per_worker:g} books GPUs, but hardware.device is cpu; leave it out, or set the device"
        found.append(Problem("cluster.gpus_per_worker", text))
    if hardware.gpu:
        text = f"{show(hardware.gpu)} is a kind of GPU, but hardware.device is cpu; leave it out, or set the device"
        found.append(Problem("hardware.gpu", text))
    return found


def _scenarios(hardware: Any) -> list[Problem]:
    names = [scenario.name for scenario in hardware.scenarios]
    twice = [name for name, count in Counter(names).items() if count > 1]
    return [
        Problem(
            f"hardware.scenarios[{len(names) - 1 - names[::-1].index(name)}].name",
            f"{show(name)} is there twice; give each scenario its own name",
        )
        for name in twice
    ]


def _budget(budget: Any, names: list[str]) -> list[Problem]:
    unknown = dict.fromkeys(
        limit.scenario for limit in budget if limit.scenario is not None and limit.scenario not in names
    )
    return [
        Problem(
            f"budget.{plain_key(name)}",
            f"no such scenario; {did_you_mean(name, names)}known scenarios: {', '.join(names)}",
        )
        for name in unknown
    ]


def _ranks(sections: Mapping[str, Any]) -> list[Problem]:
    recover = sections["recover"]
    ranks = recover.workers
    found = []
    if recover.batch_size is not None and recover.batch_size % ranks:
        text = f"{ranks} ranks cannot share a batch of {recover.batch_size} sequences evenly; make it a divisor of"
        found.append(Problem("recover.workers", f"{text} recover.batch_size"))
    if recover.sharding == "full" and ranks == 1:
        text = "'full' has nothing to share the weights with; set recover.workers to at least 2, or leave it out"
        found.append(Problem("recover.sharding", text))
    if recover.train == "adapters" and "space" in sections and sections["space"].formats:
        text = (
            "'adapters' leave the matrices as they are, and a child in formats is trained through their rounding; set"
        )
        found.append(Problem("recover.train", f"{text} it to all, or leave space.formats out"))
    if recover.train == "replaced" and "space" in sections and sections["space"].formats_alone:
        text = "'replaced' would train nothing: with formats alone nothing replaces the parent's; leave it out"
        found.append(Problem("recover.train", text))
    if ranks > 1 and "hardware" in sections and ":" in (device := sections["hardware"].device):
        text = f"{ranks} ranks cannot all use the device {device}; set hardware.device to cuda, and each gets its own"
        found.append(Problem("recover.workers", text))
    most = sections["cluster"].max_workers if "cluster" in sections else None
    if most is not None and ranks > 1 and most < ranks:
        text = f"{ranks} ranks need as many of the job's workers, and cluster.max_workers is {most}; raise it"
        found.append(Problem("recover.workers", text))
    return found


def _tail(recover: Any, text: Any) -> list[Problem]:
    tail, found = recover.tail, []
    if tail.tokens > recover.tokens:
        told = f"{tail.tokens} is more than recover.tokens, {recover.tokens}, of which they are the last; lower it"
        found.append(Problem("recover.tail.tokens", told))
    if tail.sequence_length <= text.sequence_length:
        told = f"{tail.sequence_length} is not more than data.distill.sequence_length, {text.sequence_length}; raise it"
        found.append(Problem("recover.tail.sequence_length", told))
    if (batch := recover.tail_batch(text.sequence_length)) % recover.workers:
        told = f"{recover.workers} ranks cannot share the tail's batches of {_sequences(batch)} evenly; lower it, or"
        found.append(Problem("recover.tail.sequence_length", f"{told} raise recover.batch_size"))
    if not text.path:
        told = "the parent writes no longer sequences for a tail; name a text in data.distill.path, or leave it out"
        found.append(Problem("recover.tail.tokens", told))
    return found


def _untrained(space: Any) -> list[Problem]:
    """Alternatives that local distillation makes, where the job has none."""
    found = []
    for listed in LISTS:
        for place, item in enumerate(getattr(space, listed)):
            names = [item] if isinstance(item, str) else list(item)
            if any(KINDS[name].trained for name in names):
                text = (
                    f"{' with '.join(names)} is nothing before it is trained, and distill.tokens is 0; leave it out, "
                    "or give it tokens"
                )
                found.append(Problem(f"space.{listed}[{place}]", text))
    return found


def _sequences(count: int) -> str:
    return "one sequence" if count == 1 else f"{count} sequences"
