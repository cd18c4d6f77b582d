"""What training adds to rounding: all matrices of a model in one format, trained by several ways on equal tokens.

    python benchmarks/through_rounding.py [--parents NAME ...] [--format q4_0] [--tokens 131072] [--rates 1e-4 3e-5]

Every layer's matrices are rounded, embedding and head are not. `nearest` is ggml's own rounding, `fitted` is by least
squares, and where all others begin. `Block-AP`: layer by layer, weights and scales through rounding, on the parent's
inputs to the layer (EfficientQAT, arXiv 2407.11062). The rest trains the whole model against its parent, and with it
what is not rounded: `weights` through rounding at fixed scales, which is what a search does; `both`, weights and
scales; `scales` alone, at fixed codes (E2E-QP); `Block-AP, weights`: half of the tokens each. Each way tries the
rates and keeps what is best on text of its own, or what it began with. KL is to the parent, nats a token, on 8,192
other tokens.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
import torch
from machine import footer
from rounding import TOKENS, inputs_of, kl_nats, outputs
from torch import Tensor, nn
from torch.nn import functional

from inlay.distill.optimize import adamw, set_learning_rate, warmup_linear
from inlay.kernels import kl_loss
from inlay.nas.embedded import PARENTS, corpus, embedded_parent
from inlay.nas.families import layer_prefix, open_parent
from inlay.nas.formats.codes import CODES
from inlay.nas.formats.gguf import GGUF
from inlay.nas.formats.inputs import Inputs
from inlay.nas.formats.tensors import packed, rounded
from inlay.nas.formats.through import TOGETHER, Grid
from inlay.nas.modeling import InlayForCausalLM

BATCH, LENGTH = 4, 256
RATES = (1e-4, 3e-5)
LARGE = 10.0
"""A scale's rate over that of weights, in sizes of the matrix' weights: it is one number for many."""


@dataclass
class Matrix:
    """A rounded matrix in training: what lies behind its codes, and what its scales are multiplied by."""

    module: nn.Linear
    grid: Grid
    weights_RC: nn.Parameter
    factor_RN: nn.Parameter
    """Of each block, in sizes of the matrix' weights above 1."""
    size: float

    @staticmethod
    def of(module: nn.Linear, form: str, inputs: Inputs) -> Matrix | None:
        own_RC = module.weight.detach()
        held = GGUF[form].holding(own_RC.shape[1])
        if not held.can_fit:
            return None
        grid = Grid.of(own_RC, held, packed(own_RC, held, inputs))
        blocks = torch.zeros(len(own_RC), own_RC.shape[1] // held.block)
        return Matrix(
            module, grid, nn.Parameter(grid.start(own_RC)), nn.Parameter(blocks), float(own_RC.square().mean().sqrt())
        )

    def numbers(self) -> Tensor:
        """Straight through the codes, inside their bounds; scales get the gradients that are theirs."""
        codes, grid = CODES[self.grid.form.name], self.grid
        each = self.factor_RN.repeat_interleave(grid.form.block // TOGETHER, 1)[..., None]
        scale_RS1, offset_RS1 = (part * (1 + LARGE * each / self.size) for part in (grid.scale_RS1, grid.offset_RS1))
        safe_RS1 = torch.where(scale_RS1 == 0, 1.0, scale_RS1)
        weights_RSB = self.weights_RC.view(len(self.weights_RC), -1, TOGETHER)
        where_RSB = ((weights_RSB - offset_RS1) / safe_RS1).clamp(codes.least, codes.most)
        chosen_RSB = where_RSB + (where_RSB.round() - where_RSB).detach()
        return (scale_RS1 * chosen_RSB + offset_RS1).view_as(self.weights_RC)

    def write(self) -> None:
        """Gives the module what it computes with."""
        self.module._parameters.pop("weight", None)
        self.module.weight = self.numbers()  # type: ignore[assignment]


@dataclass
class Bench:
    """A parent, its texts, and a child whose matrices are rounded."""

    parent: Any
    form: str
    train_NS: Tensor
    stop: Sequence[Tensor]
    judged: Sequence[Tensor]
    child: Any = field(init=False)
    matrices: dict[str, Matrix] = field(init=False)

    def begin(self, inputs: dict[str, Inputs]) -> None:
        """A child as it is fitted."""
        self.child = copy.deepcopy(self.parent)
        found = {name: Matrix.of(module, self.form, inputs[name]) for name, module in linears(self.child)}
        self.matrices = {name: matrix for name, matrix in found.items() if matrix is not None}
        self.write()

    def write(self) -> None:
        for matrix in self.matrices.values():
            matrix.write()

    def parameters(self, codes: bool, scales: bool, rest: bool) -> list[nn.Parameter]:
        """What a way trains; nothing else keeps a gradient."""
        behind = list(self.matrices.values())
        others = list(self.child.parameters())
        for held, wanted in (
            ([each.weights_RC for each in behind], codes),
            ([each.factor_RN for each in behind], scales),
            (others, rest),
        ):
            for parameter in held:
                parameter.requires_grad_(wanted)
        return [
            *[each.weights_RC for each in behind if codes],
            *[each.factor_RN for each in behind if scales],
            *[each for each in others if rest],
        ]

    def kl(self, batches: Sequence[Tensor]) -> float:
        with torch.no_grad():
            self.write()
        ids_NS = torch.cat(list(batches))
        own = [torch.log_softmax(logits, -1) for logits in outputs(self.parent, ids_NS)]
        return kl_nats(own, outputs(self.child, ids_NS))


def linears(model: Any) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in model.model.named_modules() if isinstance(module, nn.Linear)]


def train(parameters: Sequence[nn.Parameter], steps: int, rate: float, loss_of: Callable[[int], Tensor]) -> None:
    optimizer = adamw(parameters, rate, (0.9, 0.95), 0.0)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss_of(step).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        set_learning_rate(optimizer, rate * warmup_linear(step, steps, 0.05))
        optimizer.step()


def whole(bench: Bench, rate: float, ids_NS: Tensor, codes: bool, scales: bool) -> None:
    """The whole child against the parent."""

    def loss_of(step: int) -> Tensor:
        bench.write()
        ids_BS = ids_NS[step * BATCH : (step + 1) * BATCH]
        with torch.no_grad():
            _, parent_BSD = bench.parent.forward_hidden(ids_BS)
        _, child_BSD = bench.child.forward_hidden(ids_BS)
        return kl_loss(
            parent_BSD.flatten(0, 1), child_BSD.flatten(0, 1), bench.parent.head_VD.detach(), bench.child.head_VD
        )

    train(bench.parameters(codes, scales, rest=True), len(ids_NS) // BATCH, rate, loss_of)


def by_blocks(bench: Bench, rate: float, ids_NS: Tensor) -> None:
    """Each layer for itself, all of its matrices, on what the parent's layer reads and gives."""
    bench.parameters(codes=True, scales=True, rest=False)
    for index, layer in enumerate(bench.child.model.layers):
        prefix = layer_prefix(index).removeprefix("model.")
        own = [matrix for name, matrix in bench.matrices.items() if name.startswith(prefix)]

        def loss_of(step: int, index: int = index, layer: Any = layer, own: Sequence[Matrix] = own) -> Tensor:
            ids_BS = ids_NS[step * BATCH : (step + 1) * BATCH]
            with torch.no_grad():
                after, _ = bench.parent.forward_hidden(ids_BS)
                before_BSD = after[index - 1] if index else bench.parent.model.embed_tokens(ids_BS)
                context = bench.parent.model._context(before_BSD, None, None, None)
            for matrix in own:
                matrix.write()
            update_BSD = after[index] - before_BSD
            return functional.mse_loss(layer(before_BSD, context), after[index]) / update_BSD.square().mean()

        parameters = [each for matrix in own for each in (matrix.weights_RC, matrix.factor_RN)]
        train(parameters, len(ids_NS) // BATCH, rate, loss_of)


def half_and_half(bench: Bench, rate: float, ids_NS: Tensor) -> None:
    first_NS, second_NS = ids_NS.chunk(2)
    by_blocks(bench, rate, first_NS)
    whole(bench, rate, second_NS, codes=True, scales=False)


WAYS: dict[str, Callable[[Bench, float, Tensor], None]] = {
    "Block-AP": by_blocks,
    "weights": lambda bench, rate, ids_NS: whole(bench, rate, ids_NS, codes=True, scales=False),
    "both": lambda bench, rate, ids_NS: whole(bench, rate, ids_NS, codes=True, scales=True),
    "scales": lambda bench, rate, ids_NS: whole(bench, rate, ids_NS, codes=False, scales=True),
    "Block-AP, weights": half_and_half,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parents", nargs="+", default=[PARENTS[0], "stories260K"], help="shipped, or in INLAY_PARENTS"
    )
    parser.add_argument("--format", default="q4_0", choices=list(CODES))
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "through_rounding.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# Training through rounding", "", str(__doc__).split("\n\n")[2].strip(), ""]
    lines += [f"All matrices in {chosen.format}, {chosen.tokens:,} tokens.", ""]
    lines += ["| parent | way | rate | KL | / nearest | seconds of a CPU |", "|---|---|---:|---:|---:|---:|"]
    for name in chosen.parents:
        for line in rows(name, chosen.format, chosen.tokens, chosen.rates):
            print(line, flush=True)
            lines.append(line)
    chosen.output.write_text("\n".join([*lines, "", footer()]) + "\n")


def rows(name: str, form: str, tokens: int, rates: Sequence[float]) -> Iterator[str]:
    """A line for each way."""
    bench, told_NS = bench_of(name, form, tokens)
    inputs = inputs_of(bench.parent, dict(linears(bench.parent)), told_NS)
    bench.child = copy.deepcopy(bench.parent)
    bench.matrices = {}
    for _, module in linears(bench.child):
        module.weight.data = rounded(module.weight.data, GGUF[form].holding(module.in_features))
    nearest = bench.kl(bench.judged)
    yield f"| {name} | nearest | | {nearest:.4f} | 1.00 | |"
    bench.begin(inputs)
    fitted, least = bench.kl(bench.judged), bench.kl(bench.stop)
    yield f"| {name} | fitted | | {fitted:.4f} | {fitted / nearest:.2f} | |"
    for way, training in WAYS.items():
        best, kept, used = least, fitted, 0.0
        begun = time.process_time()
        for rate in rates:
            bench.begin(inputs)
            training(bench, rate, bench.train_NS)
            if (kl := bench.kl(bench.stop)) < best:
                best, kept, used = kl, bench.kl(bench.judged), rate
        seconds = (time.process_time() - begun) / len(rates)
        yield f"| {name} | {way} | {used:g} | {kept:.4f} | {kept / nearest:.2f} | {seconds:.0f} |"


def bench_of(name: str, form: str, tokens: int) -> tuple[Bench, Tensor]:
    """With the first tokens of the text, by which rounding is fitted."""
    if name in PARENTS:
        folder, own, other = embedded_parent(name), corpus.text("train"), corpus.text("held_out")
    else:
        folder = Path(os.environ["INLAY_PARENTS"]) / name
        (file,) = Path(os.environ["INLAY_TEXT"]).glob("*.txt")
        text = file.read_text(encoding="utf-8")
        own, other = text[: len(text) * 4 // 5], text[len(text) * 4 // 5 :]
    parent = open_parent(folder)
    tokenizer = parent.tokenizer()

    def ids(text: str, count: int) -> Tensor:
        found = tokenizer(text[: count * 12])["input_ids"][:count]
        return torch.tensor(found[: len(found) // LENGTH * LENGTH]).view(-1, LENGTH)

    state = dict(parent.ends_state())
    for layer in range(parent.shape.num_layers):
        state |= {layer_prefix(layer) + key: tensor for key, tensor in parent.layer_state(layer).items()}
    model: Any = InlayForCausalLM(parent.config)
    model.load_state_dict(state, strict=False)
    model.float().eval().requires_grad_(False).tie_weights()
    train_NS = ids(own, tokens)
    stop_NS, judged_NS = ids(other, 2 * TOKENS).chunk(2)
    return Bench(model, form, train_NS, stop_NS.split(8), judged_NS.split(8)), train_NS[: TOKENS // LENGTH]


if __name__ == "__main__":
    main()
