"""A parent with its text and uniform children of it: what benchmarks/quality.py tries levers on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.distill.branches import Branch, LayerBatch
from inlay.distill.globally import distill_globally
from inlay.distill.local import BranchResult, train_layer
from inlay.distill.settings import GlobalSettings, LocalSettings
from inlay.distill.text import pack, token_lists, training_order
from inlay.kernels import kl_loss
from inlay.nas.families import open_parent, subblock_tensors
from inlay.nas.modeling import Ends, InlayForCausalLM, build_layer, make_context
from inlay.nas.pieces.calibration import statistics_of
from inlay.nas.variants import Variant, parse_variant
from inlay.nas.variants.entries import entries_of
from inlay.nas.variants.statistics import Sums, gather

LENGTH, CHUNK = 256, 16
JUDGED, STOPPED = 16_384, 2_048
CALIBRATED = 65_536
State = dict[str, Tensor]
Row = dict[str, Any]


class Bench:
    """One parent with its text, its layers and what they read and write on the calibration text.

    Args:
        name: the parent's folder.
        tokens: of recovery.
        wanted: whether a row is still to be made: (child, lever, seed).
    """

    def __init__(self, name: str, tokens: int, wanted: Callable[[str, str, int], bool] = lambda *_: True) -> None:
        self.wanted = wanted
        self._started: dict[tuple[int, str], State] = {}
        self.parent = open_parent(Path(os.environ["INLAY_PARENTS"]) / name)
        self.name, self.tokens, self.shape = name, tokens, self.parent.shape
        (text,) = sorted(Path(os.environ["INLAY_TEXT"]).glob("*.txt"))
        documents = text.read_text().split("<|endoftext|>\n")
        cut = len(documents) * 9 // 10
        tokenizer = self.parent.tokenizer()
        self.train = torch.from_numpy(
            pack(token_lists(documents[:cut], tokenizer), LENGTH, tokens=max(tokens, CALIBRATED))
        ).long()
        held = torch.from_numpy(pack(token_lists(documents[cut:], tokenizer), LENGTH, tokens=JUDGED + STOPPED)).long()
        self.stop, self.judge = held[: STOPPED // LENGTH], held[STOPPED // LENGTH :]
        self.states = [self.parent.layer_state(layer, torch.float32) for layer in range(self.shape.num_layers)]
        self.whole = self.model("attention:parent", "ffn:parent").requires_grad_(False)

    @cached_property
    def layers(self) -> list[Any]:
        """The parent's layers."""
        slots = [[self.shape.parent_entry(i, slot) for slot in ("attention", "ffn")] for i in range(len(self.states))]
        return [build_layer(self.parent.config, i, *slots[i], self.states[i], torch.float32) for i in range(len(slots))]

    @cached_property
    @torch.no_grad()
    def boundaries(self) -> list[Tensor]:
        """What each layer reads on the calibration text, [N, S, D]."""
        ids = self.train[: CALIBRATED // LENGTH]
        found = [Ends(self.parent.config, self.parent.ends_state(), torch.float32).embed(ids)]
        for layer in self.layers:
            found.append(torch.cat([layer(part, self.context(part)) for part in found[-1].split(CHUNK)]))
        return found

    def context(self, hidden_BSD: Tensor, *entries: Any) -> Any:
        """Positions and masks."""
        own = self.shape.parent_entry(0, "attention")
        return make_context(self.parent.config, len(hidden_BSD), LENGTH, torch.float32, "cpu", [own, *entries])

    @torch.no_grad()
    def sums(self, layer: int, variant: Variant) -> Sums:
        """What a start needs, over the calibration text, in as many passes as calibrate makes."""
        wanted = statistics_of([variant], self.shape, layer)
        total = self._pass(layer, [each for each in wanted if not each.needs])
        later = [each.ready(self.states[layer], total) for each in wanted if each.needs]
        return total | self._pass(layer, later) if later else total

    def _pass(self, layer: int, statistics: Sequence[Any]) -> Sums:
        parts = self.boundaries[layer].split(CHUNK)
        found = [gather(self.layers[layer], part, self.context(part), statistics)[0] for part in parts]
        total = found[0]
        for part in found[1:]:
            total = total + part
        return total

    def start(self, layer: int, label: str) -> State:
        """The start as it is in a search."""
        if (layer, label) in self._started:
            return self._started[layer, label]
        variant = parse_variant(label)
        sums = self.sums(layer, variant) if variant.statistics(self.shape, layer) else None
        self._started[layer, label] = variant.start(self.shape, layer, self.states[layer], sums)
        return self._started[layer, label]

    def model(self, attention: str, ffn: str, states: Sequence[State] | None = None) -> Any:
        """The uniform child, with `states` in place of the starts of what they hold."""
        return self.assembled([(attention, ffn)] * self.shape.num_layers, states)

    def assembled(self, architecture: Sequence[tuple[str, str]], states: Sequence[State] | None = None) -> Any:
        """A child of any architecture."""
        tensors = dict(self.parent.ends_state())
        for layer, block in enumerate(architecture):
            given = states[layer] if states is not None else {}
            for variant in map(parse_variant, block):
                names = subblock_tensors(self.shape, variant.slot, variant.entry(self.shape, layer))
                own = given if names.keys() <= given.keys() else self.start(layer, variant.label)
                tensors.update({f"model.layers.{layer}.{name}": own[name] for name in names})
        config = self.parent.config.with_blocks(entries_of(self.shape, architecture))
        state = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
        model: Any = InlayForCausalLM
        return model.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)

    @torch.no_grad()
    def kl(self, child: Any) -> float:
        """KL(parent || child), nats per token, on text that nothing is trained on."""
        found = []
        for ids in self.judge.split(CHUNK):
            (_, ours), (_, theirs) = child.forward_hidden(ids), self.whole.forward_hidden(ids)
            heads = self.whole.head_VD, child.head_VD
            found.append(float(kl_loss(theirs.flatten(0, 1), ours.flatten(0, 1), *heads)) * len(ids))
        return sum(found) / len(self.judge)

    def recover(self, child: Any, seed: int, batch: int = 8, cosine: float | None = None, **more: Any) -> float:
        """The KL after global distillation, with each child's own rate found as a search finds it."""
        steps = self.tokens // (batch * LENGTH)
        order = training_order(len(self.train), steps * batch * LENGTH, LENGTH, seed)
        batches = (self.train[order[step * batch : (step + 1) * batch]] for step in range(steps))
        weight = float(self.shape.num_layers) if cosine is None else cosine
        settings = GlobalSettings(
            steps, **{"learning_rate": 1e-3, "rate": "found", **more}, cosine=weight, micro_batch=min(8, batch)
        )
        distill_globally(self.whole, child.requires_grad_(True), batches, list(self.stop.split(batch)), settings)
        return self.kl(child)

    def trained(self, label: str, states: Sequence[State], settings: dict[str, Any]) -> list[State]:
        """A variant of every layer after local distillation on the calibration text."""
        return [self.trained_at(layer, [label], state, settings)[0].state for layer, state in enumerate(states)]

    def trained_at(
        self, layer: int, labels: Sequence[str], state: State, settings: dict[str, Any], batch: int = 8
    ) -> list[BranchResult]:
        """Variants of one layer after local distillation on the calibration text; `state` holds all their starts."""
        branches, seen = [], []
        steps = CALIBRATED // LENGTH // batch - LocalSettings.held_out
        for variant in map(parse_variant, labels):
            entry = variant.entry(self.shape, layer)
            slots = (entry, None) if variant.slot == "attention" else (None, entry)
            names = subblock_tensors(self.shape, variant.slot, entry)
            own = {name: state[name].clone() for name in names}
            module = build_layer(self.parent.config, layer, *slots, own, torch.float32).requires_grad_(True)
            branches.append(Branch(variant.label, variant.slot, module))
            seen += [entry] if variant.slot == "attention" else []
        parts = self.boundaries[layer].split(batch)
        batches = (LayerBatch(part, self.context(part, *seen)) for part in parts)
        return train_layer(self.layers[layer], branches, batches, LocalSettings(steps, **settings))
