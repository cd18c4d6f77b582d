"""The only fan-out: sends the pieces that are missing to Ray, a bounded number at a time, and gives back every
record."""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from inlay.cluster.capacity import fits, misfit, words
from inlay.cluster.cost import Cost
from inlay.cluster.errors import PieceError
from inlay.cluster.events import PieceEvent, TimeLeft
from inlay.cluster.flights import Flight, has_room
from inlay.cluster.pieces import Piece, Record, Resources
from inlay.cluster.records import Packing, survey
from inlay.cluster.runtime import Cluster
from inlay.cluster.store import Store
from inlay.cluster.tasks import Tasks
from inlay.cluster.worker import Order

_POLL_SECONDS = 0.5
# With many under way the driver waits for so large a share of them, but no longer than this.
_BATCH_SHARE, _BATCH_SECONDS = 0.02, 0.05
# The time left is a sum over all that is under way: every event tells it, and it is made anew so often.
_ESTIMATE_SECONDS = 0.25
_WAITING_SECONDS = 30.0
# A worker may take so long to begin a piece: a new one imports torch first, on a busy machine.
_BEGINNING_SECONDS = 60.0
# How much an attempt counts towards the retries. A piece that wants less memory each time may try more often, and nodes
# that come and go all day say nothing about the piece.
_WEIGHTS = {"worker": 1.0, "memory": 0.5, "node": 0.1}


