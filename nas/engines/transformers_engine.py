"""`transformers`: the Transformers folder in eager PyTorch, in the worker's own process.

Matrices in 2:4 stay packed in memory, as in the folder, and are unpacked each time that they multiply: PyTorch has
kernels that multiply by such ones on some GPUs alone.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.nas.engines.engine import Engine, Held, Skeletons, Target, Timed
from inlay.nas.engines.talk import Talk, Trained
from inlay.nas.engines.timing import Workload, clock_of
from inlay.nas.errors import UserError
from inlay.nas.families.shape import Entry, Shape, subblock_tensors
from inlay.nas.formats.sparse import SPARSE
from inlay.nas.modeling.no_op_inlay import ABSENT
from inlay.nas.modeling.subblock_inlay import FORMAT, Slot, TimedSlot
from inlay.nas.variants.storage import AsParent, Storage

if TYPE_CHECKING:
    from inlay.nas.modeling import InlayConfig, InlayForCausalLM

COPIES = 4
"""Copies of a subblock in the model that is timed: enough to rise above the noise of the ends."""
OWN = "parent"
"""The one format: numbers are stored as the parent's are."""


class TransformersStorage(AsParent):
    """The parent's type, and packed rows where an entry names a format."""

    def weights(self, entry: Entry, slot: Slot, shape: Shape) -> int:
        """Its tensors; norms and biases are in the parent's type."""
        whole = super().weights(entry, slot, shape)
        if FORMAT not in entry:
            return whole
        sizes = [size for size in subblock_tensors(shape, slot, entry).values() if len(size) == 2]
        return whole + sum(SPARSE[entry[FORMAT]].num_bytes(size) - prod(size) * shape.dtype_bytes for size in sizes)


class TransformersEngine(Engine):
    """Runs all that a child may be."""

    name = "transformers"
    formats = (OWN,)
    subblock_formats = tuple(SPARSE)
    devices = ("cpu", "cuda")
    has_python = False

    def usual_format(self, shape: Shape) -> str:
        """The parent's."""
        return OWN

    def problem(self, entry: Entry, slot: Slot, shape: Shape, form: str) -> str | None:
        """None, it is our own code, but for rows that a format does not hold."""
        if FORMAT not in entry:
            return None
        own = SPARSE.get(entry[FORMAT])
        if own is None:
            return f"transformers has no {entry[FORMAT]}; its formats of subblocks are {', '.join(SPARSE)}"
        for name, size in subblock_tensors(shape, slot, entry).items():
            if len(size) == 2 and not own.fits(size[1]):
                return (
                    f"{own.name} stores {own.block} numbers together, and {name} has rows of {size[1]}; take a "
                    f"multiple of {own.block}, or no format there"
                )
        return None

    def model_problem(self, shape: Shape, form: str, device: str) -> str | None:
        """None."""
        return None

    def storage(self, form: str, device: str, kv_format: str | None = None) -> Storage:
        """The parent's type, but for matrices in 2:4."""
        return TransformersStorage()

    def describe(self, target: Target) -> dict[str, str]:
        """The device, torch and transformers."""
        import torch
        import transformers

        device = torch.device(target.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
        return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}

    def skeletons(self, config: InlayConfig, subblocks: Mapping[str, tuple[TimedSlot, Entry]]) -> Skeletons:
        """A few copies of a subblock beside layers without any: a subblock is what it adds to them."""
        nothing = {"attention": ABSENT, "ffn": ABSENT}
        models = {
            key: config.with_blocks([{**nothing, slot: entry}] * COPIES) for key, (slot, entry) in subblocks.items()
        }
        own = {key: ((1 / COPIES, key), (-1 / COPIES, "ends")) for key in models}
        return Skeletons({"ends": config.with_blocks([nothing] * COPIES)}, models, {**own, "ends": ((1.0, "ends"),)})

    def rounds(
        self,
        models: Mapping[str, InlayConfig],
        workload: Workload,
        target: Target,
        on_round: Callable[[float], None],
        together: bool = True,
        scratch: Path | None = None,
    ) -> Timed:
        """In this process, the ends held once; what each holds is read afterwards, one by one."""
        import torch

        from inlay.nas.engines.eager import rounds_of

        rebuilt = _Rebuilt(models, target)
        held = rebuilt.all_at_once() if together else rebuilt
        rounds = rounds_of(held, workload, torch.device(target.device), on_round=on_round, together=together)
        del held
        return Timed(rounds, {} if self.untold(target.device) else self._held(models, workload, target))

    def untold(self, device: str) -> str | None:
        """PyTorch counts what it allocates on a GPU, and on a CPU it does not."""
        return None if device.partition(":")[0] == "cuda" else super().untold(device)

    def buffers(
        self, models: Mapping[str, InlayConfig], workload: Workload, target: Target, scratch: Path | None = None
    ) -> int | None:
        """What is allocated at most beside weights and cache; None on a CPU."""
        if self.untold(target.device) is not None:
            return None
        return max(held.compute_bytes for held in self._held(models, workload, target).values())

    def _held(self, models: Mapping[str, InlayConfig], workload: Workload, target: Target) -> dict[str, Held]:
        import torch

        from inlay.nas.engines.eager import held_on_gpu, random_model

        dtype, device = getattr(torch, target.dtype), torch.device(target.device)
        return {
            name: held_on_gpu(lambda config=config: random_model(config, dtype, device), workload, device)  # type: ignore[misc]
            for name, config in models.items()
        }

    @contextmanager
    def talk(self, models: Mapping[str, Trained], target: Target, threads: int, kept: Path) -> Iterator[Talk]:
        """In this process; nothing is kept."""
        import torch

        from inlay.nas.engines.eager import EagerTalk, trained_model

        device = torch.device(target.device)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"hardware.device: {target.device} is not on this machine; chat where the search ran")
        torch.set_num_threads(threads)
        dtype = getattr(torch, target.dtype)
        held = {name: trained_model(model, dtype, device) for name, model in models.items()}
        yield EagerTalk(held, clock_of(target.device, threads), device)


class _Rebuilt(Mapping[str, "InlayForCausalLM"]):
    """Models of these shapes, each made when it is asked for, and warm."""

    def __init__(self, shapes: Mapping[str, InlayConfig], target: Target) -> None:
        import torch

        self._shapes = shapes
        self._dtype, self._device = getattr(torch, target.dtype), torch.device(target.device)

    def __getitem__(self, name: str) -> InlayForCausalLM:
        import torch

        from inlay.nas.engines.eager import random_model

        model: Any = random_model(self._shapes[name], self._dtype, self._device)
        with torch.inference_mode():
            model(torch.zeros(1, 1, dtype=torch.long, device=self._device), use_cache=False)
        built: InlayForCausalLM = model
        return built

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def all_at_once(self) -> dict[str, InlayForCausalLM]:
        """The models, with the ends of the first."""
        from inlay.nas.engines.eager import random_model

        models: dict[str, InlayForCausalLM] = {}
        for name, config in self._shapes.items():
            models[name] = random_model(config, self._dtype, self._device, next(iter(models.values()), None))
        return models


def processor_name() -> str:
    """The CPU's, as the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
