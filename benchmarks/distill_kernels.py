"""What local distillation and the KL are made of, beside plain torch, one thread each.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/distill_kernels.py [--parent stories3M] [--rounds 20]

The steps of one layer's variants: the plain loop's (benchmarks/plain_loop.py) against train_layer's. The losses over
the vocabulary: kl_loss and compare_next_token against logits held whole. Both sides take turns; the least processor
time of each is quoted, since other work on the machine only ever adds to it.

Shapes: B batch, S sequence, D model width, N tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import plain_loop
import torch
from machine import footer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay.distill.branches import Branch, LayerBatch
from inlay.distill.local import train_layer
from inlay.distill.settings import LocalSettings
from inlay.kernels import compare_next_token, kl_loss
from inlay.nas.modeling import InlayConfig, build_layer, make_context

LENGTH, BATCH, STEPS, HELD_OUT = 256, 8, 12, 1
NORMS = {"attention": "input_layernorm", "ffn": "post_attention_layernorm"}
MIXERS = {"attention": "self_attn", "ffn": "mlp"}
Row = tuple[str, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", default="stories3M")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/distill_kernels.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(os.environ["INLAY_PARENTS"]) / options.parent
    (text,) = sorted(Path(os.environ["INLAY_TEXT"]).glob("*.txt"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.requires_grad_(False)
    tokens = (STEPS + HELD_OUT) * BATCH * LENGTH
    ids_NS = plain_loop.read_ids(text, AutoTokenizer.from_pretrained(folder), LENGTH, tokens)
    rows = [layer_steps(model, ids_NS, options.rounds), *vocabulary_losses(model, ids_NS, options.rounds)]
    lines = [
        "# Local distillation and the KL beside plain torch, one thread",
        "",
        f"{options.parent}, batches of {BATCH} x {LENGTH} tokens; the least of {options.rounds} rounds in turns.",
        "",
        "| | plain, ms | inlay, ms | plain over inlay |",
        "|---|---|---|---|",
        *(f"| {name} | {plain:.1f} | {ours:.1f} | {plain / ours:.2f} |" for name, plain, ours in rows),
        "",
        f"Written by `benchmarks/distill_kernels.py`. {footer()}",
        "",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print("\n".join(lines))


def layer_steps(model: Any, ids_NS: Tensor, rounds: int) -> Row:
    """A few steps of all variants of the middle layer: the loop's body, and train_layer with its held-out batch."""
    index = model.config.num_hidden_layers // 2
    with torch.no_grad():
        outputs = model(ids_NS, output_hidden_states=True, use_cache=False)
        rotary = model.model.rotary_emb(outputs.hidden_states[0][:1], torch.arange(LENGTH)[None])
    batches = list(outputs.hidden_states[index].split(BATCH))
    layer, config = model.model.layers[index], InlayConfig.from_parent(model.config)
    entries = entries_of(model.config)
    own = {"attention": config.blocks[index]["attention"], "ffn": config.blocks[index]["ffn"]}
    parent = build_layer(config, index, own["attention"], own["ffn"], layer.state_dict(), torch.float32)
    attention_entries = [own["attention"], *(entry for slot, entry in entries if slot == "attention")]
    context = make_context(config, BATCH, LENGTH, torch.float32, "cpu", attention_entries)

    def variants() -> tuple[list[plain_loop.Variant], list[plain_loop.Variant]]:
        return (
            plain_loop.attention_variants_of(layer, model.config, rotary, LENGTH, 1e-3),
            plain_loop.ffn_variants_of(layer, model.config, 1e-3),
        )

    def plain() -> Callable[[], object]:
        attention, ffn = variants()
        return lambda: [
            plain_loop.step_layer(layer, rotary, hidden, attention, ffn, 1e-3) for hidden in batches[:STEPS]
        ]

    def ours() -> Callable[[], object]:
        branches = []
        for (slot, entry), variant in zip(entries, [v for group in variants() for v in group], strict=True):
            state = {f"{NORMS[slot]}.{name}": tensor for name, tensor in variant.norm.state_dict().items()}
            state.update({f"{MIXERS[slot]}.{name}": tensor for name, tensor in variant.mixer.state_dict().items()})
            pair = (entry, None) if slot == "attention" else (None, entry)
            module = build_layer(config, index, *pair, state, torch.float32).requires_grad_(True)
            branches.append(Branch(f"{slot}:{len(branches)}", slot, module))  # type: ignore[arg-type]
        settings = LocalSettings(steps=STEPS, held_out=HELD_OUT)
        given = [LayerBatch(hidden, context) for hidden in batches]
        return lambda: train_layer(parent, branches, given, settings)

    return (f"{len(entries)} variants of one layer, {STEPS} steps", *least(plain, ours, rounds))


