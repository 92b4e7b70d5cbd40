"""Foolscap connections that cannot be made to hold more than a bound (protocol.txt §10.5).

Foolscap buffers whatever its peers announce, and takes as many calls as they send. Here a TokenScanner looks at the
stream first: Foolscap is only given complete tokens that keep to the bounds, one large token or one message at a
time, so that it buffers nothing itself. What connections hold (incomplete messages, and arguments of calls that are
not answered) is added up; who holds too much is not read from until that is less.

Foolscap's parts that are subclassed here, and how a Tub chooses them, are named in
tests/unit/test_allmydata_names.py.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import islice
from typing import Any, Protocol

import attrs
from foolscap.api import Tub
from foolscap.broker import LoopbackTransport
from foolscap.eventual import eventually
from foolscap.negotiate import Negotiation
from twisted.internet import reactor as _reactor
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from helper.interfaces import KiB, MiB
from helper.long_strings import LongStrings
from helper.token_stream import KNOWN_PEER, STORAGE_SERVER, STRANGER, OverBound, TokenBounds, TokenScanner

#: Pieces of so many bytes are kept as they come, and not copied together.
LARGE_PIECE = 4 * KiB

#: Foolscap's own bound of a block of its negotiation, but here before it is logged.
NEGOTIATION_BYTES = 4096

_log = Logger()

#: Why a connection is not read from.
_CALLS, _MEMORY = "calls are unanswered", "memory is short"


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


class Ledger:
    """What the connections of one Tub, or of several, hold in all."""

    def __init__(self, bounds: ConnectionBounds, clock: Any) -> None:
        self.bounds = bounds
        self.held = 0
        self._clock = clock
        self._connections: dict[bool, set[BoundedBroker]] = {True: set(), False: set()}  # accepted, or made by us
        self._strangers: dict[Abortable, None] = {}
        self._incomplete: dict[BoundedBroker, float | None] = {}  # oldest first; since when they are unhindered
        self._waiting: dict[BoundedBroker, None] = {}
        self._not_taking: dict[BoundedBroker, float] = {}  # their answers; since when that is known
        self._watch: Any = None

    def admit(self, connection: BoundedBroker, accepted: bool) -> bool:
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

    def forget(self, connection: BoundedBroker) -> None:
        for connections in self._connections.values():
            connections.discard(connection)
        self.no_stranger(connection)
        self._not_taking.pop(connection, None)
        self._incomplete.pop(connection, None)
        self._waiting.pop(connection, None)
        self.let_others_go_on()

    def change(self, connection: BoundedBroker, by: int, incomplete: bool, new_message: bool) -> None:
        """A connection holds more, or less (`by`)."""
        self.held += by
        left_the_oldest = False
        if new_message or not incomplete:
            left_the_oldest = self._incomplete.pop(connection, -1.0) != -1.0
        if incomplete:
            self._incomplete.setdefault(connection, None)
        if by < 0 or left_the_oldest:
            self.let_others_go_on()

    def may_read(self, connection: BoundedBroker) -> bool:
        """Whether there is memory for more from this connection."""
        held = connection.held
        return (held <= self.bounds.always or held <= self.bounds.in_all - self.held
                or connection in self._unhindered())

    def wait(self, connection: BoundedBroker) -> None:
        self._waiting[connection] = None
        if self._watch is None:
            self._watch = self._clock.callLater(self.bounds.patience / 4, self._look)

    def wait_no_more(self, connection: BoundedBroker) -> None:
        self._waiting.pop(connection, None)

    def _unhindered(self) -> list[BoundedBroker]:
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
        if self._waiting:
            self._watch = self._clock.callLater(self.bounds.patience / 4, self._look)


    def takes_answers(self, connection: BoundedBroker) -> None:
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


@implementer(IPushProducer)
class _AnswerFlow:
    """The transport tells it whether the peer reads our answers; while it does not, its calls are not begun."""

    def __init__(self, broker: BoundedBroker) -> None:
        self._broker = broker

    def pauseProducing(self) -> None:
        self._broker.set_answers_wait(True)

    def resumeProducing(self) -> None:
        self._broker.set_answers_wait(False)

    def stopProducing(self) -> None:
        """The connection is gone, which the broker is told as well."""


class BoundedBroker(LongStrings):
    """A Foolscap connection that keeps to ConnectionBounds; a peer that does not is disconnected."""

    def __init__(self, ledger: Ledger, accepted: bool, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inboundDeliveryQueue: list[Any]
        self._ledger = ledger
        self._accepted = accepted
        self._bounded = True
        self._watches_answers = False
        self.answers_wait = False  # the peer does not read what we send
        self._given_up: str | None = None
        self._scanner = TokenScanner()
        self._partial: list[bytes | bytearray] = []  # of a token that is not complete
        self._unconsidered = 0  # bytes that came since it was last asked whether there is memory for more
        self._message = 0  # charge of the message that Foolscap is given just now
        self._unanswered: dict[Any, int] = {}
        self.unanswered_bytes = 0
        self._counted = 0
        self._reasons: set[str] = set()

    # -- life -----------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self._bounded = not isinstance(self.transport, LoopbackTransport)  # to ourselves
        super().connectionMade()
        if not self._bounded:
            return
        if not self._ledger.admit(self, self._accepted):
            self.give_up("too many connections")
            return
        if self._accepted:
            self._ledger.add_stranger(self)
        self.transport.registerProducer(_AnswerFlow(self), True)
        self._watches_answers = True

    def connectionLost(self, why: Failure) -> None:
        if self._given_up is not None:
            why = Failure(ConnectionLost(self._given_up))  # which Foolscap knows as the end of a connection
        super().connectionLost(why)

    def shutdown(self, why: Failure, fireDisconnectWatchers: bool = True) -> None:  # noqa: N803
        if self._watches_answers and not self.disconnected:
            self.transport.unregisterProducer()  # or loseConnection would wait for it
            self._watches_answers = False
        super().shutdown(why, fireDisconnectWatchers)

    def finish(self, why: Failure) -> None:
        if self._bounded and not self.disconnected:
            for delivery, _ready in self.inboundDeliveryQueue:
                self.unanswered_bytes -= self._unanswered.pop(delivery, 0)  # they will never be begun
            self.inboundDeliveryQueue.clear()
            self._let_go()
        super().finish(why)
        if self._bounded:
            self._update()
            self._ledger.forget(self)

    def give_up(self, reason: str) -> None:
        """Disconnect the peer, at once."""
        if self.disconnected or self._given_up is not None:
            return
        _log.warn("disconnected {peer}: {reason}", peer=self._peer(), reason=reason)
        self._given_up = reason
        self.connectionAbandoned = True
        self._let_go()
        self._update()
        self.transport.abortConnection()  # and connectionLost does the rest

    def _let_go(self) -> None:
        """Of what is not a whole message."""
        self._partial.clear()
        self._scanner = TokenScanner()

    def _peer(self) -> str:
        return str(self.remote_tubref.getShortTubID()) if self.remote_tubref else "a peer"

    # -- what comes -----------------------------------------------------------------------------------------

    def dataReceived(self, chunk: bytes) -> None:
        if not self._bounded:
            super().dataReceived(chunk)
            return
        if self.connectionAbandoned or self.disconnected or not chunk:
            return
        self.dataLastReceivedAt = time.time()  # Foolscap does not see parts of tokens
        if self._scanner.passes_over(chunk):
            self._keep(chunk)
            self._counted += len(chunk)
            self._ledger.change(self, len(chunk), True, False)
            self._unconsidered += len(chunk)
            if self._unconsidered >= self._ledger.bounds.always:
                self.reconsider()
            return
        try:
            cuts = self._scanner.feed(chunk, self._ledger.bounds.known if self._is_known() else STRANGER)
        except OverBound as error:
            self.give_up(str(error))
            return
        begin, new_message = 0, False
        for cut in cuts:
            new_message = new_message or cut.message is not None
            self._message = cut.message or 0
            self._give(chunk[begin:cut.end])
            begin = cut.end
        self._message = 0
        self._give(chunk[begin:max(begin, self._scanner.token_end)])
        if self.connectionAbandoned or self.disconnected:
            return
        self._keep(chunk[max(begin, self._scanner.token_end):])
        self._update(new_message)

    def _keep(self, data: bytes) -> None:
        """Of a token that is not complete. Small pieces are put together: each would take a hundred bytes more."""
        if len(data) >= LARGE_PIECE:
            self._partial.append(data)
        elif data:
            if not self._partial or isinstance(self._partial[-1], bytes):
                self._partial.append(bytearray())
            self._partial[-1] += data

    def _give(self, data: bytes) -> None:
        """Complete tokens, to Foolscap. It looks at what it has when the last piece comes, and joins them once."""
        if data and not self.connectionAbandoned:
            for piece in self._partial:
                self.buffer.append(bytes(piece))
            self._partial.clear()
            super().dataReceived(data)

    def _is_known(self) -> bool:
        return bool(self.myReferenceByCLID or self.waitingForAnswers)

    def reportReceiveError(self, f: Failure) -> None:
        """Foolscap would log what came."""
        self.give_up(f"not of the Foolscap protocol ({type(f.value).__name__})")

    def handleError(self, msg: bytes) -> None:  # noqa: ARG002 (it is the peer's text)
        self.give_up("the peer reports an error and goes")

    def sendFailed(self, f: Failure) -> None:
        self.give_up(f"an answer could not be sent ({type(f.value).__name__})")

    # -- references -----------------------------------------------------------------------------------------

    def getTrackerForMyReference(self, puid: Any, obj: Any) -> Any:
        self._ledger.no_stranger(self)
        tracker = super().getTrackerForMyReference(puid, obj)
        self._check_references(self.myReferenceByCLID)
        return tracker

    def getTrackerForYourReference(self, clid: int, interfaceName: str | None = None,  # noqa: N803
                                   url: str | None = None) -> Any:
        tracker = super().getTrackerForYourReference(clid, interfaceName, url)
        self._check_references(self.yourReferenceByCLID)
        return tracker

    def _check_references(self, references: dict[int, Any]) -> None:
        if self._bounded and len(references) > self._ledger.bounds.references:
            self.give_up(f"references: at most {self._ledger.bounds.references} expected")

    # -- calls ----------------------------------------------------------------------------------------------

    def scheduleCall(self, delivery: Any, ready_deferred: Any) -> None:
        self._unanswered[delivery] = self._message
        self.unanswered_bytes += self._message
        super().scheduleCall(delivery, ready_deferred)

    def doNextCall(self) -> None:
        if not self.answers_wait:
            super().doNextCall()

    def set_answers_wait(self, wait: bool) -> None:
        """The peer does not read what we send, or does again."""
        self.answers_wait = wait
        if not wait:
            self._ledger.takes_answers(self)
            eventually(self.doNextCall)

    def sendPONG(self, number: int) -> None:
        if not self.answers_wait:
            super().sendPONG(number)

    def _callFinished(self, res: Any, delivery: Any) -> None:
        super()._callFinished(res, delivery)
        self._answered(delivery)

    def callFailed(self, f: Failure, reqID: int, delivery: Any = None) -> None:  # noqa: N803
        try:
            super().callFailed(f, reqID, delivery)
        finally:
            self._answered(delivery)

    def _answered(self, delivery: Any) -> None:
        self.unanswered_bytes -= self._unanswered.pop(delivery, 0)
        _let_go_of_arguments(delivery)
        self._update()

    # -- memory ---------------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Charge of what came and is not answered yet."""
        return self.unanswered_bytes + self._scanner.charge

    @property
    def waits_for_itself(self) -> bool:
        """Whether it is not read from for a reason of its own."""
        return bool(self._reasons - {_MEMORY})

    def _update(self, new_message: bool = False) -> None:
        if not self._bounded:
            return
        by, self._counted = self.held - self._counted, self.held
        self._ledger.change(self, by, self._scanner.in_message and not self.disconnected, new_message)
        self.reconsider()

    def reconsider(self) -> None:
        """Read from the peer, or not."""
        if self.disconnected or self._given_up is not None:
            return
        self._unconsidered = 0
        bounds = self._ledger.bounds
        self.hold_back(_CALLS, len(self._unanswered) >= bounds.calls or self.unanswered_bytes >= bounds.each)
        short = not self._ledger.may_read(self)
        if short:
            self._ledger.wait(self)
        else:
            self._ledger.wait_no_more(self)
        self.hold_back(_MEMORY, short)

    def hold_back(self, reason: str, hold: bool) -> None:
        """Do not read from the peer while there is any reason."""
        reasons_before = set(self._reasons)
        before = bool(reasons_before)
        (self._reasons.add if hold else self._reasons.discard)(reason)
        if self.disconnected or self._given_up is not None:
            return
        if before and not self._reasons:
            self.transport.resumeProducing()
        elif self._reasons and not before:
            self.transport.pauseProducing()
        if hold and reason not in reasons_before and reason != _MEMORY:
            self._ledger.let_others_go_on()  # it is not one of the unhindered any more

    def disconnectTimerFired(self) -> None:
        if self._reasons:
            self.dataLastReceivedAt = time.time()  # it is we who do not listen
        super().disconnectTimerFired()


