"""The model card: what the child is, how good and how fast beside its parent and the baselines, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inlay.nas.export.folder import public_name
from inlay.nas.job import Job
from inlay.version import __version__


def card(evaluation: Mapping[str, Any], job: Job, library: str, use: Sequence[str]) -> str:
    """The card as Markdown.

    Args:
        evaluation: figures by model, and which of them is `chosen`.
        job: the search's.
        library: the program that the folder is for, a tag of the card.
        use: the lines of the section on how to load or serve it.
    """
    chosen = str(evaluation["chosen"])
    name = job.original or job.parent
    through = " by way of an earlier child of it" if job.original else ""
    names = ["parent", *(n for n in ("child", "uniform", "depth") if n in evaluation)]
    rows = [evaluation[name] for name in names]
    table = [
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        _line("KL to the parent, nats per token", rows, _kl),
        _line("perplexity", rows, lambda r: f"{r['perplexity']:.2f}"),
        _line("same first choice as the parent", rows, lambda r: f"{100 * r['top1_agreement']:.1f} %"),
        *(each for source in rows[0].get("sources", {}) for each in _of_source(source, rows)),
        _line("parameters", rows, lambda r: f"{r['parameters']:,}"),
        _line("weights, bytes", rows, lambda r: f"{r['weights_bytes']:,}"),
        *([_line("keys and values in", rows, lambda r: str(r["kv_format"]))] if rows[0].get("kv_format") else []),
        _line("prefill, tokens per second", rows, lambda r: f"{r['prefill_tokens_per_second']:,.0f}"),
        _line("decode, tokens per second", rows, lambda r: f"{r['decode_tokens_per_second']:,.0f}"),
    ]
    architecture = [f"| {i} | `{a}` | `{f}` |" for i, (a, f, *_) in enumerate(evaluation[chosen]["architecture"])]
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            "tags: [inlay, neural-architecture-search, distillation]",
            "---",
            "",
            f"# A faster {Path(name).name}",
            "",
            f"Made by inlay {__version__} from `{public_name(name, job)}`{through} under the budget "
            f"`{json.dumps(job.budget.to_dict())}` (this folder holds `{chosen}`). "
            "Figures are of held-out text, with 95 % intervals by its documents, and of the machine of the search.",
            "",
            *table,
            "",
            *use,
            "",
            "## Layer by layer",
            "",
            "| layer | attention | ffn |",
            "|---|---|---|",
            *architecture,
            "",
            *(["`parent` is what the earlier child had there.", ""] if job.original else []),
            "The whole job and the architecture are in `inlay_recipe.json`.",
            "",
        ]
    )


def _of_source(name: str, rows: list[Mapping[str, Any]]) -> list[str]:
    own = [row["sources"][name] for row in rows]
    return [
        _line(f"KL to the parent on `{Path(name).name}`", own, _kl),
        _line(f"perplexity on `{Path(name).name}`", own, lambda r: f"{r['perplexity']:.2f}"),
    ]


def _kl(row: Mapping[str, Any]) -> str:
    """With the 95 % interval where it is known and not nothing."""
    low, high = row.get("kl_low"), row.get("kl_high")
    interval = "" if low is None or low == high else f" ({low:.4f} to {high:.4f})"
    return f"{row['kl_nats']:.4f}{interval}"


def _line(title: str, rows: list[Mapping[str, Any]], show: Any) -> str:
    return f"| {title} | " + " | ".join(show(row) for row in rows) + " |"
