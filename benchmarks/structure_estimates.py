"""Second-order estimates of structural variants beside their true scores: whether they could stand in for them.

    python benchmarks/structure_estimates.py WORKSPACE [WORKSPACE ...] [--draws 4]

Of finished searches whose variants were all trained in full. The estimate of a variant is half the mean square of what
it changes of the log-likelihood of tokens that the parent draws itself, to first order: the gradient behind its
subblock times what it adds to what the parent's own gives, summed over a sequence, from backward passes of the parent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from machine import footer

from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.texts import Texts, load_ids
from inlay.nas.pieces.weights import WorkerSource
from inlay.nas.stages.solutions import job_of, library_of_workspace
from inlay.nas.tables.architecture import PARENT_BLOCK, kind_of
from inlay.nas.workspace import Workspace

Place = tuple[int, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspaces", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "structure_estimates.md")
    options = parser.parse_args()
    lines = [
        "# Second-order estimates of structural variants",
        "",
        "Over all variants of all layers that change one subblock: rank correlation (Spearman) of estimate and true",
        "score, the median of estimate / true, and the median and the largest of how far estimates are off once each",
        "kind's are scaled by its own median. True scores are those of the search, on the same text.",
        "",
        "| parent | of | variants | Spearman | estimate / true | off, median | off, most |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder in options.workspaces:
        place = Workspace(folder)
        job, parent = job_of(place)
        arguments = {"parent": str(parent.folder), "store": place.url, "dtype": "float32", "device": "cpu"}
        source = worker_source(arguments, library_of_workspace(place))
        true = true_scores(place)
        found = estimates(source, Texts.from_dict(place.read_json("texts.json")).score.digest, [*true], options.draws)
        kinds = {place: kind_of(place[1]) for place in true}
        groups = {"all": [*true], "all that is trained": [p for p in true if source.library.has(*p)]}
        groups |= {kind: [p for p in true if kinds[p] == kind] for kind in sorted(set(kinds.values()))}
        scales = {kind: median(found[p] / true[p] for p in held) for kind, held in list(groups.items())[2:]}
        for name, held in groups.items():
            off = [abs(found[p] / scales[kinds[p]] / true[p] - 1) for p in held]
            ratio = median(found[p] / true[p] for p in held)
            rank = spearman([found[p] for p in held], [true[p] for p in held])
            lines.append(
                f"| {Path(job.parent).name} | {name} | {len(held)} | {rank:.3f} | {ratio:.2f} "
                f"| {median(off):.2f} | {max(off):.2f} |"
            )
    lines += ["", f"Written by `benchmarks/structure_estimates.py`, {options.draws} draws. {footer()}", ""]
    options.output.write_text("\n".join(lines))
    print("\n".join(lines))


def true_scores(place: Workspace) -> dict[Place, float]:
    """The scores of single variants."""
    rows = [row for row in place.read_table("scores") if row["layer"] >= 0]
    changed = {
        (int(row["layer"]), tuple({row["attention"], row["ffn"]} - set(PARENT_BLOCK))): float(row["kl_nats"])
        for row in rows
    }
    return {(layer, labels[0]): nats for (layer, labels), nats in changed.items() if len(labels) == 1}


def estimates(source: WorkerSource, ids: str, places: Sequence[Place], draws: int) -> dict[Place, float]:
    """Nats a token, of each variant at its layer."""
    modules = {place: source.subblock(place[0], slot_of(place[1]), place[1]) for place in places}
    own = {(layer, label): source.subblock(layer, slot_of(label), label)
           for layer in range(source.num_layers) for label in PARENT_BLOCK}  # fmt: skip
    sums, tokens = dict.fromkeys(places, 0.0), 0
    drawn = torch.Generator().manual_seed(0)
    for ids_S in torch.from_numpy(load_ids(source.store, ids).astype("int64")):
        context = source.context(1, len(ids_S))
        states, gradients = passed(source, own, ids_S, context, draws, drawn)
        tokens += len(ids_S) - 1
        with torch.no_grad():
            for place, module in modules.items():
                layer, label = place
                slot = slot_of(label)
                added = update(module, slot, states[layer, slot], context)
                change_BSD = added - update(own[layer, f"{slot}:parent"], slot, states[layer, slot], context)
                for gradient_BSD in gradients[layer, slot]:
                    sums[place] += float((gradient_BSD * change_BSD).sum()) ** 2 / 2 / draws
    return {place: total / tokens for place, total in sums.items()}


def passed(
    source: WorkerSource, own: dict[Place, Any], ids_S: Tensor, context: Any, draws: int, drawn: torch.Generator
) -> tuple[dict[Place, Tensor], dict[Place, list[Tensor]]]:
    """What each subblock of the parent reads, and the gradients behind it of the likelihood of tokens drawn from it."""
    ends, states, behind = source.ends(), {}, {}
    hidden_BSD = ends.embed(ids_S[None]).requires_grad_(True)
    for layer in range(source.num_layers):
        for label in PARENT_BLOCK:
            slot = slot_of(label)
            states[layer, slot] = hidden_BSD.detach()
            hidden_BSD = hidden_BSD + update(own[layer, label], slot, hidden_BSD, context)
            behind[layer, slot] = hidden_BSD
    logits_SV = (ends.norm(hidden_BSD)[0, :-1] @ ends.head_VD.T).float()
    found: dict[Place, list[Tensor]] = {place: [] for place in behind}
    for labels_S in labels(logits_SV, draws, drawn):
        loss = torch.nn.functional.cross_entropy(logits_SV, labels_S, reduction="sum")
        for place, gradient in zip(
            behind, torch.autograd.grad(loss, [*behind.values()], retain_graph=True), strict=True
        ):
            found[place].append(gradient)
    return states, found


def labels(logits_SV: Tensor, draws: int, drawn: torch.Generator) -> Iterator[Tensor]:
    for _ in range(draws):
        yield torch.multinomial(torch.softmax(logits_SV.detach(), -1), 1, generator=drawn).squeeze(1)


def update(module: Any, slot: str, hidden_BSD: Tensor, context: Any) -> Tensor:
    """What a subblock adds; nothing where none stands."""
    if module is None:
        return torch.zeros_like(hidden_BSD)
    added: Tensor = (
        module.attention_update(hidden_BSD, context) if slot == "attention" else module.ffn_update(hidden_BSD)
    )
    return added


def slot_of(label: str) -> Any:
    return label.partition(":")[0]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The correlation of ranks."""
    ranks = [np.argsort(np.argsort(np.asarray(values))) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    main()