def _let_go_of_arguments(delivery: Any) -> None:
    """Of a call that was answered. Foolscap has them in a cycle of references, which Python would find much later: by
    then they were 30 MiB of an upload."""
    arguments = getattr(delivery, "allargs", None)
    if arguments is not None:
        arguments.args = []
        arguments.kwargs = {}


class BoundedNegotiation(Negotiation):  # type: ignore[misc]
    """What precedes a BoundedBroker on a connection that we accepted."""

    def __init__(self, ledger: Ledger, logparent: Any = None) -> None:
        super().__init__(logparent=logparent)
        self._ledger = ledger

    def connectionMade(self) -> None:
        self._ledger.add_stranger(self)
        super().connectionMade()

    def dataReceived(self, chunk: bytes) -> None:
        if len(self.buffer) + len(chunk) > NEGOTIATION_BYTES:
            self.give_up("too much before the connection is negotiated")
        else:
            super().dataReceived(chunk)

    def switchToBanana(self, params: dict[str, Any]) -> None:
        self._ledger.no_stranger(self)
        self.brokerClass = partial(BoundedBroker, self._ledger, True)
        super().switchToBanana(params)

    def connectionLost(self, reason: Failure) -> None:
        self._ledger.no_stranger(self)
        super().connectionLost(reason)

    def give_up(self, reason: str) -> None:
        """Disconnect, at once."""
        _log.warn("disconnected a peer: {reason}", reason=reason)
        self.buffer = b""
        self.transport.abortConnection()


def new_ledger(bounds: ConnectionBounds | None = None) -> Ledger:
    """For one Tub or several."""
    return Ledger(bounds or ConnectionBounds(), _reactor)


def bound(tub: Tub, ledger: Ledger) -> None:
    """Let all connections that `tub` will have, and those it listens for, keep to the bounds of `ledger`."""
    tub.brokerClass = partial(BoundedBroker, ledger, False)
    for listener in tub.getListeners():
        listener._negotiationClass = partial(BoundedNegotiation, ledger)
