"""Second-order estimates of structural variants beside their true scores: whether they could stand in for them.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/structure_estimates.py [--parent stories3M] [--draws 4]

The estimate of a variant is half the mean square of what it changes of the log-likelihood of tokens that the parent
draws itself, to first order: the gradient behind its subblock times what it adds beyond the parent's own, summed over a
sequence, from backward passes of the parent. On the score text, as the true scores are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from guided import job_of, opened
from machine import footer
from searches import split_text

from inlay.nas.pieces.boundaries import worker_source
from inlay.nas.pieces.texts import load_ids
from inlay.nas.pieces.weights import WorkerSource
from inlay.nas.stages.distill import build_library, library_of
from inlay.nas.stages.score import score_blocks
from inlay.nas.tables.architecture import PARENT_BLOCK, kind_of

Place = tuple[int, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=["stories260K", "stories3M"])
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "structure_estimates.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Second-order estimates of structural variants",
        "",
        "Over all variants of all layers that change one subblock: rank correlation (Spearman) of estimate and true",
        "score, the median of estimate / true, and the median and the largest of how far estimates are off once each",
        f"kind's are scaled by its own median. Variants had {options.tokens:,} tokens; {options.draws} draws.",
        "",
        "| parent | of | variants | Spearman | estimate / true | off, median | off, most |",
        "|---|---|---|---|---|---|---|",
    ]
    for parent in options.parent:
        with tempfile.TemporaryDirectory() as folder:
            split_text(Path(folder))
            true, found, trained = both(parent, options.tokens, options.draws, Path(folder))
        kinds = {place: kind_of(place[1]) for place in true}
        groups = {kind: [p for p in true if kinds[p] == kind] for kind in sorted(set(kinds.values()))}
        scales = {kind: median(found[p] / true[p] for p in held) for kind, held in groups.items()}
        for name, held in {"all": [*true], "all that is trained": trained, **groups}.items():
            off = [abs(found[p] / scales[kinds[p]] / true[p] - 1) for p in held]
            ratio = median(found[p] / true[p] for p in held)
            rank = spearman([found[p] for p in held], [true[p] for p in held])
            lines.append(
                f"| {parent} | {name} | {len(held)} | {rank:.3f} | {ratio:.2f} | {median(off):.2f} | {max(off):.2f} |"
            )
    lines += ["", f"Written by `benchmarks/structure_estimates.py`. {footer()}", ""]
    options.output.write_text("\n".join(lines))
    print("\n".join(lines))


def both(
    parent: str, tokens: int, draws: int, folder: Path
) -> tuple[dict[Place, float], dict[Place, float], list[Place]]:
    """True scores and estimates of single variants, and which of them are trained."""
    job = job_of(parent, "runtime=0.6x", folder)
    job = job.model_copy(update={"distill": job.distill.model_copy(update={"tokens": tokens})})
    search, texts = opened(job, folder / "estimates.search")
    library = library_of(build_library(search, texts.distill))
    true: dict[Place, float] = {}
    for one in score_blocks(search, texts.score, library):
        changed = set(one.block) - set(PARENT_BLOCK)
        if len(changed) == 1:
            true[one.layer, changed.pop()] = one.comparison.kl_nats
    source = worker_source({"store": search.workspace.url, **search.base}, library)
    found = estimates(source, texts.score.digest, [*true], draws)
    return true, found, [place for place in true if library.has(*place)]


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
