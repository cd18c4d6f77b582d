"""The baseline of the distill stage: one plain eager training loop, written as if it were to win.

All variants of all layers, layer by layer, in one process with two threads: the same variants, starts of the same
cost, loss, optimizer, batches and tokens as inlay's distill stage, and nothing of inlay in it. The parent is read and
run with Transformers, whose modules the variants are too. Prints one JSON line with variant-tokens per second: tokens
times variants trained by gradient, over the wall time of the loop, parent pass included.

    python benchmarks/plain_loop.py --parent PARENT --text stories.txt [--tokens 250000] [--threads 2]

Shapes: N sequences, B batch, S sequence, D model width.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

KV_HEADS = (1,)
WINDOWS = (128, 64)
WIDTHS = (384, 256, 128)
SINKS = 4


class Variant:
    """A norm and a mixer in training, with its optimizer."""

    def __init__(self, norm: nn.Module, mixer: nn.Module, run: Callable[[nn.Module, Tensor], Tensor], rate: float):
        self.norm = copy.deepcopy(norm).requires_grad_(True)
        self.mixer = mixer.requires_grad_(True)
        self.run = run
        parameters = [*self.norm.parameters(), *self.mixer.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)

    def step(self, hidden_BSD: Tensor, parent_update_BSD: Tensor, scale: Tensor, rate: float) -> Tensor:
        """One step on the normalised error of the update; returns the loss."""
        update_BSD = self.run(self.mixer, self.norm(hidden_BSD))
        loss = functional.mse_loss(update_BSD, parent_update_BSD, reduction="sum") / scale
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return loss.detach()


def train(model: Any, ids_NS: Tensor, batch_size: int, learning_rate: float) -> dict[str, float]:
    """Trains every variant of every layer; returns seconds, variant-tokens and the mean of the last losses."""
    model.requires_grad_(False)
    num_sequences, length = ids_NS.shape
    steps = math.ceil(num_sequences / batch_size)
    started = time.perf_counter()
    with torch.no_grad():
        hidden_NSD = model.model.embed_tokens(ids_NS)
        rotary = model.model.rotary_emb(hidden_NSD[:1], torch.arange(length)[None])
    trained, last = 0, []
    for layer in model.model.layers:
        attention_variants = attention_variants_of(layer, model.config, rotary, length, learning_rate)
        ffn_variants = ffn_variants_of(layer, model.config, learning_rate)
        trained += len(attention_variants) + len(ffn_variants)
        losses: list[Tensor] = []
        for step in range(steps):
            hidden_BSD = hidden_NSD[step * batch_size : (step + 1) * batch_size]
            rate = learning_rate * warmup_cosine(step, steps)
            losses, output_BSD = step_layer(layer, rotary, hidden_BSD, attention_variants, ffn_variants, rate)
            hidden_BSD.copy_(output_BSD)
        last.append(torch.stack(losses).mean())
    seconds = time.perf_counter() - started
    tokens = num_sequences * length
    return {
        "seconds": seconds,
        "tokens": tokens,
        "variants": trained,
        "variant_tokens_per_second": tokens * trained / seconds,
        "mean_last_loss": float(torch.stack(last).mean()),
    }


def step_layer(
    layer: Any, rotary: Any, hidden_BSD: Tensor, attention: list[Variant], ffn: list[Variant], rate: float
) -> tuple[list[Tensor], Tensor]:
    """One parent pass over a batch and one step of every variant; returns their losses and the layer's output."""
    with torch.no_grad():
        attention_BSD = layer.self_attn(
            layer.input_layernorm(hidden_BSD), position_embeddings=rotary, attention_mask=None
        )[0]
        middle_BSD = hidden_BSD + attention_BSD
        ffn_BSD = layer.mlp(layer.post_attention_layernorm(middle_BSD))
        attention_scale, ffn_scale = attention_BSD.square().sum(), ffn_BSD.square().sum()
    losses = [variant.step(hidden_BSD, attention_BSD, attention_scale, rate) for variant in attention]
    losses += [variant.step(middle_BSD, ffn_BSD, ffn_scale, rate) for variant in ffn]
    return losses, middle_BSD + ffn_BSD


