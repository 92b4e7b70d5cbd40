"""Connections between client and helper that lose, repeat, delay and garble what goes over them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from world import WireLink

from client_shim.helper_edge import HelperAnswer
from helper.foolscap_edge import WireAnswer

#: After so many seconds a connection on which nothing arrives any more is noticed to be dead.
NOTICED_AFTER = 20.0


class FaultyLink(WireLink):
    """One connection. What goes over it keeps its order, as over TCP, and takes `delay()` seconds each way.

    `on_answer` hears what the helper answers, with the call's arguments, before it is on its way: from then on the
    client may know it; `on_sent` offset and data of each put_ciphertext; `on_arrival` what the helper is asked.
    """

    def __init__(self, clock: Clock, edge: Any, largest_message: int, choose: random.Random,
                 delay: Callable[[], float], on_answer: Callable[[str, tuple[Any, ...], WireAnswer], None],
                 on_sent: Callable[[int, bytes], None], on_arrival: Callable[[str], None]) -> None:
        super().__init__(clock, edge, largest_message=largest_message)
        self.delay = delay
        self._choose = choose
        self._on_answer = on_answer
        self._on_sent = on_sent
        self._on_arrival = on_arrival
        self._arrives = self._delivered = 0.0
        self._dead = False
        #: What happens to the next message: (fate, amount, what to call when it strikes); used up.
        self.armed: list[tuple[str, float, Callable[[], None]]] = []
        #: Bytes of ciphertext sent and not answered.
        self.unanswered = 0

    @property
    def dead(self) -> bool:
        """Whether nothing will ever arrive."""
        return self._cut or self._dead

    def vanish(self) -> None:
        """The client's process is gone."""
        self._cut = True
        self._waiting.clear()
        self._lost.clear()

    def cut(self) -> None:
        if not self._cut:
            super().cut()

    def _transmit(self, size: int, d: Deferred[HelperAnswer], method: str, arguments: tuple[Any, ...]) -> None:
        if method == "put_ciphertext":
            self.unanswered += len(arguments[2])
            self._on_sent(arguments[1], arguments[2])
        fate, amount = self._fate(method, ("lose request", "delay", "repeat", "garble finish", "other bytes"))
        if fate == "lose request":
            self._go_dead(amount)
        if self._dead:
            return
        delay = self.delay() + (amount if fate == "delay" else 0.0)
        now = self._clock.seconds()
        self._arrives = max(self._arrives, now + delay)
        if fate == "garble finish":
            arguments = (*arguments[:3], bytes(32), arguments[4])
        self._clock.callLater(self._arrives - now, self._arrive, d, method, arguments)
        if fate == "repeat":
            self._repeat(method, arguments)
        elif fate == "other bytes":
            upload_id, offset, data = arguments
            at = int(amount) % len(data)
            self._repeat(method, (upload_id, offset, data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]))

    def _repeat(self, method: str, arguments: tuple[Any, ...]) -> None:
        """The helper gets it once more, a little later: from a connection that it had lost, say."""
        edge = self._edge

        def again() -> None:
            if not (self._cut or self._dead):  # else the first may not have arrived, and other bytes would be the first
                getattr(edge, f"remote_{method}")(*arguments).addCallback(
                    lambda wire: self._on_answer(f"repeated {method}", arguments, wire))

        self._arrives += 0.001
        self._clock.callLater(self._arrives - self._clock.seconds(), again)

    def _arrive(self, d: Deferred[HelperAnswer], method: str, arguments: tuple[Any, ...]) -> None:
        if self._cut or self._dead:
            return

        self._on_arrival(method)

        def answered(wire: WireAnswer) -> None:
            self._on_answer(method, arguments, wire)
            if method == "put_ciphertext":
                self.unanswered -= len(arguments[2])
            self._transmit_answer(d, method, wire)

        getattr(self._edge, f"remote_{method}")(*arguments).addCallback(answered)

    def _transmit_answer(self, d: Deferred[HelperAnswer], method: str, wire: WireAnswer) -> None:
        fate, amount = self._fate(method, ("lose answer",))
        if fate == "lose answer":
            self._go_dead(amount)
        if self._dead:
            return
        now = self._clock.seconds()
        self._delivered = max(self._delivered, now + self.delay())
        self._clock.callLater(self._delivered - now, self._deliver, d, method, wire)

    def _go_dead(self, seconds: float) -> None:
        self._dead = True
        self._clock.callLater(seconds, self.cut)

    def _fate(self, method: str, possible: tuple[str, ...]) -> tuple[str, float]:
        for armed in self.armed:
            fate, amount, fired = armed
            fits = {"garble finish": method == "finish", "other bytes": method == "put_ciphertext"}.get(fate, True)
            if fate in possible and fits:
                self.armed.remove(armed)
                fired()
                return fate, amount
        return "", 0.0
