"""chat: the child and its parent answer the same prompts, in the engine that the search was judged in."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.cluster.store import digest_of
from inlay.nas.engines.registry import ENGINES
from inlay.nas.engines.talk import Continuation, Talk, Trained
from inlay.nas.errors import UserError
from inlay.nas.families import Parent, ends_tensors, layer_prefix, subblock_tensors
from inlay.nas.families.writing import added_text, prompt_ids, stops_of
from inlay.nas.loop.search import target_of
from inlay.nas.modeling.subblock_inlay import SLOTS
from inlay.nas.pieces.model_files import ModelFiles
from inlay.nas.pieces.stored_rows import stored_rows
from inlay.nas.stages.run import original_of
from inlay.nas.stages.solutions import inputs_of_workspace, job_of, model_named
from inlay.nas.tables.configs import config_of
from inlay.nas.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

CHILD, PARENT = "child", "parent"


@dataclass(frozen=True)
class Answer:
    """What one model made of a prompt.

    Args:
        text: what it added.
        tokens: how many tokens that is, the one that ends it left out.
        ended: whether it came to its end, and not to the limit.
        prefill_ns: reading the prompt, up to the first token.
        decode_ns: one step for each of `tokens`.
        decode_tokens_per_second: None where it added nothing.
    """

    text: str
    tokens: int
    ended: bool
    prefill_ns: int
    decode_ns: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float | None


@dataclass(frozen=True)
class Exchange:
    """A prompt and both answers.

    Args:
        prompt_tokens: tokens that the models read, those of a chat template included.
    """

    prompt: str
    prompt_tokens: int
    child: Answer
    parent: Answer

    @property
    def prefill_ratio(self) -> float:
        """How many times as fast as its parent the child reads."""
        return self.child.prefill_tokens_per_second / self.parent.prefill_tokens_per_second

    @property
    def decode_ratio(self) -> float | None:
        """How many times as fast as its parent the child writes, where both wrote something."""
        child, parent = self.child.decode_tokens_per_second, self.parent.decode_tokens_per_second
        return None if child is None or parent is None else child / parent

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "ratio": {"prefill": self.prefill_ratio, "decode": self.decode_ratio}}


@dataclass(frozen=True)
class Chat:
    """A child and its parent, held by an engine.

    Args:
        engine: its name.
        format: what matrices are stored in.
        solution: which child it is.
        threads: CPU threads.
        tokens: new tokens at most.
        templated: whether prompts go through the tokenizer's chat template; else they are completed.
        talk: both models.
        tokenizer: the parent's.
        stops: tokens that end a text.
        positions: tokens of a prompt and its answer at most.
    """

    engine: str
    format: str
    solution: str
    threads: int
    tokens: int
    templated: bool
    talk: Talk
    tokenizer: Any
    stops: frozenset[int]
    positions: int

    def about(self) -> dict[str, Any]:
        """What does not change between prompts, as JSON."""
        return {"engine": self.engine, "format": self.format, "solution": self.solution, "threads": self.threads}

    def problem(self, prompt: str) -> str | None:
        """Why a prompt cannot be answered, or None."""
        count = len(self._ids(prompt))
        if count == 0:
            return "the prompt has no tokens; give some text"
        if count >= self.positions:
            return f"the prompt has {count} tokens and the model {self.positions} positions; give a shorter one"
        return None

    def exchange(self, prompt: str) -> Exchange:
        """Both answers, of as many new tokens as the model has positions for.

        Raises:
            UserError: the prompt has a `problem`, or the engine died or hangs.
        """
        if problem := self.problem(prompt):
            raise UserError(problem)
        ids = self._ids(prompt)
        most = min(self.tokens, self.positions - len(ids))
        found = self.talk.continuations(ids, most, self.stops)
        child, parent = (self._answer(ids, found[name]) for name in (CHILD, PARENT))
        return Exchange(prompt, len(ids), child, parent)

    def _ids(self, prompt: str) -> list[int]:
        return prompt_ids(self.tokenizer, prompt, templated=self.templated)

    def _answer(self, ids: Sequence[int], found: Continuation) -> Answer:
        tokens = len(found.ids)
        return Answer(
            text=added_text(self.tokenizer, ids, found.ids),
            tokens=tokens,
            ended=found.stopped,
            prefill_ns=found.prefill_ns,
            decode_ns=found.decode_ns,
            prefill_tokens_per_second=len(ids) / found.prefill_ns * 1e9,
            decode_tokens_per_second=tokens / found.decode_ns * 1e9 if tokens else None,
        )


@contextmanager
def open_chat(place: Workspace, solution: str | None, tokens: int, raw: bool) -> Iterator[Chat]:
    """A child of a finished search and its parent, until the context ends.

    What the engine makes of them lies in the workspace's `scratch/chat` and is used again; for a workspace at a URL it
    is temporary.

    Args:
        place: the search.
        solution: as `export_child` takes it.
        tokens: new tokens at most.
        raw: complete prompts even where the tokenizer has a chat template.

    Raises:
        UserError: there is no finished search, no such solution, or no engine.
    """
    job, parent = job_of(place)
    name = solution or str(place.read_json("run.json")["evaluation"]["chosen"])
    engine, target, threads = ENGINES[job.hardware.engine], target_of(job, parent), job.hardware.scenarios[0].threads
    tokenizer = parent.tokenizer()
    with ExitStack() as stack:
        models = {CHILD: _child(place, parent, name), PARENT: _parent(original_of(job, place) or parent)}
        if place.folder is not None:
            kept = place.folder / "scratch" / "chat"
        else:
            kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inlay-chat-")))
        talk = stack.enter_context(engine.talk(models, target, threads, kept))
        yield Chat(
            engine=engine.name,
            format=target.format,
            solution=name,
            threads=threads,
            tokens=tokens,
            templated=bool(tokenizer.chat_template) and not raw,
            talk=talk,
            tokenizer=tokenizer,
            stops=stops_of(parent),
            positions=parent.config.max_position_embeddings,
        )


class _Tensors(Mapping[str, "Tensor"]):
    """Tensors by name, each read when it is asked for."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _child(place: Workspace, parent: Parent, name: str) -> Trained:
    model = model_named(place, parent, name)
    config = config_of(parent.config, parent.shape, model.architecture)
    digest = inputs_of_workspace(place)
    return Trained(
        _key(parent, [model.blob, model.packed, config.blocks, config.ends_format, digest]),
        config,
        parent.folder,
        ModelFiles(place.store, model.blob),
        stored_rows(place.store, parent.shape, model, digest),
    )


def _parent(parent: Parent) -> Trained:
    shape = parent.shape
    names = list(ends_tensors(shape))
    for layer in range(shape.num_layers):
        for slot in SLOTS:
            own = subblock_tensors(shape, slot, shape.parent_entry(layer, slot))
            names += [layer_prefix(layer) + tensor for tensor in own]
    return Trained(_key(parent, PARENT), parent.config, parent.folder, _Tensors(names, parent.tensor))


def _key(parent: Parent, content: Any) -> str:
    return digest_of({"parent": parent.fingerprint, "content": content})[:24]
