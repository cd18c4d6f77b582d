"""Times of subblocks in this process: what the machine keeps is taken, the rest is measured and kept."""

from __future__ import annotations

import json
import math
import shutil
import socket
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inlay.cluster.capacity import usable_cpus
from inlay.cluster.store import digest_of
from inlay.nas import engines, modeling
from inlay.nas.engines.engine import Engine, Rounds, Skeletons, Target
from inlay.nas.engines.timing import Workload
from inlay.nas.families.shape import Entry
from inlay.nas.modeling.no_op_inlay import ABSENT
from inlay.nas.modeling.subblock_inlay import ENDS_SLOT, FORMAT, KV_FORMAT, TimedSlot, without_cache
from inlay.nas.pieces.kept_times import KeptTimes, Pace, Taken, Times
from inlay.version import __version__

if TYPE_CHECKING:
    from inlay.nas.modeling import InlayConfig

VERSION: Final = 6
"""Raised when the same subblocks would get other times."""
ENDS_NAME: Final = ENDS_SLOT


class SubblockBench:
    """An engine on this machine under one workload, with the times that are kept of it.

    A subblock's time is what it adds to reference models, read in turns with them. What is measured later under equal
    conditions stands beside what was measured before, both at the pace that the machine had with the ends: the first
    reference model tells it.

    Args:
        engine: what runs the subblocks.
        target: where.
        config: the parent, whose widths they share.
        workload: what a run is.
        scratch: a folder for files that may be lost; None: the system's.

    Raises:
        UserError: the engine is not installed there.
    """

    def __init__(
        self, engine: Engine, target: Target, config: InlayConfig, workload: Workload, scratch: Path | None = None
    ) -> None:
        self._scratch = scratch
        self._engine, self._target, self._config, self._workload = engine, target, config, workload
        self.environment = engine.describe(target)
        self._kept = KeptTimes(self._conditions())

    def known(self, entries: Sequence[str]) -> dict[str, Taken]:
        """The times that are kept of these entries and of the ends, by name."""
        found = {name: self._kept.find(name) for name in (*entries, ENDS_NAME)}
        return {name: taken for name, taken in found.items() if taken is not None}

    def times(
        self,
        entries: Sequence[str],
        progress: Callable[[float], None],
        memory_retries: int = 0,
        *,
        again: bool = False,
    ) -> dict[str, Times]:
        """Times of every entry and of the ends, by name.

        Args:
            entries: subblocks, as `entry_key` names them.
            progress: is told which share of the rounds is done.
            memory_retries: how many attempts ended for want of memory: each halves what is held at once.
            again: whether what is kept is measured again, and replaced.

        Raises:
            UserError: the engine does not run one of them, died or hangs.
        """
        known = {} if again else self.known(entries)
        missing = [key for key in entries if key not in known]
        # One turn of all; after an attempt that ran out of memory half as many are held at once, beside the references.
        held = max(1, -(-len(missing) // 2**memory_retries))
        chunks = [missing[start : start + held] for start in range(0, len(missing), held)]
        if not chunks and ENDS_NAME not in known:
            chunks = [[]]
        skeletons = self._engine.skeletons(self._config, {key: _subblock(key) for key in missing})
        for number, chunk in enumerate(chunks):

            def on_round(done: float, number: int = number) -> None:
                progress((number + done) / len(chunks))

            models = {**skeletons.references, **{key: skeletons.models[key] for key in chunk}}
            timed = self._engine.rounds(models, self._workload, self._target, on_round, scratch=self._scratch)
            rounds = timed.rounds
            names = [name for name in (*chunk, ENDS_NAME) if name not in known]
            pace = _pace(rounds[next(iter(skeletons.references))])
            new = {name: Taken(_own_times(skeletons, name, rounds, self._workload), pace) for name in names}
            self._kept.keep(new)
            known |= new
        progress(1.0)
        return {name: known[name].at(known[ENDS_NAME].pace) for name in (*entries, ENDS_NAME)}

    def compute_bytes(self, entries: Sequence[str]) -> int | None:
        """Bytes that the engine computes in at most, for the parent and for it with one of the entries in all layers;
        None where it does not tell. What others take is within some percent of that: they are the same layers."""
        models = {"parent": self._config}
        for key in entries:
            slot, entry = _subblock(key)
            if slot == ENDS_SLOT:
                models[key] = self._config.with_blocks(self._config.blocks, entry[FORMAT])
                continue
            own, cache = without_cache(entry)
            blocks = [{**block, slot: own} for block in self._config.blocks]
            models[key] = self._config.with_blocks(blocks, kv_format=cache)
        return self._engine.buffers(models, self._workload, self._target, self._scratch)

    def _conditions(self) -> dict[str, Any]:
        """All that times depend on beside the subblock, so that equal ones may stand in one table.

        The parent counts by what its subblocks share, not by its layers. The host is there because a home may be shared
        by machines of one kind, and the interpreter because builds of one version differ. Our own code is what runs: in
        a checkout it changes under one version.
        """
        shared = self._config.with_blocks([{"attention": ABSENT, "ffn": ABSENT}]).to_dict()
        told = ("family", "base", "vocab_size", "tie_word_embeddings", "rope_parameters")
        python = self._target.python
        return {
            "device": self.environment["device"],
            "engine": self._engine.name,
            "format": self._target.format,
            "kv_format": self._target.kv_format,
            "dtype": self._target.dtype,
            "target": self._target.device,
            "python": shutil.which(python) or python if python else sys.prefix,
            "environment": dict(self.environment),
            "inlay": {"version": __version__, "times": VERSION, "code": _code_digest()},
            "host": socket.gethostname(),
            "cpus": usable_cpus(),
            "workload": asdict(self._workload),
            "clock": self._workload.clock(self._target.device),
            "shape": {name: shared[name] for name in told},
        }


def _code_digest() -> str:
    """Of the files that models and engines are made of."""
    rooms = (Path(engines.__file__).parent, Path(modeling.__file__).parent)
    files = [path for room in rooms for path in sorted(room.rglob("*.py"))]
    return digest_of([[path.name, path.read_text(encoding="utf-8")] for path in files])


def entry_key(slot: str, entry: Entry) -> str:
    """A subblock's shape as text: equal shapes are measured once, whatever the layer."""
    return f"{slot} {json.dumps(entry, sort_keys=True)}"


def cached_key(slot: str, entry: Entry, cache: str) -> str:
    """A subblock whose keys and values are stored in another format than the engine is told."""
    return entry_key(slot, {**entry, KV_FORMAT: cache})


def ends_key(form: str) -> str:
    """Embedding, final norm and head in another format than the whole file's."""
    return entry_key(ENDS_SLOT, {FORMAT: form})


def _subblock(key: str) -> tuple[TimedSlot, Entry]:
    slot, text = key.split(" ", 1)
    own: TimedSlot = ENDS_SLOT if slot == ENDS_SLOT else "attention" if slot == "attention" else "ffn"
    return own, json.loads(text)


def _pace(rounds: Sequence[tuple[int, int]]) -> Pace:
    prefill, decode = (round(statistics.median(times[part] for times in rounds)) for part in (0, 1))
    return max(1, prefill), max(1, decode)


def _own_times(skeletons: Skeletons, key: str, rounds: Rounds, workload: Workload) -> Times:
    """A subblock's part in the times of its models, which took turns."""
    terms = (skeletons.terms[key], skeletons.terms[key])
    if key in skeletons.prompt_terms:
        terms = ([*terms[0], *skeletons.prompt_terms[key]], terms[1])
    own = [
        tuple(sum(weight * rounds[name][number][part] for weight, name in terms[part]) for part in (0, 1))
        for number in range(len(rounds[terms[0][0][1]]))
    ]
    prefill, decode = (max(0, round(statistics.median(times[part] for times in own))) for part in (0, 1))
    first, _, third = statistics.quantiles([p + workload.generate * d for p, d in own], n=4)
    runtime, spread = prefill + workload.generate * decode, math.ceil((third - first) / 2)
    return {"prefill_ns": prefill, "decode_ns": decode, "runtime_ns": runtime, "spread_ns": spread}
