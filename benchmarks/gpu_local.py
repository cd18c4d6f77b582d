"""The part of benchmarks/gpu.py on local distillation: as on the CPU, losses that fall, variant-tokens per second.

Shapes: N sequences, S sequence, D model width.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
from gpu_report import TRAINED_ALIKE, Report, curves_apart, llama, parent_and_ids, peak_memory, short, synchronize
from torch import Tensor
from transformers import LlamaConfig

from inlay.distill.branches import Branch, LayerBatch
from inlay.distill.local import BranchResult, train_layer
from inlay.distill.settings import LocalSettings
from inlay.nas.families import Shape, open_parent
from inlay.nas.families.reading import shape_of
from inlay.nas.families.shape import SLOTS
from inlay.nas.modeling import InlayConfig, InlayForCausalLM, build_layer, make_context
from inlay.nas.pieces.calibration import statistics_of
from inlay.nas.variants import Place, Variant
from inlay.nas.variants.statistics import Sums, gather


def local(report: Report, parent: str) -> None:
    """train_layer: as on the CPU, losses that fall, variant-tokens per second."""
    report.table(
        "layer",
        "type",
        "variants",
        "tokens of a step",
        "differs from the CPU",
        "loss left",
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
        widths = [max(8, self.shape.parent_entry(0, "ffn")["width"] * share // 8) for share in (6, 4, 2)]
        attention = [("kv_heads", 1), ("window", (length // 4, 4)), ("window", (length // 2, 4)), ("linear", None)]
        ffn = [*(("width", width) for width in widths), ("linear", None)]
        return [Variant("attention", *one) for one in attention] + [Variant("ffn", *one) for one in ffn]

    def built(self, device: torch.device) -> Any:
        """The parent's layer."""
        entries = {slot: self.shape.parent_entry(0, slot) for slot in SLOTS}
        return build_layer(self.config, 0, entries["attention"], entries["ffn"], self.state, self.dtype).to(device)

    def train(
        self, hidden_NSD: Tensor, batch: int, sums: Sums, device: torch.device
    ) -> tuple[list[BranchResult], float]:
        """Trains all variants on all but one batch, which judges; the results, and the seconds of training alone."""
        length = hidden_NSD.shape[1]
        variants = self.variants(length)
        entries = [v.entry(self.shape, 0) for v in variants if v.slot == "attention"]
        entries.append(self.shape.parent_entry(0, "attention"))
        context = make_context(self.config, batch, length, self.dtype, device, entries)
        branches = []
        for variant in variants:
            parents = Place(self.shape, 0, variant.slot).tensors(self.state)
            own = {name: tensor.to(torch.float32, copy=True) for name, tensor in parents.items()}
            start, entry = variant.start(self.shape, 0, own, sums), variant.entry(self.shape, 0)
            pair = (entry, None) if variant.slot == "attention" else (None, entry)
            module = build_layer(self.config, 0, *pair, start, torch.float32).to(device).requires_grad_(True)
            branches.append(Branch(variant.label, variant.slot, module))
        batches = [LayerBatch(part.to(device), context) for part in hidden_NSD.split(batch)]
        settings = LocalSettings(steps=len(batches) - 1, held_out=1, learning_rate=3e-4)
        parent_layer = self.built(device)
        synchronize(device)
        started = time.perf_counter()
        results = train_layer(parent_layer, branches, batches, settings)
        synchronize(device)
        return results, time.perf_counter() - started


def _layer(report: Report, name: str, layer: Layer, hidden_NSD: Tensor, batch: int) -> None:
    cpu, length = torch.device("cpu"), hidden_NSD.shape[1]
    few_NSD = hidden_NSD[: batch * 5, : min(length, 256)] if layer.dtype == torch.float32 else hidden_NSD[:5, :256]
    few = batch if layer.dtype == torch.float32 else 1
    context = make_context(layer.config, len(few_NSD), few_NSD.shape[1], layer.dtype, cpu,
                           [layer.shape.parent_entry(0, "attention")])  # fmt: skip
    statistics = statistics_of(layer.variants(length), layer.shape, 0)
    sums, _ = gather(layer.built(cpu), few_NSD, context, statistics)
    there, here = (layer.train(few_NSD, few, sums, device)[0] for device in (report.device, cpu))
    apart = max(curves_apart(one.curve, other.curve) for one, other in zip(there, here, strict=True))
    limit = TRAINED_ALIKE[layer.dtype]
    report.check(f"train_layer of {name} as on the CPU: {apart:.2g} <= {limit:g}", apart <= limit)
    layer.train(hidden_NSD[: 2 * batch], batch, sums, report.device)  # what is compiled or loaded once
    with peak_memory(report.device) as peak:
        results, seconds = layer.train(hidden_NSD, batch, sums, report.device)
    left = sum(result.final_loss / result.start_loss for result in results) / len(results)
    report.check(f"the losses of {name} fall: {left:.3f} of them is left", left < 1)
    report.check(f"no variant of {name} fails", all(result.status == "trained" for result in results))
    rate = len(results) * (len(hidden_NSD) - batch) * length / seconds
    report.row(name, short(layer.dtype), len(results), batch * length, apart, left, f"{rate:,.0f}", peak[0])


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
