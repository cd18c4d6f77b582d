"""What runs on a CUDA device: that it is right there, and how fast it is.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/cuda.py [--device cuda] [--only kernels,local,...]

Kernels against float64 on the CPU and beside plain torch; local and global distillation against the same training on
the CPU, the latter also sharded with FSDP2; the timer of `measure`; the model against Transformers' own classes. A part
that fails says so in the results and the others go on; the exit code is then 1. With `--device cpu` the same code runs
at small sizes and proves everything but the device.

Shapes: N tokens, B batch, S sequence, D model width, V vocabulary.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import plain_loop
import torch
import torch.distributed as dist
from machine import footer
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from inlay.distill.globally import GlobalSettings, distill_globally
from inlay.distill.local import Branch, BranchResult, LayerBatch, LocalSettings, train_layer
from inlay.distill.parallel import Ranks, shard, world_mesh
from inlay.kernels import compare_next_token, kl_loss, update_mse
from inlay.nas.families import Shape, open_parent
from inlay.nas.families.reading import shape_of
from inlay.nas.families.shape import SLOTS
from inlay.nas.hardware.timing import Workload, random_model, rounds_of, summarise
from inlay.nas.modeling import InlayConfig, InlayForCausalLM, build_layer, make_context
from inlay.nas.stages.source import slot_state
from inlay.nas.variants import Variant
from inlay.nas.variants.sums import CalibrationSums

NO_OP = {"kind": "no_op"}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Of a kernel: the error's norm over the reference's."""
TRAINED_ALIKE = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
"""Of a training: the largest difference between two curves of losses, relative."""
MIB = 1 << 20


