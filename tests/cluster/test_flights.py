"""Which of the pieces that were sent to a node of our own have room on it, and so have a worker."""

from __future__ import annotations

from inlay.cluster.flights import Flight, has_room
from inlay.cluster.pieces import Piece, PieceContext, PieceOutput, Resources

NODE = {"CPU": 4.0, "GPU": 1.0, "memory": 8 * 2.0**30}


def never(arguments: dict[str, object], context: PieceContext) -> PieceOutput:
    raise AssertionError


def flights(*wishes: Resources, begun: int = 0) -> list[Flight]:
    """Sent in this order; the last `begun` of them have begun."""
    sent = [Flight(Piece(str(n), str(n), "work", 1, never, {}, wish), str(n)) for n, wish in enumerate(wishes)]
    for flight in sent[len(sent) - begun :]:
        flight.started = 1.0
    return sent


def room(sent: list[Flight]) -> list[bool]:
    return [has_room(NODE, flight, sent) for flight in sent]


def test_the_first_that_were_sent_have_room() -> None:
    assert room(flights(*[Resources(gpus=1)] * 3)) == [True, False, False]
    assert room(flights(*[Resources(gpus=0.1)] * 5)) == [True] * 4 + [False]
    assert room(flights(*[Resources(cpus=0.25, gpus=0.1)] * 11)) == [True] * 10 + [False]
    assert room(flights(*[Resources(cpus=1, memory_bytes=3 << 30)] * 3)) == [True, True, False]


def test_those_that_have_begun_come_before_those_that_were_sent_earlier() -> None:
    assert room(flights(Resources(gpus=1), Resources(gpus=1), begun=1)) == [False, True]
    assert room(flights(Resources(cpus=3), Resources(cpus=2), begun=1)) == [False, True]


def test_a_narrow_one_fits_beside_a_wide_one_that_waits() -> None:
    assert room(flights(Resources(cpus=3), Resources(cpus=2), Resources(cpus=1))) == [True, False, True]


def test_what_books_nothing_always_has_room() -> None:
    assert room(flights(Resources(cpus=4), Resources(cpus=0), Resources(cpus=0))) == [True, True, True]
