"""A GGUF file for llama.cpp, and for all that is built on it; kept only when llama.cpp gives the child's own logits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inlay.nas.engines.gguf.packing import Packed
from inlay.nas.engines.gguf.trained import write_trained
from inlay.nas.engines.llama_cpp import LlamaCppEngine, process
from inlay.nas.engines.llama_files import packed_of
from inlay.nas.engines.registry import kv_format_of
from inlay.nas.errors import UserError
from inlay.nas.export.card import card
from inlay.nas.export.folder import write_recipe, written_whole
from inlay.nas.families import Parent
from inlay.nas.formats.gguf import F16, F32, GGUF
from inlay.nas.job import Job
from inlay.nas.modeling import InlayConfig, InlayForCausalLM
from inlay.nas.modeling.subblock_inlay import FORMAT, SLOTS
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.model_files import ModelFiles
from inlay.nas.pieces.stored_rows import Rows, stored_rows
from inlay.nas.tables.architecture import Blocks, cache_form
from inlay.nas.tables.configs import config_of
from inlay.nas.variants.entries import entries_of
from inlay.nas.workspace import INPUTS_FILE, Workspace

COMPARED_TOKENS: Final = 64
"""Tokens of text on which the file is compared with the child."""
MOST_KL: Final[Mapping[str, float]] = {F32: 1e-4, F16: 5e-3}
"""KL to the child with the file's rounded weights, nats a token, above which a file is not the child."""
MOST_KL_ELSE: Final = 5e-2
"""The same for other formats: llama.cpp rounds activations too where it multiplies by such matrices."""


@dataclass(frozen=True)
class Difference:
    """How far llama.cpp's logits are from the child's.

    Args:
        kl_nats: KL(child with the file's weights ‖ file), mean over tokens.
        rounding_nats: KL(child ‖ child with the file's weights), mean over tokens.
        largest: the largest difference of two logits.
        tokens: how many were compared.
    """

    kl_nats: float
    rounding_nats: float
    largest: float
    tokens: int


def check_gguf(parent: Parent, architecture: Blocks, form: str) -> None:
    """Raises UserError naming everything in a child that llama.cpp cannot run in a format."""
    engine, shape = LlamaCppEngine(), parent.shape
    whole = engine.model_problem(shape, form, "cpu")
    problems = [whole] if whole else []
    for layer, entries in enumerate(entries_of(shape, architecture) if not whole else ()):
        for slot in SLOTS:
            if problem := engine.problem(entries[slot], slot, shape, form):
                problems.append(f"layer {layer}: {problem}")
    if problems:
        raise UserError("--format gguf: " + "\n  ".join(problems))


def write_gguf_folder(
    place: Workspace,
    parent: Parent,
    model: TrainedModel,
    output: Path,
    evaluation: Mapping[str, Any],
    job: Job,
    form: str,
) -> Path:
    """Writes a folder with `<parent>-<format>.gguf`, its card and recipe, whole or not at all.

    The weights are read and written tensor by tensor, each rounded once. Subblocks that have a format of their own are
    stored in it, all else in `form`; the file's name then says `mixed`.

    Raises:
        UserError: llama.cpp cannot run the child, the tokenizer cannot be rebuilt, the extra `gguf` is not installed,
            or llama.cpp does not give the child's logits; nothing is written then.
    """
    check_gguf(parent, model.architecture, form)
    with written_whole(output) as folder:
        config = config_of(parent.config, parent.shape, model.architecture)
        packed = packed_of(config, form)
        mixed = config.ends_format or any(FORMAT in entry for block in config.blocks for entry in block.values())
        told = "mixed" if mixed else form
        name = f"{Path(job.parent.rpartition(':')[2]).stem}-{told}.gguf"
        inputs = str(place.find_json(INPUTS_FILE) or "")
        rows = stored_rows(place.store, parent.shape, model, inputs)
        _write(folder / name, packed, config, parent, rows)
        difference = _compared(folder / name, packed, place, parent, model, job, rows)
        use = _use(name + _cache_options(model.architecture, job), difference)
        (folder / "README.md").write_text(card(evaluation, job, "llama.cpp", use))
        write_recipe(folder, model, job)
    return output


