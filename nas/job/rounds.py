"""What each of several rounds gets: an equal share of the tokens, and a budget on the way to the job's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from inlay.nas.job.budget import SCENARIO_FREE, UNITS, Budget, BudgetLimit
from inlay.nas.job.model import Job


def round_values(job: Job, number: int, parent: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The job of one round, as `Job.from_dict` takes it, but for its parent: tokens, budget, and a seed of its own, so
    that no round trains on the text of another. The last one's child alone is registered.

    Args:
        job: the whole one.
        number: of the round, from 1.
        parent: the parent's quantities by scenario and name, as far as absolute limits need them.
    """
    values = job.to_dict()
    for part in ("distill", "recover"):
        values[part]["tokens"] //= job.rounds
    values["recover"]["tail"]["tokens"] //= job.rounds
    if number < job.rounds:  # what a name in a registry stands for meets the job's own budget
        values["tracking"] |= {"register": None, "alias": None}
    budget = tightened(job.budget, Fraction(number, job.rounds), parent)
    return {**values, "rounds": 1, "seed": job.seed + number - 1, "budget": budget}


def tightened(budget: Budget, way: Fraction, parent: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Every limit at some share of the way from the parent's own value to what it is, geometrically.

    A limit of which `parent` does not tell the value, or that limits nothing, stays as it is.

    Args:
        budget: the limits in the end.
        way: 1 is the end; then everything is as it was written.
        parent: the parent's quantities by scenario and name; needed for absolute limits only.
    """
    if way == 1:
        return budget.to_dict()
    written: dict[str, Any] = {}
    for limit in budget:
        if limit.ratio is not None:
            _put(written, limit.scenario, limit.name, f"{float(limit.ratio) ** float(way):.6g}x")
            continue
        values = dict(_values(limit, parent))
        if not values:
            _put(written, limit.scenario, limit.name, limit.text)
        for scenario, own in values.items():
            target = limit.against(own)
            idle = own >= target if limit.is_lower else own <= target
            amount = target if idle else own ** (1 - float(way)) * target ** float(way)
            _put(written, scenario, limit.name, _text(limit.name, amount))
    return written


def _values(limit: BudgetLimit, parent: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str | None, float]]:
    """The parent's value in every scenario that a limit holds in; once where all share it, or where there is one."""
    for scenario, own in parent.items():
        if limit.scenario in (None, scenario) and limit.name in own:
            shared = limit.name in SCENARIO_FREE or (limit.scenario is None and len(parent) == 1)
            yield None if shared else scenario, own[limit.name]
            if shared:
                return


def _put(written: dict[str, Any], scenario: str | None, name: str, text: str) -> None:
    (written if scenario is None else written.setdefault(scenario, {}))[name] = text


def _text(name: str, amount: float) -> str:
    return f"{amount:.6g}" if UNITS[name] == "tokens/s" else f"{round(amount)}{_UNIT[UNITS[name]]}"


_UNIT = {"ns": "ns", "bytes": "B", "": ""}
