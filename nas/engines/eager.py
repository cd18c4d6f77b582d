"""Models in eager PyTorch, as the Transformers folder runs: random weights of their shape, their times, and texts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from inlay.nas.engines.engine import Held
from inlay.nas.engines.shapes import shape_of_model
from inlay.nas.engines.sparse_checkpoint import packed_matrices, stored_tensors
from inlay.nas.engines.talk import Continuation, Talk, Trained
from inlay.nas.engines.timing import PATIENCE_SECONDS, SAMPLED_STEPS, Workload, take_rounds
from inlay.nas.formats.tensors import packed
from inlay.nas.modeling import InlayConfig, InlayForCausalLM
from inlay.nas.modeling.subblock_inlay import FORMAT

if TYPE_CHECKING:
    from inlay.nas.formats.format import Bytes, Format


def random_model(
    config: InlayConfig, dtype: torch.dtype, device: torch.device, ends: InlayForCausalLM | None = None
) -> InlayForCausalLM:
    """A model of this shape with random weights: times do not depend on their values.

    Embedding and head are those of `ends` where it is given, so that models of one comparison hold them once.
    """
    torch.manual_seed(0)
    config = packed_where_told(config)
    with device, _default_dtype(dtype):
        model: Any = InlayForCausalLM(config)
    if ends is not None:
        model.model.embed_tokens, model.lm_head = ends.model.embed_tokens, ends.lm_head
    built: InlayForCausalLM = model.to(device, dtype).eval()
    return built


def trained_model(model: Trained, dtype: torch.dtype, device: torch.device) -> InlayForCausalLM:
    """A model with its weights, those of matrices in formats packed."""

    def nearest(name: str, form: Format) -> Bytes:
        return packed(model.tensors[name], form)

    config = packed_where_told(model.config)
    formats = packed_matrices(shape_of_model(config), config.blocks)
    stored = dict(stored_tensors(model.tensors, model.tensors.__getitem__, formats, model.rows or nearest))
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
    whole: Any = InlayForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    built: InlayForCausalLM = whole.to(device).eval()
    return built


def packed_where_told(config: InlayConfig) -> InlayConfig:
    """The configuration of the same model with its matrices packed where entries name a format."""
    if not any(FORMAT in entry for block in config.blocks for entry in block.values()):
        return config
    found = config.with_blocks(config.blocks)
    found.packed = True
    return found


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Weights are made in the type that they are timed in: in float32 first, a model of bfloat16 takes three times as
    much memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def rounds_of(
    models: Mapping[str, Any],
    workload: Workload,
    device: torch.device,
    on_round: Callable[[float], None] = lambda share: None,
    patience_seconds: float = PATIENCE_SECONDS,
    together: bool = True,
) -> dict[str, list[tuple[int, int]]]:
    """`take_rounds` of models in this process.

    Args:
        models: all in one mapping; one that builds a model anew whenever it is asked for goes with `together=False`.
        device: where they are.
    """
    torch.set_num_threads(workload.threads)
    bench = _EagerBench(models, workload, device)
    return take_rounds(list(models), bench, workload, on_round, patience_seconds, together)


@torch.inference_mode()
def held_on_gpu(build: Callable[[], Any], workload: Workload, device: torch.device) -> Held:
    """What a model that is built now, and let go of, takes on a GPU for its prompt and one step.

    The allocator counts in blocks of 512 bytes; what others of this process hold there is not counted.
    """
    before = torch.cuda.memory_allocated(device)
    model = build()
    weights = torch.cuda.memory_allocated(device) - before
    length = workload.prefill + workload.generate
    ids_BT = torch.zeros(workload.batch_size, length - 1, dtype=torch.long, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    run = _Run(model)
    run.prefill(ids_BT[:, : workload.prefill])
    run.extend(ids_BT, length - 1)
    run.step()
    peak = torch.cuda.max_memory_allocated(device) - before
    kv = sum(
        value.numel() * value.element_size()
        for layer in run.cache.layers
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor)
    )
    return Held(weights, kv, max(0, peak - weights - kv))


class EagerTalk(Talk):
    """Models in this process.

    Args:
        models: by name, on the device.
        clock: `thread` or `wall`: what times are read from.
        device: where they are.
    """

    def __init__(self, models: Mapping[str, Any], clock: str, device: torch.device) -> None:
        self._runs = {name: _Run(model) for name, model in models.items()}
        self._read, self._device = _reader(clock, device), device
        # What is done once is not counted to the first text.
        self.continuations([0], 1, ())

    @torch.inference_mode()
    def continuations(self, ids: Sequence[int], most: int, stops: Collection[int]) -> dict[str, Continuation]:
        ids_BP = torch.tensor([list(ids)], device=self._device)
        found: dict[str, list[int]] = {name: [] for name in self._runs}
        prefill_ns = {name: self._timed(run.prefill, ids_BP) for name, run in self._runs.items()}
        decode_ns = dict.fromkeys(self._runs, 0)
        going = dict(self._runs)
        for _ in range(most):
            going = {name: run for name, run in going.items() if run.token not in stops}
            for name, run in going.items():
                found[name].append(run.token)
                decode_ns[name] += self._timed(run.step)
        return {
            name: Continuation(tuple(own), self._runs[name].token in stops, prefill_ns[name], decode_ns[name])
            for name, own in found.items()
        }

    def _timed(self, run: Callable[..., None], *values: Any) -> int:
        start = self._read()
        run(*values)
        return self._read() - start


class _EagerBench:
    def __init__(self, models: Mapping[str, Any], workload: Workload, device: torch.device) -> None:
        self._models, self._workload = models, workload
        clock = workload.clock(device.type)
        self._read = _reader(clock, device)
        # Steps between two readings: each costs a GPU its queue.
        self._each = 1 if clock == "thread" else SAMPLED_STEPS
        generator = torch.Generator().manual_seed(0)
        vocab = models[next(iter(models))].config.vocab_size
        longest = workload.prefill + workload.generate
        self._ids_BT = torch.randint(0, vocab, (workload.batch_size, longest), generator=generator).to(device)
        self._runs: list[_Run] = []

    @torch.inference_mode()
    def prefill(self, names: Sequence[str]) -> list[int]:
        self._runs = []
        self._runs = [_Run(self._models[name]) for name in names]
        spent = []
        for run in self._runs:
            start = self._read()
            run.prefill(self._ids_BT[:, : self._workload.prefill])
            spent.append(self._read() - start)
        return spent

    @torch.inference_mode()
    def extend(self, context: int) -> None:
        for run in self._runs:
            run.extend(self._ids_BT, context)

    @torch.inference_mode()
    def steps(self, count: int) -> list[int]:
        spent = [0] * len(self._runs)
        for done in range(0, count, self._each):
            for number, run in enumerate(self._runs):
                start = self._read()
                for _ in range(min(self._each, count - done)):
                    run.step()
                spent[number] += self._read() - start
        return spent


class _Run:
    """A model that generates, greedily, with its cache."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(self, ids_BP: torch.Tensor) -> None:
        output = self.model(ids_BP, past_key_values=self.model.new_cache(), use_cache=True, logits_to_keep=1)
        self.cache, self.token_B1 = output.past_key_values, output.logits[:, -1:].argmax(-1)

    def extend(self, ids_BT: torch.Tensor, context: int) -> None:
        """Reads on until the cache holds so many tokens."""
        seen = self.cache.get_seq_length()
        if seen < context:
            self.model(ids_BT[:, seen:context], past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    def step(self) -> None:
        output = self.model(self.token_B1, past_key_values=self.cache, use_cache=True)
        self.token_B1 = output.logits[:, -1:].argmax(-1)

    @property
    def token(self) -> int:
        """The next one of a single sequence."""
        return int(self.token_B1.item())


def _reader(clock: str, device: torch.device) -> Callable[[], int]:
    """The clock, ns; on a GPU it waits for what was sent there."""
    if clock == "thread":
        return time.thread_time_ns
    if device.type != "cuda":
        return time.perf_counter_ns

    def read() -> int:
        torch.cuda.synchronize(device)
        return time.perf_counter_ns()

    return read
