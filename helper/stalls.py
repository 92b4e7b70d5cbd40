"""Looks whether the storage servers of one upload answer in time: protocol.txt §8.6."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from helper.patience import Patience, StallRule
from helper.shares import Share
from helper.sinks import StorageServer

#: Servers that do not answer are looked for this often; seconds.
STALL_INTERVAL = 1.0
#: As if it were a call: that other writes to a server are answered, so that there is room for more (in_flight.py).
ROOM = "room"


class StallWatch:
    """Told of every call for a share and of every answer; calls `on_stalled` with a share whose server has not
    answered in time, and whether the server is `needed`: then again, when it has been waited for long enough.

    `answers` says how often a server (ID) has answered any upload: who waits for room there waits for all of them.
    `stalled` are the servers (IDs) that have not answered since they were found so.
    """

    log = Logger()

    def __init__(self, shares: Sequence[Share], patience: Patience, clock: IReactorTime,
                 answers: Callable[[bytes], int], needed: Callable[[StorageServer], bool],
                 on_stalled: Callable[[Share, bool], None]) -> None:
        self._shares = shares
        self._patience = patience
        self._rule = StallRule(patience.stall)
        self._clock = clock
        self._answers = answers
        self._answered_before: dict[Share, int] = {}  # answers of the server of each share that waits for room
        self._needed = needed
        self._on_stalled = on_stalled
        self._call: IDelayedCall | None = None
        self._looked = 0.0
        self._stopped = False
        self.stalled: set[bytes] = set()

    def asked(self, share: Share, kind: str) -> None:
        """A call for the share was made."""
        share.unanswered.append((kind, self._clock.seconds()))
        if self._call is None and not self._stopped:
            self._looked = self._clock.seconds()
            self._call = self._clock.callLater(STALL_INTERVAL, self._look)

    def answered(self, share: Share) -> None:
        """The oldest call for the share was answered."""
        share.waited = 0.0
        if share.unanswered and share.server is not None:
            self.stalled.discard(share.server.server_id)
            kind, when = share.unanswered.popleft()
            self._rule.finished(kind, share.server.server_id, self._clock.seconds() - when)

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _look(self) -> None:
        now = self._clock.seconds()
        elapsed = min(max(0.0, now - self._looked), 2 * STALL_INTERVAL)  # clocks jump
        self._looked = now
        self._call = None
        waiting = [s for s in self._shares if s.unanswered and s.server is not None]
        if not waiting or self._stopped:
            return
        self._call = self._clock.callLater(STALL_INTERVAL, self._look)
        before, self._answered_before = self._answered_before, {
            share: self._answers(share.server.server_id) for share in waiting
            if share.server is not None and share.unanswered[0][0] == ROOM}
        for share in waiting:
            alive = before.get(share) != self._answered_before.get(share)
            share.waited = 0.0 if alive else share.waited + elapsed
            if share.server is not None and share.unanswered:  # else it has moved, for another that was given up
                self._judge(share, share.server)

    def _judge(self, share: Share, server: StorageServer) -> None:
        patience = self._rule.patience(share.unanswered[0][0], server.server_id)
        if share.waited <= patience:
            return
        if not self._needed(server) or share.waited > max(patience, self._patience.needed):
            self.log.info("storage server {server} has not answered for {seconds} s",
                          server=server.name, seconds=int(share.waited))
            self._on_stalled(share, False)
        elif server.server_id not in self.stalled:
            self._on_stalled(share, True)
