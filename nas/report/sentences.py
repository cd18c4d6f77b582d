"""The sentences of a running search, and how they are read back from its log."""

from __future__ import annotations

import re
from typing import Any

from inlay.cluster.cost import Cost
from inlay.nas.quantities import show_bytes, show_hours, show_seconds
from inlay.nas.report.time_left import Standing

_PROGRESS = re.compile(
    r"(?P<stage>[a-z]+) +(?:"
    r"(?P<doing>.+?)(?:, (?P<done>\d+) of (?P<total>\d+) [a-z]+)?(?: · (?P<round>round \d+ of \d+))? · search "
    r"(?:(?P<percent>\d+) %(?:, about (?P<left>.+?) left)?|stage \d+ of \d+)(?: · .* so far)?"
    r"|(?P<trouble>waiting: .*|.* retried: .*))"
)

_COST = re.compile(
    r"(?P<stage>[a-z]+) +(?:.*(?:, | · (?P=stage) ))?(?P<cpu>[\d.]+) CPU h(?:, (?P<gpu>[\d.]+) GPU h)?(?: so far|, .*)?"
)
_ROUND = re.compile(r"round \d+ of \d+")


def counted(number: int, noun: str) -> str:
    """`1 candidate`, `4 candidates`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def batch_words(what: str, done: int, total: int, unit: str) -> str:
    """`true KL of 4 candidates, 3 of 8 shards`; a single piece is not counted."""
    counted = f"{done} of {total} {unit}"
    if not what:
        return counted
    return f"{what}, {counted}" if total > 1 else what


def probe_words(first: int, last: int, total: int) -> str:
    """`probe 3 of 8`, `probes 3 to 4 of 8`."""
    return f"probe {first} of {total}" if first == last else f"probes {first} to {last} of {total}"


def round_words(number: int, rounds: int) -> str:
    """`round 2 of 3`."""
    return f"round {number} of {rounds}"


def search_words(standing: Standing) -> str:
    """`62 %, about 1 min 40 s left`; `62 %` where no time is known yet; `stage 3 of 7` where nothing was estimated."""
    if not standing.estimated:
        return f"stage {standing.stage} of {standing.num_stages}"
    share = f"{round(100 * standing.fraction)} %"
    return share if standing.seconds_left is None else f"{share}, {about(standing.seconds_left)} left"


def about(seconds: float) -> str:
    """`about 1 min 40 s`: as exact as an estimate is, never less than 5 s."""
    if seconds < 60:
        rounded = max(5, 5 * round(seconds / 5))
    elif seconds < 300:
        rounded = 10 * round(seconds / 10)
    else:
        rounded = 60 * round(seconds / 60)
    if rounded >= 3600:
        return f"about {show_seconds(rounded)}"
    minutes, rest = divmod(rounded, 60)
    return "about " + " ".join(part for part in (f"{minutes} min" * bool(minutes), f"{rest} s" * bool(rest)) if part)


def finished_words(seconds: float, peak_bytes: int | None, cost: Cost, note: str) -> str:
    """`48 s, 310 MiB, 0.013 CPU h, 40 variants`."""
    memory = show_bytes(peak_bytes) if peak_bytes else ""
    return ", ".join(filter(None, (show_seconds(seconds), memory, cost_words(cost) if cost else "", note)))


def cost_words(cost: Cost) -> str:
    """`0.013 CPU h`, `12 CPU h, 1.5 GPU h`."""
    gpus = f", {show_hours(cost.gpu_hours)} GPU h" if cost.gpu_hours else ""
    return f"{show_hours(cost.cpu_hours)} CPU h{gpus}"


def read_costs(log: str) -> dict[str, Cost]:
    """What each stage has cost by a run's log: by the last line of it that tells, over all rounds together."""
    found: dict[tuple[int, str], Cost] = {}
    number = 0
    for line in map(str.strip, log.splitlines()):
        if _ROUND.fullmatch(line):
            number += 1
        elif told := _COST.fullmatch(line):
            found[number, told["stage"]] = Cost(float(told["cpu"]), float(told["gpu"] or 0))
    costs: dict[str, Cost] = {}
    for (_, stage), cost in found.items():
        costs[stage] = costs.get(stage, Cost()) + cost
    return costs


def read_progress(log: str) -> dict[str, Any] | None:
    """The last line of a run's log that tells how far it is: `stage`, `doing`, `done`, `total`, `percent` of the whole
    search, `round` (`round 2 of 3`, where there are several: the search is then that one), `time_left` and the `line`.
    What the line does not have is None.
    """
    for line in reversed(log.splitlines()):
        if found := _PROGRESS.fullmatch(line.strip()):
            numbers = {name: int(found[name]) if found[name] else None for name in ("done", "total", "percent")}
            return {
                "stage": found["stage"],
                "doing": found["doing"] or found["trouble"],
                **numbers,
                "round": found["round"],
                "time_left": found["left"],
                "line": " ".join(line.split()),
            }
    return None
