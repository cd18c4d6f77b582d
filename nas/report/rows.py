"""Tables of the page, and the two long ones that it can filter: candidates and blocks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence

from inlay.nas.report.architecture import Shares
from inlay.nas.report.pareto import ParetoRecord
from inlay.nas.report.records import PARENT_LABELS, LossRow, PoolRow, ScoreRow
from inlay.nas.tables.architecture import Block
from inlay.nas.variants import parse_variant

MOST_ROWS = 3000
"""Of a long table: what a page under 3 MB holds beside its charts."""


def table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in a box of its own, which scrolls where it is wider than the page."""
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<div class=table><table><thead><tr>{names}</tr></thead><tbody>{body(rows)}</tbody></table></div>"


def body(rows: Iterable[Iterable[object]]) -> str:
    """Rows of cells as text."""
    cells = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    return "".join(f"<tr>{row}</tr>" for row in cells)


def candidates_html(pool: Sequence[PoolRow], front: ParetoRecord) -> Iterator[str]:
    """Every architecture that was tried, best first, with a filter."""
    best = {each.id for each in front.front}
    drawn = {each.id: each for each in front.tried}
    rows = [
        (
            row.id,
            row.origin,
            f"{row.kl_nats:.4f}",
            f"{row.predicted_kl_nats:.4f}",
            f"{drawn[row.id].ratio:.3f}x",
            f"{drawn[row.id].predicted_ratio:.3f}x",
            "kept" if row.kept else "front" if row.id in best else "",
        )
        for row in sorted(pool, key=lambda row: row.kl_nats)
    ]
    yield from _filtered(
        "Candidates",
        ("candidate", "*origin", "KL", "predicted KL", "runtime", "predicted runtime", "*place"),
        rows,
        "tables/pool.parquet",
    )


def blocks_html(
    losses: Sequence[LossRow], scores: Sequence[ScoreRow], shares: Shares, child: Sequence[Block]
) -> Iterator[str]:
    """Every variant at every layer, with a filter: what it costs, how well it learnt its place, and its score alone."""
    learnt = {(row.layer, row.variant): row for row in losses}
    alone = {
        (row.layer, label): row.kl_nats for row in scores if row.layer >= 0 and (label := _single(row)) is not None
    }
    # Behind the two of the last layer stands what the whole model is stored in.
    stands = {(layer, label) for layer, block in enumerate(child) for label in block[:2]}
    places = {*learnt, *alone, *stands} | {(layer, label) for layer, label in shares if label in PARENT_LABELS}
    rows = []
    for layer, label in sorted(places, key=lambda place: (place[0], parse_variant(place[1]).rank)):
        variant, row = parse_variant(label), learnt.get((layer, label))
        share, kl_nats = shares.get((layer, label)), alone.get((layer, label))
        rows.append(
            (
                str(layer),
                label.split(":")[0],
                variant.kind,
                label.partition(":")[2],
                "" if share is None else f"{share:.2f}x",
                "" if row is None else "failed" if row.loss is None else f"{row.loss:.4f}",
                "" if kl_nats is None else f"{kl_nats:.4f}",
                "child" if (layer, label) in stands else "",
            )
        )
    head = ("*layer", "*subblock", "*kind", "variant", "time of the parent's", "local error", "KL alone", "*place")
    yield from _filtered("Blocks", head, rows, "tables/losses.parquet and tables/scores.parquet")


def _filtered(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], source: str) -> Iterator[str]:
    """`head` marks columns that a filter offers the values of by a star; what is left out is said with its `source`."""
    names = "".join(f"<th{' data-choose' * name.startswith('*')}>{name.lstrip('*')}</th>" for name in head)
    yield f"<h2>{title}</h2><div class='table long' data-filter={title.lower()}><table><thead><tr>{names}</tr></thead>"
    yield f"<tbody>{body(rows[:MOST_ROWS])}</tbody></table></div>"
    if len(rows) > MOST_ROWS:
        yield f"<p class=caption>The first {MOST_ROWS:,} of {len(rows):,}; all of them are in {source}.</p>"


def _single(row: ScoreRow) -> str | None:
    """The one variant that stands in for the parent's own, or None where both do."""
    if row.ffn == PARENT_LABELS[1]:
        return row.attention
    return row.ffn if row.attention == PARENT_LABELS[0] else None
