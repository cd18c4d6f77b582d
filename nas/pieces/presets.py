"""The parent in llama.cpp's own presets: what its quantiser makes of it, its times, and its KL.

The quantiser says which type each tensor gets; rounding is bit for bit ours (nas/formats), so that quality is judged as
that of every child is, weighed by the importance of input channels on the text that fits the child's rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.cluster.pieces import PieceContext, PieceOutput
from inlay.distill.sweep import Slot, sweep
from inlay.nas.engines.engine import Target
from inlay.nas.engines.gguf.presets import PRESETS, types_of
from inlay.nas.engines.gguf.trained import write_trained
from inlay.nas.engines.llama_cpp import cache_of, process
from inlay.nas.engines.llama_files import packed_of
from inlay.nas.engines.process_bench import ProcessBench, scratch_folder
from inlay.nas.engines.timing import Workload, take_rounds
from inlay.nas.families import layer_prefix
from inlay.nas.formats import FORMATS
from inlay.nas.formats.gguf import F16, GGUF
from inlay.nas.formats.tensors import packed as packed_rows
from inlay.nas.formats.tensors import rounded, weighed
from inlay.nas.modeling import Ends, InlayLayer, build_layer
from inlay.nas.pieces.boundaries import micro_batch, worker_source
from inlay.nas.pieces.comparison import compare
from inlay.nas.pieces.measuring import against
from inlay.nas.pieces.rounded_cache import as_run
from inlay.nas.pieces.texts import load_ids
from inlay.nas.pieces.weights import Library, WorkerSource, parent_of
from inlay.nas.tables.architecture import PARENT_BLOCK

PARENT = "parent"
PATIENCE_SECONDS = 60.0
"""Wall clock after which no more rounds are begun: seven models take turns, and nothing is decided by their times."""


def quantise_presets(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece: the parent's file is rewritten in every preset; types, bytes, and times in turns with the parent's own.

    Arguments: `target, workload`. `values["presets"]` has for each preset `types` (format by the parent's own tensor
    names), `weights_bytes`, `file_bytes` and `measured`.
    """
    parent, target, workload = parent_of(arguments["parent"]), Target(**arguments["target"]), arguments["workload"]
    packed = packed_of(parent.config, F16)
    found: dict[str, dict[str, Any]] = {}
    with scratch_folder("presets", context.scratch) as folder, process(target.python) as engine:

        def written(form: str) -> Path:
            path = Path(folder) / f"{form}.gguf"
            made = packed_of(parent.config, form)
            write_trained(
                path, made, parent.config, parent.folder, lambda name, kind: packed_rows(parent.tensor(name), kind)
            )
            return path

        source = written(F16)
        files = {PARENT: str(source if target.format == F16 else written(target.format))}
        for name, file_type in PRESETS.items():
            path = Path(folder) / f"{name}.gguf"
            engine.ask("quantise", source=str(source), output=str(path), file_type=file_type)
            types = types_of(path)
            sizes = [GGUF[types[tensor.name]].num_bytes(tensor.shape) for tensor in packed.tensors]
            named = {part: types[tensor.name] for tensor in packed.tensors for part in tensor.sources}
            found[name] = {"types": named, "weights_bytes": sum(sizes), "file_bytes": path.stat().st_size}
            files[name] = str(path)
        shape = Workload(**workload)
        settings = dict.fromkeys(files, cache_of(target))
        bench = ProcessBench(engine, files, shape, target.device, parent.shape.vocab, settings)
        rounds = take_rounds(
            list(files), bench, shape, context.progress, PATIENCE_SECONDS, together=not context.memory_retries
        )
    for name, own in found.items():
        own["measured"] = asdict(against(rounds[PARENT], rounds[name], shape))
    return PieceOutput(values={"presets": found})


@torch.inference_mode()
def compare_preset(arguments: dict[str, Any], context: PieceContext) -> PieceOutput:
    """A piece: the parent in one preset against the parent, on one shard.

    Arguments: `store, ids, rows, inputs`, and `types` of a preset as `quantise_presets` gives them; with `kv_format` it
    runs with such a cache.
    The blob `sequences` is as `compare_architectures` has it.
    """
    source = worker_source(arguments, Library({}), context.scratch)
    first, end = arguments["rows"]
    ids_NS = torch.from_numpy(load_ids(source.store, arguments["ids"])[first:end].astype("int64")).to(source.device)
    size = micro_batch(ids_NS.shape[1], context.memory_retries)
    own = [PARENT_BLOCK] * source.num_layers
    parent_ends = source.ends()
    (parent_NSD,) = sweep(source, [own], parent_ends.embed(ids_NS), 0, size)
    context.progress(0.3)
    preset = _Preset(source, arguments["types"])
    ends = preset.ends()
    children = sweep(as_run(preset, arguments.get("kv_format", "")), [own], ends.embed(ids_NS), 0, size)
    sequences = compare(parent_ends, ids_NS, parent_NSD, children, [ends])
    return PieceOutput(values={}, blobs={"sequences": sequences})


@dataclass(frozen=True)
class _Preset:
    """A sweep's source: the parent with every tensor in a type of its own."""

    source: WorkerSource
    types: Mapping[str, str]

    @property
    def num_layers(self) -> int:
        return self.source.num_layers

    def context(self, batch: int, sequence: int) -> Any:
        return self.source.context(batch, sequence)

    def subblock(self, index: int, slot: Slot, choice: str) -> InlayLayer:
        shape, config = self.source.parent.shape, self.source.parent.config
        entry, prefix = shape.parent_entry(index, slot), layer_prefix(index)
        state = self._rounded({prefix + name: t for name, t in self.source.parent.slot_state(index, slot).items()})
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        attention, ffn = (entry, None) if slot == "attention" else (None, entry)
        return build_layer(config, index, attention, ffn, own, self.source.dtype).to(self.source.device)

    def ends(self) -> Ends:
        state = self._rounded(self.source.parent.ends_state())
        return Ends(self.source.parent.config, state, self.source.dtype).to(self.source.device)

    def _rounded(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found, told = dict(state), self.source.matrix_inputs
        for name, tensor in state.items():
            if tensor.ndim == 2:
                form, inputs = FORMATS[self.types[name]], told.get(name, tensor.shape[1])
                found[name] = (
                    rounded(tensor, form, None, self.source.kept)
                    if inputs is None
                    else weighed(tensor, form, inputs, self.source.kept)
                )
        return found
