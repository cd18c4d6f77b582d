"""How variants and whole models are trained; without torch, so that a job is read fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Through = Literal["subblock", "layer"]
NO_PEFT = "PEFT, which is not installed here; install inlay with its extra: pip install 'inlay[adapters]'"
MICRO_TOKENS = 2048
"""Of a whole model, worked on at once; gradients add up to the effective batch."""
REDUCED_ONCE = 1 << 31
"""Trained weights of which a process holds whole gradients (8 GiB), to add them up once a step, not once a part."""
JUDGED = 6
"""How often a whole model is judged on its way, its start not counted."""


@dataclass(frozen=True)
class GlobalSettings:
    """How the child is trained."""

    steps: int
    """Optimizer steps, one effective batch each; at least 1."""
    learning_rate: float = 3e-4
    """Peak rate, or the highest that is tried; above 0."""
    rate: Literal["found", "pinned"] = "pinned"
    """`found`: a short range test picks the rate; `pinned`: it is `learning_rate`."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises; 0 to 1."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging; each in [0, 1)."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices; at least 0."""
    clip: float = 1.0
    """Largest norm of the gradient; above 0."""
    cosine: float = 3.0
    """Weight of the mean over layers of 1 - cosine of their outputs, beside the KL; at least 0."""
    micro_batch: int | None = None
    """Sequences of a batch that a rank works on at once; None for all. Gradients of the parts are added up."""

    @property
    def judged_every(self) -> int:
        """Steps from one judgement on held-out text to the next."""
        return -(-self.steps // JUDGED)

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.micro_batch is not None and self.micro_batch < 1):
            raise ValueError(f"`steps` is {self.steps}, `micro_batch` {self.micro_batch}: both must be at least 1")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"`warmup` is {self.warmup}: it is a share from 0 to 1")
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and self.clip > 0 and self.cosine >= 0):
            raise ValueError(
                f"`learning_rate` is {self.learning_rate}, `weight_decay` {self.weight_decay}, `clip` {self.clip}, "
                f"`cosine` {self.cosine}: rate and clip must be above 0, the others at least 0"
            )


@dataclass(frozen=True)
class LocalSettings:
    """How the variants of a layer are trained."""

    steps: int
    """Batches trained on; at least 1."""
    learning_rate: float = 1e-3
    """Peak rate, or the highest that is tried; above 0."""
    rate: Literal["found", "pinned"] = "pinned"
    """`found`: a short range test picks each variant's rate; `pinned`: it is `learning_rate`."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises; 0 to 1."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging; each in [0, 1)."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices; at least 0."""
    clip: float | None = None
    """Largest norm of a variant's gradient; above 0, None for no limit."""
    through: Through = "subblock"
    """`layer` trains attention variants on the layer's whole update, the parent's frozen ffn behind them."""
    held_out: int = 2
    """Batches at the end of the iterator that are not trained on but judge start and end; at least 1."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.held_out < 1:
            raise ValueError(f"`steps` is {self.steps} and `held_out` is {self.held_out}: both must be at least 1")
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise ValueError(
                f"`learning_rate` is {self.learning_rate} and `weight_decay` {self.weight_decay}: "
                "the rate must be above 0, the decay at least 0"
            )
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"`warmup` is {self.warmup}: it is a share from 0 to 1")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"`clip` is {self.clip}: it must be above 0, or None")
