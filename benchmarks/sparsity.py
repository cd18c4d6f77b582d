"""Which trainer of masks leaves a model with two of every four numbers nearest to what it was, on equal tokens.

    python benchmarks/sparsity.py [--parents NAME ...] [--tokens 65536] [--rates 3e-4 1e-3 3e-3] [--ways NAME ...]

All matrices of all layers keep two of each four numbers of a row; embedding and head are whole. Without training:
`magnitude` keeps the largest, `Wanda` those whose outputs are the largest (arXiv 2306.11695), `refitted` moves what is
kept by least squares on 8,192 tokens, `SparseGPT's` chooses column by column while it refits (arXiv 2301.00774).
Trained against the parent's next-token distributions, embedding, head and norms too: `fixed` trains what is kept;
`MaskLLM` draws one of the six patterns of a group, Gumbel noise and a falling temperature, all weights frozen (arXiv
2409.17481), alone or for half of the tokens before what is kept is trained; `PDP` multiplies by a soft threshold that
hardens (arXiv 2305.11203); `free` chooses anew at every step, straight through, and `AST` lets what is not kept decay
by some percent a step and stops choosing after three quarters (arXiv 2407.20584). `locally`: layer by layer, on what
the parent's layer reads and gives. `half of all` is any half of a row: what the pattern costs. Each way has the rate
that is best on text of its own; KL is to the parent, nats a token, on 8,192 other tokens.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
import torch
from machine import footer
from rounding import inputs_of, kl_nats, outputs
from through_rounding import BATCH, bench_of, linears
from torch import Tensor, nn
from torch.nn import functional

from inlay.distill.optimize import adamw, set_learning_rate, warmup_linear
from inlay.kernels import kl_loss
from inlay.nas.embedded import PARENTS
from inlay.nas.families import layer_prefix
from inlay.nas.formats.inputs import Inputs
from inlay.nas.formats.sparse import GROUP, kept, kept_in_turn, refitted

RATES = (3e-4, 1e-3, 3e-3)
LOGITS = 30.0
"""The rate of a pattern's logit over that of a weight."""
PATTERNS = torch.tensor([[int(place in pair) for place in range(4)] for pair in
                         ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))], dtype=torch.float32)  # fmt: skip

Choose = Callable[[Tensor, Inputs], Tensor]
"""From a matrix and its inputs to which of its numbers are kept."""


def magnitude(weights_RC: Tensor, inputs: Inputs) -> Tensor:
    return kept(weights_RC.abs())


def wanda(weights_RC: Tensor, inputs: Inputs) -> Tensor:
    return kept(weights_RC.square() * inputs.importance_C)


def in_turn(weights_RC: Tensor, inputs: Inputs) -> Tensor:
    return kept_in_turn(weights_RC, inputs.factor_CC)