def vocabulary_losses(model: Any, ids_NS: Tensor, rounds: int) -> list[Row]:
    """kl_loss forward and backward, and the comparison of four children, on one batch of final hidden states."""
    with torch.no_grad():
        hidden_ND = model.model(ids_NS[:BATCH], use_cache=False).last_hidden_state.flatten(0, 1)
    head_VD = model.lm_head.weight.detach()
    child_ND = (hidden_ND + 0.1 * torch.randn_like(hidden_ND)).requires_grad_(True)
    children = [hidden_ND + 0.1 * torch.randn_like(hidden_ND) for _ in range(4)]
    labels_N = ids_NS[:BATCH].flatten()

    def dense_loss() -> None:
        parent_NV, child_NV = (hidden_ND @ head_VD.T).log_softmax(-1), (child_ND @ head_VD.T).log_softmax(-1)
        torch.autograd.grad((parent_NV.exp() * (parent_NV - child_NV)).sum(-1).mean(), child_ND)

    @torch.no_grad()
    def dense_comparison() -> None:
        parent_NV = (hidden_ND @ head_VD.T).log_softmax(-1)
        choice_N, probability_NV = parent_NV.argmax(-1), parent_NV.exp()
        for one_ND in children:
            child_NV = (one_ND @ head_VD.T).log_softmax(-1)
            (probability_NV * (parent_NV - child_NV)).sum(-1), child_NV.argmax(-1) == choice_N
            child_NV.gather(1, labels_N[:, None])

    def loss() -> None:
        torch.autograd.grad(kl_loss(hidden_ND, child_ND, head_VD, head_VD), child_ND)

    def comparison() -> None:
        compare_next_token(hidden_ND, children, head_VD, labels_N)

    size = f"{len(hidden_ND)} tokens x {len(head_VD)}"
    return [
        (f"KL and its gradient, {size}", *least(lambda: dense_loss, lambda: loss, rounds)),
        (f"comparison of 4 children, {size}", *least(lambda: dense_comparison, lambda: comparison, rounds)),
    ]


def entries_of(config: Any) -> list[tuple[str, dict[str, Any]]]:
    """The plain loop's variants as entries, in its order."""
    kv_heads = config.num_key_value_heads
    attention = [{"kind": "full", "kv_heads": k} for k in plain_loop.KV_HEADS]
    attention += [
        {"kind": "window", "kv_heads": kv_heads, "window": window, "sinks": plain_loop.SINKS}
        for window in plain_loop.WINDOWS
    ]
    ffn = [{"kind": "gated", "width": width} for width in plain_loop.WIDTHS]
    linear: dict[str, Any] = {"kind": "linear"}
    return [("attention", entry) for entry in [*attention, linear]] + [("ffn", entry) for entry in [*ffn, linear]]


def least(plain: Callable[[], Callable[[], object]], ours: Callable[[], Callable[[], object]], rounds: int) -> Any:
    """The least processor milliseconds of both; each round prepares anew, outside the clock."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for side, prepare in enumerate((plain, ours)):
            run = prepare()
            started = time.thread_time()
            run()
            best[side] = min(best[side], time.thread_time() - started)
    return best[0] * 1e3, best[1] * 1e3


if __name__ == "__main__":
    main()
