"""The `budget` section: limits on what the child may cost, absolute or relative to the parent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from inlay.nas.problems import FieldProblems, did_you_mean, plain_key, show
from inlay.nas.quantities import is_ratio, parse_bytes, parse_count, parse_nanoseconds, parse_number, parse_ratio

TIMES = ("runtime", "prefill", "decode")
PEAK = "memory_peak"
SIZES = ("memory", PEAK, "weights", "kv")
LIMIT_NAMES = ("runtime", "prefill", "decode", "throughput", "memory", PEAK, "weights", "kv", "parameters")
SCENARIO_FREE = ("weights", "parameters")
UNITS = dict.fromkeys(TIMES, "ns") | dict.fromkeys(SIZES, "bytes") | {"throughput": "tokens/s", "parameters": ""}


@dataclass(frozen=True)
class BudgetLimit:
    """One limit: an `amount` in the unit of its name (`UNITS`), or a `ratio` to the parent's value."""

    name: str
    text: str
    scenario: str | None = None
    amount: int | float | None = None
    ratio: Fraction | None = None

    @property
    def field(self) -> str:
        """Path in the job file: `budget.runtime` or `budget.chat.runtime`."""
        return f"budget.{self.scenario}.{self.name}" if self.scenario else f"budget.{self.name}"

    @property
    def is_lower(self) -> bool:
        """Whether the child must reach the value (throughput) and not stay below it."""
        return self.name == "throughput"

    def against(self, parent_value: float) -> float:
        """The limit in its unit, given the parent's value of the same quantity; integers stay exact."""
        if self.ratio is None:
            assert self.amount is not None
            return self.amount
        product = self.ratio * Fraction(parent_value)
        return float(product) if self.name == "throughput" else product.numerator // product.denominator


@dataclass(frozen=True)
class Budget:
    """All limits, in the order of the file."""

    limits: tuple[BudgetLimit, ...]

    def __iter__(self) -> Iterator[BudgetLimit]:
        return iter(self.limits)

    def __len__(self) -> int:
        return len(self.limits)

    def to_dict(self) -> dict[str, object]:
        """The mapping it was read from, values as text."""
        written: dict[str, object] = {}
        for limit in self.limits:
            if limit.scenario is None:
                written[limit.name] = limit.text
            else:
                keyed = written.setdefault(limit.scenario, {})
                assert isinstance(keyed, dict)
                keyed[limit.name] = limit.text
        return written


def parse_budget(value: object) -> Budget:
    """Reads `{runtime: 0.6x, chat: {memory: 24GiB}}`; raises FieldProblems naming every bad limit."""
    if isinstance(value, Budget):
        return value
    if not isinstance(value, Mapping):
        raise FieldProblems([("", f"{show(value)} is not a mapping; write for example {{runtime: 0.6x}}")])
    if not value:
        raise FieldProblems([("", "is empty; name at least one limit, for example {runtime: 0.6x}")])
    problems: list[tuple[str, str]] = []
    limits: list[BudgetLimit] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            for name, inner in item.items():
                _add(limits, problems, str(name), inner, scenario=str(key))
            if not item:
                problems.append(
                    (f".{plain_key(str(key))}", "is empty; name at least one limit, for example {runtime: 0.6x}")
                )
        else:
            _add(limits, problems, str(key), item, scenario=None)
    if problems:
        raise FieldProblems(problems)
    return Budget(tuple(limits))


def parse_limit(name: str, value: object, scenario: str | None = None) -> BudgetLimit:
    """Reads one limit, `parse_limit("runtime", "0.6x")`; raises ValueError with the sentence that follows the value."""
    text = str(value)
    if is_ratio(value):
        ratio = parse_ratio(value)
        if ratio <= 0:
            raise ValueError("is not positive; write a ratio to the parent such as 0.6x")
        if name != "throughput" and ratio > 1:
            raise ValueError("is more than the parent needs, so it limits nothing; write a ratio of at most 1x")
        if name == "throughput" and ratio < 1:
            raise ValueError("is less than the parent gives, so it limits nothing; write a ratio of at least 1x")
        return BudgetLimit(name, text, scenario, ratio=ratio)
    amount = _amount(name, value)
    if amount <= 0:
        raise ValueError(f"is not positive; write {_EXAMPLES[UNITS[name]]}")
    return BudgetLimit(name, text, scenario, amount=amount)


def _amount(name: str, value: object) -> int | float:
    if name in TIMES:
        return parse_nanoseconds(value)
    if name in SIZES:
        return parse_bytes(value, bare=False)
    if name == "throughput":
        bare = re.sub(r"\s*(tokens|tok)/s$", "", value) if isinstance(value, str) else value
        return parse_number(bare)
    return parse_count(value)


def _add(
    limits: list[BudgetLimit], problems: list[tuple[str, str]], name: str, value: object, scenario: str | None
) -> None:
    path = "".join(f".{plain_key(part)}" for part in (scenario, name) if part is not None)
    if name not in LIMIT_NAMES:
        hint = did_you_mean(name, LIMIT_NAMES)
        problems.append((path, f"unknown limit; {hint or ''}known limits: {', '.join(LIMIT_NAMES)}"))
        return
    if scenario is not None and name in SCENARIO_FREE:
        problems.append((path, f"does not depend on a scenario; write it as `budget.{name}`"))
        return
    try:
        limits.append(parse_limit(name, value, scenario))
    except ValueError as error:
        problems.append((path, f"{show(value)} {error}"))


_EXAMPLES = {
    "ns": "a time such as 20ms, or a ratio to the parent such as 0.6x",
    "bytes": "bytes such as 24GiB, or a ratio to the parent such as 0.6x",
    "tokens/s": "tokens per second such as 1200, or a ratio to the parent such as 2x",
    "": "a count such as 2M, or a ratio to the parent such as 0.6x",
}
