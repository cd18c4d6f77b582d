"""Interactions between layers: do pair terms predict the KL of a whole model better, and is what they choose better?

    python benchmarks/pair_terms.py WORKSPACE [WORKSPACE ...] [--sequences N] [--output results/pair_terms.md]

A workspace is that of a finished search for formats alone, without training, in llama.cpp: docs/laptop.md has the
commands. To second order the KL of a model whose subblocks change by d_s is half of E[(sum of t_s)^2], where t_s is
what d_s changes of the log-likelihood of a token that the parent draws: beside the estimates, half of E[t_s^2] each,
there is E[t_a t_b] for every pair. It is taken in two ways: from gradients, a sample for each backward pass of a
sequence (estimates take one pass of each), all pairs or the clear ones alone, whose correlation is beyond three of its
standard errors; and from runs of the parent with each choice alone, which is as much as pairs can know. These also give
the true score of each choice. The last row of an optimum is what a search comes to, which takes true KL on its way.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import torch
from machine import footer
from numpy.typing import NDArray
from torch import Tensor

from inlay.distill.sweep import SLOTS, sweep
from inlay.nas.families import layer_prefix
from inlay.nas.job.budget import Budget, parse_limit
from inlay.nas.loop.pool import CORRECTION_WEIGHT, LEAST_CORRECTION, Pool
from inlay.nas.loop.ridge import fit_factors
from inlay.nas.loop.search import SmallSearch
from inlay.nas.loop.solving import Tables, load_tables
from inlay.nas.loop.true_kl import true_scores
from inlay.nas.pieces.assembled import build_whole
from inlay.nas.pieces.boundaries import embed_rows, micro_batch, worker_source
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library, WorkerSource, rounded_state
from inlay.nas.report.progress import Reporter
from inlay.nas.stages.assemble import correct, swap
from inlay.nas.stages.solutions import inputs_of_workspace, job_of
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks, architecture_of
from inlay.nas.variants import parse_variant
from inlay.nas.workspace import Workspace
from inlay.solver import Limit, solve

RANDOM, SOLVED = 20, 10
"""Architectures drawn at random, and limits for which the program gives two each."""
LIMITS = (0.1, 0.3, 0.5, 0.7)
"""Where optima are compared: between the fewest bytes and those of the largest formats."""
PASSES = 8
"""Backward passes of each sequence, each with tokens drawn anew."""
DRAWN = 32
"""Tokens drawn at each position where choices are run."""
CLEAR = 3.0
"""Of the standard error of a correlation that is 0: pairs above it are those where the estimate says so."""
LOOP = "a search's loop: corrections and swaps by true KL"
STARTS = 20
"""Of the local search."""

Key = tuple[int, str]
"""A choice: its layer, -1 for embedding and head, and its label."""
Floats = NDArray[np.float64]


@dataclass
class Space:
    """The S choices of a search beside the parent's own, and what they cost.

    Args:
        keys: the choices.
        place: of each: what it is a choice for; at most one choice a place is taken.
        nats_S: estimates, as the score table has them.
        bytes_S: what each adds to the parent's bytes.
        parent_bytes: the parent's.
    """

    keys: list[Key]
    place: NDArray[np.int64]
    nats_S: Floats
    bytes_S: NDArray[np.int64]
    parent_bytes: int

    def architecture(self, picked: Sequence[int], layers: int) -> Blocks:
        """The blocks of a choice a place at most."""
        blocks = [list(PARENT_BLOCK) for _ in range(layers)]
        ends = []
        for index in picked:
            layer, label = self.keys[index]
            if layer < 0:
                ends = [label]
            else:
                blocks[layer][SLOTS.index(parse_variant(label).slot)] = label
        blocks[-1] += ends
        return tuple(tuple(block) for block in blocks)

    def picked(self, architecture: Blocks) -> list[int]:
        """The reverse."""
        own = {(layer, label) for layer, block in enumerate(architecture) for label in block[:2]}
        own |= {(-1, label) for label in architecture[-1][2:]}
        return [index for index, key in enumerate(self.keys) if key in own]


def space_of(tables: Tables) -> Space:
    scores, problem = tables.scores, tables.problem([])
    column = problem.cost_names.index("weights")
    last, by_label = len(problem.layers) - 1, [{c.label: c.costs[column] for c in own} for own in problem.layers]
    keys: list[Key] = []
    nats, added = [], []
    for layer, own in scores.measured.items():
        for block, value in own.items():
            keys.append((layer, next(label for label in block if label not in PARENT_BLOCK)))
            nats.append(value)
            added.append(by_label[layer][" + ".join(block)] - by_label[layer][" + ".join(PARENT_BLOCK)])
    for label, value in scores.ends.items():
        keys.append((-1, label))
        nats.append(value)
        block = " + ".join(PARENT_BLOCK)
        added.append(by_label[last][f"{block} + {label}"] - by_label[last][block])
    place = [2 * layer + (layer >= 0 and parse_variant(label).slot == "ffn") for layer, label in keys]
    whole = problem.base_costs[column] + sum(own[" + ".join(PARENT_BLOCK)] for own in by_label)
    return Space(keys, np.array(place), np.array(nats), np.array(added), whole)


# What choices change of the log-likelihood of drawn tokens, [S, M].


@torch.inference_mode()
def by_runs(source: WorkerSource, ids: Ids, space: Space) -> tuple[Floats, Floats]:
    """From the logits of the parent with one choice alone: E[t t'] over positions and drawn tokens, [S, S]; and the
    true KL of each, [S]."""
    ids_NS = torch.from_numpy(ids.load(source.store)[: ids.shape[0]].astype("int64"))
    layers, ends = source.num_layers, source.ends()
    parent: Blocks = (PARENT_BLOCK,) * layers
    hidden_NSD = embed_rows(source, ids.digest, (0, len(ids_NS)))
    size = micro_batch(ids_NS.shape[1])
    alone = [space.architecture([s], layers) for s, (layer, _) in enumerate(space.keys) if layer >= 0]
    outputs = sweep(source, [parent, *alone], hidden_NSD, 0, size)
    heads = [ends] * len(outputs)
    for layer, label in space.keys:
        if layer < 0:
            heads.append(source.ends(label.partition("@")[2]))
            outputs += sweep(source, [parent], heads[-1].embed(ids_NS.to(source.device)), 0, size)
    drawn, total, count = torch.Generator().manual_seed(0), np.zeros((len(space.keys),) * 2), 0
    kl_S = np.zeros(len(space.keys))
    for n in range(len(ids_NS)):
        logits = (
            (own.norm(hidden[n, :-1]) @ own.head_VD.T).float() for own, hidden in zip(heads, outputs, strict=True)
        )
        logits_SV = next(logits)
        p_SV = torch.softmax(logits_SV, -1)
        tokens_SK = torch.multinomial(p_SV, DRAWN, replacement=True, generator=drawn)
        found = []
        for index, other_SV in enumerate(logits):
            change_SV = other_SV - logits_SV
            change_SV -= (p_SV * change_SV).sum(-1, keepdim=True)
            found.append(change_SV.gather(1, tokens_SK).flatten().double().numpy())
            kl_S[index] += float(torch.log1p((p_SV * (torch.expm1(change_SV) - change_SV)).sum(-1)).sum())
        t_SM = np.stack(found)
        total += t_SM @ t_SM.T
        count += t_SM.shape[1]
    return total / count, kl_S * DRAWN / count


def by_gradients(source: WorkerSource, ids: Ids, space: Space) -> Floats:
    """From gradients of a sequence's drawn tokens, summed over its positions: what tokens share by chance is 0 in the
    mean. [M, S], M backward passes, of each sequence `PASSES` one after the other."""
    model = build_whole(source, (PARENT_BLOCK,) * source.num_layers, source.dtype)
    model.requires_grad_(False)
    embedding: Any = model.get_input_embeddings()
    embedding.weight.requires_grad_(True)
    changes: dict[str, list[tuple[int, Tensor]]] = {}
    ends_state = source.parent.ends_state()
    of_ends: list[tuple[int, Tensor]] = []
    for index, (layer, label) in enumerate(space.keys):
        if layer < 0:
            rounded = source.rounded_ends(ends_state, label.partition("@")[2])
            name = "model.embed_tokens.weight"
            of_ends.append((index, rounded[name].float() - ends_state[name].float()))
            continue
        variant = parse_variant(label)
        own = source.parent.slot_state(layer, variant.slot)
        told = source.matrix_inputs.within(layer, variant)
        for name, tensor in rounded_state(own, variant.form, told, source.kept).items():
            if tensor.ndim == 2:
                changes.setdefault(layer_prefix(layer) + name, []).append((index, tensor.float() - own[name].float()))
    t_S = torch.zeros(len(space.keys), dtype=torch.float64)

    def adds(own: list[tuple[int, Tensor]]) -> Callable[..., None]:
        def hook(module: Any, grad_inputs: Any, grad_outputs: tuple[Tensor, ...]) -> None:
            grad_RC = grad_outputs[0].flatten(0, -2).T @ module.read.flatten(0, -2)
            for index, change_RC in own:
                t_S[index] += float((grad_RC * change_RC).sum())

        return hook

    def keeps(module: Any, inputs: tuple[Tensor, ...]) -> None:
        module.read = inputs[0].detach()

    for name, module in model.named_modules():
        if f"{name}.weight" in changes:
            module.register_forward_pre_hook(keeps)
            module.register_full_backward_hook(adds(changes[f"{name}.weight"]))
    drawn, found = torch.Generator().manual_seed(0), []
    for ids_S in torch.from_numpy(ids.load(source.store)[: ids.shape[0]].astype("int64")):
        logits_SV = model(ids_S[None]).logits[0, :-1].float()
        p_SV = torch.softmax(logits_SV.detach(), -1)
        for number in range(PASSES):
            t_S.zero_()
            embedding.weight.grad = None
            tokens_S = torch.multinomial(p_SV, 1, generator=drawn).squeeze(1)
            loss = torch.nn.functional.cross_entropy(logits_SV, tokens_S, reduction="sum")
            loss.backward(retain_graph=number < PASSES - 1)
            for index, change_VD in of_ends:
                t_S[index] += float((embedding.weight.grad * change_VD).sum())
            found.append(t_S.numpy().copy())
    return np.stack(found)


def correlated(covariance_SS: Floats, space: Space) -> Floats:
    """Correlations of choices of different places, [S, S]."""
    size_S = np.sqrt(np.maximum(np.diag(covariance_SS), 1e-30))
    found: Floats = covariance_SS / np.outer(size_S, size_S)
    return np.where(space.place[:, None] == space.place[None], 0.0, found)


@dataclass
class Way:
    """A way to predict: what each choice costs, nats, [S], and what two of them do beside that, symmetric, [S, S]."""

    nats_S: Floats
    pairs_SS: Floats

    @classmethod
    def of(cls, nats_S: Floats, correlation_SS: Floats | None = None) -> Way:
        """The covariance of two is their correlation times twice the root of both costs."""
        own_S = np.sqrt(np.maximum(nats_S, 0))
        return cls(nats_S, 2 * np.outer(own_S, own_S) * (0.0 if correlation_SS is None else correlation_SS))

    def predicted(self, picked: Sequence[int]) -> float:
        return float(self.nats_S[list(picked)].sum() + self.pairs_SS[np.ix_(picked, picked)].sum() / 2)


def ways_of(source: WorkerSource, ids: Ids, space: Space) -> tuple[dict[str, Way], str]:
    """What is compared, and what is told of it."""
    start = time.monotonic()
    t_MS = by_gradients(source, ids, space)
    between = time.monotonic()
    covariance_SS, true_S = by_runs(source, ids, space)
    seconds = (between - start, time.monotonic() - between)
    runs_SS = correlated(covariance_SS, space)
    found = {"estimates": Way.of(space.nats_S)}
    told = []
    for passes in (1, PASSES):
        own_MS = t_MS[:: PASSES // passes]
        all_SS = correlated(own_MS.T @ own_MS, space)
        clear = np.abs(all_SS) > CLEAR / np.sqrt(len(own_MS))
        told.append(f"{clear.sum() // 2} in {len(own_MS)} passes")
        name = f"estimates, pairs from {len(own_MS)} passes"
        found |= {name: Way.of(space.nats_S, all_SS), f"{name}, clear ones": Way.of(space.nats_S, all_SS * clear)}
    found["estimates, pairs from runs"] = Way.of(space.nats_S, runs_SS)
    found["true scores"] = Way.of(true_S)
    found["true scores, pairs from runs"] = Way.of(true_S, runs_SS)
    apart = np.abs(runs_SS[space.place[:, None] < space.place[None]])
    sentence = (
        f"Pairs of different places: {len(apart):,}; the correlation of two is {np.median(apart):.3f} in the median, "
        f"{np.quantile(apart, 0.95):.3f} at the 95th percentile and {apart.max():.3f} at most, in runs. Clear ones: "
        f"{', '.join(told)}. Passes took {seconds[0]:.0f} s, runs {seconds[1]:.0f} s."
    )
    return found, sentence


def drawn_architectures(space: Space, number: int) -> Iterator[list[int]]:
    """Half with any choice anywhere, half with one of two formats."""
    source, places = random.Random(0), sorted(set(space.place.tolist()))
    held = {place: np.flatnonzero(space.place == place).tolist() for place in places}
    for index in range(number):
        first, second = source.random(), source.random()
        picked = []
        for own in held.values():
            share = source.random() if index % 2 else source.choice((first, second))
            picked.append(own[int(share * len(own))])
        yield picked


def best_of(space: Space, way: Way, limit: int, start: Sequence[int]) -> list[int]:
    """The least that a way predicts within a limit: from several starts, changes of one place or two that help."""
    places = sorted(set(space.place.tolist()))
    options = [[-1, *np.flatnonzero(space.place == place).tolist()] for place in places]
    at = {place: number for number, place in enumerate(places)}
    size, count = len(space.keys) + 1, len(places)
    nats = np.append(way.nats_S, 0.0)
    added = np.append(space.bytes_S, 0)
    pairs = np.zeros((size, size))
    pairs[:-1, :-1] = way.pairs_SS
    moves = [(number, choice) for number, own in enumerate(options) for choice in own]
    where_M, what_M = (np.array(column) for column in zip(*moves, strict=True))
    source = random.Random(0)
    room = limit - space.parent_bytes

    def climbed(now: NDArray[np.int64]) -> tuple[float, NDArray[np.int64]]:
        while True:
            old_M = now[where_M]
            field_M = pairs[what_M][:, now].sum(1) - pairs[old_M][:, now].sum(1)
            # What stood there meets nothing that takes its place: pairs of one place are 0.
            gain_M = nats[what_M] - nats[old_M] + field_M
            cost_M = added[what_M] - added[old_M]
            over = int(added[now].sum()) - room
            both = gain_M[:, None] + gain_M[None]
            both += pairs[np.ix_(what_M, what_M)] + pairs[np.ix_(old_M, old_M)]
            both -= pairs[np.ix_(what_M, old_M)] + pairs[np.ix_(old_M, what_M)]
            fits = (cost_M[:, None] + cost_M[None] + over <= 0) & (where_M[:, None] != where_M[None])
            # A move that changes nothing, beside another, is that one alone.
            both = np.where(fits, both, np.inf)
            best = np.unravel_index(int(both.argmin()), both.shape)
            if both[best] >= -1e-12:
                value = nats[now].sum() + pairs[np.ix_(now, now)].sum() / 2
                return float(value), now
            now = now.copy()
            for move in best:
                now[where_M[move]] = what_M[move]

    first = np.full(count, size - 1)
    for index in start:
        first[at[int(space.place[index])]] = index
    found = [climbed(first)]
    for _ in range(STARTS):
        shaken = first.copy()
        for number in source.sample(range(count), max(2, count // 3)):
            shaken[number] = source.choice(options[number])
        order = sorted(range(count), key=lambda number: source.random())
        for number in order:
            if added[shaken].sum() > room:
                shaken[number] = min(options[number], key=lambda choice: (int(added[choice]), choice))
        if added[shaken].sum() <= room:
            found.append(climbed(shaken))
    _, best = min(found, key=lambda each: each[0])
    return [int(choice) for choice in best if 0 <= choice < size - 1]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def corrected(space: Space, architectures: Sequence[Sequence[int]], true: Sequence[float]) -> list[float]:
    """Sums of estimates with factors as a search fits them, each half's from the true KL of the other."""
    terms = [{index: float(space.nats_S[index]) for index in picked} for picked in architectures]
    found = [0.0] * len(terms)
    for half in (0, 1):
        other = [index for index in range(len(terms)) if index % 2 != half]
        factors = fit_factors([terms[i] for i in other], [true[i] for i in other], CORRECTION_WEIGHT, LEAST_CORRECTION)
        for index in range(half, len(terms), 2):
            found[index] = sum(nats * factors.get(name, 1.0) for name, nats in terms[index].items())
    return found


def section(place: Workspace, sequences: int | None) -> list[str]:
    job, parent = job_of(place)
    nobody: Any = None
    search = SmallSearch(job, place, parent, nobody, Reporter(), inputs=inputs_of_workspace(place))
    stored = place.read_json("texts.json")["score"]
    ids = Ids(stored["digest"], (sequences or stored["shape"][0], stored["shape"][1]))
    tables = load_tables(place)
    tables = replace(tables, scores=replace(tables.scores, factors={}))
    space, layers = space_of(tables), parent.shape.num_layers
    source = worker_source({**search.base, "store": place.url}, Library({}), search.scratch / "here")
    ways, told = ways_of(source, ids, space)

    def true_of(architectures: Sequence[Sequence[int]]) -> list[float]:
        blocks = [space.architecture(picked, layers) for picked in architectures]
        distinct = list(dict.fromkeys(blocks))
        kl = dict(zip(distinct, true_scores(search, ids, Library({}), distinct), strict=True))
        return [kl[each].kl_nats for each in blocks]

    problem = tables.problem([])
    least = space.parent_bytes + sum(
        min(0, *space.bytes_S[space.place == one].tolist()) for one in set(space.place.tolist())
    )

    most = space.parent_bytes + sum(
        max(space.bytes_S[space.place == one].tolist()) for one in set(space.place.tolist())
    )

    def limit_at(share: float) -> int:
        return int(least + share * (most - least))

    def solved(limit: int, count: int) -> list[list[int]]:
        found = solve(problem.with_limits(Limit("weights", upper=limit)), solutions=count, time_limit=30.0)
        return [space.picked(architecture_of(each.labels)) for each in found]

    by_chance = list(drawn_architectures(space, RANDOM))
    by_program = [own for n in range(SOLVED) for own in solved(limit_at(0.05 + 0.9 * n / (SOLVED - 1)), 2)]
    sets = {"at random": by_chance, "by the program": by_program}
    lines = [f"## {Path(job.parent).stem}", ""]
    lines.append(f"{len(space.keys)} choices at {len(set(space.place.tolist()))} places, {ids.tokens:,} tokens. {told}")
    lines += ["", "| architectures | KL | predicted by | Spearman | over truth, median | error, median |"]
    lines.append("|---|---|---|---:|---:|---:|")
    for name, own in sets.items():
        true = true_of(own)
        rows = {name: [way.predicted(picked) for picked in own] for name, way in ways.items()}
        rows["estimates, factors as a search fits them"] = corrected(space, own, true)
        span = f"{min(true):.4f} to {max(true):.4f}"
        for way, values in rows.items():
            ratio = np.array(values) / np.array(true)
            lines.append(
                f"| {len(own)} {name} | {span} | {way} | {spearman(true, values):.3f} | {np.median(ratio):.2f} | "
                f"{100 * np.median(np.abs(ratio - 1)):.1f} % |"
            )
    lines += ["", *optima(search, ids, tables, space, ways, limit_at, solved, true_of), ""]
    print("\n".join(lines), flush=True)
    return lines


def optima(
    search: SmallSearch,
    ids: Ids,
    tables: Tables,
    space: Space,
    ways: Mapping[str, Way],
    limit_at: Callable[[float], int],
    solved: Callable[[int, int], list[list[int]]],
    true_of: Callable[[Sequence[Sequence[int]]], list[float]],
) -> list[str]:
    """What each way chooses at some limits, in true KL; and what a search comes to, which takes true KL on its way."""
    rows: dict[str, list[float]] = {name: [] for name in (*ways, LOOP)}
    limits = [limit_at(share) for share in LIMITS]
    for limit in limits:
        (start,) = solved(limit, 1)
        chosen = {name: best_of(space, way, limit, start) for name, way in ways.items()}
        own = ways["estimates"].predicted
        assert abs(own(chosen["estimates"]) - own(start)) < 1e-8, "the local search misses the program's optimum"
        for name, kl in zip(chosen, true_of(list(chosen.values())), strict=True):
            rows[name].append(kl)
        budget = Budget((parse_limit("weights", f"{limit}B"),))
        pool = Pool(replace(search, job=search.job.model_copy(update={"budget": budget})), ids, Library({}), tables)
        correct(pool)
        swap(pool)
        rows[LOOP].append(pool.by_kl()[0].true.kl_nats)
    base = rows["estimates"]
    lines = [f"| true KL of the optimum by | {' | '.join(f'{limit / 1e6:.3f} MB' for limit in limits)} | median |"]
    lines.append(f"|---|{'---:|' * (len(limits) + 1)}")
    for name, values in rows.items():
        ratios = [value / first for value, first in zip(values, base, strict=True)]
        cells = [f"{value:.4f} ({ratio:.3f})" for value, ratio in zip(values, ratios, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} | {np.median(ratios):.3f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspaces", nargs="+", type=Path)
    parser.add_argument("--sequences", type=int, default=None)
    parser.add_argument("--output", type=Path, default=None)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# Pair terms", "", *str(__doc__).strip().splitlines()[4:], ""]
    for folder in chosen.workspaces:
        lines += section(Workspace(folder), chosen.sequences)
    text = "\n".join([*lines, footer()]) + "\n"
    if chosen.output is not None:
        chosen.output.write_text(text)


if __name__ == "__main__":
    main()
