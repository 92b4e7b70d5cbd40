"""What Foolscap connections may hold, all together, and who is not read from when they hold too much.

The bounds of protocol.txt §10.5. The connections themselves are in bounded_broker.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

import attrs

from helper.interfaces import KiB, MiB
from helper.token_stream import KNOWN_PEER, STORAGE_SERVER, TokenBounds


@attrs.frozen
class ConnectionBounds:
    """What connections may hold. Bytes are charges of token_stream.py.

    What all connections may always hold has to be less than in_all + reserve: else they could fill it with messages
    of which none is complete, and nobody would get on.
    """

    in_all: int = 64 * MiB
    """Of all connections. One that has more than what is left of it is not read from, so that n which take what
    they can get leave a share of 1/(n + 1)."""
    each: int = 16 * MiB
    """Unanswered calls of one connection: the two credits of an upload (protocol.txt §7.1)."""
    calls: int = 1024
    """Unanswered calls of one connection."""
    always: int = 64 * KiB
    """What a connection may hold in any case, so that small calls get through."""
    unhindered: int = 4
    """So many incomplete messages, the oldest, are read to their end nevertheless, so that somebody gets on: of
    connections whose unanswered calls hold no more than `always`. Others have their share, and what is kept back of
    theirs, as the uploads wait, must not take the reserve of those that can go on;"""
    reserve: int = 32 * MiB
    """unless all connections hold so much more: then these wait as well, until calls are answered."""
    patience: float = 60.0
    """Seconds that one of those has to be completed in, while others wait; and in which a peer that holds more than
    `always` has to go on taking answers."""
    connections: int = 512
    """Accepted, and open at a time: each costs about 100 KiB of TLS buffers."""
    outgoing: int = 1024
    """Made by ourselves: to introducers and storage servers."""
    strangers: int = 128
    """Of them, those that have not shown a furl yet; the oldest makes room."""
    references: int = 4096
    """To objects of ours that a connection may have, and to objects of its own that it may give us."""
    known: TokenBounds = KNOWN_PEER
    """Of peers that are no strangers."""


#: For all connections together that the node makes to storage servers. Each unfinished share on a stock server is a
#: reference to an object there.
TO_STORAGE_SERVERS = ConnectionBounds(always=16 * KiB, unhindered=3, reserve=64 * MiB, connections=1024,
                                      references=32 * KiB, known=STORAGE_SERVER)


def for_connections(most: int) -> ConnectionBounds:
    """Of a helper to which there are at most so many connections: if more than usual, they may hold more in all."""
    bounds = ConnectionBounds()
    return attrs.evolve(bounds, connections=most, strangers=min(bounds.strangers, most),
                        in_all=max(bounds.in_all, bounds.in_all * most // bounds.connections))


class Abortable(Protocol):
    """A connection that is not known yet, in any stage."""

    def give_up(self, reason: str) -> None:
        """Disconnect, at once."""


class Connection(Protocol):
    """What has to be known of a connection (bounded_broker.BoundedBroker)."""

    unanswered_bytes: int
    answers_wait: bool

    @property
    def held(self) -> int: ...
    @property
    def waits_for_itself(self) -> bool: ...
    def give_up(self, reason: str) -> None: ...
    def reconsider(self) -> None: ...


class ConnectionMemory:
    """What the connections of one Tub, or of several, hold in all."""

    def __init__(self, bounds: ConnectionBounds, clock: Any) -> None:
        self.bounds = bounds
        self.held = 0
        self._clock = clock
        #: Called when all is held by calls that are not answered for long, and others wait: some should be answered.
        self.on_stuck: Callable[[], None] = lambda: None
        self._full = False
        self._connections: dict[bool, set[Connection]] = {True: set(), False: set()}  # accepted, or made by us
        self._strangers: dict[Abortable, None] = {}
        self._incomplete: dict[Connection, float | None] = {}  # oldest first; since when they are unhindered
        self._waiting: dict[Connection, None] = {}
        self._not_taking: dict[Connection, float] = {}  # their answers; since when that is known
        self._watch: Any = None

    def admit(self, connection: Connection, accepted: bool) -> bool:
        """Whether there may be one more."""
        connections = self._connections[accepted]
        if len(connections) >= (self.bounds.connections if accepted else self.bounds.outgoing):
            return False
        connections.add(connection)
        return True

    def add_stranger(self, connection: Abortable) -> None:
        while len(self._strangers) >= self.bounds.strangers:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.give_up("too many connections without a furl")
        self._strangers[connection] = None

    def no_stranger(self, connection: Abortable) -> None:
        self._strangers.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        for connections in self._connections.values():
            connections.discard(connection)
        self.no_stranger(connection)
        self._not_taking.pop(connection, None)
        self._incomplete.pop(connection, None)
        self._waiting.pop(connection, None)
        self.let_others_go_on()

    def change(self, connection: Connection, by: int, incomplete: bool, new_message: bool) -> None:
        """A connection holds more, or less (`by`)."""
        self.held += by
        left_the_oldest = False
        if new_message or not incomplete:
            left_the_oldest = self._incomplete.pop(connection, -1.0) != -1.0
        if incomplete:
            self._incomplete.setdefault(connection, None)
        if by < 0 or left_the_oldest:
            self.let_others_go_on()

    def may_read(self, connection: Connection) -> bool:
        """Whether there is memory for more from this connection."""
        held = connection.held
        return (held <= self.bounds.always or held <= self.bounds.in_all - self.held
                or connection in self._unhindered())

    def wait(self, connection: Connection) -> None:
        self._waiting[connection] = None
        if self._watch is None:
            self._watch = self._clock.callLater(self.bounds.patience / 4, self._look)

    def wait_no_more(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)

    def _unhindered(self) -> list[Connection]:
        if self.held >= self.bounds.in_all + self.bounds.reserve:
            return []
        able = (c for c in self._incomplete if not c.waits_for_itself and c.unanswered_bytes <= self.bounds.always)
        return list(islice(able, self.bounds.unhindered))

    def let_others_go_on(self) -> None:
        """Somebody made room."""
        for connection in list(self._waiting):
            connection.reconsider()

    def _look(self) -> None:
        self._watch = None
        if not self._waiting:
            self._full = False
            return
        now = self._clock.seconds()
        unhindered = self._unhindered()
        for connection in self._incomplete:
            if connection not in unhindered:
                self._incomplete[connection] = None
        for connection in unhindered:
            since = self._incomplete[connection]
            if since is None:
                self._incomplete[connection] = now
            elif now - since >= self.bounds.patience:
                connection.give_up("a message was not completed while others waited for memory")
        self._look_at_answers(now)
        full_before, self._full = self._full, self.held >= self.bounds.in_all + self.bounds.reserve
        if full_before and self._full:
            self.on_stuck()
        if self._waiting:
            self._watch = self._clock.callLater(self.bounds.patience / 4, self._look)

    def takes_answers(self, connection: Connection) -> None:
        """Its patience begins anew."""
        self._not_taking.pop(connection, None)

    def _look_at_answers(self, now: float) -> None:
        """What peers hold that do not read is never answered."""
        for connection in [*self._connections[True], *self._connections[False]]:
            if not connection.answers_wait or connection.held <= self.bounds.always:
                self._not_taking.pop(connection, None)
            elif now - self._not_taking.setdefault(connection, now) >= self.bounds.patience and any(
                    waiting is not connection for waiting in self._waiting):
                connection.give_up("its answers were not taken while others waited for memory")
