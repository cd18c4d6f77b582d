"""Recovery with few parameters: what each way of training less costs in KL, beside what it saves in memory.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/few_parameters.py [--parent stories3M] [--tokens 60000]

One child of several kinds, whose blocks were trained locally as in a search, is recovered by every way on the same
tokens in the same order. A way tries its rates with the first seed; the one with the least KL on text that nothing
else uses is taken for all seeds, and the worst of them is quoted, on other text again. Memory is that of gradients and
of AdamW's two moments, beside those of training everything. Rows in `--rows` are not made again. Ways that are named
`(lost)` are written out here and nowhere else.

PEFT has LoRA, DoRA, AdaLoRA and VeRA; the others are a few lines each, after the papers that they name.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import peft
import torch
import transformers
from machine import footer
from quality_bench import LENGTH, Bench
from quality_training import BATCH, FOUND, Descent, batches, descend, kept_like, library, linear, plain, replaced_names
from torch import Tensor, nn
from torch.nn.utils import parametrize

from inlay.distill.adapters import SCALE
from inlay.distill.objective import gradients
from inlay.distill.parallel import Ranks
from inlay.distill.settings import GlobalSettings
from inlay.kernels import kl_loss

ADAPTER = "default"
TUNERS = {peft.AdaLoraConfig: peft.AdaLoraModel, peft.VeraConfig: peft.VeraModel}
USUAL = (3e-4, 1e-3, 3e-3, 1e-2)
VECTORS = (1e-2, 3e-2, 1e-1)
"""Rates of what multiplies something fixed, and is few numbers."""


@dataclass(frozen=True)
class Way:
    """How a child is recovered.

    Args:
        name: as the table calls it.
        rates: which it tries.
        prepare: what it does to a child before the training; it returns the parameters that are trained.
        optimizers: of a child and a rate.
    """

    name: str
    rates: Sequence[float]
    prepare: Callable[[Bench, Any], set[str]]
    optimizers: Callable[[Bench, Any, float], list[Any]] = lambda bench, child, rate: plain(child, rate)


def linears(child: Any) -> list[str]:
    """The names of all linear layers of all subblocks."""
    return [name for name, each in child.named_modules() if ".layers." in name and isinstance(each, nn.Linear)]


def everything(_: Bench, child: Any) -> set[str]:
    """All parameters."""
    return {name for name, _ in child.named_parameters()}


def replaced(bench: Bench, child: Any) -> set[str]:
    """Those of replaced subblocks."""
    begin = replaced_names(kept_like(bench))
    return {name for name in everything(bench, child) if name.startswith(begin)}


def by_peft(make: Callable[[Bench, list[str]], Any]) -> Callable[[Bench, Any], set[str]]:
    """What PEFT puts on every linear layer."""

    def prepare(bench: Bench, child: Any) -> set[str]:
        before = {name.replace(".base_layer", "") for name, _ in child.named_parameters()}
        torch.default_generator.manual_seed(0)
        config = make(bench, linears(child))
        if (tuner := TUNERS.get(type(config))) is not None:
            # It holds what layers share, and gives and takes ranks; beside the child's modules, whose own it holds.
            child.__dict__["tuner"] = tuner(child, config, ADAPTER)
        else:
            peft.inject_adapter_in_model(config, child, ADAPTER)
        added = {name for name, _ in child.named_parameters()}
        fixed = ("ranknum", "vera_A", "vera_B")
        return {n for n in added if n.replace(".base_layer", "") not in before and not any(part in n for part in fixed)}

    return prepare


def lora(rank: int, **more: Any) -> Callable[[Bench, Any], set[str]]:
    """LoRA (arXiv 2106.09685), and DoRA (arXiv 2402.09353): direction by LoRA, a length for every row."""
    return by_peft(lambda _, names: peft.LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=names, **more))


def steps_of(bench: Bench) -> int:
    """Steps of a recovery."""
    return bench.tokens // (BATCH * LENGTH)


def adalora(bench: Bench, names: list[str]) -> Any:
    """AdaLoRA (arXiv 2303.10512): triplets by importance, from rank 24 to 16 in the mean."""
    steps = steps_of(bench)
    times = {"tinit": steps // 6, "tfinal": steps // 3, "deltaT": 4, "total_step": steps}
    return peft.AdaLoraConfig(init_r=24, target_r=16, lora_alpha=SCALE * 16, target_modules=names, **times)


class Allocating:
    """An optimizer that lets AdaLoRA give and take ranks after each step."""

    def __init__(self, bench: Bench, child: Any, rate: float) -> None:
        (self._inner,), self._tuner, self._step = plain(child, rate), child.__dict__["tuner"], 0
        self.param_groups = self._inner.param_groups

    def step(self) -> None:
        """One step of AdamW, and one of the allocator."""
        self._inner.step()
        self._step += 1
        self._tuner.update_and_allocate(self._step)


def vera(_: Bench, names: list[str]) -> Any:
    """VeRA (arXiv 2310.11454): two fixed random matrices for all, two vectors for each."""
    return peft.VeraConfig(r=256, target_modules=names, projection_prng_key=0)


def parametrized(make: Callable[[Tensor, int], nn.Module]) -> Callable[[Bench, Any], set[str]]:
    """Every linear layer's weight becomes what a module makes of it; the weight itself is fixed."""

    def prepare(_: Bench, child: Any) -> set[str]:
        for number, name in enumerate(linears(child)):
            layer = child.get_submodule(name)
            parametrize.register_parametrization(layer, "weight", make(layer.weight.detach(), number), unsafe=True)
        return {name for name, _ in child.named_parameters() if ".parametrizations." in name and "original" not in name}

    return prepare


