"""vLLM in a process of its own: loads model folders, and times or runs them as it is told.

It is started by its path, by any interpreter that has vLLM; of inlay it imports the plugin, which it is handed on its
path. `answering.py` beside it says how it is asked. All models live in this process, without vLLM's own, and are driven
step by step: what a server computes at a step (scheduling, the model, sampling), one model after the other.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.nas.engines.workers.answering import InTurns, Missing, Refused, answer_requests
else:
    from answering import InTurns, Missing, Refused, answer_requests

PROMPT_TOKENS_A_STEP = 8192
"""Prompt tokens that are read in one step; more are read in several, as vLLM does."""
GPU_SHARE = 0.01
"""vLLM wants this share of a GPU to be free for a model; unasked nearly all of it, which the second one misses."""
_FAILURES = (ValueError, RuntimeError, AssertionError, OSError, KeyError, TypeError, AttributeError, ImportError)


class Model:
    """A folder that vLLM holds, with one batch of requests under way.

    Args:
        told: `folder`; `block_tokens` and `block_bytes` of all its layers' blocks of the KV cache.
        request: `tokens` of a sequence and `sequences`; `dtype`; whether weights are `random`; whether models are
            `compiled`.
    """

    def __init__(self, told: dict[str, Any], request: dict[str, Any]) -> None:
        from vllm import LLM

        self.sequences = request["sequences"]
        read = self.sequences * request["tokens"]
        chunk = max(self.sequences, min(read, PROMPT_TOKENS_A_STEP))
        # The first sequences go on while the last prompts are read, and the last token is given but never read.
        tokens = request["tokens"] + -(-read // chunk)
        blocks = self.sequences * (-(-tokens // told["block_tokens"]) + 1) + 2
        try:
            self._llm = LLM(
                told["folder"],
                dtype=request["dtype"],
                load_format="dummy" if request["random"] else "auto",
                max_model_len=tokens,
                max_num_seqs=self.sequences,
                max_num_batched_tokens=chunk,
                kv_cache_memory_bytes=blocks * told["block_bytes"],
                gpu_memory_utilization=GPU_SHARE,
                # A prompt of one run is not there in the next.
                enable_prefix_caching=False,
                # A step is all that belongs to it, and over when its tokens are there.
                async_scheduling=False,
                enforce_eager=not request["compiled"],
                skip_tokenizer_init=True,
                disable_log_stats=True,
            )
        except _FAILURES as error:
            raise Refused(f"it does not run a model: {_reason(error)}") from None
        self._engine: Any = self._llm.llm_engine
        self._room = tokens
        self._numbers = itertools.count()
        self._counts: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
        self.seen = 0

    def sizes(self) -> dict[str, int]:
        """`block_tokens` and `block_bytes` of its KV cache; on CPUs weights are packed, and told by no one then."""
        cache = self._engine.engine_core.engine_core.scheduler.kv_cache_config
        return {
            "block_tokens": self._engine.vllm_config.cache_config.block_size,
            "block_bytes": sum({each.size for each in cache.kv_cache_tensors}) // cache.num_blocks,
        }

    def close(self) -> None:
        """Gives its memory back."""
        self._engine.engine_core.shutdown()
        del self._engine, self._llm

    def read(self, ids: Sequence[int], clock: Callable[[], int]) -> int:
        """Reads a prompt in every sequence, up to the first new token of each; nanoseconds taken."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._engine.abort_request(list(self._counts))
        names = [str(next(self._numbers)) for _ in range(self.sequences)]
        self._counts, self.tokens, self.seen = dict.fromkeys(names, 0), {}, len(ids) - 1
        begun = clock()
        for name in names:
            greedy = SamplingParams(
                temperature=0.0,
                max_tokens=self._room - len(ids),
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            self._engine.add_request(name, {"prompt_token_ids": list(ids)}, greedy)
        return clock() - begun + self.step(clock)

    def step(self, clock: Callable[[], int]) -> int:
        """At least one token further in every sequence; nanoseconds taken."""
        wanted = min(self._counts.values()) + 1
        begun = clock()
        try:
            while min(self._counts.values()) < wanted:
                for output in self._engine.step():
                    new = output.outputs[0].token_ids
                    self._counts[output.request_id] += len(new)
                    self.tokens[output.request_id] = new[-1]
        except _FAILURES as error:
            raise Refused(f"it does not run a model: {_reason(error)}") from None
        self.seen += 1
        return clock() - begun

    def extend(self, ids: Sequence[int]) -> None:
        """Starts anew behind these ids, where it has not come so far."""
        if self.seen < len(ids):
            self.read(ids, time.perf_counter_ns)

    @property
    def token(self) -> int:
        """The last one of the only sequence."""
        (token,) = self.tokens.values()
        return token


class Worker(InTurns):
    """Does what requests say."""

    def __init__(self) -> None:
        super().__init__()
        try:
            import torch
            import vllm
            from vllm import LLM  # noqa: F401 (loaded lazily, and some builds fail then)
            from vllm.platforms import current_platform
        except (ImportError, RuntimeError, OSError) as error:
            raise Missing(f"{sys.executable} has no vLLM that can be imported ({_reason(error)})") from None
        try:
            from inlay.nas.engines.vllm_plugin import register

            register()
        except ImportError as error:
            raise Refused(f"{sys.executable} cannot import inlay's plugin ({error})") from None
        self.type = str(current_platform.device_type)
        name = torch.cuda.get_device_name() if self.type == "cuda" else ""
        self._about = {"vllm": str(vllm.__version__), "torch": str(torch.__version__), "device": name}

    def do_hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Versions, and the GPU's name; refuses where vLLM is built for another type of device."""
        if self.type != request["device"]:
            raise Refused(
                f"{sys.executable} has a vLLM for {self.type or 'no device'}, and hardware.device is "
                f"{request['device']}; name an interpreter with one for it in hardware.python"
            )
        return self._about

    def do_open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Loads models for so many `tokens` in each of the `sequences`; their caches' sizes by name."""
        for name, told in request["models"].items():
            self.running[name] = Model(told, request)
        return {name: self.running[name].sizes() for name in request["models"]}

    def do_close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Lets models go."""
        for name in request["models"]:
            self.running.pop(name).close()
        gc.collect()
        if self.type == "cuda":
            import torch

            torch.cuda.empty_cache()
        return {}


def _reason(error: BaseException) -> str:
    """The last line of what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:400]}" if lines else type(error).__name__


if __name__ == "__main__":
    answer_requests(Worker)