def run_pieces(
    store: Store,
    pieces: Sequence[Piece],
    cluster: Cluster,
    *,
    on_event: Callable[[PieceEvent], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
    on_cost: Callable[[Cost], None] = lambda cost: None,
    ready: Callable[[Piece], bool] | None = None,
    more: Callable[[], Piece | None] | None = None,
    called_off: Container[str] = (),
    deadline_seconds: float | None = None,
    retries: int = 2,
    exclusive: bool = False,
) -> list[Record]:
    """Return the record of every piece, in the order given; committed ones are only read, the others run on Ray in
    that order.

    Of pieces that ask for the same, as many are sent as have room, and where nodes may come twice as many. `ready` is
    asked before a piece is sent, and again after every record; `on_record` gets every record once, the committed ones
    first, `on_cost` what each attempt has held once it is over, a lost one too. `more` is asked for another piece
    whenever there is room for one and none waits, and again later where it has none while others run; their records are
    given back too. Pieces whose keys stand in `called_off`, which is read while they run, are told that they may end
    early. A piece that reports no progress for `deadline_seconds`, or that
    has its worker for so long and does not begin, is ended and tried again; one that waits for what others hold is not.
    `retries` more attempts follow a lost worker or a missed deadline, twice as many want of memory, ten times as many a
    lost node. An exception of the function ends the call by PieceError once the pieces that have begun are committed;
    those still queued are taken back. `exclusive` gives a piece all CPUs of one node, one piece at a time. Pieces may
    be of several stages. Ray is not started when nothing is missing.
    """
    kept, stale = survey(store, pieces)
    fanout = _FanOut(
        store, list(pieces), cluster, kept, on_event, on_record, on_cost, ready, more, called_off,
        deadline_seconds, retries, exclusive,
    )  # fmt: skip
    fanout.tell_kept()
    if fanout.pending or more is not None:
        store.delete_all(stale)
        cluster.start()
        fanout.run()
    return [fanout.records[piece.key] for piece in fanout.pieces]


@dataclass
class _FanOut:
    store: Store
    pieces: list[Piece]
    cluster: Cluster
    records: dict[str, Record]
    on_event: Callable[[PieceEvent], None] | None
    on_record: Callable[[Record], None] | None
    on_cost: Callable[[Cost], None]
    ready: Callable[[Piece], bool] | None
    more: Callable[[], Piece | None] | None
    called_off: Container[str]
    deadline_seconds: float | None
    retries: int
    exclusive: bool
    pending: OrderedDict[str, Piece] = field(init=False)
    """What is not sent, by key, in the order it is to be; what was lost comes first."""
    flights: dict[Any, Flight] = field(default_factory=dict, init=False)
    losses: dict[str, Counter[str]] = field(default_factory=dict, init=False)
    failure: PieceError | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if len({piece.key for piece in self.pieces}) != len(self.pieces):
            raise ValueError("two pieces of one call have the same key: their labels must differ")
        self.pending = OrderedDict((piece.key, piece) for piece in self.pieces if piece.key not in self.records)
        self.waiting = Counter(piece.stage for piece in self.pending.values())
        self.places = dict.fromkeys((piece.resources for piece in self.pending.values()), 1)
        self.sent: Counter[Resources] = Counter()
        self.time_left = TimeLeft(self.records.values())
        self.run_id = uuid.uuid4().hex[:12]
        self.polled = 0.0
        self.packing = Packing(self.store)
        self.estimated = -math.inf
        self.seconds_left: float | None = None
        self.idle_since = time.monotonic()

    def tell_kept(self) -> None:
        self.tell("kept")
        if self.on_record is not None:
            for piece in self.pieces:
                if piece.key in self.records:
                    self.on_record(self.records[piece.key])

    def run(self) -> None:
        self.tasks: Tasks = self.cluster.tasks()
        self.count_places()
        if not self.cluster.elastic:
            self.check_that_all_fit()
        try:
            while self.flights or (self.failure is None and (self.pending or self.more is not None)):
                if not self.cluster.head.answers():
                    time.sleep(_POLL_SECONDS)
                    continue
                if self.failure is None:
                    self.send()
                if not self.flights:
                    continue
                for reference, outcome in self.completed():
                    self.receive(reference, outcome)
                self.poll()
        except BaseException:
            for flight in self.flights.values():
                self.on_cost(flight.cost(None))
            if not self.cluster.head.lost:
                for reference in self.flights:
                    self.tasks.cancel(reference)
            raise
        if self.failure is not None:
            self.failure.kept = len(self.records)
            raise self.failure

    def completed(self) -> list[tuple[Any, Any]]:
        """Wait for pieces that are over, each with what it came to; of those that were lost, hear their last report."""
        wanted = max(1, int(_BATCH_SHARE * len(self.flights)))
        over = self.tasks.completed(list(self.flights), wanted, _POLL_SECONDS if wanted == 1 else _BATCH_SECONDS)
        lost = [self.flights[reference] for reference, outcome in over if isinstance(outcome, Exception)]
        if lost:
            self.cluster.head.confirm()
            keys = [flight.progress_key for flight in lost]
            for flight, told in zip(lost, self.tasks.progress(keys), strict=True):
                self.follow(flight, told)
            self.tasks.forget(keys)
        return over

    def send(self) -> None:
        sent = []
        for piece in self.pending.values():
            if all(map(self.is_full, self.places)):
                break
            if not self.is_full(piece.resources) and (self.ready is None or self.ready(piece)):
                self.submit(piece)
                sent.append(piece)
        for piece in sent:
            del self.pending[piece.key]
            self.waiting[piece.stage] -= 1
        if not self.pending:
            self.draw()
        elif not self.flights:
            first = next(iter(self.pending.values()))
            raise PieceError(
                f"{first.label}: none of the {len(self.pending)} pieces left may start, and nothing that they wait for "
                "is under way",
                first.label,
                len(self.records),
                "NotReady",
            )

    def draw(self) -> None:
        """Send pieces that `more` gives as long as there is room; where it has none and none is under way, it is over.

        A piece of another size than those before it may have to wait, and then no more is drawn.
        """
        while self.more is not None and not (self.pending or (self.places and all(map(self.is_full, self.places)))):
            piece = self.more()
            if piece is None:
                self.more = self.more if self.flights else None
                return
            self.pieces.append(piece)
            wish = piece.resources
            if wish not in self.places:
                self.places[wish] = 1 if self.exclusive else self.cluster.places(wish)
            if self.is_full(wish):
                self.pending[piece.key] = piece
                self.waiting[piece.stage] += 1
            else:
                self.submit(piece)

    def count_places(self) -> None:
        """Count how many pieces have room at once, by what they ask for: it follows the size of the cluster."""
        if not self.exclusive:
            self.places = {wish: self.cluster.places(wish) for wish in self.places}

    def is_full(self, wish: Resources) -> bool:
        """Whether no more pieces that ask for this are to be sent now.

        Where nodes may come, more are sent than have room, which makes an autoscaler add some.
        """
        if self.exclusive:
            return bool(self.flights)
        limit, places = self.cluster.settings.workers, self.places[wish]
        if self.cluster.elastic:
            return self.sent[wish] >= 2 * places if limit is None else len(self.flights) >= limit
        return self.sent[wish] >= places or (limit is not None and len(self.flights) >= limit)

    def submit(self, piece: Piece) -> None:
        losses = self.losses.get(piece.key, Counter())
        attempt = losses.total() + 1
        flight = Flight(piece, f"{self.run_id}/{piece.key}/{attempt}")
        order = Order(
            piece=piece,
            store=self.store,
            scratch=self.cluster.scratch,
            progress_key=flight.progress_key,
            attempt=attempt,
            memory_retries=losses["memory"],
            memory_limit_bytes=self.cluster.settings.memory_limit_bytes,
        )
        wish = piece.resources
        options: dict[str, Any] = {"num_cpus": wish.cpus, "memory": wish.memory_bytes or None}
        if self.exclusive:
            options = self.alone(wish)
        options |= {"resources": wish.custom} if wish.custom else {}
        # What is measured shares its GPU with nobody.
        gpus = math.ceil(wish.gpus) if self.exclusive else wish.gpus
        count, each = piece.ranks or (0, wish)
        flight.cpus, flight.gpus = options["num_cpus"] + count * each.cpus, gpus + count * each.gpus
        self.flights[self.tasks.send(order, num_gpus=gpus or None, **options)] = flight
        self.sent[wish] += 1

    def alone(self, wish: Resources) -> dict[str, Any]:
        """Return the Ray options that give a piece all CPUs of the largest node that has what it wishes.

        Where no such node is there yet, the piece waits for one, and then holds only its own CPUs.
        """
        import ray

        fitting = [node for node in self.cluster.nodes() if fits(node["Resources"], wish)]
        if not fitting:
            return {"num_cpus": wish.cpus, "memory": wish.memory_bytes or None}
        node = max(fitting, key=lambda node: (node["Resources"]["CPU"], node["NodeID"]))
        pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        return {"num_cpus": node["Resources"]["CPU"], "scheduling_strategy": pinned}

    def check_that_all_fit(self) -> None:
        nodes = self.cluster.amounts()
        for piece in self.pending.values():
            if reason := misfit(nodes, piece.resources):
                raise PieceError(
                    f"{piece.stage}, {piece.label}: {reason}",
                    piece.label,
                    len(self.records),
                    "DoesNotFit",
                )

    def receive(self, reference: Any, outcome: Any) -> None:
        import ray

        flight = self.flights.pop(reference)
        piece = flight.piece
        self.sent[piece.resources] -= 1
        if not isinstance(outcome, Exception):
            self.follow(flight, outcome.told)
        if flight.called_off:
            self.tasks.go_on(flight.progress_key)
        self.on_cost(flight.cost(None if isinstance(outcome, Exception) else outcome.seconds))
        if flight.dropped and isinstance(outcome, Exception):
            return
        try:
            if isinstance(outcome, Exception):
                raise outcome
        except ray.exceptions.RayTaskError as error:
            self.fail(piece, type(error.cause or error).__name__, str(error.cause or error), str(error))
        except ray.exceptions.OutOfMemoryError:
            self.lose(piece, "its node ran out of memory and Ray ended the worker", "memory")
        except ray.exceptions.RayError as error:
            if "OUT_OF_MEMORY" in str(error):  # of an actor Ray tells it in its words alone
                self.lose(piece, "its node ran out of memory and Ray ended the worker", "memory")
            elif flight.overdue:
                self.lose(piece, f"it made no progress for {self.deadline_seconds:g} s", "worker")
            elif flight.node and flight.node not in {node["NodeID"] for node in self.cluster.nodes()}:
                self.lose(piece, "its node was lost", "node")
            else:
                self.lose(piece, f"its worker was lost: {type(error).__name__}", "worker")
        else:
            if outcome.record is not None:
                self.commit(piece, outcome.record)
            elif outcome.out_of_memory:
                self.lose(piece, f"it ran out of memory: {outcome.message}", "memory")
            else:
                self.fail(piece, outcome.kind, outcome.message, outcome.details)

    def commit(self, piece: Piece, record: Record) -> None:
        self.records[piece.key] = record
        self.packing.add(record)
        self.time_left.learn(record)
        self.idle_since = time.monotonic()
        if self.on_record is not None:
            self.on_record(record)
        self.tell("finished", piece, fraction=1.0)

    def lose(self, piece: Piece, how: str, what: Literal["worker", "memory", "node"]) -> None:
        losses = self.losses.setdefault(piece.key, Counter())
        losses[what] += 1
        if sum(_WEIGHTS[kind] * count for kind, count in losses.items()) <= self.retries:
            self.pending[piece.key] = piece
            self.pending.move_to_end(piece.key, last=False)
            self.waiting[piece.stage] += 1
            self.tell("retried", piece, note=how)
            return
        self.give_up(
            PieceError(
                f"{piece.stage}, {piece.label}: given up after {losses.total()} attempts, because {how}; "
                "finished pieces stay",
                piece.label,
                kind="OutOfMemory" if what == "memory" else "Lost",
            )
        )

    def fail(self, piece: Piece, kind: str, message: str, details: str) -> None:
        text = message if kind == "StoreError" else f"{piece.stage}, {piece.label}: {kind}: {message}"
        self.give_up(PieceError(text, piece.label, kind=kind, details=details))

    def give_up(self, failure: PieceError) -> None:
        """Remember why the call fails, and take out of the queue what no worker has yet."""
        if self.failure is None:
            self.failure = failure
            self.read_progress()
            for reference, flight in self.flights.items():
                if self.is_queued(flight):
                    flight.dropped = True
                    self.tasks.cancel(reference)

    def poll(self) -> None:
        """Read the progress of the pieces under way, end overdue ones, and say when nothing can start."""
        now = time.monotonic()
        if now - self.polled < _POLL_SECONDS:
            return
        self.polled = now
        if self.cluster.elastic:
            self.count_places()
        self.read_progress()
        for reference, flight in self.flights.items():
            if self.hangs(reference, flight):
                flight.overdue = True
                self.tasks.cancel(reference)
            elif self.waits_too_long(reference, flight):
                self.give_up(self.never_alone(flight))
        if self.flights and now - self.idle_since > _WAITING_SECONDS:
            self.idle_since = now
            flight = next(iter(self.flights.values()))
            what = f"it waits for {flight.waits}" if flight.waits else self.what_is_waited_for(flight.piece.resources)
            self.tell("waiting", flight.piece, note=what)

    def read_progress(self) -> None:
        """Tell what the pieces under way have reported since they were last asked."""
        told = self.tasks.progress([flight.progress_key for flight in self.flights.values()])
        for flight, progress in zip(list(self.flights.values()), told, strict=True):
            if self.follow(flight, progress):
                self.idle_since = time.monotonic()
            if flight.piece.key in self.called_off and not flight.called_off:
                flight.called_off = True
                self.tasks.call_off(flight.progress_key)

    def hangs(self, reference: Any, flight: Flight) -> bool:
        """Whether a piece has missed its deadline: no progress, or a worker that has it and does not begin."""
        now = time.monotonic()
        if self.deadline_seconds is None or flight.overdue or flight.waits:
            return False
        if flight.started is not None:
            return now - flight.moved > self.deadline_seconds
        if not self.cluster.elastic and self.is_queued(flight):
            flight.moved = now
        patience = max(self.deadline_seconds, _BEGINNING_SECONDS)
        if now - flight.moved > patience and self.cluster.elastic:
            handed_over = self.cluster.handed_over(reference.task_id().hex())
            flight.moved = now if handed_over is None else now - (time.time() - handed_over)
        return now - flight.moved > patience

    def waits_too_long(self, reference: Any, flight: Flight) -> bool:
        """Whether a piece that is to be alone on its node has waited for one longer than a piece may be silent.

        Others wait as long as it takes: they begin as soon as anything ends, and an idle node there may never be.
        """
        if not (self.exclusive and self.cluster.elastic and self.deadline_seconds) or self.failure is not None:
            return False
        if flight.started is not None or time.monotonic() - flight.sent <= self.deadline_seconds:
            return False
        return self.cluster.handed_over(reference.task_id().hex()) is None

    def never_alone(self, flight: Flight) -> PieceError:
        piece = flight.piece
        return PieceError(
            f"{piece.stage}, {piece.label}: for {self.deadline_seconds:g} s no node with {words(piece.resources)} had "
            f"nothing else to do, and nothing may run beside what is measured; "
            f"{self.what_is_waited_for(piece.resources)}; try again when the cluster is less busy, or measure on a "
            "machine of that kind by itself (`inlay measure`) and name its table in hardware.costs",
            piece.label,
            kind="NeverAlone",
        )

    def is_queued(self, flight: Flight) -> bool:
        """Whether a piece is in Ray's queue, as far as is known without asking Ray.

        Nobody else uses a Ray of our own: what has room there has its worker. Elsewhere all that has not begun may be
        queued; Ray's record of tasks tells.
        """
        if flight.started is not None or flight.waits:
            return False
        return self.cluster.elastic or not has_room(self.cluster.amounts()[0], flight, self.flights.values())

    def what_is_waited_for(self, wish: Resources) -> str:
        """Return why a piece that asks for this does not begin."""
        if not self.cluster.elastic:
            return "its worker is still being started"  # all there is here is ours, and the piece fits
        lacking = misfit(self.cluster.amounts(), wish)
        grows = self.cluster.growth()
        if lacking is None:
            taken = f"every node that has {words(wish)} is taken"
            return taken if grows is None else f"{taken}; {grows}"
        return f"{lacking}; {'it waits for such a node to come' if grows is None else grows}"

    def follow(self, flight: Flight, told: Mapping[str, Any] | None) -> bool:
        """Tell what a piece has reported since it was last asked; False while it waits, for its worker or others."""
        if told is None:
            return False
        now = time.monotonic()
        flight.node = told["node"]
        flight.waits_for(told["waits"])
        if flight.waits:
            flight.moved = now
            return False
        if flight.started is None:
            flight.started = flight.moved = now
            self.tell("started", flight.piece)
        moved, news = told["fraction"] > flight.fraction, told["numbers"] != flight.numbers
        if moved:
            flight.fraction, flight.moved = told["fraction"], now
        flight.numbers = told["numbers"]
        if moved or (news and flight.numbers):
            self.tell("progress", flight.piece, fraction=flight.fraction, numbers=flight.numbers if news else None)
        return True

    def tell(
        self,
        kind: Literal["kept", "started", "progress", "finished", "retried", "waiting"],
        piece: Piece | None = None,
        *,
        fraction: float = 0.0,
        note: str = "",
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        if self.on_event is None:
            return
        label, stage = (
            (piece.label, piece.stage) if piece is not None else ("", self.pieces[0].stage if self.pieces else "")
        )
        self.on_event(
            PieceEvent(
                kind, label, stage, len(self.records), len(self.pieces), self.estimate(), fraction, note, numbers or {}
            )
        )

    def estimate(self) -> float | None:
        """The seconds left, made anew when it is old or little is under way."""
        now = time.monotonic()
        if now - self.estimated > _ESTIMATE_SECONDS or len(self.flights) < 10:
            self.estimated = now
            running = [
                (flight.piece.stage, flight.fraction, now - (flight.started or now)) for flight in self.flights.values()
            ]
            workers = min(max(self.places.values(), default=1), self.cluster.settings.workers or math.inf)
            self.seconds_left = self.time_left.seconds(self.waiting, running, int(workers))
        return self.seconds_left