def attention_variants_of(layer: Any, config: Any, rotary: Any, length: int, rate: float) -> list[Variant]:
    """Fewer key and value heads, windows, and one matrix."""

    def attend(mask: Tensor | None) -> Callable[[nn.Module, Tensor], Tensor]:
        def run(mixer: nn.Module, normed_BSD: Tensor) -> Tensor:
            update_BSD: Tensor = mixer(normed_BSD, position_embeddings=rotary, attention_mask=mask)[0]
            return update_BSD

        return run

    variants = []
    for kv_heads in KV_HEADS:
        narrow = copy.deepcopy(config)
        narrow.num_key_value_heads = kv_heads
        mixer = type(layer.self_attn)(narrow, layer.self_attn.layer_idx)
        mixer.q_proj, mixer.o_proj = copy.deepcopy(layer.self_attn.q_proj), copy.deepcopy(layer.self_attn.o_proj)
        for name in ("k_proj", "v_proj"):
            wide = getattr(layer.self_attn, name).weight
            pooled = wide.view(kv_heads, -1, config.head_dim, config.hidden_size).mean(1).flatten(0, 1)
            getattr(mixer, name).weight = nn.Parameter(pooled.clone())
        variants.append(Variant(layer.input_layernorm, mixer, attend(None), rate))
    for window in WINDOWS:
        mixer = copy.deepcopy(layer.self_attn)
        variants.append(Variant(layer.input_layernorm, mixer, attend(window_mask(length, window)), rate))
    variants.append(Variant(layer.input_layernorm, square(config.hidden_size), apply, rate))
    return variants


def ffn_variants_of(layer: Any, config: Any, rate: float) -> list[Variant]:
    """Narrower ones that keep the channels with the largest down-projection, and one matrix."""
    variants = []
    for width in WIDTHS:
        narrow = copy.deepcopy(config)
        narrow.intermediate_size = width
        mixer = type(layer.mlp)(narrow)
        kept = layer.mlp.down_proj.weight.norm(dim=0).topk(width).indices.sort().values
        mixer.gate_proj.weight = nn.Parameter(layer.mlp.gate_proj.weight[kept].clone())
        mixer.up_proj.weight = nn.Parameter(layer.mlp.up_proj.weight[kept].clone())
        mixer.down_proj.weight = nn.Parameter(layer.mlp.down_proj.weight[:, kept].clone())
        variants.append(Variant(layer.post_attention_layernorm, mixer, apply, rate))
    variants.append(Variant(layer.post_attention_layernorm, square(config.hidden_size), apply, rate))
    return variants


def square(width: int) -> nn.Module:
    """The linear variant, from zero."""
    linear = nn.Linear(width, width, bias=False)
    nn.init.zeros_(linear.weight)
    return linear


def apply(mixer: nn.Module, normed_BSD: Tensor) -> Tensor:
    """A mixer that wants nothing besides its input."""
    update_BSD: Tensor = mixer(normed_BSD)
    return update_BSD


def window_mask(length: int, window: int) -> Tensor:
    """True where query t may see key j: j <= t and (t - j < window or j < SINKS); [1, 1, S, S]."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    return ((key <= query) & ((query - key < window) | (key < SINKS)))[None, None]


def warmup_cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Linear up, then half a cosine down."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising + 1) / max(steps - rising, 1)))


def read_ids(path: Path, tokenizer: Any, length: int, tokens: int) -> Tensor:
    """The first sequences of the text, documents one after the other; [N, S]."""

    def stream() -> Iterator[int]:
        for document in path.read_text(encoding="utf-8").split("<|endoftext|>"):
            yield from tokenizer(document.strip(), verbose=False)["input_ids"]

    wanted = tokens // length * length
    flat = [token for token, _ in zip(stream(), range(wanted), strict=False)]
    return torch.tensor(flat[: len(flat) // length * length]).view(-1, length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(chosen.parent, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(chosen.parent)
    ids_NS = read_ids(chosen.text, tokenizer, chosen.sequence_length, chosen.tokens)
    print(json.dumps(train(model, ids_NS, chosen.batch_size, chosen.learning_rate)))


if __name__ == "__main__":
    main()
