"""Reading the spool of an upload that has begun: what the disk cannot do now it may do later (protocol.txt §8.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from helper.disk import reason_of
from helper.errors import SpoolFailed
from helper.spool_file import RunInThread, SpoolUnreadable, not_accessible
from helper.spool_records import SpoolDamaged

#: What could not be read is tried again after so many seconds, then after twice as many, and so on, up to the most.
RETRY_FIRST = 5.0
RETRY_MOST = 300.0
#: A disk that says so often that it cannot read a file will not do better. Lack of descriptors or memory, permissions,
#: and whatever else is not the file's fault may last for longer.
UNREADABLE_TRIES = 5


def retry_delay(tries: int) -> float:
    """Seconds until the next attempt after so many."""
    return min(RETRY_MOST, RETRY_FIRST * float(2 ** min(tries - 1, 10)))


def is_lost(error: BaseException | None, tries: int) -> bool:
    """Whether ciphertext will never be read, as the last of so many attempts has failed with `error`."""
    return isinstance(error, SpoolDamaged) or (isinstance(error, SpoolUnreadable) and tries >= UNREADABLE_TRIES)


def why_unread(error: BaseException | None) -> str:
    """For people, without a path."""
    return error.reason if isinstance(error, SpoolFailed) else reason_of(error)


class PatientReading:
    """Runs functions that read the spool, before they do anything else, as `run_in_thread` does; and again, later, if
    that fails and is no damage. `on_change` is called when `waits_for` changes."""

    def __init__(self, run_in_thread: RunInThread, clock: IReactorTime, on_change: Callable[[], None]) -> None:
        self._run_in_thread = run_in_thread
        self._clock = clock
        self._on_change = on_change
        self._waiting: dict[IDelayedCall, tuple[Deferred[Any], Failure]] = {}
        self._stopped = False
        #: Why something has to be read again; empty if nothing has.
        self.waits_for = ""

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self._try(done, 1, function, *arguments)
        return done

    def stop(self) -> None:
        """Try nothing again; what waits fails as it did the last time."""
        self._stopped = True
        waiting, self._waiting = self._waiting, {}
        for call, (done, failure) in waiting.items():
            call.cancel()
            done.errback(failure)

    def _try(self, done: Deferred[Any], tries: int, function: Callable[..., Any], *arguments: Any) -> None:
        def failed(failure: Failure) -> None:
            if isinstance(failure.value, OSError):
                failure = Failure(not_accessible(failure.value))
            if self._stopped or not failure.check(SpoolFailed) or is_lost(failure.value, tries):
                done.errback(failure)
                return
            call = self._clock.callLater(retry_delay(tries), again)
            self._waiting[call] = done, failure
            waiting_call.append(call)
            self._says(why_unread(failure.value))

        def again() -> None:
            del self._waiting[waiting_call[0]]
            if not self._waiting:
                self._says("")
            self._try(done, tries + 1, function, *arguments)

        waiting_call: list[IDelayedCall] = []
        self._run_in_thread(function, *arguments).addCallbacks(done.callback, failed)

    def _says(self, waits_for: str) -> None:
        if waits_for != self.waits_for:
            self.waits_for = waits_for
            self._on_change()
