"""Files that are stored already: found for an upload, offered to its client, taken instead of it. protocol.txt §4.8.

The decision is the client's, which alone can tell whether a file is the same. What is answered here is only where
it might be: nothing is believed that a client could not check.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime

from helper import errors
from helper.dedup_records import SealedRecord
from helper.dedup_search import FileSearch, Found, Verdict, is_whole
from helper.dedup_store import SealedRecords
from helper.interfaces import RECORD_MAX
from helper.parameters import Parameters
from helper.sinks import Grid, StorageServer
from helper.upload import Answered, Upload

#: Searches of all uploads that go on at a time. Others wait; whoever waits too long is told that nothing was found.
SEARCHES_MAX = 8
#: Searches that one upload may have: the client's, and repeats when a connection was lost.
SEARCHES_EACH = 4


@attrs.frozen
class Offer:
    """A file that an upload's client may take instead. `homes` are None if this helper is still placing its last
    shares: they have leases. `convergent_index`: under which its sealed record is filed, if it has one."""

    homes: Mapping[int, frozenset[bytes]] | None
    convergent_index: bytes | None


@attrs.define
class _Asked:
    searches: int = 0
    offers: dict[bytes, Offer] = attrs.field(factory=dict)  # by storage index


class Deduplication:
    """`being_placed` gives the UEB of a finished upload of this helper, by its storage index, while its last shares
    are being placed. `patience`: seconds that a search takes at most, and leases. `count` adds to a counter."""

    def __init__(self, grid: Grid, records: SealedRecords, clock: IReactorTime, patience: float,
                 being_placed: Callable[[bytes], bytes | None], count: Callable[[str, int], None]) -> None:
        self.records = records
        self._grid = grid
        self._clock = clock
        self._patience = patience
        self._being_placed = being_placed
        self._count = count
        self._searching = DeferredSemaphore(SEARCHES_MAX)
        self._asked: WeakKeyDictionary[Upload, _Asked] = WeakKeyDictionary()

    async def look_up(self, upload: Upload, convergent_index: bytes) -> Answered:
        """The answer of §4.8."""
        asked = self._asked.setdefault(upload, _Asked())
        asked.offers.clear()
        if asked.searches >= SEARCHES_EACH:
            return Answered({"records": 0})
        asked.searches += 1
        self._count("looked_up", 1)
        deadline = self._clock.seconds() + self._patience
        try:
            await self._searching.acquire().addTimeout(self._patience, self._clock)
        except (TimedOut, CancelledError):
            return Answered({"records": 0})
        try:
            return await self._search(upload.session.parameters, convergent_index, deadline, asked.offers)
        finally:
            self._searching.release()

    async def keep(self, upload: Upload, storage_index: bytes) -> None:
        """Renew the leases of a file that was offered to `upload`. Raises NotOffered if it was not, or if enough
        servers do not say that they did."""
        asked = self._asked.get(upload)
        offer = None if asked is None else asked.offers.get(storage_index)
        if offer is None:
            raise errors.NotOffered()
        if offer.homes is not None:
            leased = await self._lease(storage_index, frozenset().union(*offer.homes.values()))
            homes = {shnum: servers & leased for shnum, servers in offer.homes.items()}
            if not is_whole(homes, upload.session.parameters):
                raise errors.NotOffered()

    def taken(self, upload: Upload, storage_index: bytes) -> None:
        """The client took a file that was offered: its record is good for longer."""
        asked = self._asked.pop(upload, None)
        offer = None if asked is None else asked.offers.get(storage_index)
        if offer is None:
            return  # said before
        if offer.convergent_index is None:
            self._count("deduplicated_existing", 1)
        else:
            self._count("deduplicated_streamed_before", 1)
            self.records.renew(offer.convergent_index, storage_index)

    async def leave(self, convergent_index: bytes, storage_index: bytes, record: bytes) -> None:
        """File a record of the finished upload with this storage index. Returns when it is durable."""
        if not 0 < len(record) <= RECORD_MAX:
            raise errors.BadArgument("record", f"1 to {RECORD_MAX} bytes", f"{len(record)} bytes")
        await self.records.file(convergent_index, SealedRecord(storage_index, record))
        self._count("records_left", 1)

    def sweep(self) -> None:
        """Forget what nobody can ask for any more."""
        for upload in [upload for upload in self._asked if upload.over]:
            del self._asked[upload]
        self.records.remove_expired()

    # -- searching -------------------------------------------------------------------------------------------

    async def _search(self, parameters: Parameters, convergent_index: bytes, deadline: float,
                      offers: dict[bytes, Offer]) -> Answered:
        servers = self._grid.readable_servers()
        searches: list[FileSearch] = []

        def begin(storage_index: bytes) -> Found | Deferred[Found]:
            ueb = self._being_placed(storage_index)
            if ueb is not None:
                return Found(Verdict.WHOLE, ueb)
            searches.append(FileSearch(storage_index, parameters, servers, self._clock, deadline))
            return searches[-1].begin()

        try:
            convergent = begin(convergent_index)
            records = await self._records_of(convergent_index, deadline)
            streamed = [(record, begin(record.storage_index)) for record in records]
            found = await _result(convergent)
            if found.verdict is Verdict.WHOLE:
                offers[convergent_index] = Offer(found.homes or None, None)
                return Answered({"ueb": found.ueb, "records": 0})
            return Answered(await self._good_ones(convergent_index, streamed, offers))
        finally:
            for search in searches:
                search.give_up()

    async def _good_ones(self, convergent_index: bytes, streamed: list[tuple[SealedRecord, Found | Deferred[Found]]],
                         offers: dict[bytes, Offer]) -> dict[str, int | str | bytes]:
        """The records whose files are whole; those whose files are not are removed."""
        fields: dict[str, int | str | bytes] = {}
        number = 0
        for record, search in streamed:
            found = await _result(search)
            if found.verdict is Verdict.NOT_WHOLE:
                self.records.remove(convergent_index, record.storage_index)
            elif found.verdict is Verdict.WHOLE:
                number += 1
                offers[record.storage_index] = Offer(found.homes or None, convergent_index)
                fields |= {f"storage-index-{number}": record.storage_index, f"record-{number}": record.record,
                           f"ueb-{number}": found.ueb}
        return {"records": number, **fields}

    async def _records_of(self, convergent_index: bytes, deadline: float) -> list[SealedRecord]:
        """A disk that is slow, or has failed, has none."""
        looking = Deferred.fromCoroutine(self.records.find(convergent_index))
        try:
            return await looking.addTimeout(max(0.0, deadline - self._clock.seconds()), self._clock)
        except (TimedOut, CancelledError, sqlite3.Error):
            return []

    async def _lease(self, storage_index: bytes, server_ids: frozenset[bytes]) -> frozenset[bytes]:
        """IDs of those that have renewed it in time."""
        leased: set[bytes] = set()

        async def lease(server: StorageServer) -> None:
            await server.add_lease(storage_index)
            leased.add(server.server_id)

        leases = [Deferred.fromCoroutine(lease(server)).addTimeout(self._patience, self._clock)
                  for server in self._grid.readable_servers() if server.server_id in server_ids]
        await DeferredList(leases, consumeErrors=True)
        return frozenset(leased)


async def _result(search: Found | Deferred[Found]) -> Found:
    return search if isinstance(search, Found) else await search
