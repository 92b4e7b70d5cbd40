"""Is a file on the grid, whole? All servers are asked at once; a slow one has nothing.

"Whole" is what stock's helper means by healthy before an upload (allmydata.immutable.offloaded): every share is on
some server; and on enough of them for the upload that asks, as stock's checker counts (servers of happiness).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence

import attrs
from allmydata import uri
from allmydata.util.happinessutil import servers_of_happiness
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from helper.parameters import Parameters
from helper.sinks import ExistingShare, StorageServer

#: Shares of which the UEB is read; all must have the same.
UEBS_READ = 10


class Verdict(enum.Enum):
    """What was found of a file."""

    WHOLE = "whole"
    NOT_WHOLE = "not whole"  # for certain: servers that have not answered could not make it so
    UNKNOWN = "unknown"  # servers did not answer


@attrs.frozen
class Found:
    """`ueb` and `homes` (by share number, the IDs of the servers that have it) are those of a file that is whole."""

    verdict: Verdict
    ueb: bytes = b""
    homes: Mapping[int, frozenset[bytes]] = attrs.field(factory=dict)


def is_whole(homes: Mapping[int, Collection[bytes]], parameters: Parameters) -> bool:
    """Whether all N shares have a home, and those are on enough servers."""
    if any(not homes.get(shnum) for shnum in range(parameters.n)):
        return False
    return int(servers_of_happiness({shnum: set(servers) for shnum, servers in homes.items()})) >= parameters.happy


class FileSearch:
    """One search for the shares of one storage index. `begin` once; the result comes by `deadline` (of `clock`)."""

    def __init__(self, storage_index: bytes, parameters: Parameters, servers: Sequence[StorageServer],
                 clock: IReactorTime, deadline: float) -> None:
        self._storage_index = storage_index
        self._parameters = parameters
        self._servers = servers
        self._clock = clock
        self._deadline = deadline
        self._homes: dict[int, dict[bytes, ExistingShare]] = {}
        self._holders: set[bytes] = set()
        self._unanswered = 0
        self._failed = 0
        self._reading = self._over = False
        self._timer: IDelayedCall | None = None
        self._result: Deferred[Found] = Deferred()

    def begin(self) -> Deferred[Found]:
        """Ask all servers. Never fails."""
        left = max(0.0, self._deadline - self._clock.seconds())
        self._timer = self._clock.callLater(left, self._end, Found(Verdict.UNKNOWN))
        self._unanswered = len(self._servers)
        for server in self._servers:
            server.shares_of(self._storage_index).addCallbacks(
                self._answered, self._not_answered, callbackArgs=(server,))
        self._look()
        return self._result

    def give_up(self) -> None:
        """The result is not wanted any more, and there will be none, unless there is one."""
        self._over = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _answered(self, shares: Mapping[int, ExistingShare], server: StorageServer) -> None:
        self._unanswered -= 1
        for shnum, share in shares.items():
            if 0 <= shnum < self._parameters.n:  # others are of a file with another N
                self._homes.setdefault(shnum, {})[server.server_id] = share
                self._holders.add(server.server_id)
        self._look()

    def _not_answered(self, _failure: Failure) -> None:
        self._unanswered -= 1
        self._failed += 1
        self._look()

    def _look(self) -> None:
        """Whether the answers so far decide. Most files are not there: that is known long before the slowest server
        has said so."""
        if self._over or self._reading:
            return
        if len(self._holders) + self._unanswered < self._parameters.happy:
            enough_failed = len(self._holders) + self._unanswered + self._failed >= self._parameters.happy
            self._end(Found(Verdict.UNKNOWN if enough_failed else Verdict.NOT_WHOLE))
        elif is_whole(self._homes, self._parameters):
            self._reading = True
            self._read_uebs()
        elif not self._unanswered:
            self._end(Found(Verdict.UNKNOWN if self._failed else Verdict.NOT_WHOLE))

    def _read_uebs(self) -> None:
        """Of one share a server, and of as many shares as are read."""
        chosen: dict[bytes, ExistingShare] = {}
        for shnum in sorted(self._homes):
            server_id = next((s for s in self._homes[shnum] if s not in chosen), None)
            if server_id is not None and len(chosen) < UEBS_READ:
                chosen[server_id] = self._homes[shnum][server_id]
        DeferredList([share.read_ueb() for share in chosen.values()], consumeErrors=True).addCallback(self._read)

    def _read(self, results: list[tuple[bool, bytes]]) -> None:
        uebs = {ueb for succeeded, ueb in results if succeeded}
        homes = {shnum: frozenset(servers) for shnum, servers in self._homes.items()}
        if not all(succeeded for succeeded, _ueb in results):
            self._end(Found(Verdict.UNKNOWN))
            return
        ueb = uebs.pop()
        if uebs or not isinstance(ueb, bytes) or not _fits(ueb, self._parameters):
            self._end(Found(Verdict.NOT_WHOLE))
        else:
            self._end(Found(Verdict.WHOLE, ueb, homes))

    def _end(self, found: Found) -> None:
        if not self._over:
            self.give_up()
            self._result.callback(found)


def _fits(ueb: bytes, parameters: Parameters) -> bool:
    """Whether it is the UEB of a file with these k and N. The client looks closer."""
    try:
        fields = uri.unpack_extension(ueb)
        return (fields["needed_shares"], fields["total_shares"]) == (parameters.k, parameters.n)
    except (KeyError, ValueError, AssertionError, UnicodeDecodeError):
        return False
