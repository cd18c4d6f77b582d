"""Times models in vLLM: `python timer.py REQUEST.json`, by the Python of an environment that has vLLM.

It imports nothing of ours: vLLM itself calls the plugin, where inlay is installed, when it meets a child. REQUEST.json:

    {"models": ["./parent", "./child"], "dtype": "bfloat16", "rounds": 5,
     "workload": {"batch_size": 1, "prefill": 128, "generate": 64, "threads": 1}}

Standard output has a line of JSON for each model and round, among whatever vLLM prints; ours begin with `{"model":`:

    {"model": "./child", "round": 0, "prefill_ns": 1234567, "decode_ns": 123456}

`prefill_ns` is the time to read all prompts, up to their first token, and `decode_ns` the mean time of the `generate`
steps of the whole batch after it. Both are wall clock and hold what vLLM itself takes (scheduling, sampling, its
processes' talk), as those who ask a server wait for it. They come from two runs with other prompts each, of one token
and of 1 + `generate`: from the longer one alone a step could only be told by extrapolation, which on a busy machine
gives negative prefills. One round of warm-up goes before, and models take turns within every round.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 128
"""Tokens of a block of vLLM's KV cache on a CPU; on a GPU there are fewer."""


def main(request: dict[str, Any]) -> None:
    """Load every model, then print a line for each in every round."""
    workload = request["workload"]
    _use_threads(workload["threads"])
    models = {folder: _load(folder, request["dtype"], workload) for folder in request["models"]}
    names = list(models)
    for number in range(-1, request["rounds"]):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            prefill_ns, decode_ns = _times(models[name], workload, random.Random(number))
            if number >= 0:
                line = {"model": name, "round": number, "prefill_ns": prefill_ns, "decode_ns": decode_ns}
                print(json.dumps(line), flush=True)


def _use_threads(threads: int) -> None:
    """Before vLLM is imported: its processes inherit this, and are not bound to cores, since all models would share
    the same ones while others stand idle."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"


def _load(folder: str, dtype: str, workload: dict[str, Any]) -> Any:
    from vllm import LLM

    sequences, tokens = workload["batch_size"], workload["prefill"] + workload["generate"] + 1
    return LLM(
        folder,
        dtype=dtype,
        max_model_len=tokens,
        max_num_seqs=sequences,
        # All prompts are read in one step; otherwise some of prefill would be counted as decoding.
        max_num_batched_tokens=max(sequences * workload["prefill"], tokens),
        # Prompts of one run are no longer there in the next.
        enable_prefix_caching=False,
        kv_cache_memory_bytes=_kv_bytes(folder, sequences, tokens),
        skip_tokenizer_init=True,
    )


def _kv_bytes(folder: str, sequences: int, tokens: int) -> int:
    """Enough for all keys and values; unasked, vLLM takes most of the memory for the first model alone."""
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(model=folder, skip_tokenizer_init=True).create_model_config()
    numbers: int = 2 * config.get_total_num_kv_heads() * config.get_head_size() * config.get_total_num_hidden_layers()
    # Of 4 bytes at most; sequences fill whole blocks, and where layers differ vLLM pads up to the largest.
    return 2 * 4 * numbers * sequences * (tokens + 2 * BLOCK_TOKENS)


def _times(model: Any, workload: dict[str, Any], chosen: random.Random) -> tuple[int, int]:
    """(prefill ns, decode step ns) of one round."""
    steps = workload["generate"]
    # A model whose turn comes again has stood idle, which makes its first run a third slower.
    _run_ns(model, workload, 1, chosen)
    prefill_ns = _run_ns(model, workload, 1, chosen)
    runtime_ns = _run_ns(model, workload, 1 + steps, chosen)
    return prefill_ns, round((runtime_ns - prefill_ns) / steps)


def _run_ns(model: Any, workload: dict[str, Any], tokens: int, chosen: random.Random) -> int:
    from vllm import SamplingParams

    vocab = model.llm_engine.model_config.get_vocab_size()
    prompts = [
        {"prompt_token_ids": [chosen.randrange(vocab) for _ in range(workload["prefill"])]}
        for _ in range(workload["batch_size"])
    ]
    greedy = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    begun = time.perf_counter_ns()
    model.generate(prompts, greedy, use_tqdm=False)
    return time.perf_counter_ns() - begun


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
