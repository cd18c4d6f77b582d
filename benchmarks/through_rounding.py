"""What training adds to rounding: all matrices of a model in one format, trained by several ways on equal tokens.

    python benchmarks/through_rounding.py [--parents NAME ...] [--format q4_0] [--tokens 65536] [--rows FILE]

Every layer's matrices are rounded, embedding and head are not. `nearest` is ggml's own rounding, `fitted` is by least
squares, and where all others begin. `Block-AP`: layer by layer, weights and scales through rounding, on the parent's
inputs to the layer (EfficientQAT, arXiv 2407.11062). The rest trains the whole model against its parent, and with it
what is not rounded: `weights` through rounding at fixed scales, which is what a search does; `both`, weights and
scales; `scales` alone, at fixed codes (E2E-QP); `rest`, what is not rounded alone; `Block-AP, weights`: half of the
tokens each. One sequence a step. Each way tries rates half a decade apart, from its highest down until one is worse
than the last, and keeps what is best on text of its own, or what it began with. KL is to the parent, nats a token, on
8,192 other tokens. Rows in `--rows` are not made again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
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

LENGTH = 256
RATES, APART = 4, math.sqrt(10.0)
HIGHEST, HIGHEST_OF_SCALES = 3e-4, 3e-3
SMALL = 0.3
"""A scale's rate over that of weights, in sizes of the matrix' weights: it moves all numbers of its block."""


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
    def of(module: nn.Linear, grid: Grid) -> Matrix:
        own_RC = module.weight.detach()
        blocks = torch.zeros(len(own_RC), own_RC.shape[1] // grid.form.block)
        return Matrix(
            module, grid, nn.Parameter(grid.start(own_RC)), nn.Parameter(blocks), float(own_RC.square().mean().sqrt())
        )

    def numbers(self) -> Tensor:
        """Straight through the codes, inside their bounds; scales get the gradients that are theirs."""
        codes, grid = CODES[self.grid.form.name], self.grid
        each = self.factor_RN.repeat_interleave(grid.form.block // TOGETHER, 1)[..., None]
        scale_RS1, offset_RS1 = (part * (1 + SMALL * each / self.size) for part in (grid.scale_RS1, grid.offset_RS1))
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
    grids: dict[str, Grid] = field(default_factory=dict)
    child: Any = field(init=False)
    matrices: dict[str, Matrix] = field(init=False)

    def fit(self, inputs: dict[str, Inputs]) -> None:
        for name, module in linears(self.parent):
            if (form := GGUF[self.form].holding(module.in_features)).can_fit:
                own_RC = module.weight.detach()
                self.grids[name] = Grid.of(own_RC, form, packed(own_RC, form, inputs[name]))

    def begin(self) -> None:
        """A child as it is fitted."""
        self.child = copy.deepcopy(self.parent)
        self.matrices = {
            name: Matrix.of(module, self.grids[name]) for name, module in linears(self.child) if name in self.grids
        }
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
        ids_BS = ids_NS[step : step + 1]
        with torch.no_grad():
            _, parent_BSD = bench.parent.forward_hidden(ids_BS)
        _, child_BSD = bench.child.forward_hidden(ids_BS)
        return kl_loss(
            parent_BSD.flatten(0, 1), child_BSD.flatten(0, 1), bench.parent.head_VD.detach(), bench.child.head_VD
        )

    train(bench.parameters(codes, scales, rest=True), len(ids_NS), rate, loss_of)


def by_blocks(bench: Bench, rate: float, ids_NS: Tensor) -> None:
    """Each layer for itself, all of its matrices, on what the parent's layer reads and gives."""
    bench.parameters(codes=True, scales=True, rest=False)
    states = layer_states(bench.parent, ids_NS)
    for index, (layer, before_NSD, after_NSD) in enumerate(
        zip(bench.child.model.layers, states[:-1], states[1:], strict=True)
    ):
        prefix = layer_prefix(index).removeprefix("model.")
        own = [matrix for name, matrix in bench.matrices.items() if name.startswith(prefix)]
        update = float((after_NSD - before_NSD).square().mean())

        def loss_of(
            step: int,
            layer: Any = layer,
            own: Sequence[Matrix] = own,
            before_NSD: Tensor = before_NSD,
            after_NSD: Tensor = after_NSD,
            update: float = update,
        ) -> Tensor:
            before_BSD, after_BSD = (states_NSD[step : step + 1] for states_NSD in (before_NSD, after_NSD))
            for matrix in own:
                matrix.write()
            context = bench.parent.model._context(before_BSD, None, None, None)
            return functional.mse_loss(layer(before_BSD, context), after_BSD) / update

        parameters = [each for matrix in own for each in (matrix.weights_RC, matrix.factor_RN)]
        train(parameters, len(ids_NS), rate, loss_of)


@torch.no_grad()
def layer_states(model: Any, ids_NS: Tensor) -> list[Tensor]:
    """What each layer reads, and what the last one gives, [N, S, D] each."""
    parts = []
    for ids_BS in ids_NS.split(8):
        after, _ = model.forward_hidden(ids_BS)
        parts.append([model.model.embed_tokens(ids_BS), *after])
    return [torch.cat(states) for states in zip(*parts, strict=True)]


