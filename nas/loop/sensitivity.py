"""How much more what a child says depends on how it is asked than what its parent says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inlay.cluster.pieces import piece_seed
from inlay.nas.errors import UserError
from inlay.nas.families import Parent
from inlay.nas.families.writing import prompt_ids, stops_of
from inlay.nas.job import Job
from inlay.nas.loop.prompts import model_piece
from inlay.nas.loop.search import Search
from inlay.nas.loop.variations import variations
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.pieces.by_document import Estimate, mean_of
from inlay.nas.pieces.sensitivity import prompt_sensitivity
from inlay.nas.pieces.stage import Stage

SENSITIVITY = Stage("sensitivity", 1, prompt_sensitivity)
ANSWER_TOKENS = 24
"""Of each answer, where the context is long enough."""


STEP_TOKENS = 10
"""So many tokens that are read take as long as one that is written."""


@dataclass(frozen=True)
class Asked:
    """What both models are asked.

    Args:
        sets: for each prompt the tokens of its variations.
        tokens: of an answer at most.
    """

    sets: list[list[list[int]]]
    tokens: int

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(ids) for own in self.sets for ids in own)

    @property
    def written(self) -> int:
        """Tokens that a model writes at most: an answer to each way of each prompt."""
        return sum(map(len, self.sets)) * self.tokens

    @property
    def read(self) -> int:
        """Tokens that a model reads at most: behind each way of a prompt the answers to all of them."""
        return sum(len(own) * (sum(map(len, own)) + len(own) * self.tokens) for own in self.sets)

    @property
    def effort(self) -> int:
        """Of both models, as so many tokens that are read."""
        return 2 * (self.read + STEP_TOKENS * self.written)

    def cost(self) -> str:
        """What it takes, in words."""
        ways = sum(map(len, self.sets))
        return (
            f"prompt sensitivity: {len(self.sets)} prompts in {ways} ways; each model writes {self.written:,} tokens "
            f"at most and reads {self.read:,}"
        )


def asked(job: Job, parent: Parent, prompts: Sequence[tuple[str, str]]) -> Asked:
    """The variations of prompts, drawn by the job's seed; each prompt stands behind what names it.

    Raises:
        UserError: a prompt is longer than the context.
    """
    tokenizer, positions = parent.tokenizer(), parent.config.max_position_embeddings
    templated = bool(tokenizer.chat_template)
    sets = []
    for name, prompt in prompts:
        random = np.random.default_rng(piece_seed(job.seed, prompt))
        own = [prompt_ids(tokenizer, text, templated=templated) for text in variations(prompt, random)]
        longest = max(map(len, own))
        if longest >= positions:
            raise UserError(f"{name}: {longest} tokens, and the model has {positions} positions; give a shorter prompt")
        sets.append(own)
    found = Asked(sets, ANSWER_TOKENS)
    return replace(found, tokens=min(ANSWER_TOKENS, positions - found.longest))


def sensitivity(search: Search, what: Asked, model: TrainedModel) -> dict[str, Any]:
    """POSIX of parent and child, each with its interval by prompts, and how far the child's is above its parent's."""
    told = {"sets": what.sets, "tokens": what.tokens, "stops": sorted(stops_of(search.parent))}
    pieces = [
        model_piece(search, SENSITIVITY, "the parent's", told, None),
        model_piece(search, SENSITIVITY, "the child's", told, model),
    ]
    records = search.run(pieces, f"sensitivity to {len(what.sets)} prompts", "models")
    parent_D, child_D = (np.array(record.values["psi"], np.float64) for record in records)
    one_D = np.ones_like(parent_D)
    figures = {
        "parent": mean_of(parent_D, one_D).at_least(0.0),
        "child": mean_of(child_D, one_D).at_least(0.0),
        "child_above_parent": mean_of(child_D - parent_D, one_D),
    }
    return {
        "prompts": len(what.sets),
        "variations": sum(map(len, what.sets)),
        "answer_tokens": what.tokens,
        **{name: _row(each) for name, each in figures.items()},
    }


def _row(estimate: Estimate) -> dict[str, float | None]:
    return {"nats": estimate.value, "standard_error": estimate.standard_error, **estimate.ends("nats")}
