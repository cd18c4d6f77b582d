"""The levers of training, for benchmarks/quality.py: rates, optimizers, what is trained, schedules, a second pass.

The recovery that levers are tried in is written out here, on what the code computes gradients with, so that what lost
is nowhere else. All of a table is trained on the same tokens; where rows name rates, a lever stands at its best one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from quality_bench import LENGTH, Bench, Row, State
from torch import Tensor, nn

from inlay.distill.adapters import RANK, add_adapters
from inlay.distill.judge import Judge
from inlay.distill.objective import copied, gradients, put_back
from inlay.distill.optimize import adamw, warmup_linear
from inlay.distill.parallel import Ranks
from inlay.distill.settings import GlobalSettings
from inlay.distill.text import training_order
from inlay.distill.updates import MIXERS, NORMS
from inlay.kernels import update_mse
from inlay.nas.variants import parse_variant

BATCH = 4
Architecture = list[tuple[str, str]]
Schedule = Callable[[int, int], float]
FOUND = {"rate": "found", "learning_rate": 3e-3}


def kept_like(bench: Bench) -> Architecture:
    """An architecture as searches keep them: subblocks that stay as they are beside replaced ones of several kinds."""
    width = bench.shape.parent_entry(0, "ffn")["width"]
    pattern = [
        ("attention:parent", "ffn:parent"),
        ("attention:kv_heads=1", f"ffn:width={width // 2}"),
        ("attention:window=16", f"ffn:width={width // 2}"),
        ("attention:linear", "ffn:parent"),
        ("attention:parent", f"ffn:width={width // 4 // 8 * 8}"),
    ]
    return [pattern[layer % len(pattern)] for layer in range(bench.shape.num_layers)]


MIXED = "several kinds"


def library(
    bench: Bench, architecture: Architecture, settings: dict[str, Any], batch: int = 8
) -> tuple[list[State], float]:
    """The blocks of an architecture after local distillation, and the seconds of that."""
    states, seconds = [], 0.0
    for layer, block in enumerate(architecture):
        labels = [label for label in block if parse_variant(label).trained]
        started: State = {}
        for label in labels:
            started |= bench.start(layer, label)
        if not labels:
            states.append({})
            continue
        bench.boundaries  # noqa: B018 (made before the clock runs)
        begun = time.process_time()
        results = bench.trained_at(layer, labels, started, settings, batch)
        seconds += time.process_time() - begun
        states.append({name: tensor for result in results for name, tensor in result.state.items()})
    return states, seconds


def rates(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """One rate for all variants of a layer, or each its own."""
    width, deep = bench.shape.parent_entry(0, "ffn")["width"], bench.shape.num_layers
    uniform = ("attention:kv_heads=1", f"ffn:width={width // 2}", "attention:window=16", "attention:linear")
    children = {MIXED: kept_like(bench)} | {label: _everywhere(label, deep) for label in uniform}
    ways = [(f"all at {rate:g}", {"learning_rate": rate}) for rate in (3e-4, 1e-3, 3e-3)]
    for child, architecture in children.items():
        for lever, settings in [*ways, ("each at its own of these", FOUND)]:
            wanted = [seed for seed in seeds if bench.wanted(child, lever, seed)]
            if not wanted:
                continue
            states, seconds = library(bench, architecture, settings)
            before = bench.kl(bench.assembled(architecture, states))
            for seed in wanted:
                after = bench.recover(bench.assembled(architecture, states), seed, BATCH, 3.0)
                yield {"child": child, "lever": lever, "seed": seed, "before": before, "after": after} | {
                    "seconds": seconds
                }


def highest(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """The highest rate that recovery's range test may take."""
    architecture = kept_like(bench)
    states, _ = library(bench, architecture, FOUND)
    before = bench.kl(bench.assembled(architecture, states))
    for rate in (3e-4, 1e-3, 3e-3, 1e-2):
        for seed in seeds:
            if bench.wanted(MIXED, lever := f"found, {rate:g} at most", seed):
                begun = time.process_time()
                child = bench.assembled(architecture, states)
                after = bench.recover(child, seed, BATCH, 3.0, learning_rate=rate)
                yield {"child": MIXED, "lever": lever, "seed": seed, "before": before, "after": after} | {
                    "seconds": time.process_time() - begun
                }


