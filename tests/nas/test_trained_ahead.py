"""How many baselines are trained beside the probes: as many as keep workers from idling behind them."""

from __future__ import annotations

import pytest

from inlay.nas.loop.training import most_ahead


@pytest.mark.parametrize(
    ("places", "probes", "share", "later", "ahead"),
    [
        (1, 2, 0.5, 2, 0),  # one worker never idles
        (2, 2, 0.5, 2, 1),  # one beside the two probes, the other beside the child
        (2, 1, 0.25, 2, 1),
        (2, 4, 0.25, 2, 1),
        (2, 2, 0.5, 1, 0),  # what is left is done beside the child
        (3, 3, 0.25, 2, 0),
        (8, 8, 0.25, 2, 0),
        (2, 1, 0.5, 0, 0),
    ],
)
def test_as_many_as_end_soonest(places: int, probes: int, share: float, later: int, ahead: int) -> None:
    assert most_ahead(places, probes, share, later) == ahead
