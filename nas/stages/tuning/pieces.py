"""A trial as a piece: one child, one text and one judge for all of them; only the settings and the seed differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from inlay.cluster.pieces import Piece
from inlay.nas.loop.search import Search
from inlay.nas.loop.training import global_settings, held_out_for, tail_for
from inlay.nas.pieces.stage import Stage
from inlay.nas.pieces.texts import Texts
from inlay.nas.pieces.trials import try_settings
from inlay.nas.pieces.weights import used_weights
from inlay.nas.stages.distill import local_settings
from inlay.nas.stages.tuning.child import Child
from inlay.nas.stages.tuning.space import job_with

TUNE = Stage("tune", 2, try_settings)


@dataclass(frozen=True)
class Trainer:
    """Makes the pieces of trials.

    Args:
        search: the running search of the job that is tuned.
        child: whom they train.
        texts: what they train on and are judged on: the job's own, whatever a trial's batches are.
        local: whether a trial trains the child's variants anew; else it takes the search's.
        whole: whether it trains the child as a whole; else it is judged as assembled.
    """

    search: Search
    child: Child
    texts: Texts
    local: bool
    whole: bool

    def piece(self, label: str, settings: Mapping[str, Any], seed: int, *, keep: bool = False) -> Piece:
        """The piece that trains the child with these settings; `keep`: and gives its weights.

        Raises:
            UserError: a setting is none that a job may have.
        """
        search, job = self.search, self.search.job
        tried = job_with(job, settings)
        depends: dict[str, Any] = {
            "architecture": [list(block) for block in self.child.architecture],
            "held_out": held_out_for(job, self.texts, job.recover.tokens),
            "library": {} if self.local else used_weights(self.child.library, [self.child.architecture]),
            "local": None,
            "whole": None,
            "seed": seed,
            "keep": keep,
            **search.rounding([self.child.architecture]),
        }
        if self.local:
            depends["local"] = {
                "ids": self.texts.distill.digest,
                "shape": list(self.texts.distill.shape),
                "settings": asdict(local_settings(tried, self.texts.distill.shape[1])),
                "batch_size": tried.distill.batch_size,
                "layers": self.child.trained,
            }
        if self.whole:
            depends["whole"] = {
                "ids": self.texts.recover.digest,
                "settings": asdict(global_settings(tried, tried.recover.tokens)),
                "batch_size": tried.recover_batch,
                "train": tried.recover.train,
                "tail": tail_for(tried, self.texts, tried.recover.tokens),
                "sequence_length": self.texts.recover.shape[1],
            }
        piece = search.piece(TUNE, label, {**depends, "store": search.workspace.url}, depends)
        piece.arguments["checkpoint"] = str(search.scratch / "tune" / piece.key)
        return piece