def recovery_batches(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """How many sequences a step of recovery has: the fewer, the more steps the same tokens are."""
    architecture = kept_like(bench)
    states, _ = library(bench, architecture, FOUND)
    before = bench.kl(bench.assembled(architecture, states))
    for batch in (8, 4, 2, 1):
        for seed in seeds:
            if bench.wanted(MIXED, lever := f"batches of {batch}", seed):
                begun = time.process_time()
                after = bench.recover(bench.assembled(architecture, states), seed, batch, 3.0, learning_rate=3e-3)
                yield {"child": MIXED, "lever": lever, "seed": seed, "before": before, "after": after} | {
                    "seconds": time.process_time() - begun
                }


def local_batches(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """How many sequences a step of local distillation has; recovery is the same in all rows."""
    architecture = kept_like(bench)
    for batch in (8, 4, 2, 1):
        lever = f"batches of {batch}"
        if not any(bench.wanted(MIXED, lever, seed) for seed in seeds):
            continue
        states, seconds = library(bench, architecture, FOUND, batch)
        before = bench.kl(bench.assembled(architecture, states))
        for seed in seeds:
            if bench.wanted(MIXED, lever, seed):
                after = bench.recover(bench.assembled(architecture, states), seed, BATCH, 3.0, learning_rate=3e-3)
                yield {"child": MIXED, "lever": lever, "seed": seed, "before": before, "after": after} | {
                    "seconds": seconds
                }


def _everywhere(label: str, deep: int) -> Architecture:
    return [(label, "ffn:parent") if parse_variant(label).slot == "attention" else ("attention:parent", label)] * deep


@dataclass(frozen=True)
class Descent:
    """A recovery that differs from the code's in what a lever changes."""

    rate: float
    optimizers: Callable[[Any, float], list[torch.optim.Optimizer]]
    schedule: Schedule
    trained: Callable[[str], bool] = lambda name: True
    tokens: int | None = None
    prepare: Callable[[Any], None] = lambda child: None


def linear(step: int, steps: int) -> float:
    """The code's own schedule."""
    return warmup_linear(step, steps, 0.05)


def plain(child: Any, rate: float) -> list[torch.optim.Optimizer]:
    """AdamW for all that is trained, as in the code."""
    return [adamw([p for p in child.parameters() if p.requires_grad], rate, (0.9, 0.95), 0.0)]


def descend(bench: Bench, child: Any, seed: int, how: Descent) -> float:
    """The KL after recovery; the child is what it was when its KL on held-out text was least."""
    tokens = bench.tokens if how.tokens is None else how.tokens
    steps = tokens // (BATCH * LENGTH)
    settings = GlobalSettings(steps, learning_rate=how.rate, micro_batch=BATCH)
    how.prepare(child)
    for name, parameter in child.named_parameters():
        parameter.requires_grad_(how.trained(name))
    parameters = {name: p for name, p in child.named_parameters() if p.requires_grad}
    optimizers = how.optimizers(child, how.rate)
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    judge = Judge(bench.whole, child, list(bench.stop.split(BATCH)), settings, Ranks())
    best_kl, best = judge.kl_nats() or math.inf, copied(parameters)
    for step, ids_BS in enumerate(batches(bench, seed, bench.tokens - tokens, tokens)):
        if gradients(bench.whole, child, parameters, ids_BS, settings, Ranks()) is None:
            break
        for group, peak in groups:
            group["lr"] = peak * how.schedule(step, steps)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % settings.judged_every == 0 or step + 1 == steps:
            kl = judge.kl_nats()
            if kl is not None and kl < best_kl:
                best_kl, best = kl, copied(parameters)
    put_back(parameters, best)
    return bench.kl(child)


def batches(bench: Bench, seed: int, skipped: int, tokens: int) -> Iterator[Tensor]:
    """The batches of a seed's recovery, those of so many tokens left out at its beginning."""
    order = training_order(len(bench.train), bench.tokens, LENGTH, seed)[-(-skipped // LENGTH) :]
    for step in range(tokens // (BATCH * LENGTH)):
        yield bench.train[order[step * BATCH : (step + 1) * BATCH]]


def _compared(bench: Bench, seeds: Sequence[int], ways: Sequence[tuple[str, Descent]]) -> Iterator[Row]:
    """Each way from the same child, whose blocks were trained locally as in a search."""
    architecture = kept_like(bench)
    states, _ = library(bench, architecture, FOUND)
    before = bench.kl(bench.assembled(architecture, states))
    for lever, how in ways:
        for seed in seeds:
            if bench.wanted(MIXED, lever, seed):
                begun = time.process_time()
                after = descend(bench, bench.assembled(architecture, states), seed, how)
                yield {"child": MIXED, "lever": lever, "seed": seed, "before": before, "after": after} | {
                    "seconds": time.process_time() - begun
                }


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """A matrix within a layer, which Muon is for."""
    return ".layers." in name and parameter.ndim == 2


def muon(child: Any, rate: float) -> list[torch.optim.Optimizer]:
    """(lost) Muon for the layers' matrices, its steps as large as AdamW's (arXiv 2502.16982); AdamW for the rest."""
    trained = {name: p for name, p in child.named_parameters() if p.requires_grad}
    matrices = [p for name, p in trained.items() if is_hidden_matrix(name, p)]
    rest = [p for name, p in trained.items() if not is_hidden_matrix(name, p)]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        adamw(rest, rate, (0.9, 0.95), 0.0),
    ]


class Soap(torch.optim.Optimizer):
    """(lost) SOAP (Vyas et al., arXiv 2409.11321): Adam in the eigenbasis of Shampoo's two factors, which are running
    means; the basis follows them by one step of orthogonal iteration at a time."""

    EVERY, KEPT, BETAS = 10, 0.95, (0.9, 0.95)
    """Steps between two bases; of the factors; of Adam's moments."""

    def __init__(self, matrices: Iterable[nn.Parameter], rate: float) -> None:
        super().__init__(matrices, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step of every matrix."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    matrix.sub_(self._change(matrix.grad, self.state[matrix]), alpha=group["lr"])

    def _change(self, grad_OI: Tensor, state: dict[str, Any]) -> Tensor:
        factors = [grad_OI @ grad_OI.T, grad_OI.T @ grad_OI]
        if not state:
            state |= {"steps": 0, "mean": torch.zeros_like(grad_OI), "square": torch.zeros_like(grad_OI)}
            state |= {"factors": factors, "bases": [torch.linalg.eigh(factor)[1] for factor in factors]}
        for held, factor in zip(state["factors"], factors, strict=True):
            held.lerp_(factor, 1 - self.KEPT)
        state["steps"] += 1
        first, second = self.BETAS
        left, right = state["bases"]
        turned_OI = left.T @ grad_OI @ right
        state["mean"].lerp_(grad_OI, 1 - first)
        state["square"].lerp_(turned_OI.square(), 1 - second)
        mean_OI = left.T @ state["mean"] @ right / (1 - first ** state["steps"])
        sizes_OI = (state["square"] / (1 - second ** state["steps"])).sqrt() + 1e-8
        if state["steps"] % self.EVERY == 0:
            pairs = zip(state["factors"], state["bases"], strict=True)
            state["bases"] = [torch.linalg.qr(factor @ basis)[0] for factor, basis in pairs]
        change: Tensor = left @ (mean_OI / sizes_OI) @ right.T
        return change


def soap(child: Any, rate: float) -> list[Any]:
    """(lost) SOAP for the layers' matrices; AdamW for the rest."""
    trained = {name: p for name, p in child.named_parameters() if p.requires_grad}
    rest = [p for name, p in trained.items() if not is_hidden_matrix(name, p)]
    return [
        Soap([p for name, p in trained.items() if is_hidden_matrix(name, p)], rate),
        adamw(rest, rate, (0.9, 0.95), 0.0),
    ]


def preconditioned(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """AdamW for all against SOAP for the matrices, each at four rates."""
    rates = (3e-4, 5e-4, 1e-3, 3e-3)
    ways = [(f"AdamW, {rate:g}", Descent(rate, plain, linear)) for rate in rates]
    ways += [(f"SOAP for matrices, {rate:g} (lost)", Descent(rate, soap, linear)) for rate in rates]
    yield from _compared(bench, list(seeds), ways)


def optimizers(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """AdamW for all against Muon for the matrices, each at three rates."""
    ways = [(f"AdamW, {rate:g}", Descent(rate, plain, linear)) for rate in (1e-3, 2e-3, 3e-3, 5e-3, 1e-2)]
    ways += [
        (f"Muon for matrices, {rate:g} (lost)", Descent(rate, muon, linear)) for rate in (1e-3, 2e-3, 3e-3, 5e-3, 1e-2)
    ]
    yield from _compared(bench, list(seeds), ways)


def replaced_names(architecture: Architecture) -> tuple[str, ...]:
    """How the tensors of replaced subblocks begin."""
    return tuple(
        f"model.layers.{layer}.{part}."
        for layer, block in enumerate(architecture)
        for label, slot in zip(block, ("attention", "ffn"), strict=True)
        if not parse_variant(label).is_own
        for part in (MIXERS[slot], NORMS[slot])
    )


def slower(names: tuple[str, ...], share: float) -> Callable[[Any, float], list[torch.optim.Optimizer]]:
    """(lost) AdamW with a share of the rate for what was not replaced."""

    def make(child: Any, rate: float) -> list[torch.optim.Optimizer]:
        trained = {name: p for name, p in child.named_parameters() if p.requires_grad}
        replaced = [p for name, p in trained.items() if name.startswith(names)]
        rest = [p for name, p in trained.items() if not name.startswith(names)]
        return [adamw(replaced, rate, (0.9, 0.95), 0.0), adamw(rest, rate * share, (0.9, 0.95), 0.0)]

    return make


def untouched(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """Lower rates for the subblocks that stayed what they were and for embedding, last norm and head."""
    names = replaced_names(kept_like(bench))
    ways = []
    for rate in (1e-3, 3e-3):
        ways += [
            (f"all at {rate:g}", Descent(rate, plain, linear)),
            (f"untouched at 0.3 of {rate:g} (lost)", Descent(rate, slower(names, 0.3), linear)),
            (f"untouched at 0.1 of {rate:g} (lost)", Descent(rate, slower(names, 0.1), linear)),
        ]
    sizes = {name: p.nbytes for name, p in bench.assembled(kept_like(bench)).named_parameters()}
    # AdamW's two moments are as large as what is trained, twice (tests/distill/test_globally.py counts them).
    share = sum(size for name, size in sizes.items() if name.startswith(names)) / sum(sizes.values())
    ways += [
        (
            f"replaced alone, {rate:g}: {share:.0%} of the gradients and moments",
            Descent(rate, plain, linear, lambda name: name.startswith(names)),
        )
        for rate in (1e-3, 3e-3, 1e-2)
    ]
    yield from _compared(bench, list(seeds), ways)


def adapters(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """Low-rank adapters on every linear layer, alone, with norms, or beside replaced subblocks that train whole."""
    names = replaced_names(kept_like(bench))
    whole = sum(p.numel() for p in bench.assembled(kept_like(bench)).parameters())
    sets: dict[str, Callable[[str], bool]] = {
        "adapters": is_adapter,
        "adapters and norms (lost)": lambda name: is_adapter(name) or "norm" in name,
        # A replaced subblock's own weights; its adapters stay zeros.
        "replaced whole, adapters beside (lost)": lambda name: is_adapter(name) != name.startswith(names),
    }
    ways = []
    for rank in (4, RANK, 32):
        for lever, trained in sets.items():
            if lever != "adapters" and rank != RANK:
                continue
            child = bench.assembled(kept_like(bench))
            adapted(rank)(child)
            share = sum(p.numel() for name, p in child.named_parameters() if trained(name)) / whole
            ways += [
                (
                    f"{lever}, rank {rank}, {rate:g}: {share:.0%} of the gradients and moments",
                    Descent(rate, plain, linear, trained, prepare=adapted(rank)),
                )
                for rate in (3e-3, 1e-2, 3e-2)
            ]
    yield from _compared(bench, list(seeds), ways)


def is_adapter(name: str) -> bool:
    """Whether a parameter is an adapter's."""
    return ".lora_" in name


def adapted(rank: int) -> Callable[[Any], None]:
    """What puts adapters of a rank on a child."""

    def prepare(child: Any) -> None:
        for index, layer in enumerate(child.model.layers):
            add_adapters(layer, index, rank)

    return prepare


def falling(warmup: float, end: Callable[[float], float]) -> Schedule:
    """A linear rise over a share of the steps, then what `end` makes of the share of the rest that is done."""

    def share(step: int, steps: int) -> float:
        rising = max(1, math.ceil(warmup * steps))
        return (step + 1) / rising if step < rising else end((step - rising + 1) / (steps - rising + 1))

    return share


def cosine(end: float) -> Callable[[float], float]:
    """Half a cosine down to a share of the peak."""
    return lambda done: end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * done))


def schedules(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """How the rate rises and falls."""
    shapes: dict[str, Schedule] = {
        "linear to 0": linear,
        "cosine to 0 (lost)": falling(0.05, cosine(0.0)),
        "cosine to a tenth (lost)": falling(0.05, cosine(0.1)),
        "constant, last fifth linear to 0 (lost)": falling(0.05, lambda done: min(1.0, 5.0 * (1.0 - done))),
        "constant (lost)": falling(0.05, lambda done: 1.0),
        "cosine to 0, no warm-up (lost)": falling(0.0, cosine(0.0)),
        "cosine to 0, warm-up 15 % (lost)": falling(0.15, cosine(0.0)),
    }
    ways = [
        (f"{name}, {rate:g}", Descent(rate, plain, shape))
        for name, shape in shapes.items()
        for rate in (1e-3, 2e-3, 3e-3)
    ]
    yield from _compared(bench, list(seeds), ways)


def pass_on_winner(bench: Bench, child: Any, architecture: Architecture, ids: Sequence[Tensor], rate: float) -> None:
    """(lost) Trains the replaced subblocks layer by layer on what comes from the replaced ones before them.

    They answer with what takes the child's own hidden states back to the parent's behind the layer.
    """
    with torch.no_grad():
        ours = [child.model.embed_tokens(part) for part in ids]
        theirs = list(ours)
    for index, layer in enumerate(child.model.layers):
        contexts = [bench.context(part, layer.entries["attention"]) for part in ours]
        with torch.no_grad():
            answers = [bench.layers[index](part, bench.context(part)) for part in theirs]
        names = replaced_names(architecture)
        trained = [p for name, p in layer.named_parameters() if f"model.layers.{index}.{name}".startswith(names)]
        optimizer = adamw(trained, rate, (0.9, 0.95), 0.0) if trained else None
        for step in range(len(ours) if optimizer else 0):
            layer.zero_grad()
            error = update_mse(layer(ours[step], contexts[step]) - theirs[step], answers[step] - theirs[step])
            error.backward()
            assert optimizer is not None
            for group in optimizer.param_groups:
                group["lr"] = rate * linear(step, len(ours))
            optimizer.step()
        with torch.no_grad():
            ours = [layer(part, context) for part, context in zip(ours, contexts, strict=True)]
        theirs = answers


def winner(bench: Bench, seeds: Iterable[int]) -> Iterator[Row]:
    """Part of recovery's tokens for a pass over the child's blocks, on inputs from the replaced ones before them."""
    architecture = kept_like(bench)
    states, _ = library(bench, architecture, FOUND)
    for rate in (1e-3, 3e-3):
        yield from _passes(bench, list(seeds), architecture, states, rate)


def _passes(
    bench: Bench, seeds: Sequence[int], architecture: Architecture, states: list[State], rate: float
) -> Iterator[Row]:
    for share, pass_rate in ((0.0, 0.0), (1 / 6, 1e-3), (1 / 3, 1e-3), (1 / 3, 3e-4)):
        spent = int(bench.tokens * share) // (BATCH * LENGTH) * BATCH * LENGTH
        lever = f"all tokens in recovery at {rate:g}"
        if spent:
            lever = f"{share:.0%} of the tokens in a pass at {pass_rate:g}, then {rate:g} (lost)"
        for seed in seeds:
            if not bench.wanted(MIXED, lever, seed):
                continue
            begun = time.process_time()
            child = bench.assembled(architecture, states).requires_grad_(True)
            if spent:
                pass_on_winner(bench, child, architecture, list(batches(bench, seed, 0, spent)), pass_rate)
            before = bench.kl(child)
            after = descend(bench, child, seed, Descent(rate, plain, linear, tokens=bench.tokens - spent))
            yield {"child": MIXED, "lever": lever, "seed": seed, "before": before, "after": after} | {
                "seconds": time.process_time() - begun
            }


TRAINING = {
    "rates": rates,
    "highest": highest,
    "recovery_batches": recovery_batches,
    "local_batches": local_batches,
    "optimizers": optimizers,
    "preconditioned": preconditioned,
    "untouched": untouched,
    "adapters": adapters,
    "schedules": schedules,
    "winner": winner,
}
TITLES = {
    "rates": "Rates of local distillation; recovery is the same in all rows; seconds are those of local distillation",
    "highest": "The highest rate that recovery's range test may take; blocks were trained locally",
    "recovery_batches": "Sequences in a step of recovery; blocks were trained locally",
    "local_batches": "Sequences in a step of local distillation; seconds are those of it",
    "optimizers": "Optimizers of recovery; blocks were trained locally",
    "preconditioned": "AdamW and SOAP in recovery; blocks were trained locally",
    "untouched": "What recovery trains, and how fast; blocks were trained locally",
    "adapters": "Recovery through adapters; blocks were trained locally",
    "schedules": "How recovery's rate rises and falls; blocks were trained locally",
    "winner": "A pass on the winner, within the same tokens; blocks were trained locally",
}
