"""A small parent with experts, of Qwen3-MoE's shape: what benchmarks/expert_rules.py loses half of.

    INLAY_PARENTS=... INLAY_TEXT=... python benchmarks/experts_parent.py FOLDER [--steps 1200]

It is trained on the text that other benchmarks train on, with the tokenizer of stories260K; a few minutes of one
thread.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import torch
from quality_bench import LENGTH
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from inlay.distill.text import pack, token_lists
from inlay.nas.families import open_parent

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
BATCH, RATE = 8, 5e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    likeness = Path(os.environ["INLAY_PARENTS"]) / "stories260K"
    told = open_parent(likeness)
    (text,) = sorted(Path(os.environ["INLAY_TEXT"]).glob("*.txt"))
    documents = text.read_text().split("<|endoftext|>\n")
    drawn = pack(token_lists(documents[: len(documents) * 9 // 10], told.tokenizer()), LENGTH, tokens=10**9)
    train = torch.from_numpy(drawn).long()
    config = Qwen3MoeConfig(
        vocab_size=told.shape.vocab,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        output_router_logits=True,
        max_position_embeddings=2 * LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=told.config.bos_token_id,
        eos_token_id=told.config.eos_token_id,
    )
    model = Qwen3MoeForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.05)
    begun, order = time.process_time(), torch.Generator().manual_seed(0)
    for step in range(options.steps):
        share = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = RATE * share
        ids = train[torch.randint(len(train), (BATCH,), generator=order)]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == options.steps - 1:
            print(f"step {step}: {loss.item():.3f} nats, {time.process_time() - begun:.0f} s", flush=True)
    model.config.output_router_logits = False
    model.save_pretrained(options.folder)
    for name in TOKENIZER:
        shutil.copy(likeness / name, options.folder / name)


if __name__ == "__main__":
    main()