def _write(path: Path, packed: Packed, config: InlayConfig, parent: Parent, rows: Rows) -> None:
    try:
        write_trained(path, packed, config, parent.folder, rows)
    except ValueError as error:
        raise UserError(f"--format gguf: llama.cpp cannot run the parent: {error}") from None


def _compared(
    path: Path,
    packed: Packed,
    place: Workspace,
    parent: Parent,
    model: TrainedModel,
    job: Job,
    rows: Rows,
) -> Difference:
    """Raises UserError when the file is not the child."""
    ids = _some_text(place, parent)
    child = _child(place, parent, model)
    own = _logits_of(child, ids)
    _round(child, packed, rows)
    with _logits(path, ids, job.hardware.python) as theirs:
        difference = _difference(own, _logits_of(child, ids), theirs)
    most = max(MOST_KL.get(tensor.format, MOST_KL_ELSE) for tensor in packed.tensors)
    if difference.kl_nats > most:
        raise UserError(
            f"--format gguf: llama.cpp's logits are not the child's (KL {difference.kl_nats:.2g} nats a token, and "
            f"computing in its formats may cost {most:.2g}); the file is not kept, export the Transformers folder and "
            "report this"
        )
    return difference


def _some_text(place: Workspace, parent: Parent) -> list[int]:
    """The report text's first tokens: of this tokenizer, and long enough to tell models apart."""
    import numpy as np

    digest = place.read_json("texts.json")["report"]["digest"]
    ids = np.load(place.store.blob_path(digest), mmap_mode="r", allow_pickle=False)
    return [int(token) for token in ids[0, :COMPARED_TOKENS]]


@contextmanager
def _logits(path: Path, ids: list[int], python: str | None) -> Iterator[Any]:
    """llama.cpp's logits [T, V]: keys and values in f32 and no flash attention."""
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="inlay-") as folder, process(python) as engine:
        found = Path(folder) / "logits.npy"
        engine.ask("open", models={"file": str(path)}, tokens=len(ids), sequences=1, threads=1, exact=True)
        engine.ask("logits", model="file", ids=ids, output=str(found))
        yield np.load(found)


def _child(place: Workspace, parent: Parent, model: TrainedModel) -> Any:
    """The child in float32."""
    child: Any = InlayForCausalLM(config_of(parent.config, parent.shape, model.architecture))
    child.load_state_dict(ModelFiles(place.store, model.blob), strict=False)
    child.float().eval().tie_weights()
    return child


def _round(child: Any, packed: Packed, rows: Rows) -> None:
    """Gives it the weights that the file has."""
    import torch

    weights = dict(child.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for tensor in packed.tensors:
            for source in tensor.sources:
                own, form = weights[source], GGUF[tensor.format]
                own.copy_(torch.from_numpy(form.unpack(rows(source, form), own.shape[-1]).copy()))


def _logits_of(child: Any, ids: list[int]) -> Any:
    """[T, V]."""
    import torch

    with torch.inference_mode():
        return child(torch.tensor([ids])).logits[0].numpy()


def _difference(own: Any, rounded: Any, theirs: Any) -> Difference:
    largest = float(abs(rounded - theirs).max())
    return Difference(_kl_nats(rounded, theirs), _kl_nats(own, rounded), largest, len(own))


def _kl_nats(own: Any, other: Any) -> float:
    import torch

    p, q = (torch.log_softmax(torch.tensor(logits).double(), -1) for logits in (own, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def _cache_options(architecture: Blocks, job: Job) -> str:
    """What llama.cpp's programs are told of keys and values, where the child is for another cache than they take."""
    form = cache_form(architecture) or kv_format_of(job.hardware)
    return "" if form in (None, F16) else f" -fa on -ctk {form} -ctv {form}"


def _use(named: str, difference: Difference) -> list[str]:
    return [
        "## Run it",
        "",
        "```console",
        f"$ llama-server -m {named}",
        f"$ llama-completion -no-cnv -m {named} -p 'Once upon a time'",
        "```",
        "",
        f"llama.cpp's logits of this file are {difference.kl_nats:.1e} nats a token from the child's with these "
        f"weights, and rounding them costs {difference.rounding_nats:.1e}, on {difference.tokens} tokens of held-out "
        "text.",
    ]
