"""What the parts of benchmarks/gpu.py share: the report, time and memory on a device, models to try things on."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import plain_loop
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

TRAINED_ALIKE = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
"""Of a training: the largest difference between two curves of losses, relative."""
_MIB = 1 << 20


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
        peak[0] = round((torch.cuda.max_memory_allocated(device) - before) / _MIB)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def curves_apart(one: list[float], other: list[float]) -> float:
    """The largest relative difference of two curves."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def llama(width: int, layers: int = 1) -> LlamaConfig:
    """A Llama of some width with heads of 64."""
    return LlamaConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=max(2, width // 256), head_dim=64, vocab_size=32_000 if layers > 1 else 64,
        tie_word_embeddings=True,
    )  # fmt: skip


def parent_and_ids(parent: str, sequences: int) -> tuple[Any, Tensor]:
    """The parent in float32 on the CPU, and sequences [N, S] of the text."""
    folder = Path(os.environ["INLAY_PARENTS"]) / parent
    (text,) = sorted(Path(os.environ["INLAY_TEXT"]).glob("*.txt"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    ids_NS = plain_loop.read_ids(text, AutoTokenizer.from_pretrained(folder), 256, sequences * 256)
    return model.requires_grad_(False).eval(), ids_NS
