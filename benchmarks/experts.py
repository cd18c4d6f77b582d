"""Half of a parent's experts lost: chosen layer by layer by a search, and the same number in every layer.

    python benchmarks/experts.py [--seeds 3] [--steps 1200] [--output results/experts.md]

The parent is a Qwen3-MoE of 4 layers with 8 experts each, 2 for a token, that is trained here on the text in
`INLAY_TEXT` with the tokenizer of stories260K in `INLAY_PARENTS`. Each search may keep 2 to 7 experts a layer, at the
parameters of half of them. `uniform` keeps 4 in every layer, those of the largest shares; so does the search, whose
choice is how many. KL to the parent in nats per token on the report text.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
import yaml
from machine import footer
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

LAYERS, EXPERTS, ACTIVE, HIDDEN, WIDTH = 4, 8, 2, 64, 96
LENGTH, BATCH = 128, 16
MODELS = ("child", "uniform", "depth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--output", type=Path, default=None)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts(folder)
        loss = train(folder, chosen.steps)
        rows = [searched(folder, seed) for seed in range(chosen.seeds)]
        lines = ["# Experts: half of them lost", "", str(__doc__).split("\n\n")[2].strip(), ""]
        lines += [f"The parent's loss is {loss:.3f} nats per token after {chosen.steps} steps.", "", *table(rows), ""]
        lines += [same_by_count(folder), "", footer()]
    text = "\n".join(lines) + "\n"
    print(text)
    if chosen.output is not None:
        chosen.output.write_text(text)


def texts(folder: Path) -> None:
    documents = sorted(Path(os.environ["INLAY_TEXT"]).glob("*.txt"))[0].read_text().split("<|endoftext|>\n")
    cut = len(documents) * 9 // 10
    for name, part in (("train", documents[:cut]), ("judge", documents[cut:])):
        (folder / f"{name}.txt").write_text("<|endoftext|>\n".join(part))


def packed(folder: Path, name: str) -> torch.Tensor:
    """All of a text as rows of tokens, [N, LENGTH]."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "parent")
    documents = (folder / f"{name}.txt").read_text().split("<|endoftext|>\n")
    ids = [token for document in documents for token in tokenizer(document).input_ids]
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)


def train(folder: Path, steps: int) -> float:
    """Writes the parent; its loss on the text that judges."""
    tokenizer = AutoTokenizer.from_pretrained(Path(os.environ["INLAY_PARENTS"]) / "stories260K")
    tokenizer.save_pretrained(folder / "parent")
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=2 * WIDTH, moe_intermediate_size=WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=EXPERTS,
        num_experts_per_tok=ACTIVE, norm_topk_prob=True, max_position_embeddings=512, tie_word_embeddings=True,
        output_router_logits=True, router_aux_loss_coef=0.001, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model: Any = Qwen3MoeForCausalLM(config)
    rows_NS = packed(folder, "train")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.05)
    for _ in range(steps):
        batch_BS = rows_NS[torch.randint(len(rows_NS), (BATCH,))]
        model(batch_BS, labels=batch_BS).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.config.output_router_logits = False
    model.save_pretrained(folder / "parent")
    judge_NS = packed(folder, "judge")[:64]
    with torch.no_grad():
        return float(model.eval()(judge_NS, labels=judge_NS).loss)


def half_of_experts() -> int:
    """Parameters that half of all experts have."""
    return LAYERS * EXPERTS // 2 * (3 * HIDDEN * WIDTH + HIDDEN)


def searched(folder: Path, seed: int) -> dict[str, Any]:
    whole = sum(tensor.numel() for tensor in Qwen3MoeForCausalLM.from_pretrained(folder / "parent").parameters())
    job = {
        "parent": "parent",
        "seed": seed,
        "data": {
            "distill": {"path": "train.txt", "sequence_length": LENGTH},
            "validate": {"path": "judge.txt", "tokens": "16k", "sequence_length": LENGTH},
        },
        "space": {"ffn": [{"experts": count} for count in range(EXPERTS - 1, ACTIVE - 1, -1)]},
        "distill": {"tokens": "50k"},
        "solve": {"pool": 4},
        "recover": {"tokens": "50k", "probes": 2},
        "hardware": {"scenarios": [{"prefill": 64, "generate": 16}]},
        "budget": {"parameters": whole - half_of_experts()},
        "cluster": {"max_workers": 2},
    }
    (folder / f"seed{seed}.yaml").write_text(yaml.safe_dump(job))
    begun = time.monotonic()
    command = [str(Path(sys.executable).with_name("inlay")), "run", f"seed{seed}.yaml"]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found = json.loads((folder / f"seed{seed}.search" / "evaluation.json").read_text())
    return {"seed": seed, "seconds": time.monotonic() - begun, **found}


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| seed | | child | uniform | depth | experts kept | s |", "|---|---|---:|---:|---:|---|---:|"]
    for row in rows:
        kept = [ffn.partition("=")[2] or str(EXPERTS) for _, ffn in row["child"]["architecture"]]
        before = [f"{row[name]['before_recover']:.4f}" for name in MODELS]
        after = [f"{row[name]['kl_nats']:.4f}" for name in MODELS]
        lines.append(f"| {row['seed']} | before recovery | {' | '.join(before)} | {' '.join(kept)} | |")
        lines.append(f"| {row['seed']} | after | {' | '.join(after)} | | {row['seconds']:.0f} |")
    worst = max(row["child"]["kl_nats"] / row["uniform"]["kl_nats"] for row in rows)
    return [*lines, "", f"The child has {worst:.2f} of the KL of `uniform` after recovery in the worst seed."]


@torch.no_grad()
def same_by_count(folder: Path) -> str:
    """In how many layers counting choices instead of adding up shares keeps the same experts."""
    model: Any = Qwen3MoeForCausalLM.from_pretrained(folder / "parent").eval()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        _, share_NK, expert_NK = output
        count_E, share_E = torch.zeros(EXPERTS), torch.zeros(EXPERTS)
        count_E.index_add_(0, expert_NK.flatten(), torch.ones(expert_NK.numel()))
        share_E.index_add_(0, expert_NK.flatten(), share_NK.flatten().float())
        seen.append((count_E, share_E))

    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(keep)
    model(packed(folder, "train")[:512])
    kept = [{tuple(sorted(each.topk(EXPERTS // 2).indices.tolist())) for each in both} for both in seen]
    same = sum(len(each) == 1 for each in kept)
    return f"By counts alone, without shares, the same {EXPERTS // 2} experts stay in {same} of {LAYERS} layers."


if __name__ == "__main__":
    main()