def half_of_all(weights_RC: Tensor, inputs: Inputs) -> Tensor:
    score_RC = weights_RC.square() * inputs.importance_C
    return score_RC > score_RC.kthvalue(score_RC.shape[1] // 2, dim=1, keepdim=True).values


class Mask(nn.Module, ABC):
    """A matrix whose mask is trained."""

    quick: Sequence[nn.Parameter] = ()
    """What is trained at `LOGITS` times the rate."""

    def trained(self) -> list[nn.Parameter]:
        """What is trained at the rate itself."""
        return []

    @abstractmethod
    def numbers(self, done: float) -> Tensor:
        """What is computed with once that share of the steps is done, with its gradients."""

    @abstractmethod
    def last(self) -> tuple[Tensor, Tensor]:
        """What training ended with: numbers, and which of them are kept."""

    def after_step(self, done: float) -> None:
        """Called when the weights have moved."""


class Fixed(Mask):
    """The numbers that are kept are trained, the others are none."""

    def __init__(self, numbers_RC: Tensor, kept_RC: Tensor) -> None:
        super().__init__()
        self.weights, self.kept_RC = nn.Parameter(numbers_RC * kept_RC), kept_RC

    def trained(self) -> list[nn.Parameter]:
        return [self.weights]

    def numbers(self, done: float) -> Tensor:
        return self.weights * self.kept_RC

    def last(self) -> tuple[Tensor, Tensor]:
        return self.weights.detach(), self.kept_RC


class Free(Mask):
    """All numbers are trained, straight through the mask that they have."""

    def __init__(self, weights_RC: Tensor, inputs: Inputs, choose: Choose, decay: float, until: float) -> None:
        super().__init__()
        self.inputs, self.choose, self.decay, self.until = inputs, choose, decay, until
        # Begun as they are refitted: what is not kept stays what it was, and may come back.
        kept_RC = choose(weights_RC, inputs)
        fitted_RC = refitted(weights_RC, kept_RC, inputs.damped_CC)
        self.weights, self.kept_RC = nn.Parameter(torch.where(kept_RC, fitted_RC, weights_RC)), kept_RC

    def trained(self) -> list[nn.Parameter]:
        return [self.weights]

    def numbers(self, done: float) -> Tensor:
        own_RC = self.weights.detach()
        if done < self.until:
            self.kept_RC = self.choose(own_RC, self.inputs)
        return self.weights - own_RC * ~self.kept_RC

    def after_step(self, done: float) -> None:
        with torch.no_grad():
            self.weights.mul_(torch.where(self.kept_RC, 1.0, 1.0 - self.decay))

    def last(self) -> tuple[Tensor, Tensor]:
        return self.weights.detach(), self.kept_RC


class Drawn(Mask):
    """One of six patterns for each group, by logits that begin with what each keeps of the outputs."""

    def __init__(self, weights_RC: Tensor, inputs: Inputs) -> None:
        super().__init__()
        self.own_RC = weights_RC
        self.drawn = torch.Generator().manual_seed(0)
        score_RG4 = (weights_RC.square() * inputs.importance_C).unflatten(1, (-1, GROUP))
        share_RG6 = (score_RG4 / score_RG4.sum(-1, keepdim=True).clamp_min(1e-12)) @ PATTERNS.T
        self.logits = nn.Parameter(3.0 * (share_RG6 - share_RG6.mean(-1, keepdim=True)))
        self.quick = (self.logits,)

    def numbers(self, done: float) -> Tensor:
        uniform = torch.rand(self.logits.shape, generator=self.drawn).clamp_(1e-6, 1 - 1e-6)
        noise = -(-uniform.log()).log() * (1.0 - done)
        soft_RG6 = torch.softmax((self.logits + noise) / (2.0 * (1.0 - done) + 0.05), -1)
        return self.own_RC * (soft_RG6 @ PATTERNS).flatten(1)

    def last(self) -> tuple[Tensor, Tensor]:
        return self.own_RC, PATTERNS[self.logits.detach().argmax(-1)].flatten(1).bool()


class Soft(Mask):
    """Numbers times how far they are above what parts the second and the third of their group."""

    def __init__(self, weights_RC: Tensor, inputs: Inputs) -> None:
        super().__init__()
        self.weights, self.inputs = nn.Parameter(weights_RC.clone()), inputs

    def trained(self) -> list[nn.Parameter]:
        return [self.weights]

    def numbers(self, done: float) -> Tensor:
        score_RG4 = (self.weights.square() * self.inputs.importance_C).unflatten(1, (-1, GROUP))
        ordered_RG4 = score_RG4.sort(-1, descending=True).values
        middle_RG1 = (ordered_RG4[..., 1:2] + ordered_RG4[..., 2:3]) / 2
        over_RG4 = score_RG4 / middle_RG1.clamp_min(1e-12) - 1.0
        return self.weights * torch.sigmoid(over_RG4 / (1.0 - done + 0.02)).flatten(1)

    def last(self) -> tuple[Tensor, Tensor]:
        own_RC = self.weights.detach()
        return own_RC, wanda(own_RC, self.inputs)


@dataclass
class Bench:
    """A parent, its texts, what its matrices read, and a child."""

    parent: Any
    train_NS: Tensor
    stop: Sequence[Tensor]
    judged: Sequence[Tensor]
    inputs: dict[str, Inputs]
    child: Any = field(init=False)
    masks: dict[str, Mask] = field(init=False)

    def begin(self, mask: Callable[[Tensor, Inputs], Mask]) -> None:
        """A child as it comes from the parent."""
        self.child = copy.deepcopy(self.parent)
        self.masks = {
            name: mask(module.weight.detach().clone(), self.inputs[name]) for name, module in linears(self.child)
        }
        self.fix()

    def write(self, done: float) -> None:
        """Gives the modules what they compute with, gradients and all."""
        for name, module in linears(self.child):
            module._parameters.pop("weight", None)
            module.weight = self.masks[name].numbers(done)  # type: ignore[assignment]

    def fix(self) -> None:
        """Gives them what training ended with, in bfloat16 as it is stored."""
        for name, module in linears(self.child):
            numbers_RC, kept_RC = self.masks[name].last()
            module._parameters.pop("weight", None)
            module.weight = (numbers_RC * kept_RC).bfloat16().float()

    def kl(self, batches: Sequence[Tensor]) -> float:
        self.fix()
        ids_NS = torch.cat(list(batches))
        own = [torch.log_softmax(logits, -1) for logits in outputs(self.parent, ids_NS)]
        return kl_nats(own, outputs(self.child, ids_NS))

    def train(
        self, ids_NS: Tensor, rate: float, masks: Sequence[Mask], rest: bool, loss: Callable[..., Tensor]
    ) -> None:
        """Masks, and all that has none where `rest`, by a loss of a batch; `loss(ids_BS)` after weights are written."""
        steps = len(ids_NS) // BATCH
        named = {name for name, _ in self.child.named_parameters()}
        others = [parameter.requires_grad_(rest) for name, parameter in self.child.named_parameters() if name in named]
        groups = [
            ([*(each for mask in masks for each in mask.trained()), *(others if rest else [])], rate),
            ([each for mask in masks for each in mask.quick], rate * LOGITS),
        ]
        optimizers = [(adamw(own, each, (0.9, 0.95), 0.0), each) for own, each in groups if own]
        parameters = [each for own, _ in groups for each in own]
        for step in range(steps):
            done = step / steps
            self.write(done)
            for parameter in parameters:
                parameter.grad = None
            loss(ids_NS[step * BATCH : (step + 1) * BATCH]).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer, each in optimizers:
                set_learning_rate(optimizer, each * warmup_linear(step, steps, 0.05))
                optimizer.step()
            for mask in masks:
                mask.after_step(done)

    def whole(self, ids_NS: Tensor, rate: float, rest: bool = True) -> None:
        """Against the parent's distributions."""

        def loss(ids_BS: Tensor) -> Tensor:
            with torch.no_grad():
                _, parent_BSD = self.parent.forward_hidden(ids_BS)
            _, child_BSD = self.child.forward_hidden(ids_BS)
            return kl_loss(
                parent_BSD.flatten(0, 1), child_BSD.flatten(0, 1), self.parent.head_VD.detach(), self.child.head_VD
            )

        self.train(ids_NS, rate, list(self.masks.values()), rest, loss)

    def by_blocks(self, ids_NS: Tensor, rate: float) -> None:
        """Each layer for itself, on what the parent's layer reads and gives."""
        for index, layer in enumerate(self.child.model.layers):
            prefix = layer_prefix(index).removeprefix("model.")

            def loss(ids_BS: Tensor, index: int = index, layer: Any = layer) -> Tensor:
                with torch.no_grad():
                    after, _ = self.parent.forward_hidden(ids_BS)
                    before_BSD = after[index - 1] if index else self.parent.model.embed_tokens(ids_BS)
                    context = self.parent.model._context(before_BSD, None, None, None)
                update_BSD = after[index] - before_BSD
                return functional.mse_loss(layer(before_BSD, context), after[index]) / update_BSD.square().mean()

            own = [mask for name, mask in self.masks.items() if name.startswith(prefix)]
            self.train(ids_NS, rate, own, False, loss)


@dataclass(frozen=True)
class Way:
    """How a mask begins, and how it is trained; None: not at all."""

    mask: Callable[[Tensor, Inputs], Mask]
    training: Callable[[Bench, Tensor, float], None] | None = None


def fixed(choose: Choose, refit: bool) -> Callable[[Tensor, Inputs], Mask]:
    def mask(weights_RC: Tensor, inputs: Inputs) -> Mask:
        kept_RC = choose(weights_RC, inputs)
        return Fixed(refitted(weights_RC, kept_RC, inputs.damped_CC) if refit else weights_RC, kept_RC)

    return mask


def free(choose: Choose, decay: float = 0.0, until: float = 1.0) -> Callable[[Tensor, Inputs], Mask]:
    return lambda weights_RC, inputs: Free(weights_RC, inputs, choose, decay, until)


def drawn_then_fixed(bench: Bench, ids_NS: Tensor, rate: float) -> None:
    """Masks, then what they keep, refitted."""
    first_NS, second_NS = ids_NS.chunk(2)
    bench.whole(first_NS, RATES[-1], rest=False)
    for name, mask in bench.masks.items():
        numbers_RC, kept_RC = mask.last()
        bench.masks[name] = Fixed(refitted(numbers_RC, kept_RC, bench.inputs[name].damped_CC), kept_RC)
    bench.whole(second_NS, rate)


WAYS: dict[str, Way] = {
    "magnitude": Way(fixed(magnitude, False)),
    "Wanda": Way(fixed(wanda, False)),
    "Wanda, refitted": Way(fixed(wanda, True)),
    "SparseGPT's, refitted": Way(fixed(in_turn, True)),
    "half of all, refitted": Way(fixed(half_of_all, True)),
    "magnitude, fixed": Way(fixed(magnitude, False), Bench.whole),
    "Wanda, refitted, fixed": Way(fixed(wanda, True), Bench.whole),
    "SparseGPT's, refitted, fixed": Way(fixed(in_turn, True), Bench.whole),
    "Wanda, refitted, fixed, locally": Way(fixed(wanda, True), Bench.by_blocks),
    "MaskLLM": Way(Drawn, lambda bench, ids_NS, rate: bench.whole(ids_NS, rate, rest=False)),
    "MaskLLM, then fixed": Way(Drawn, drawn_then_fixed),
    "PDP": Way(Soft, Bench.whole),
    "free": Way(free(wanda), Bench.whole),
    "AST, 1 %": Way(free(wanda, 0.01, 0.75), Bench.whole),
    "AST, 5 %": Way(free(wanda, 0.05, 0.75), Bench.whole),
    "AST, 5 %, locally": Way(free(wanda, 0.05, 0.75), Bench.by_blocks),
    "half of all, refitted, fixed": Way(fixed(half_of_all, True), Bench.whole),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parents", nargs="+", default=["stories260K", "stories3M", PARENTS[0]], help="shipped, or in INLAY_PARENTS"
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "sparsity.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# Two of four", "", str(__doc__).split("\n\n")[2].strip(), ""]
    lines += [
        "| parent | tokens | way | rate | KL | / magnitude | seconds of a CPU |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for name in chosen.parents:
        for line in rows(name, chosen.ways, chosen.tokens, chosen.rates):
            print(line, flush=True)
            lines.append(line)
            chosen.output.write_text("\n".join([*lines, "", footer()]) + "\n")


def rows(name: str, ways: Sequence[str], tokens: int, rates: Sequence[float]) -> Iterator[str]:
    """A line for each way."""
    texts, told_NS = bench_of(name, "q4_0", tokens)
    inputs = inputs_of(texts.parent, dict(linears(texts.parent)), told_NS)
    bench = Bench(texts.parent, texts.train_NS, texts.stop, texts.judged, inputs)
    bench.begin(WAYS["magnitude"].mask)
    baseline = bench.kl(bench.judged)
    for way in ways:
        least, found, used, begun = math.inf, math.nan, 0.0, time.process_time()
        for rate in rates if WAYS[way].training else [0.0]:
            torch.manual_seed(0)
            bench.begin(WAYS[way].mask)
            if training := WAYS[way].training:
                training(bench, bench.train_NS, rate)
            if (kl := bench.kl(bench.stop)) < least:
                least, found, used = kl, bench.kl(bench.judged), rate
        seconds = (time.process_time() - begun) / (len(rates) if WAYS[way].training else 1)
        told = (f"{tokens:,}", f"{used:g}") if WAYS[way].training else ("", "")
        yield f"| {name} | {told[0]} | {way} | {told[1]} | {found:.4f} | {found / baseline:.2f} | {seconds:.0f} |"


if __name__ == "__main__":
    main()
