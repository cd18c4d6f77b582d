"""What runs on a CUDA device: that it is right there, and how fast it is.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/gpu.py [--device cuda] [--only kernels,local,...]

Kernels against float64 on the CPU and beside plain torch; local and global distillation against the same training on
the CPU, the latter also sharded with FSDP2; the timer of `measure`; the model against Transformers' own classes. A part
that fails says so in the results and the others go on; the exit code is then 1. With `--device cpu` the same code runs
at small sizes and proves everything but the device.

Shapes: N tokens, B batch, S sequence, D model width, V vocabulary.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
import torch.distributed as dist
from gpu_kernels import kernels
from gpu_local import local
from gpu_report import TRAINED_ALIKE, Report, curves_apart, host_and_device, llama, parent_and_ids, peak_memory, short
from machine import footer
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from inlay.distill.globally import distill_globally
from inlay.distill.parallel import Ranks, shard, world_mesh
from inlay.distill.settings import GlobalSettings
from inlay.nas.engines.eager import random_model, rounds_of
from inlay.nas.engines.timing import Workload, summarise
from inlay.nas.modeling import InlayConfig, InlayForCausalLM

NO_OP = {"kind": "no_op"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default=",".join(PARTS), help="Parts, comma-separated.")
    parser.add_argument("--parent", default="stories3M")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.md"))
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
        f"Written by `benchmarks/gpu.py`. {footer()}",
        "",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print("\n".join([*summary, f"{len(failed)} checks do not hold"]))
    sys.exit(bool(failed))


def timing(report: Report, parent: str) -> None:
    """The timer of `measure`: children with less in them beside the parent, which is there twice."""
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
    report.table("model", "variant", "prefill, ms", "decode step, ms", "runtime, ms", "spread, ms", "of the parent's")
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
    found = {label: summarise(each, workload) for label, each in rounds_of(models, workload, report.device).items()}
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
    settings = GlobalSettings(steps=len(batches) - 1, learning_rate=1e-3)
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
        result = distill_globally(teacher, child, given[1:], given[:1], settings, ranks=Ranks(sharded=sharded))
        return [losses["loss"] for losses in result.curve], time.perf_counter() - started

    run(report.device, False)
    with peak_memory(report.device) as peak:
        curve, seconds = run(report.device, False)
    on_cpu, _ = run(torch.device("cpu"), False)
    in_shards, _ = run(report.device, True)
    apart, cut = curves_apart(curve, on_cpu), curves_apart(curve, in_shards)
    report.row(
        short(dtype), settings.steps, curve[0], curve[-1], apart, cut, f"{ids_NS.numel() / seconds:,.0f}", peak[0]
    )
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


def loaded(cls: Any, config: Any, state: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> Any:
    """A model of these weights."""
    model = cls.from_pretrained(None, config=config, state_dict=state, dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval()


PARTS: dict[str, Callable[[Report, str], None]] = {
    "modeling": modeling,
    "kernels": kernels,
    "local": local,
    "recovery": recovery,
    "timing": timing,
}


if __name__ == "__main__":
    main()