@dataclass
class Report:
    """Lines of the results, and the checks with how they came out."""

    device: torch.device
    lines: list[str] = field(default_factory=list)
    checks: list[tuple[str, bool]] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether to work at the sizes that a GPU is for."""
        return self.device.type == "cuda"

    def table(self, *header: str) -> None:
        """Opens a table."""
        self.lines += ["", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]

    def row(self, *cells: object) -> None:
        """Adds a row to it."""
        text = "| " + " | ".join(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells) + " |"
        self.lines.append(text)
        print(text, flush=True)

    def check(self, what: str, passed: bool) -> None:
        """Notes whether something holds."""
        self.checks.append((what, passed))
        print(("holds: " if passed else "DOES NOT HOLD: ") + what, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default=",".join(PARTS), help="Parts, comma-separated.")
    parser.add_argument("--parent", default="stories3M")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cuda.md"))
    options = parser.parse_args()
    device = torch.device(options.device)
    report = Report(device)
    name = torch.cuda.get_device_name(device) if report.full else "the CPU, at small sizes"
    for part in options.only.split(","):
        report.lines += ["", f"## {part.capitalize()}"]
        started = time.perf_counter()
        try:
            PARTS[part](report, options.parent)
        except Exception:
            traceback.print_exc()
            report.lines += ["", "```text", traceback.format_exc().rstrip(), "```"]
            report.check(f"{part} runs to its end", False)
        report.lines += ["", f"{time.perf_counter() - started:.0f} s."]
    failed = [what for what, passed in report.checks if not passed]
    summary = [f"- {'holds' if passed else '**does not hold**'}: {what}" for what, passed in report.checks]
    head = [f"# inlay on {name}", "", f"{len(report.checks) - len(failed)} of {len(report.checks)} checks hold."]
    lines = [
        *head,
        *report.lines,
        "",
        "## Checks",
        "",
        *summary,
        "",
        f"Written by `benchmarks/cuda.py`. {footer()}",
        "",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print("\n".join([*summary, f"{len(failed)} checks do not hold"]))
    sys.exit(bool(failed))


def kernels(report: Report, parent: str) -> None:
    """kl_loss, compare_next_token and update_mse: errors against float64, times and memory beside plain torch."""
    width, tokens = (1024, 4096) if report.full else (64, 256)
    report.table("kernel", "type", "V", "error", "error of gradients", "ms", "plain, ms", "MiB", "plain, MiB")
    for dtype in (torch.float32, torch.bfloat16):
        for vocab in (2048, 131072 if report.full else 8192):
            _kl(report, dtype, vocab, width, tokens)
            _comparison(report, dtype, vocab, width, tokens)
        _update(report, dtype)


def _kl(report: Report, dtype: torch.dtype, vocab: int, width: int, tokens: int) -> None:
    given = hidden_and_heads(256, width, vocab, dtype)
    wide = [tensor.double().requires_grad_() for tensor in given]
    truth = plain_kl(*wide)
    truths = torch.autograd.grad(truth, [wide[1], wide[3]])
    moved = [tensor.to(report.device).requires_grad_() for tensor in given]
    ours = kl_loss(*moved)
    gradients = torch.autograd.grad(ours, [moved[1], moved[3]])
    error = relative(ours, truth)
    worst = max(relative(mine, other) for mine, other in zip(gradients, truths, strict=True))
    given = [t.to(report.device) for t in hidden_and_heads(tokens, width, vocab, dtype)]
    for tensor in (given[1], given[3]):
        tensor.requires_grad_()
    costs = [
        measured(report.device, lambda loss=loss: torch.autograd.grad(loss(*given), [given[1], given[3]]))
        for loss in (kl_loss, plain_kl)
    ]
    row(report, "KL, both gradients", dtype, vocab, error, worst, costs)


def _comparison(report: Report, dtype: torch.dtype, vocab: int, width: int, tokens: int) -> None:
    parent_ND, child_ND, head_VD, _ = hidden_and_heads(256, width, vocab, dtype)
    labels_N = torch.arange(256) % vocab
    found = compare_next_token(*(t.to(report.device) for t in (parent_ND,)), [child_ND.to(report.device)],
                               head_VD.to(report.device), labels_N.to(report.device))  # fmt: skip
    parent_NV, child_NV = ((t.double() @ head_VD.double().T).log_softmax(-1) for t in (parent_ND, child_ND))
    truth = (parent_NV.exp() * (parent_NV - child_NV)).sum(-1)
    nll = -child_NV.gather(1, labels_N[:, None])[:, 0]
    same = (parent_NV.argmax(-1) == child_NV.argmax(-1)).double().mean()
    error = max(relative(found.kl[0], truth), relative(found.child_nll[0], nll))
    agreed = abs(float(found.agree[0].double().mean()) - float(same))
    # A rounded logit may tie the first choice: bfloat16 has 8 bits.
    report.check(f"agreement of first choices, {short(dtype)}, V {vocab}: within 5 %, is {agreed:.3f}", agreed <= 0.05)
    parent_ND, child_ND, head_VD, _ = (t.to(report.device) for t in hidden_and_heads(tokens, width, vocab, dtype))
    labels_N = torch.arange(tokens, device=report.device) % vocab
    children = [child_ND + 0.01 * number for number in range(4)]

    @torch.no_grad()
    def plain() -> None:
        parent_NV = (parent_ND @ head_VD.T).float().log_softmax(-1)
        choice_N, probability_NV = parent_NV.argmax(-1), parent_NV.exp()
        for one_ND in children:
            child_NV = (one_ND @ head_VD.T).float().log_softmax(-1)
            (probability_NV * (parent_NV - child_NV)).sum(-1), child_NV.argmax(-1) == choice_N
            child_NV.gather(1, labels_N[:, None])

    ours = measured(report.device, lambda: compare_next_token(parent_ND, children, head_VD, labels_N))
    row(report, "comparison of 4 children", dtype, vocab, error, None, [ours, measured(report.device, plain)])


def _update(report: Report, dtype: torch.dtype) -> None:
    shape = (8, 1024, 2048) if report.full else (2, 64, 64)
    random = torch.Generator().manual_seed(0)
    answer = torch.randn(shape, generator=random).to(dtype)
    update = (answer.float() + 0.3 * torch.randn(shape, generator=random)).to(dtype)
    wide = update.double().requires_grad_()
    truth = plain_mse(wide, answer.double())
    (truth_gradient,) = torch.autograd.grad(truth, wide)
    update, answer = update.to(report.device).requires_grad_(), answer.to(report.device)
    ours = update_mse(update, answer)
    (gradient,) = torch.autograd.grad(ours, update)
    costs = [
        measured(report.device, lambda loss=loss: torch.autograd.grad(loss(update, answer), update))
        for loss in (update_mse, plain_mse)
    ]
    row(
        report,
        "update_mse and its gradient",
        dtype,
        "",
        relative(ours, truth),
        relative(gradient, truth_gradient),
        costs,
    )


def local(report: Report, parent: str) -> None:
    """train_layer: as on the CPU, losses that fall, variant-tokens per second."""
    report.table(
        "layer",
        "type",
        "variants",
        "tokens of a step",
        "differs from the CPU",
        "largest loss left",
        "variant-tokens/s",
        "MiB",
    )
    opened = open_parent(Path(os.environ["INLAY_PARENTS"]) / parent)
    model, ids_NS = parent_and_ids(parent, 40 * 8 if report.full else 10 * 8)
    index = opened.shape.num_layers // 2
    with torch.no_grad():
        hidden_NSD = model(ids_NS, output_hidden_states=True, use_cache=False).hidden_states[index]
    state = {name: tensor.float() for name, tensor in opened.layer_state(index).items()}
    _layer(report, parent, Layer(opened.config, opened.shape, state, torch.float32), hidden_NSD, 8)
    size = 2048 if report.full else 128
    config = llama(size)
    wide = shape_of(config.to_dict() | {"dtype": "bfloat16"}, "bfloat16")
    batch, length = (8, 1024) if report.full else (4, 64)
    random = torch.Generator().manual_seed(0)
    hidden_NSD = torch.randn(batch * 12, length, size, generator=random).to(torch.bfloat16)
    layer = Layer(InlayConfig.from_parent(config), wide, random_state(config), torch.bfloat16)
    _layer(report, f"width {size}", layer, hidden_NSD, batch)


@dataclass
class Layer:
    """A parent's layer with what stands around it; states are on the CPU."""

    config: InlayConfig
    shape: Shape
    state: dict[str, Tensor]
    dtype: torch.dtype

    def variants(self, length: int) -> list[Variant]:
        """One of every kind that is trained."""
        widths = [max(8, self.shape.ffn_width * share // 8) for share in (6, 4, 2)]
        attention = [("kv_heads", 1), ("window", (length // 4, 4)), ("window", (length // 2, 4)), ("linear", None)]
        ffn = [*(("width", width) for width in widths), ("linear", None)]
        return [Variant("attention", *one) for one in attention] + [Variant("ffn", *one) for one in ffn]

    def built(self, device: torch.device) -> Any:
        """The parent's layer."""
        entries = {slot: self.shape.parent_entry(0, slot) for slot in SLOTS}
        return build_layer(self.config, 0, entries["attention"], entries["ffn"], self.state, self.dtype).to(device)

    def train(self, hidden_NSD: Tensor, batch: int, sums: CalibrationSums, device: torch.device) -> list[BranchResult]:
        """Trains all variants on all but one batch, which judges."""
        length = hidden_NSD.shape[1]
        variants = self.variants(length)
        entries = [v.entry(self.shape, 0) for v in variants if v.slot == "attention"]
        entries.append(self.shape.parent_entry(0, "attention"))
        context = make_context(self.config, batch, length, self.dtype, device, entries)
        branches = []
        for variant in variants:
            own = {name: t.to(torch.float32, copy=True) for name, t in slot_state(self.state, variant.slot).items()}
            start, entry = variant.start(self.shape, own, sums), variant.entry(self.shape, 0)
            pair = (entry, None) if variant.slot == "attention" else (None, entry)
            module = build_layer(self.config, 0, *pair, start, torch.float32).to(device).requires_grad_(True)
            branches.append(Branch(variant.label, variant.slot, module))
        batches = [LayerBatch(part.to(device), context) for part in hidden_NSD.split(batch)]
        settings = LocalSettings(steps=len(batches) - 1, held_out=1, learning_rate=3e-4)
        return train_layer(self.built(device), branches, batches, settings)


def _layer(report: Report, name: str, layer: Layer, hidden_NSD: Tensor, batch: int) -> None:
    cpu, length = torch.device("cpu"), hidden_NSD.shape[1]
    few_NSD = hidden_NSD[: batch * 5, : min(length, 256)] if layer.dtype == torch.float32 else hidden_NSD[:5, :256]
    few = batch if layer.dtype == torch.float32 else 1
    context = make_context(layer.config, len(few_NSD), few_NSD.shape[1], layer.dtype, cpu,
                           [layer.shape.parent_entry(0, "attention")])  # fmt: skip
    sums, _ = CalibrationSums.of(layer.built(cpu), few_NSD, context, True)
    there, here = (layer.train(few_NSD, few, sums, device) for device in (report.device, cpu))
    apart = max(curves_apart(one.curve, other.curve) for one, other in zip(there, here, strict=True))
    limit = TRAINED_ALIKE[layer.dtype]
    report.check(f"train_layer of {name} as on the CPU: {apart:.2g} <= {limit:g}", apart <= limit)
    layer.train(hidden_NSD[: 2 * batch], batch, sums, report.device)  # what is compiled or loaded once
    with peak_memory(report.device) as peak:
        started = time.perf_counter()
        results = layer.train(hidden_NSD, batch, sums, report.device)
        synchronize(report.device)
        seconds = time.perf_counter() - started
    left = max(result.final_loss / result.start_loss for result in results)
    report.check(f"every loss of {name} falls: at most {left:.3f} of it is left", left < 1)
    rate = len(results) * (len(hidden_NSD) - batch) * length / seconds
    report.row(name, short(layer.dtype), len(results), batch * length, apart, left, f"{rate:,.0f}", peak[0])


def timing(report: Report, parent: str) -> None:
    """The timer of `measure`: children with less in them beside the parent, which is there twice."""
    report.table("model", "variant", "prefill, ms", "decode step, ms", "runtime, ms", "spread, ms", "of the parent's")
    small = InlayConfig.from_parent(
        AutoModelForCausalLM.from_pretrained(Path(os.environ["INLAY_PARENTS"]) / parent).config
    )
    _timed(report, parent, small, torch.float32, Workload(8, 128, 48, 1))
    wide = InlayConfig.from_parent(llama(2048, 12)) if report.full else InlayConfig.from_parent(llama(128, 4))
    _timed(
        report,
        "width 2048" if report.full else "width 128",
        wide,
        torch.bfloat16,
        Workload(8, 1024 if report.full else 32, 96, 1),
    )


def _timed(report: Report, name: str, config: InlayConfig, dtype: torch.dtype, workload: Workload) -> None:
    own, half = config.blocks, range(0, len(config.blocks), 2)
    narrow = {"kind": "gated", "width": config.intermediate_size // 4}
    blocks = {
        "parent": own,
        "parent again": own,
        "no attention in half": [{**b, "attention": NO_OP} if i in half else b for i, b in enumerate(own)],
        "no ffn in half": [{**b, "ffn": NO_OP} if i in half else b for i, b in enumerate(own)],
        "a quarter of the ffn": [{**b, "ffn": narrow} for b in own],
        "neither in half": [{"attention": NO_OP, "ffn": NO_OP} if i in half else b for i, b in enumerate(own)],
    }
    models: dict[str, Any] = {}
    for label, chosen in blocks.items():
        models[label] = random_model(config.with_blocks(chosen), dtype, report.device, models.get("parent"))
    found = {label: summarise(each, workload) for label, each in rounds_of(models, workload, 7, report.device).items()}
    base = found["parent"].runtime_ns
    for label, times in found.items():
        taken = (times.prefill_ns, times.decode_ns, times.runtime_ns, times.spread_ns)
        report.row(name, label, *(ns / 1e6 for ns in taken), times.runtime_ns / base)
    again = abs(found["parent again"].runtime_ns / base - 1)
    report.check(f"timing of {name}: the parent twice within 5 %, is {again:.3f}", again <= 0.05)
    for label in ("no attention in half", "no ffn in half", "neither in half"):
        report.check(f"timing of {name}: {label} is faster", found[label].runtime_ns < base)
    ids_BP = torch.zeros(workload.batch_size, workload.prefill, dtype=torch.long, device=report.device)
    sent, done = host_and_device(report.device, lambda: models["parent"](ids_BP, use_cache=False, logits_to_keep=1))
    report.lines += ["", f"{name}: a prefill of the parent is sent in {sent:.2f} ms and done after {done:.2f} ms."]
    report.table("model", "variant", "prefill, ms", "decode step, ms", "runtime, ms", "spread, ms", "of the parent's")


def recovery(report: Report, parent: str) -> None:
    """Global distillation of 20 steps: the CPU, the device, and FSDP2 on the device with one rank."""
    report.table(
        "parent in", "steps", "loss from", "to", "differs from the CPU", "sharded differs by", "tokens/s", "MiB"
    )
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if report.full else "gloo"
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            for dtype in (torch.float32, torch.bfloat16):
                _recovered(report, parent, dtype)
        finally:
            dist.destroy_process_group()


def _recovered(report: Report, parent: str, dtype: torch.dtype) -> None:
    model, ids_NS = parent_and_ids(parent, 20 * 8)
    batches = list(ids_NS.split(8))
    settings = GlobalSettings(steps=len(batches), learning_rate=1e-3)
    own = InlayConfig.from_parent(model.config)
    narrow = {"kind": "gated", "width": own.intermediate_size // 2}
    blocks = [{**b, "ffn": narrow} if i % 2 else b for i, b in enumerate(own.blocks)]
    blocks[1]["attention"] = NO_OP

    def run(device: torch.device, sharded: bool) -> tuple[list[float], float]:
        torch.manual_seed(0)
        teacher = InlayForCausalLM(own).to(dtype)
        teacher.load_state_dict(model.state_dict())
        child = InlayForCausalLM(own.with_blocks(blocks)).eval()
        held = child.state_dict()
        fits = {n: t for n, t in model.state_dict().items() if n in held and held[n].shape == t.shape}
        child.load_state_dict(fits, strict=False)
        # Only the weights change their type: rotary frequencies stay in float32.
        teacher.model.rotary_emb = type(teacher.model.rotary_emb)(config=own.family_config())
        teacher, child = teacher.eval().requires_grad_(False).to(device), child.to(device)
        if sharded:
            for each in (teacher, child):
                for unit in (*each.model.layers, each):
                    shard(unit, world_mesh(device))
        started = time.perf_counter()
        given = [ids_BS.to(device) for ids_BS in batches]
        result = distill_globally(teacher, child, given, settings, ranks=Ranks(sharded=sharded))
        return [losses["loss"] for losses in result.curve], time.perf_counter() - started

    run(report.device, False)
    with peak_memory(report.device) as peak:
        curve, seconds = run(report.device, False)
    on_cpu, _ = run(torch.device("cpu"), False)
    in_shards, _ = run(report.device, True)
    apart, cut = curves_apart(curve, on_cpu), curves_apart(curve, in_shards)
    report.row(short(dtype), len(batches), curve[0], curve[-1], apart, cut, f"{ids_NS.numel() / seconds:,.0f}", peak[0])
    limit = TRAINED_ALIKE[dtype]
    report.check(f"recovery in {short(dtype)} as on the CPU: {apart:.2g} <= {limit:g}", apart <= limit)
    report.check(f"recovery in {short(dtype)}, sharded as whole: {cut:.2g} <= {limit:g}", cut <= limit)
    report.check(f"the loss of the recovery in {short(dtype)} falls", curve[-1] < curve[0])


def modeling(report: Report, parent: str) -> None:
    """Logits of all-parent models against Transformers' own classes; greedy generation with cache against without."""
    report.table("family", "type", "largest difference of logits", "same tokens with and without cache")
    sizes: dict[str, Any] = {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 512, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    parents = {
        "llama": LlamaConfig(**sizes),
        "mistral": MistralConfig(**sizes, sliding_window=16),
        "qwen2": Qwen2Config(**sizes),
        "qwen3": Qwen3Config(**sizes, head_dim=48),
    }
    random = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(2, 512, (4, 48), generator=random).to(report.device)
    for family, config in parents.items():
        torch.manual_seed(0)
        theirs = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        for name, parameter in theirs.named_parameters():
            noise = 0.1 * torch.randn(parameter.shape, generator=random)
            parameter.data.copy_(1 + noise if "norm" in name else noise)
        state, own = theirs.state_dict(), InlayConfig.from_parent(config)
        changed = [
            {"attention": {"kind": "window", "kv_heads": 4, "window": 8, "sinks": 4}},
            {"attention": NO_OP},
            {"attention": {"kind": "full", "kv_heads": 2}, "ffn": NO_OP},
        ]
        blocks = [{**block, **change} for block, change in zip(own.blocks, [*changed, {}], strict=True)]
        for dtype in (torch.float32, torch.bfloat16):
            ours = loaded(InlayForCausalLM, own, state, dtype, report.device)
            reference = loaded(type(theirs), config, state, dtype, report.device)
            with torch.inference_mode():
                apart = float((ours(ids_BS).logits - reference(ids_BS).logits).abs().max())
                child = random_model(own.with_blocks(blocks), dtype, report.device)
                for index, parameter in enumerate(child.parameters()):
                    noise = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
                    parameter.copy_(1 + noise if parameter.ndim == 1 else noise)
                asked: dict[str, Any] = {"max_new_tokens": 32, "do_sample": False}
                cached, plain = (child.generate(ids_BS, use_cache=use, **asked) for use in (True, False))
            same = float((cached == plain).double().mean())
            report.row(family, short(dtype), apart, same)
            report.check(f"{family} in {short(dtype)} gives the logits of Transformers' class", apart == 0)
            if dtype == torch.float32:
                report.check(f"{family} generates the same tokens with and without cache", same == 1)


PARTS: dict[str, Callable[[Report, str], None]] = {
    "modeling": modeling, "kernels": kernels, "local": local, "recovery": recovery, "timing": timing,
}  # fmt: skip


def row(
    report: Report, name: str, dtype: torch.dtype, vocab: object, error: float, worst: float | None, costs: list[Any]
) -> None:
    """A kernel's row and its check."""
    (ms, mib), (plain_ms, plain_mib) = costs
    report.row(name, short(dtype), vocab, error, "" if worst is None else worst, ms, plain_ms, mib, plain_mib)
    largest, limit = max(error, worst or 0.0), TOLERANCE[dtype]
    report.check(f"{name}, {short(dtype)}, V {vocab}: {largest:.2g} <= {limit:g} from float64", largest <= limit)


def hidden_and_heads(tokens: int, width: int, vocab: int, dtype: torch.dtype) -> list[Tensor]:
    """Hidden states of parent and child and their heads; logits have a standard deviation of 2."""
    random = torch.Generator().manual_seed(tokens)
    parent_ND, head_VD = (torch.randn(n, width, generator=random) for n in (tokens, vocab))
    child_ND = parent_ND + 0.3 * torch.randn(tokens, width, generator=random)
    head_VD *= 2 * width**-0.5
    child_head_VD = head_VD * (1 + 0.1 * torch.randn(vocab, 1, generator=random))
    return [tensor.to(dtype) for tensor in (parent_ND, child_ND, head_VD, child_head_VD)]


def plain_kl(parent_ND: Tensor, child_ND: Tensor, parent_head_VD: Tensor, child_head_VD: Tensor) -> Tensor:
    """kl_loss by its definition; parents get no gradients."""
    at_least = torch.promote_types(torch.float32, parent_ND.dtype)
    with torch.no_grad():
        parent_NV = (parent_ND @ parent_head_VD.T).to(at_least).log_softmax(-1)
    child_NV = (child_ND @ child_head_VD.T).to(at_least).log_softmax(-1)
    return (parent_NV.exp() * (parent_NV - child_NV)).sum(-1).mean()


def plain_mse(update: Tensor, answer: Tensor) -> Tensor:
    """update_mse by its definition."""
    wide = torch.promote_types(torch.float32, update.dtype)
    update, answer = update.to(wide), answer.to(wide)
    return functional.mse_loss(update, answer, reduction="sum") / answer.square().sum()


def relative(found: Tensor, truth: Tensor) -> float:
    """The error's norm over the reference's."""
    there = truth.detach().cpu().double()
    return float((found.detach().cpu().double() - there).norm() / there.norm())


def curves_apart(one: list[float], other: list[float]) -> float:
    """The largest relative difference of two curves."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def measured(device: torch.device, work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds, the median of ten after two, by the device's own clock, and the most MiB that it held at once."""
    for _ in range(2):
        work()
    with peak_memory(device) as peak:
        times = [host_and_device(device, work)[1] for _ in range(10 if device.type == "cuda" else 2)]
    return statistics.median(times), peak[0]


def host_and_device(device: torch.device, work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds until everything is sent, and until it is done."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return ((time.perf_counter() - started) * 1e3,) * 2
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    before.record()
    work()
    after.record()
    sent = (time.perf_counter() - started) * 1e3
    after.synchronize()
    return sent, before.elapsed_time(after)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """In the list given, at the end, the MiB that were held at once beyond what was held before; nan on a CPU."""
    peak = [float("nan")]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    yield peak
    if device.type == "cuda":
        peak[0] = round((torch.cuda.max_memory_allocated(device) - before) / MIB)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def llama(width: int, layers: int = 1) -> LlamaConfig:
    """A Llama of some width with heads of 64."""
    return LlamaConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=max(2, width // 256), head_dim=64, vocab_size=32_000 if layers > 1 else 64,
        tie_word_embeddings=True,
    )  # fmt: skip


def random_state(config: LlamaConfig) -> dict[str, Tensor]:
    """Weights of one layer, as large as trained ones, in bfloat16."""
    inlay = InlayConfig.from_parent(config)
    with torch.device("meta"):
        names = InlayForCausalLM(inlay).model.layers[0].state_dict()
    random = torch.Generator().manual_seed(1)
    noise = {name: torch.randn(t.shape, generator=random) for name, t in names.items()}
    return {
        name: (1 + 0.1 * n if n.ndim == 1 else n * n.shape[1] ** -0.5).to(torch.bfloat16) for name, n in noise.items()
    }


def loaded(cls: Any, config: Any, state: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> Any:
    """A model of these weights."""
    model = cls.from_pretrained(None, config=config, state_dict=state, dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval()


def parent_and_ids(parent: str, sequences: int) -> tuple[Any, Tensor]:
    """The parent in float32 on the CPU, and sequences [N, S] of the text."""
    folder = Path(os.environ["INLAY_PARENTS"]) / parent
    (text,) = sorted(Path(os.environ["INLAY_TEXT"]).glob("*.txt"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    ids_NS = plain_loop.read_ids(text, AutoTokenizer.from_pretrained(folder), 256, sequences * 256)
    return model.requires_grad_(False).eval(), ids_NS


if __name__ == "__main__":
    main()