class Nola(nn.Module):
    """NOLA (arXiv 2310.02556): both factors are sums of random ones, whose coefficients are trained."""

    def __init__(self, weight_OI: Tensor, number: int, rank: int = 16, bases: int = 64) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(number)
        rows, columns = weight_OI.shape
        self.register_buffer("down_KRI", torch.randn(bases, rank, columns, generator=drawn) / math.sqrt(columns))
        self.register_buffer("up_KOR", torch.randn(bases, rows, rank, generator=drawn) / math.sqrt(rank * bases))
        self.down_K = nn.Parameter(torch.randn(bases, generator=drawn) / math.sqrt(bases))
        self.up_K = nn.Parameter(torch.zeros(bases))

    def forward(self, weight_OI: Tensor) -> Tensor:
        """The weight with the product of both sums."""
        up_OR = torch.einsum("k,kor->or", self.up_K, self.up_KOR)
        return weight_OI + up_OR @ torch.einsum("k,kri->ri", self.down_K, self.down_KRI)


class SingularValues(nn.Module):
    """SVFit (arXiv 2409.05926): the weight's singular values alone."""

    def __init__(self, weight_OI: Tensor, _: int) -> None:
        super().__init__()
        left, values, right = torch.linalg.svd(weight_OI, full_matrices=False)
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.register_buffer("size", values.mean())
        self.moved = nn.Parameter(torch.zeros_like(values))

    def forward(self, weight_OI: Tensor) -> Tensor:
        """The weight with its values moved, in units of their mean."""
        return weight_OI + (self.left * (self.moved * self.size)) @ self.right


class AllRanks(nn.Module):
    """DyLoRA (arXiv 2210.07558): each step trains the first so many of the ranks, drawn anew."""

    def __init__(self, weight_OI: Tensor, number: int, rank: int = 16) -> None:
        super().__init__()
        self._drawn = torch.Generator().manual_seed(number)
        self.down_RI = nn.Parameter(torch.empty(rank, weight_OI.shape[1]))
        self.up_OR = nn.Parameter(torch.zeros(weight_OI.shape[0], rank))
        nn.init.kaiming_uniform_(self.down_RI, a=math.sqrt(5), generator=self._drawn)

    def forward(self, weight_OI: Tensor) -> Tensor:
        """The weight with the adapter, cut where it is trained."""
        rank = len(self.down_RI)
        if torch.is_grad_enabled():
            rank = int(torch.randint(1, rank + 1, (), generator=self._drawn))
        return weight_OI + SCALE * (self.up_OR[:, :rank] @ self.down_RI[:rank])


