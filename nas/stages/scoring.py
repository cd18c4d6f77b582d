"""The score table of a search: true scores, or estimates where nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inlay.nas.loop.search import Search
from inlay.nas.pieces.standard_error import Values
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.weights import Library
from inlay.nas.stages.calibrate import inputs_of
from inlay.nas.stages.estimates import are_estimated, estimate_blocks, estimate_matrices
from inlay.nas.stages.mixing import mixes_of
from inlay.nas.stages.score import ScoredBlock, score_blocks, score_whole
from inlay.nas.tables.architecture import OWN_CACHE, Block
from inlay.nas.tables.scores import BASE, ScoreTable
from inlay.nas.workspace import INPUTS_FILE


@dataclass(frozen=True)
class Scored:
    """What `score` found.

    Args:
        rows: of the score table.
        scored: the KL of each block sequence by sequence, where all of it was taken.
        note: what people are told.
        metrics: the same for the tracker.
    """

    rows: list[dict[str, Any]]
    scored: dict[tuple[int, Block], Values]
    note: str
    metrics: dict[str, float]

    def with_blocks(self, more: Sequence[ScoredBlock], what: str) -> Scored:
        """With the scores of more blocks, which people are told as `what`."""
        parts = {(one.layer, one.block): one.added_N for one in more}
        rows = sorted([*self.rows, *(one.row() for one in more)], key=_place)
        return replace(self, rows=rows, scored={**self.scored, **parts}, note=f"{self.note}, then {what}")


def _place(row: Mapping[str, Any]) -> tuple[bool, int]:
    """Where a row stands: by layer, what the whole model is stored in behind all."""
    return int(row["layer"]) < 0, int(row["layer"])


def score_all(search: Search, texts: Texts, library: Library) -> Scored:
    """Scores what the solver may choose; where formats are chosen, what they are weighed by is gathered first."""
    weigh_formats(search, texts)
    if are_estimated(search.job):
        estimated, error = estimate_blocks(search, texts.score)
        whole = score_whole(search, texts.score, library)
        rows = [one.row() for one in estimated] + [{**one.row(), "estimated_nats": None} for one in whole]
        note = f"{len(estimated)} estimates, off by {100 * error:.0f} % (median of those checked)"
        return Scored(rows, {}, note, {"estimate_error": error})
    found = score_blocks(search, texts.score, library)
    rows = [one.row() for one in found]
    gammas = ScoreTable.of(rows).gammas
    parts = {(one.layer, one.block): one.added_N for one in found}
    bases = [found[0].base.kl_N] if found[0].base is not None else []
    bases += [one.added_N for one in found if one.block == (OWN_CACHE,)]
    if bases:
        parts[BASE] = sum(bases[1:], bases[0])
    return Scored(rows, parts, f"{len(rows)} blocks, {gammas}", {"gamma": gammas.common})


def mix_formats(search: Search, texts: Texts) -> int:
    """Finds in which mixes of formats subblocks are offered, where the job lets their matrices differ; how many."""
    if not search.job.space.mixes_forms:
        return 0
    weigh_formats(search, texts)
    nats = estimate_matrices(search, texts.score)
    search.mixes = mixes_of(search.parent.shape, search.job.space.forms, nats)
    return len({(slot, stored) for (_, slot), own in search.mixes.items() for stored in own})


def weigh_formats(search: Search, texts: Texts) -> None:
    """Gathers what rounding is weighed by, where the job chooses formats."""
    if search.job.space.formats:
        search.inputs = inputs_of(search, texts.distill)
        search.workspace.write_json(INPUTS_FILE, search.inputs)
