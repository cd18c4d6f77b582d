"""Run by the Python of a vLLM environment: greedy tokens of model folders on the CPU.

Standard input: {"folders": [...], "prompts": [[ids], ...], "tokens": N, "dtype": "float32"}. The last line of standard
output: one list of token lists a folder.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(request: dict[str, Any]) -> list[list[list[int]]]:
    from vllm import LLM, SamplingParams

    greedy = SamplingParams(temperature=0.0, max_tokens=request["tokens"], ignore_eos=True, detokenize=False)
    found = []
    for folder in request["folders"]:
        model = LLM(folder, dtype=request["dtype"], kv_cache_memory_bytes=1 << 28, enforce_eager=True)
        outputs = model.generate([{"prompt_token_ids": ids} for ids in request["prompts"]], greedy, use_tqdm=False)
        found.append([list(output.outputs[0].token_ids) for output in outputs])
        del model
    return found


if __name__ == "__main__":
    found = main(json.load(sys.stdin))
    print(json.dumps(found))
