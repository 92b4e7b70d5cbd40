"""What the log says of pauses of an upload: one line when it waits, with the reason, and one when it goes on."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

SERVERS, ROOM = "servers", "room"
#: An upload that sends faster than servers take waits for them all the time, and gets on. It is no pause before
#: nothing has become durable for so long; seconds.
SERVERS_PATIENCE = 5.0


class Pauses:
    """The pauses of the upload `short`. `describe` says in words, with numbers, what it waits for now."""

    log = Logger()

    def __init__(self, short: str, clock: IReactorTime, describe: Callable[[], str]) -> None:
        self._short = short
        self._clock = clock
        self._describe = describe
        self._since: float | None = None
        self._told = False
        self._call: IDelayedCall | None = None

    def waits(self, what_for: str) -> None:
        """The upload waits now, for what Upload.waits_for says; may be told again and again."""
        if self._since is None:
            self._since = self._clock.seconds()
        if self._told:
            return
        if what_for != SERVERS:
            self._tell()
        elif self._call is None:
            self._call = self._clock.callLater(SERVERS_PATIENCE, self._tell)

    def got_on(self, waits_for: str) -> None:
        """More has become durable, and this is what the upload still waits for."""
        if waits_for in ("", SERVERS):
            if self._told and self._since is not None:
                self.log.info("upload {upload} goes on after {seconds} s", upload=self._short,
                              seconds=max(0, round(self._clock.seconds() - self._since)))
            self.end()
        if waits_for:
            self.waits(waits_for)

    @property
    def seconds(self) -> float:
        """For how long it has waited, or not got on; 0 if it does not wait."""
        return 0.0 if self._since is None else self._clock.seconds() - self._since

    def end(self) -> None:
        """Nothing waits any more, and nothing went on: the upload or the helper ends."""
        self._since, self._told = None, False
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def _tell(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        self._told = True
        self.log.warn("upload {upload} waits for {what}", upload=self._short, what=self._describe())
