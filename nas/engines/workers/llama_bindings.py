"""The bindings of llama.cpp that its worker can use, brought to one form: what each calls a model, a context, a batch.

Both hand llama.cpp's own interface on and choose nothing: times and logits are the library's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

Row = tuple[int, int, int, bool]  # token, position, sequence, whether its logits are wanted
Take = Callable[[int, str], None]
"""Takes what the library logs: a level and a text."""


def _set_context(params: Any, tokens: int, sequences: int, threads: int, exact: bool, kv_type: int | None) -> None:
    """llama.cpp's own fields, which both bindings call by its names."""
    params.n_ctx = tokens * sequences
    params.n_seq_max = sequences
    params.n_threads = params.n_threads_batch = threads
    if exact:
        params.type_k = params.type_v = 0
        params.flash_attn_type = 0
    elif kv_type is not None:
        params.type_k = params.type_v = kv_type
        params.flash_attn_type = 1  # it has no values in blocks without


class Cyllama:
    """The binding `cyllama`: llama.cpp's own interface, its library inside the wheel."""

    def __init__(self, take: Take) -> None:
        from cyllama import __version__
        from cyllama.llama import llama_cpp

        class WithVocabulary(llama_cpp.LlamaModel):  # type: ignore[misc]
            """Its `get_logits_ith` asks the model for what 0.2.18 has only in the vocabulary."""

            @property
            def n_vocab(self) -> int:
                return int(self.get_vocab().n_vocab)

        self._lib: Any = llama_cpp
        self._model = WithVocabulary
        llama_cpp.set_log_callback(lambda level, text: take(int(level), text))
        llama_cpp.llama_backend_init()
        self.version = f"cyllama {__version__}, ggml {llama_cpp.ggml_version()} ({llama_cpp.ggml_commit()})"

    def model(self, path: str) -> Any:
        """The model in a file. Raises ValueError."""
        return self._model(path, self._lib.LlamaModelParams(), verbose=True)

    def context(self, model: Any, tokens: int, sequences: int, threads: int, exact: bool, kv_type: int | None) -> Any:
        """What holds its cache; of a type of ggml's, by its number, where one is given."""
        params = self._lib.LlamaContextParams()
        _set_context(params, tokens, sequences, threads, exact, kv_type)
        return self._lib.LlamaContext(model, params, verbose=True)

    def batch(self, rows: Sequence[Row]) -> Any:
        """What one call decodes."""
        batch = self._lib.LlamaBatch(n_tokens=len(rows), embd=0, n_seq_max=1)
        for token, position, sequence, wanted in rows:
            batch.add(token, position, [sequence], wanted)
        return batch

    def quantise(self, source: str, output: str, file_type: int) -> None:
        """Rewrites a file by its quantiser, on one thread. Raises ValueError or RuntimeError."""
        how = self._lib.LlamaModelQuantizeParams()
        how.ftype, how.nthread = file_type, 1
        self._lib.model_quantize(source, output, how)

    def sampler(self) -> Any:
        """What chooses greedily."""
        sampler = self._lib.LlamaSampler()
        sampler.add_greedy()
        return sampler


class LlamaCppPython:
    """The binding `llama-cpp-python`, through the functions of C that it declares: as its users have built it."""

    def __init__(self, take: Take) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        # The library keeps the pointer only: the callback lives as long as this object.
        self._callback = llama_cpp.llama_log_callback(
            lambda level, text, _: take(int(level), text.decode(errors="replace"))
        )
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        told = llama_cpp.llama_print_system_info().decode()
        self.version = f"llama-cpp-python {llama_cpp.__version__} ({told.strip(' |')})"

    def model(self, path: str) -> _Model:
        """The model in a file. Raises ValueError."""
        found = self._lib.llama_model_load_from_file(path.encode(), self._lib.llama_model_default_params())
        if not found:
            raise ValueError(path)
        return _Model(self._lib, found)

    def context(
        self, model: _Model, tokens: int, sequences: int, threads: int, exact: bool, kv_type: int | None
    ) -> _Context:
        """What holds its cache; of a type of ggml's, by its number, where one is given. Raises ValueError."""
        params = self._lib.llama_context_default_params()
        _set_context(params, tokens, sequences, threads, exact, kv_type)
        found = self._lib.llama_init_from_model(model.pointer, params)
        if not found:
            raise ValueError("no context")
        return _Context(self._lib, found, model)

    def batch(self, rows: Sequence[Row]) -> _Batch:
        """What one call decodes."""
        return _Batch(self._lib, rows)

    def quantise(self, source: str, output: str, file_type: int) -> None:
        """Rewrites a file by its quantiser, on one thread. Raises ValueError."""
        how = self._lib.llama_model_quantize_default_params()
        how.ftype, how.nthread = file_type, 1
        if code := self._lib.llama_model_quantize(source.encode(), output.encode(), ctypes.byref(how)):
            raise ValueError(f"code {code}")

    def sampler(self) -> _Sampler:
        """What chooses greedily."""
        return _Sampler(self._lib)


class _Model:
    def __init__(self, lib: Any, pointer: Any) -> None:
        self._lib, self.pointer = lib, pointer
        self.size = int(lib.llama_model_size(pointer))
        self.n_vocab = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(pointer)))

    def close(self) -> None:
        self._lib.llama_model_free(self.pointer)


class _Context:
    def __init__(self, lib: Any, pointer: Any, model: _Model) -> None:
        self._lib, self.pointer, self._model = lib, pointer, model
        self.n_ctx, self.n_batch = int(lib.llama_n_ctx(pointer)), int(lib.llama_n_batch(pointer))

    def close(self) -> None:
        self._lib.llama_free(self.pointer)

    def kv_cache_clear(self, data: bool) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self.pointer), data)

    def decode(self, batch: _Batch) -> None:
        if code := self._lib.llama_decode(self.pointer, batch.held):
            raise ValueError(f"code {code}")

    def synchronize(self) -> None:
        self._lib.llama_synchronize(self.pointer)

    def get_logits_ith(self, place: int) -> list[float]:
        return list(self._lib.llama_get_logits_ith(self.pointer, place)[: self._model.n_vocab])


class _Batch:
    def __init__(self, lib: Any, rows: Sequence[Row]) -> None:
        self._lib = lib
        self.held = lib.llama_batch_init(len(rows), 0, 1)
        self.held.n_tokens = len(rows)
        for place, (token, position, sequence, wanted) in enumerate(rows):
            self.held.token[place] = token
            self.held.pos[place] = position
            self.held.n_seq_id[place] = 1
            self.held.seq_id[place][0] = sequence
            self.held.logits[place] = wanted

    def close(self) -> None:
        self._lib.llama_batch_free(self.held)


class _Sampler:
    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._pointer = lib.llama_sampler_init_greedy()

    def sample(self, context: _Context, place: int) -> int:
        return int(self._lib.llama_sampler_sample(self._pointer, context.pointer, place))


BINDINGS = (Cyllama, LlamaCppPython)
"""In the order in which they are looked for."""
