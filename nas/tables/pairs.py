"""Reading pair terms: what the score gains or loses when two choices of different layers are both taken. No torch here.

One row a pair: `layer`, `variant`, `other_layer`, `other_variant`, and a column named as the scores are.
"""

from __future__ import annotations

from pathlib import Path

from inlay.nas.errors import UserError
from inlay.nas.problems import did_you_mean, show
from inlay.nas.tables.files import SCORES, Column
from inlay.nas.tables.reading import read_arrow
from inlay.solver import MAX_TOTAL, PairTerm, Problem

SIDES = (("layer", "variant"), ("other_layer", "other_variant"))


def read_pairs(path: Path, problem: Problem, score: Column) -> tuple[PairTerm, ...]:
    """The pair terms of a table, for the choices of `problem`, in units of its `score`.

    Raises UserError, which names the row, the value and the way out, for choices that are not there, two of one layer,
    pairs given twice, and values that are no finite numbers.
    """
    table = read_arrow(path)
    held = {name.strip(): column.to_pylist() for name, column in zip(table.column_names, table.columns, strict=True)}
    needed = [name for side in SIDES for name in side]
    value = next((name for name in (score.name, *SCORES) if name in held), score.name)
    for name in (*needed, value):
        if name not in held:
            raise UserError(
                f"--pairs: {path.name} has no column `{name}`; it takes {', '.join(needed)} and `{score.name}` "
                f"(found: {', '.join(map(show, list(held)[:8]))})"
            )
    places = [{choice.label: index for index, choice in enumerate(layer)} for layer in problem.layers]
    found: dict[tuple[tuple[int, int], tuple[int, int]], PairTerm] = {}
    for row in range(table.num_rows):
        where = f"--pairs: {path.name}: row {row + 1}"
        first, second = sorted(_choice(where, places, held[a][row], held[b][row], (a, b)) for a, b in SIDES)
        if first[0] == second[0]:
            raise UserError(f"{where} joins two variants of layer {first[0]}; a pair is of two layers")
        if (first, second) in found:
            raise UserError(f"{where} gives a pair that an earlier row has; give each pair once")
        found[first, second] = PairTerm(first, second, _amount(where, value, held[value][row], score))
    return tuple(found.values())


def _choice(
    where: str, places: list[dict[str, int]], layer: object, variant: object, names: tuple[str, str]
) -> tuple[int, int]:
    if isinstance(layer, bool) or not isinstance(layer, int | float) or layer not in range(len(places)):
        raise UserError(f"{where}: `{names[0]}` is {show(layer)}; the layers are 0 to {len(places) - 1}")
    held = places[int(layer)]
    if str(variant) not in held:
        hint = did_you_mean(str(variant), held)
        known = ", ".join(list(held)[:8]) + (", ..." if len(held) > 8 else "")
        raise UserError(f"{where}: layer {int(layer)} has no variant {show(variant)}; {hint}it has {known}")
    return int(layer), held[str(variant)]


def _amount(where: str, name: str, value: object, score: Column) -> int:
    """A value in units of the score; it is a whole number where all scores are."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) * score.scale < MAX_TOTAL:
        raise UserError(f"{where}: `{name}` is {'empty' if value is None else value}; write a finite number")
    if score.scale == 1 and value != int(value):
        raise UserError(f"{where}: `{name}` is {value}, but all scores are whole numbers; write one here too")
    return round(value * score.scale)
