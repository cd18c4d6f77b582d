"""`llama.cpp`: a child as a GGUF file, timed and run in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inlay.nas.engines.engine import Engine, Skeletons, StoodIn, Target, Timed
from inlay.nas.engines.gguf.packing import (
    LAYERS_AT_MOST,
    PARTS,
    PLAIN,
    ROTATIONS,
    mixed_architecture,
    pack,
    part_of,
    stand_ins,
)
from inlay.nas.engines.gguf.trained import write_trained
from inlay.nas.engines.llama_files import held_of, packed_of, write_shape
from inlay.nas.engines.process import EngineProcess, worker_script
from inlay.nas.engines.process_bench import ProcessBench, scratch_folder
from inlay.nas.engines.process_talk import ProcessTalk, written_once
from inlay.nas.engines.shapes import shape_of_model, with_vocabulary
from inlay.nas.engines.talk import Talk, Trained
from inlay.nas.engines.timing import Workload, clock_of, take_rounds
from inlay.nas.families.shape import Entry, Shape
from inlay.nas.formats.by_tensor import form_of, forms_in
from inlay.nas.formats.gguf import F16, GGUF
from inlay.nas.modeling.full_inlay import KEY, QUERY, VALUE, FullAttention
from inlay.nas.modeling.gated_inlay import GatedFfn
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.linear_inlay import Linear
from inlay.nas.modeling.no_op_inlay import ABSENT
from inlay.nas.modeling.subblock_inlay import ENDS_SLOT, FORMAT, Slot, TimedSlot, structure, without_cache
from inlay.nas.tables.halves import Half, StandIn
from inlay.nas.variants.storage import Block, Storage
from inlay.version import __version__

if TYPE_CHECKING:
    from inlay.nas.formats.format import Bytes, Format
    from inlay.nas.modeling import InlayConfig

NAME: Final = "llama.cpp"
EXTRA: Final = "`pip install 'inlay[gguf]'` brings one, or name an interpreter that has it in hardware.python"
CELLS: Final = 256
"""Tokens of a sequence that its cache is made for come in multiples of this many."""
COPIES: Final = 4
"""Copies of a subblock in the model that is timed."""
SMALL_VOCABULARY: Final = 32
"""Tokens of the models that time subblocks: their ends are not what is asked."""
_ALIKE: Final = "give all three one format"
_ELSEWHERE: Final = "take it out of the space, or search with `hardware.engine: transformers`"


class LlamaCppStorage(Storage):
    """GGUF's tensors, in one format where entries name no other, and a cache in one of its own."""

    def __init__(self, form: str, kv_format: str) -> None:
        self._form, self._kv_format = form, kv_format

    def weights(self, entry: Entry, slot: Slot, shape: Shape) -> int:
        """Its tensors, without what may have to stand in for the other half of its layer (`model` counts that)."""
        if SUBBLOCKS.of(entry).absent:
            return 0
        return sum(tensor.num_bytes for tensor in part_of(shape, 0, slot, entry, self._form).tensors)

    def ends(self, shape: Shape, form: str | None = None) -> int:
        """Embedding, norm and an untied head."""
        return sum(tensor.num_bytes for tensor in pack(shape, shape.blocks, self._form, form).ends)

    def kv(self, entry: Entry, shape: Shape, batch: int, length: int, form: str | None = None) -> int:
        """Cells that its cache allocates."""
        cells = -(-length // CELLS) * CELLS
        held = SUBBLOCKS.of(entry).state(entry, shape, cells).values()
        return batch * sum(GGUF[form or self._kv_format].num_bytes(tuple(size)) for size in held)

    def model(self, shape: Shape, blocks: Sequence[Block], ends: str | None = None) -> int:
        """All tensors of the file."""
        return pack(shape, blocks, self._form, ends).weights_bytes


class LlamaCppEngine(Engine):
    """Runs what its architectures can hold (`gguf/packing.py`)."""

    name = NAME
    formats = tuple(GGUF)
    subblock_formats = formats
    stores_matrices_apart = True
    kv_formats = (F16, "q8_0")
    stores_ends_apart = True

    def usual_format(self, shape: Shape) -> str:
        """f16, as converters write by default."""
        return F16

    def problem(self, entry: Entry, slot: Slot, shape: Shape, form: str) -> str | None:
        """By kind, by the parent's norms of heads, and by the rows that a format can hold."""
        if SUBBLOCKS.of(entry).absent:
            return None
        kind = entry["kind"]
        if kind not in PARTS:
            return f"llama.cpp has no {kind} {slot}; it runs {', '.join(PARTS)} and no_op, so {_ELSEWHERE}"
        form = entry.get(FORMAT, form)
        if unknown := next((own for own in forms_in(form) if own not in GGUF), None):
            return f"llama.cpp has no {unknown}; its formats are {', '.join(GGUF)}"
        part = part_of(shape, 0, slot, entry, form)
        if part.role == "map" and not mixed_architecture(shape).empty_attention:
            return f"llama.cpp has no {kind} {slot} beside attention whose heads are normed; {_ELSEWHERE}"
        joined = {form_of(form, name) for name in (QUERY, KEY, VALUE)} if part.role == "attention" else {form}
        if len(joined) > 1 and mixed_architecture(shape).fused:
            return f"llama.cpp stores query, key and value of heads that are normed as one matrix; {_ALIKE}"
        # What the parent itself has, and rows as wide as the model, are stored as llama.cpp's tools do it where they do
        # not fit: by what holds them.
        own = [shape.parent_entry(layer, slot) for layer in range(shape.num_layers)]
        given = (shape.hidden, shape.q_heads * shape.head_dim)
        for tensor in part.tensors if structure(entry) not in own else ():
            asked = form_of(form, tensor.sources[0])
            if len(tensor.shape) == 2 and tensor.format != asked and tensor.shape[1] not in given:
                block = GGUF[asked].block
                return (
                    f"{asked} stores {block} numbers together, and {tensor.name} has rows of {tensor.shape[1]}; take a "
                    f"multiple of {block}, or the format {tensor.format}"
                )
        return None

    def model_problem(self, shape: Shape, form: str, device: str) -> str | None:
        """By family, rotation, layers, head and the rows that a format can hold."""
        if shape.family not in PLAIN:
            return (
                f"llama.cpp does not run the family {shape.family} here, only {', '.join(PLAIN)}; search with "
                "`hardware.engine: transformers`"
            )
        if shape.rotation not in ROTATIONS:
            return (
                f"llama.cpp does not have the parent's rotation of positions, {shape.rotation}, only "
                f"{', '.join(ROTATIONS)}; search with `hardware.engine: transformers`"
            )
        if mixed_architecture(shape).tied_only and not shape.tied:
            return (
                "llama.cpp: normed heads with layers of different shapes need a head that is tied to the embedding, "
                "and this parent's is not; search with `hardware.engine: transformers`"
            )
        if shape.num_layers > LAYERS_AT_MOST:
            return f"llama.cpp: {shape.num_layers} layers are more than its {LAYERS_AT_MOST}"
        if GGUF[form].block > 1 and GGUF[form].holding(shape.hidden).block == 1:
            return f"llama.cpp: {form} cannot store rows of {shape.hidden}, the parent's width; take f16"
        for layer in range(shape.num_layers):
            for slot in ("attention", "ffn"):
                if problem := self.problem(shape.parent_entry(layer, slot), slot, shape, form):
                    return f"llama.cpp cannot run the parent itself, layer {layer}: {problem}"
        return None

    def cache_problem(self, shape: Shape, kv_format: str) -> str | None:
        """By the numbers of a head, of which a cache holds whole blocks."""
        form = GGUF[kv_format]
        if form.fits(shape.head_dim):
            return None
        return (
            f"{kv_format} stores {form.block} numbers together, and the parent's heads have {shape.head_dim}; take "
            f"{self.kv_formats[0]}"
        )

    def storage(self, form: str, device: str, kv_format: str | None = None) -> Storage:
        """GGUF's."""
        return LlamaCppStorage(form, kv_format or self.kv_formats[0])

    def describe(self, target: Target) -> dict[str, str]:
        """The processor, and the binding with its commit of ggml."""
        from inlay.nas.engines.transformers_engine import processor_name

        with process(target.python) as engine:
            return {"device": processor_name(), "engine": str(engine.ask("hello")["binding"]), "format": target.format}

    def skeletons(self, config: InlayConfig, subblocks: Mapping[str, tuple[TimedSlot, Entry]]) -> Skeletons:
        """A few copies of a subblock between two small layers, all with few tokens to choose from.

        Its cache wants attention somewhere, a layer that lacks a half gets a dummy, and the last layer's ffn is only
        computed for what is chosen from: the small layers see to that.
        """
        small = with_vocabulary(config, SMALL_VOCABULARY)
        nothing = {"attention": ABSENT, "ffn": ABSENT}
        ffn = {**nothing, "ffn": {"kind": GatedFfn.name, "width": 32}}
        layer = {**ffn, "attention": {"kind": FullAttention.name, "kv_heads": 1}}
        references = {
            "base": small.with_blocks([layer] * 2),
            "ffns": small.with_blocks([layer, *[ffn] * COPIES, layer]),
            "layers": small.with_blocks([layer] * (2 + COPIES)),
            "whole": config.with_blocks([layer] * 2),
        }
        shape = shape_of_model(config)
        share = 1 / COPIES
        models: dict[str, InlayConfig] = {}
        terms: dict[str, tuple[tuple[float, str], ...]] = {}
        # Of a prompt the second of the layers beside the ends reads no more than the last token with its ffn.
        prompt: dict[str, tuple[tuple[float, str], ...]] = {"ends": ((share, "ffns"), (-share, "base"))}
        for key, (slot, told) in subblocks.items():
            entry, cache = without_cache(told)
            if slot == ENDS_SLOT:
                models[key] = config.with_blocks([layer] * 2, entry[FORMAT])
                terms[key] = ((1.0, key), (-2 * share, "layers"), (2 * share, "base"))
                prompt[key] = ((share, "ffns"), (-share, "base"))
                continue
            own = {**nothing, slot: entry}
            # What is not an ffn of llama.cpp's shares its layer with one.
            is_ffn = part_of(shape, 0, slot, entry, "f32").role == "ffn"
            copy = [own] if is_ffn else [own, ffn]
            models[key] = small.with_blocks([layer, *copy * COPIES, layer], kv_format=cache)
            beside = "base" if is_ffn else "ffns"
            if cache is not None:
                # The small layers have a cache too.
                beside = f"{beside} {cache}"
                references[beside] = small.with_blocks([layer, *[ffn] * COPIES, layer], kv_format=cache)
            terms[key] = ((share, key), (-share, beside))
        terms["ends"] = ((1.0, "whole"), (-2 * share, "layers"), (2 * share, "base"))
        return Skeletons(references, models, terms, prompt)

    def half(self, entry: Entry, slot: Slot, shape: Shape) -> Half:
        """Its role in the file."""
        return part_of(shape, 0, slot, entry, "f32").role

    def stand_ins(self, shape: Shape, form: str) -> Mapping[StandIn, StoodIn]:
        """A subblock of the same tensors takes as long.

        Where every layer has attention, a skeleton's ffn is timed with the head that stands in beside it. Elsewhere one
        head stands in only for a child without any: it is promised the time of an attention of one KV head, which is
        more.
        """
        one = {"kind": FullAttention.name, "kv_heads": 1}
        size = {name: part.num_bytes for name, part in stand_ins(shape, form).items()}
        found = {
            StandIn.ATTENTION: StoodIn(size[StandIn.ATTENTION], one),
            StandIn.FFN: StoodIn(size[StandIn.FFN], timed=("ffn", {"kind": GatedFfn.name, "width": 1})),
        }
        if mixed_architecture(shape).empty_attention:
            found[StandIn.ATTENTION] = StoodIn(size[StandIn.ATTENTION], one, ("attention", one))
            found[StandIn.MAP] = StoodIn(size[StandIn.MAP], timed=("attention", {"kind": Linear.name}))
        return found

    def at_end(self, times: Mapping[str, int]) -> dict[str, int]:
        """A prompt takes as much as a step: only the last token of a sequence passes it."""
        own = dict(times)
        return own | {"prefill_ns": min(own["prefill_ns"], own["decode_ns"])}

    def rounds(
        self,
        models: Mapping[str, InlayConfig],
        workload: Workload,
        target: Target,
        on_round: Callable[[float], None],
        together: bool = True,
        scratch: Path | None = None,
    ) -> Timed:
        """Files of random weights, in one process."""
        with scratch_folder("gguf", scratch) as folder, process(target.python) as engine:
            files: dict[str, str] = {}
            for number, (name, config) in enumerate(models.items()):
                path = Path(folder) / f"{number}.gguf"
                write_shape(path, config, target.format)
                files[name] = str(path)
            vocabulary = min(config.vocab_size for config in models.values())
            settings = {name: cache_of(target, config) for name, config in models.items()}
            bench = ProcessBench(engine, files, workload, target.device, vocabulary, settings)
            rounds = take_rounds(list(models), bench, workload, on_round, together=together)
            return Timed(rounds, {name: held_of(files[name], told) for name, told in bench.told.items()})

    def untold(self, device: str) -> str | None:
        """None: its log does."""
        return None

    def buffers(
        self, models: Mapping[str, InlayConfig], workload: Workload, target: Target, scratch: Path | None = None
    ) -> int:
        """Of files without numbers, which it opens one by one: what it computes in depends on shapes alone."""
        most = 0
        with scratch_folder("gguf", scratch) as folder, process(target.python) as engine:
            path = str(Path(folder) / "hollow.gguf")
            for config in models.values():
                settings = {"m": cache_of(target, config)}
                bench = ProcessBench(engine, {"m": path}, workload, target.device, 1, settings)
                write_shape(Path(path), config, target.format, hollow=True)
                most = max(most, held_of(path, bench.opened("m")).compute_bytes)
        return most

    def file_bytes(self, config: InlayConfig, form: str, folder: Path | None) -> int:
        """The whole GGUF file's."""
        from inlay.nas.engines.gguf.fields import NO_TOKENIZER
        from inlay.nas.engines.gguf.metadata import described
        from inlay.nas.engines.gguf.tokenizer import tokenizer_metadata
        from inlay.nas.engines.gguf.writer import file_bytes

        packed = packed_of(config, form)
        rotation, fields = described(packed, config, "model")
        own = [NO_TOKENIZER] if folder is None else tokenizer_metadata(folder, config.vocab_size)
        return file_bytes(packed, rotation, [*fields, *own])

    @contextmanager
    def talk(self, models: Mapping[str, Trained], target: Target, threads: int, kept: Path) -> Iterator[Talk]:
        """Files in `kept`, in one process."""
        with process(target.python) as engine:
            engine.ask("hello")  # where it is not installed, no file is written
            files = {name: str(_kept_file(kept, model, target.format)) for name, model in models.items()}
            settings = {name: cache_of(target, model.config) for name, model in models.items()}
            yield ProcessTalk(engine, files, threads, clock_of(target.device, threads), settings)


def cache_of(target: Target, config: InlayConfig | None = None) -> dict[str, int]:
    """What `open` is told of keys and values: the number of their type; nothing where they are as it ships."""
    own = None if config is None else config.kv_format
    form = own or target.kv_format or F16
    return {} if form == F16 else {"kv_type": GGUF[form].number}


def process(python: str | None) -> EngineProcess:
    """llama.cpp, waiting for requests."""
    return EngineProcess(NAME, worker_script("llama_worker.py"), python, EXTRA)


def _kept_file(folder: Path, model: Trained, form: str) -> Path:
    packed = packed_of(model.config, form)

    def nearest(name: str, form: Format) -> Bytes:
        from inlay.nas.formats.tensors import packed as packed_rows

        return packed_rows(model.tensors[name], form)

    def write(path: Path) -> None:
        write_trained(path, packed, model.config, model.folder, model.rows or nearest)

    return written_once(folder / f"{model.key}-{form}-{__version__}.gguf", write)