class SomeLayers:
    """IST (arXiv 2410.11772): each step trains a half of the layers, drawn by their importance.

    Importance is a running mean of how large a layer's gradients were when it was drawn; the paper asks the loss with
    and without the layer's update, which is two more passes.
    """

    def __init__(self, _: Bench, child: Any, rate: float) -> None:
        (self._inner,) = plain(child, rate)
        self.param_groups = self._inner.param_groups
        self._layers = [[p for p in layer.parameters() if p.requires_grad] for layer in child.model.layers]
        self._importance, self._drawn = torch.ones(len(self._layers)), torch.Generator().manual_seed(0)

    def step(self) -> None:
        """One step of AdamW for those that were drawn."""
        count = max(1, len(self._layers) // 2)
        taken = torch.multinomial(self._importance, count, generator=self._drawn).tolist()
        for index, layer in enumerate(self._layers):
            held = [p.grad for p in layer if p.grad is not None]
            if index in taken and held:
                size = math.sqrt(sum(float(grad.square().sum()) for grad in held))
                self._importance[index] = 0.9 * self._importance[index] + 0.1 * max(size, 1e-6)
            elif index not in taken:
                for parameter in layer:
                    parameter.grad = None
        self._inner.step()


def sensitive(share: float) -> Callable[[Bench, Any], set[str]]:
    """SPT (arXiv 2303.08566): the single weights with the largest squared gradients, over the first eight batches.

    Gradients of the others are zeros, so that AdamW leaves them; what is stored for them would be left out.
    """

    def prepare(bench: Bench, child: Any) -> set[str]:
        named = dict(child.requires_grad_(True).named_parameters())
        sums = {name: torch.zeros_like(p) for name, p in named.items()}
        settings = GlobalSettings(1, micro_batch=BATCH)
        for _, ids_BS in zip(range(8), batches(bench, 0, 0, bench.tokens), strict=False):
            gradients(bench.whole, child, named, ids_BS, settings, Ranks())
            for name, parameter in named.items():
                if parameter.grad is not None:
                    sums[name] += parameter.grad.square()
                    parameter.grad = None
        every = torch.cat([each.flatten() for each in sums.values()])
        bound = every.topk(round(share * len(every))).values[-1]
        for name, parameter in named.items():
            mask = sums[name] >= bound
            parameter.register_hook(lambda grad, mask=mask: grad * mask)
        return set(named)

    return prepare


SENSITIVE = 0.1
LORA = "LoRA, rank 16: the product's `adapters`"
WAYS = [
    Way("all: the default", USUAL, everything),
    Way("replaced blocks alone", USUAL, replaced),
    Way("LoRA, rank 4", USUAL, lora(4)),
    Way(LORA, USUAL, lora(16)),
    Way("DoRA, rank 16", USUAL, lora(16, use_dora=True)),
    Way("AdaLoRA, rank 24 to 16", (1e-3, 3e-3, 1e-2, 3e-2), by_peft(adalora), lambda *given: [Allocating(*given)]),
    Way("VeRA, rank 256", VECTORS, by_peft(vera)),
    Way("NOLA, rank 16 of 64 random ones", VECTORS, parametrized(Nola)),
    Way("SVFit", VECTORS, parametrized(SingularValues)),
    Way("DyLoRA, ranks 1 to 16", USUAL, parametrized(AllRanks)),
    Way("IST over LoRA, rank 16", USUAL, lora(16), lambda *given: [SomeLayers(*given)]),
    Way(f"SPT, {SENSITIVE:.0%} of the weights", USUAL, sensitive(SENSITIVE)),
]


@torch.no_grad()
def held_out(bench: Bench, child: Any) -> float:
    """KL(parent || child) on the text by which rates are chosen."""
    (_, ours), (_, theirs) = child.forward_hidden(bench.stop), bench.whole.forward_hidden(bench.stop)
    return float(kl_loss(theirs.flatten(0, 1), ours.flatten(0, 1), bench.whole.head_VD, child.head_VD))


def run(bench: Bench, way: Way, states: Any, rate: float, seed: int) -> dict[str, Any]:
    """One recovery: its KL on both texts, what it trained, and its seconds."""
    child = bench.assembled(kept_like(bench), states).requires_grad_(False)
    whole = sum(p.numel() for p in child.parameters())
    trained = way.prepare(bench, child)
    count = sum(p.numel() for name, p in child.named_parameters() if name in trained)
    if way.name.startswith("SPT"):
        count = round(SENSITIVE * whole)
    begun = time.process_time()
    how = Descent(rate, lambda child, rate: way.optimizers(bench, child, rate), linear, lambda name: name in trained)
    kl = descend(bench, child, seed, how)
    return {
        "parent": bench.name, "tokens": bench.tokens, "way": way.name, "rate": rate, "seed": seed, "kl": kl,
        "held_out": held_out(bench, child), "share": count / whole, "seconds": time.process_time() - begun,
    }  # fmt: skip


def page(rows: Sequence[dict[str, Any]], told: str) -> str:
    """All ways of all parents."""
    lines = [
        "# Recovery with few parameters",
        "",
        "One child of several kinds, its blocks trained locally, recovered by each way on the same tokens. KL to the",
        "parent, nats a token, on text that nothing else uses; of several seeds the worst. Each way's rate is the one",
        "of some with the least KL on other held-out text. Memory is that of gradients and of AdamW's moments, beside",
        "those of training everything; seconds are a CPU's. Written by `benchmarks/few_parameters.py`.",
        "",
        "| parent | tokens | way | memory | rate | seeds | KL | seconds |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for parent, tokens, way in dict.fromkeys((row["parent"], row["tokens"], row["way"]) for row in rows):
        own = [row for row in rows if (row["parent"], row["tokens"], row["way"]) == (parent, tokens, way)]
        rate = best_rate(own)
        seeds = [row for row in own if row["rate"] == rate]
        worst = max(seeds, key=lambda row: row["kl"])
        lines.append(
            f"| {parent} | {tokens:,} | {way} | {worst['share']:.1%} | {rate:g} | {len(seeds)} | {worst['kl']:.4f} "
            f"| {worst['seconds']:.0f} |"
        )
    return "\n".join([*lines, "", told, ""])


def best_rate(rows: Sequence[dict[str, Any]]) -> float:
    """The rate with the least KL of the first seed on the text for that."""
    best: float = min((row for row in rows if row["seed"] == 0), key=lambda row: row["held_out"])["rate"]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", nargs="*", default=["stories260K", "stories3M"])
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=Path, default=Path("few_parameters.json"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "few_parameters.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    rows: list[dict[str, Any]] = json.loads(options.rows.read_text()) if options.rows.exists() else []

    def made(way: Way, rate: float, seed: int) -> bool:
        key = {"parent": name, "tokens": options.tokens, "way": way.name, "rate": rate, "seed": seed}
        return any(key.items() <= row.items() for row in rows)

    for name in options.parent:
        bench = Bench(name, options.tokens)
        states, _ = library(bench, kept_like(bench), FOUND)
        for way in WAYS:
            for seed in range(options.seeds):
                of_way = [row for row in rows if (row["parent"], row["way"]) == (name, way.name)]
                for rate in way.rates if seed == 0 else [best_rate(of_way)]:
                    if not made(way, rate, seed):
                        rows.append(run(bench, way, states, rate, seed))
                        print(json.dumps(rows[-1]), flush=True)
                        options.rows.write_text(json.dumps(rows))
                        options.output.write_text(page(rows, footer()))


if __name__ == "__main__":
    main()
