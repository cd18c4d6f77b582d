"""Trains the embedded parent on the standard library's source text, on one processor core.

    python -m inlay.nas.embedded.train --output DIR --state DIR

The run is a function of the recipe and the text: it can be killed at any time and started again with the same command,
and ends with the same weights. Its state is one safetensors file.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from inlay.nas.embedded.corpus import documents
from inlay.nas.embedded.folder import write_folder
from inlay.nas.embedded.llama import Llama, Shape
from inlay.nas.embedded.muon import Optimizer, Rates
from inlay.nas.embedded.packing import Packer, inputs_of
from inlay.nas.embedded.tokenizer import tokenize, train_tokenizer
from inlay.nas.errors import UserError

STATE_FILE: Final = "state.safetensors"


@dataclass(frozen=True)
class Recipe:
    """Everything that the trained weights depend on, besides the text."""

    shape: Shape = field(default_factory=Shape)
    """The architecture."""
    rates: Rates = field(default_factory=Rates)
    """The optimizer's settings."""
    steps: int = 2000
    """Updates, at least 1."""
    sequences: int = 8
    """Sequences an update, at least 1."""
    length: int = 512
    """Tokens of a sequence, BOS included; at most `shape.positions`."""
    warmup_steps: int = 60
    """Updates over which the rates rise from 0."""
    stable_share: float = 0.4
    """Share of the updates after which the rates fall linearly to 0, in [0, 1)."""
    seed: int = 20
    """Fixes the first weights and the order of the text."""

    @property
    def tokens(self) -> int:
        """Tokens trained on, over all updates."""
        return self.steps * self.sequences * self.length


def train(
    recipe: Recipe,
    document_tokens: Sequence[Tensor],
    state: Path,
    *,
    save_every: int = 100,
    stop_after: int | None = None,
    report: Callable[[str], None] = print,
) -> Llama:
    """Trains from the last saved state in the folder `state`, or from the start, and returns the model in float32.

    `document_tokens` are the ids of each document, int64, ending in EOS. The state is saved every `save_every` updates
    and at the last one; `stop_after` ends the run early at that update. Raises `UserError` when the saved state is of
    another recipe or text, or the text is too short.
    """
    model = Llama(recipe.shape, recipe.seed)
    optimizer = Optimizer(dict(model.named_parameters()), model.matrices(), recipe.rates)
    packer = Packer(document_tokens, recipe.length, recipe.seed)
    path = state / STATE_FILE
    identity = _identity(recipe, document_tokens)
    done = _load(path, identity, model, optimizer) if path.exists() else 0
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    start, losses_nats = time.monotonic(), list[float]()
    for step in range(done, last):
        targets_BS = packer.targets(step * recipe.sequences, recipe.sequences)
        loss_nats = F.cross_entropy(model(inputs_of(targets_BS)).flatten(0, 1), targets_BS.flatten())
        torch.autograd.backward(loss_nats)
        optimizer.step(step + 1, rate_scale(recipe, step))
        losses_nats.append(loss_nats.item())
        if len(losses_nats) == 20:
            speed = (step + 1 - done) * targets_BS.numel() / (time.monotonic() - start)
            report(f"step {step + 1}/{recipe.steps}  loss {sum(losses_nats) / 20:.4f} nats/token  {speed:.0f} tokens/s")
            losses_nats.clear()
        if (step + 1) % save_every == 0 or step + 1 == last:
            _save(path, identity, step + 1, model, optimizer)
    return model


def rate_scale(recipe: Recipe, step: int) -> float:
    """The factor on all learning rates at an update counted from 0: a rise, a plateau, a line down to 0."""
    rise = (step + 1) / max(1, recipe.warmup_steps)
    fall = (1 - step / recipe.steps) / (1 - recipe.stable_share)
    return min(1.0, rise, fall)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: trains, or goes on with a killed run, and writes the model folder."""
    parser = argparse.ArgumentParser(description="Train the embedded parent on the standard library's source text.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--state", type=Path, required=True, help="folder for the state that a killed run goes on from")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    recipe = Recipe()
    texts = documents("train")
    tokenizer = train_tokenizer(texts, recipe.shape.vocabulary)
    model = train(recipe, tokenize(tokenizer, texts), options.state, report=lambda line: print(line, flush=True))
    write_folder(model, tokenizer, options.output)


def _identity(recipe: Recipe, document_tokens: Sequence[Tensor]) -> str:
    digest = hashlib.sha256(b"".join(tokens.numpy().tobytes() for tokens in document_tokens)).hexdigest()
    return json.dumps({"recipe": asdict(recipe), "text": digest}, sort_keys=True)


def _save(path: Path, identity: str, done: int, model: Llama, optimizer: Optimizer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor.detach() for name, tensor in model.named_parameters()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer.state.items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"identity": identity, "done": str(done)})
    os.replace(partial, path)


def _load(path: Path, identity: str, model: Llama, optimizer: Optimizer) -> int:
    with safe_open(path, framework="pt") as stored, torch.no_grad():
        metadata = stored.metadata()
        if metadata.get("identity") != identity:
            raise UserError(
                f"The state in `{path}` is of another recipe or another text: give an empty folder as `--state`, "
                "or the recipe and Python version it was started with."
            )
        for name, parameter in model.named_parameters():
            parameter.copy_(stored.get_tensor(f"model.{name}"))
        for name, tensor in optimizer.state.items():
            tensor.copy_(stored.get_tensor(f"optimizer.{name}"))
    return int(metadata["done"])


if __name__ == "__main__":
    main()