def half_and_half(bench: Bench, rate: float, ids_NS: Tensor) -> None:
    first_NS, second_NS = ids_NS.chunk(2)
    by_blocks(bench, rate, first_NS)
    whole(bench, rate, second_NS, codes=True, scales=False)


@dataclass(frozen=True)
class Way:
    """A way to train, and the highest rate that it tries."""

    train: Callable[[Bench, float, Tensor], None]
    highest: float = HIGHEST


def of_whole(codes: bool, scales: bool, highest: float = HIGHEST) -> Way:
    return Way(lambda bench, rate, ids_NS: whole(bench, rate, ids_NS, codes, scales), highest)


WAYS: dict[str, Way] = {
    "Block-AP": Way(by_blocks),
    "weights": of_whole(codes=True, scales=False),
    "both": of_whole(codes=True, scales=True),
    "scales": of_whole(codes=False, scales=True, highest=HIGHEST_OF_SCALES),
    "rest": of_whole(codes=False, scales=False, highest=HIGHEST_OF_SCALES),
    "Block-AP, weights": Way(half_and_half),
}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parents", nargs="+", default=["stories260K", "stories3M", PARENTS[0]], help="shipped, or in INLAY_PARENTS"
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--format", default="q4_0", choices=list(CODES))
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--rows", type=Path, default=Path("through_rounding.json"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "through_rounding.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in chosen.parents:
        for row in rows_of(name, chosen.format, chosen.tokens, chosen.ways, held(chosen.rows)):
            print(row, flush=True)
            chosen.rows.write_text(json.dumps([*held(chosen.rows), row], indent=1))
    chosen.output.write_text(page(held(chosen.rows)))


def held(path: Path) -> list[Row]:
    found: list[Row] = json.loads(path.read_text()) if path.exists() else []
    return found


def page(rows: Sequence[Row]) -> str:
    """The parents one after the other, their ways in the order of `WAYS`."""
    lines = ["# Training through rounding", "", str(__doc__).split("\n\n")[2].strip(), ""]
    lines += ["| parent | format | way | tokens | rate | KL | / nearest | seconds of a CPU |"]
    lines += ["|---|---|---|---:|---:|---:|---:|---:|"]
    order = ["nearest", "fitted", *WAYS]
    for parent in dict.fromkeys(row["parent"] for row in rows):
        own = sorted((row for row in rows if row["parent"] == parent), key=lambda row: order.index(row["way"]))
        nearest = {row["format"]: row["kl"] for row in own if row["way"] == "nearest"}
        for row in own:
            cells = [parent, row["format"], row["way"]]
            cells += [f"{row['tokens']:,}", _rate(row["rate"])] if row["tokens"] else ["", ""]
            cells += [f"{row['kl']:.4f}", f"{row['kl'] / nearest[row['format']]:.2f}"]
            cells += [f"{row['seconds']:.0f}" if row["tokens"] else ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", footer()]) + "\n"


def _rate(rate: float) -> str:
    return f"{rate:.0e}" if rate else "as it began"


def rows_of(name: str, form: str, tokens: int, ways: Sequence[str], before: Sequence[Row]) -> Iterator[Row]:
    """A row for each way that has none."""
    done = {row["way"] for row in before if (row["parent"], row["format"]) == (name, form)
            and row["tokens"] in (0, tokens)}  # fmt: skip
    if done.issuperset(ways):
        return
    bench, told_NS = bench_of(name, form, tokens)
    bench.fit(inputs_of(bench.parent, dict(linears(bench.parent)), told_NS))

    def row(way: str, kl: float, **told: Any) -> Row:
        return {"parent": name, "format": form, "way": way, "kl": kl, "tokens": 0, **told}

    if "nearest" not in done:
        bench.child, bench.matrices = copy.deepcopy(bench.parent), {}
        for _, module in linears(bench.child):
            module.weight.data = rounded(module.weight.data, GGUF[form].holding(module.in_features))
        yield row("nearest", bench.kl(bench.judged))
    bench.begin()
    fitted, least = bench.kl(bench.judged), bench.kl(bench.stop)
    if "fitted" not in done:
        yield row("fitted", fitted)
    for way in ways:
        if way not in done:
            yield row(way, tokens=tokens, **trained(bench, WAYS[way], fitted, least))


def trained(bench: Bench, way: Way, fitted: float, least: float) -> Row:
    """KL, rate and seconds of a way at the best of its rates."""
    best, kept, used, last, runs = least, fitted, 0.0, math.inf, 0
    begun = time.process_time()
    for number in range(RATES):
        rate = way.highest / APART**number
        bench.begin()
        way.train(bench, rate, bench.train_NS)
        kl, runs = bench.kl(bench.stop), runs + 1
        if kl < best:
            best, kept, used = kl, bench.kl(bench.judged), rate
        if last < kl:
            break
        last = kl
    return {"kl": kept, "rate": used, "seconds": (time.process_time() - begun) / runs}


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
