"""recover: global distillation of the child and of both baselines, the same text, seed and settings for each."""

from __future__ import annotations

from collections.abc import Mapping

from inlay.cluster.pieces import Record
from inlay.nas.errors import InlayError
from inlay.nas.loop.search import Search
from inlay.nas.loop.training import train_models
from inlay.nas.pieces.texts import Ids
from inlay.nas.pieces.weights import Library
from inlay.nas.tables.architecture import Blocks


def recover(search: Search, ids: Ids, library: Library, architectures: Mapping[str, Blocks]) -> dict[str, Record]:
    """Trains each architecture once, equal ones together; records by the names given.

    Raises:
        InlayError: the training of one diverged twice.
    """
    found = train_models(
        search, ids, library, architectures, search.job.recover.tokens, "training " + ", ".join(architectures)
    )
    for name, record in found.items():
        if record.values["status"] == "failed":
            raise InlayError(
                f"recover: the training of {name} diverged ({record.values['reason']}); lower recover.learning_rate "
                f"(now {search.job.recover.learning_rate:g}) and run again: all else is kept"
            )
    return found
