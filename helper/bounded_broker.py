"""Foolscap connections that cannot be made to hold more than a bound (protocol.txt §10.5).

Foolscap buffers whatever its peers announce, and takes as many calls as they send. Here a TokenScanner looks at the
stream first: Foolscap is only given complete tokens that keep to the bounds, one large token or one message at a
time, so that it buffers nothing itself. What connections hold (incomplete messages, and arguments of calls that are
not answered) is added up in a ConnectionMemory; who holds too much is not read from until that is less.

Foolscap's parts that are subclassed here, and how a Tub chooses them, are named in
tests/unit/test_allmydata_names.py.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

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

from helper.connection_memory import ConnectionBounds, ConnectionMemory
from helper.interfaces import KiB
from helper.large_reads import read_in_large_pieces
from helper.long_strings import LongStrings
from helper.token_stream import STRANGER, OverBound, TokenScanner

#: Pieces of so many bytes are kept as they come, and not copied together.
LARGE_PIECE = 4 * KiB

#: Bytes that are read at a time; a connection may hold so much more than it should before it is told to wait.
READ_SIZE = 64 * KiB

#: Foolscap's own bound of a block of its negotiation, but here before it is logged.
NEGOTIATION_BYTES = 4096

_log = Logger()

#: Why a connection is not read from.
_CALLS, _MEMORY = "calls are unanswered", "memory is short"


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

    def __init__(self, memory: ConnectionMemory, accepted: bool, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inboundDeliveryQueue: list[Any]
        self._memory = memory
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
        read_in_large_pieces(self.transport, READ_SIZE)
        if not self._bounded:
            return
        if not self._memory.admit(self, self._accepted):
            self.give_up("too many connections")
            return
        if self._accepted:
            self._memory.add_stranger(self)
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
            self._memory.forget(self)

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
            self._memory.change(self, len(chunk), True, False)
            self._unconsidered += len(chunk)
            if self._unconsidered >= self._memory.bounds.always:
                self.reconsider()
            return
        try:
            cuts = self._scanner.feed(chunk, self._memory.bounds.known if self._is_known() else STRANGER)
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
        self._memory.no_stranger(self)
        tracker = super().getTrackerForMyReference(puid, obj)
        self._check_references(self.myReferenceByCLID)
        return tracker

    def getTrackerForYourReference(self, clid: int, interfaceName: str | None = None,  # noqa: N803
                                   url: str | None = None) -> Any:
        tracker = super().getTrackerForYourReference(clid, interfaceName, url)
        self._check_references(self.yourReferenceByCLID)
        return tracker

    def _check_references(self, references: dict[int, Any]) -> None:
        if self._bounded and len(references) > self._memory.bounds.references:
            self.give_up(f"references: at most {self._memory.bounds.references} expected")

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
            self._memory.takes_answers(self)
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
        self._memory.change(self, by, self._scanner.in_message and not self.disconnected, new_message)
        self.reconsider()

    def reconsider(self) -> None:
        """Read from the peer, or not."""
        if self.disconnected or self._given_up is not None:
            return
        self._unconsidered = 0
        bounds = self._memory.bounds
        self.hold_back(_CALLS, len(self._unanswered) >= bounds.calls or self.unanswered_bytes >= bounds.each)
        short = not self._memory.may_read(self)
        if short:
            self._memory.wait(self)
        else:
            self._memory.wait_no_more(self)
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
            self._memory.let_others_go_on()  # it is not one of the unhindered any more

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

    def __init__(self, memory: ConnectionMemory, logparent: Any = None) -> None:
        super().__init__(logparent=logparent)
        self._memory = memory

    def connectionMade(self) -> None:
        self._memory.add_stranger(self)
        super().connectionMade()

    def dataReceived(self, chunk: bytes) -> None:
        if len(self.buffer) + len(chunk) > NEGOTIATION_BYTES:
            self.give_up("too much before the connection is negotiated")
        else:
            super().dataReceived(chunk)

    def switchToBanana(self, params: dict[str, Any]) -> None:
        self._memory.no_stranger(self)
        self.brokerClass = partial(BoundedBroker, self._memory, True)
        super().switchToBanana(params)

    def connectionLost(self, reason: Failure) -> None:
        self._memory.no_stranger(self)
        super().connectionLost(reason)

    def give_up(self, reason: str) -> None:
        """Disconnect, at once."""
        _log.warn("disconnected a peer: {reason}", reason=reason)
        self.buffer = b""
        self.transport.abortConnection()


def new_memory(bounds: ConnectionBounds | None = None) -> ConnectionMemory:
    """For one Tub or several."""
    return ConnectionMemory(bounds or ConnectionBounds(), _reactor)


def bound(tub: Tub, memory: ConnectionMemory) -> None:
    """Let all connections that `tub` will have, and those it listens for, keep to the bounds of `memory`."""
    tub.brokerClass = partial(BoundedBroker, memory, False)
    for listener in tub.getListeners():
        listener._negotiationClass = partial(BoundedNegotiation, memory)
