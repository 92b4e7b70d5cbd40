"""How prepared shares become ordinary ones: protocol.txt §16.6.

What is on disk at each moment, so that neither a kill nor a loss of power loses a share or publishes half of
one. A step begins when the one before is durable:

    1. the record says ASSIGNING, with the storage index     (lost before: still prepared, nobody was told)
    2. link(staged name, place)                              (lost: start-up does it again)
    3. fsync of the directories on the way to the place,
       all at the same time                                  (lost: as 2)
    4. unlink(staged name); not synced                       (lost: start-up finds both names, and does it again;
                                                              after 5 the staged name is a stranger, and removed)
    5. the answer is given, while the record is removed      (lost: start-up removes it)

So a record that says ASSIGNING without a staged file means that 3 has happened.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allmydata.interfaces import NoSpace
from allmydata.storage.common import UnknownImmutableContainerVersionError, storage_index_to_dir
from allmydata.storage.immutable import ShareFile
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper.all_done import all_done
from helper.staged_share import SETTLED, Means, Outcome, StagedShare
from helper.staging_errors import reason_of
from helper.staging_records import remove, update


class Publisher:
    """Gives staged shares their places beside the stock StorageServer `stock`."""

    log = Logger()

    def __init__(self, stock: Any, means: Means) -> None:
        self._stock = stock
        self._disk = means.disk
        self._run_in_thread = means.run_in_thread
        self._commit = means.commit

    async def publish(self, shares: Sequence[StagedShare], storage_index: bytes) -> dict[int, Outcome]:
        """{share number: outcome} of prepared shares of one staging; each for itself."""
        try:
            await self._commit(*(share.begin_assignment(storage_index) for share in shares))
        except sqlite3.Error as error:
            self._report(error)
            return {share.shnum: Outcome.FAILED for share in shares}
        # One turn of the reactor, in which no stock call comes between a check and its link.
        outcomes = {share.shnum: self.place(share, storage_index) for share in shares}
        settled = [share for share in shares if outcomes[share.shnum] in SETTLED]
        if settled:
            try:
                await all_done([self._run_in_thread(self._disk.fsync_directory, directory)
                                for directory in self._way_to(storage_index)])
                await self._run_in_thread(self._remove_staged_names, settled)
            except OSError as error:
                self._report(error)
                outcomes |= {share.shnum: self.take_back(share, storage_index) for share in settled}
        recorded = self._record(shares, outcomes)
        if any(outcome not in SETTLED for outcome in outcomes.values()):
            await recorded  # what is prepared again may be assigned to another index, or aborted
        return outcomes

    def _record(self, shares: Sequence[StagedShare], outcomes: dict[int, Outcome]) -> Deferred[None]:
        """Fires also if it could not be recorded. The outcomes stand: a restart would find the decision, and complete
        it once more."""
        recorded = self._commit(*(
            remove(share.name, share.shnum) if outcomes[share.shnum] in SETTLED else update(share.prepared_record())
            for share in shares))

        def failed(failure: Failure) -> None:
            failure.trap(sqlite3.Error)
            self._report(failure.value)

        return recorded.addErrback(failed)

    def place(self, share: StagedShare, storage_index: bytes) -> Outcome:
        """Link the file to its place, if that is free. Never raises OSError."""
        final = self._place_of(share, storage_index)
        try:
            if final.exists():
                # the same file: an earlier try got so far
                return Outcome.ASSIGNED if final.samefile(share.path) else self._already_there(share, final)
            if self._is_open(share, storage_index):
                return Outcome.BUSY
            self._disk.make_directory(final.parent)
            self._disk.link(share.path, final)
        except FileExistsError:
            return self._already_there(share, final)
        except OSError as error:
            self._report(error)
            return Outcome.FAILED
        return Outcome.ASSIGNED

    def _already_there(self, share: StagedShare, final: Path) -> Outcome:
        """The share that is there gets the lease of the staged one, or has it renewed, as when stock is asked to
        allocate it. After a restart of the node the lease is not known, until `prepare` is repeated."""
        space = self._stock.get_available_space()
        try:
            if share.lease is not None:
                ShareFile(str(final)).add_or_renew_lease(2**63 if space is None else space, share.lease)
        except (NoSpace, OSError) as error:
            self._report(error)
            return Outcome.FAILED
        except (UnknownImmutableContainerVersionError, struct.error):
            self.log.warn("a share that is there already is damaged")  # no lease would be of use
        return Outcome.ALREADY_THERE

    def settle(self, shares: Sequence[StagedShare], storage_index: bytes) -> None:
        """What is in its place shall stay there, and its staged name go. Blocks; OSError before anything went."""
        for directory in self._way_to(storage_index):
            self._disk.fsync_directory(directory)
        self._remove_staged_names(shares)

    def _way_to(self, storage_index: bytes) -> list[Path]:
        """The directories in which a name may be new when a share comes to its place."""
        place = Path(self._stock.sharedir, storage_index_to_dir(storage_index))
        return [place, place.parent, place.parent.parent]

    def _remove_staged_names(self, shares: Sequence[StagedShare]) -> None:
        for share in shares:
            try:
                self._disk.unlink(share.path)
            except OSError as error:  # without a record it goes at the next start
                self._report(error)

    def take_back(self, share: StagedShare, storage_index: bytes) -> Outcome:
        """Its place could not be made durable: it must not be there while the staged one may go elsewhere."""
        final = self._place_of(share, storage_index)
        try:
            if final.exists() and final.samefile(share.path):
                self._disk.unlink(final)
        except OSError as error:
            self._report(error)
        return Outcome.FAILED

    def _place_of(self, share: StagedShare, storage_index: bytes) -> Path:
        return Path(self._stock.sharedir, storage_index_to_dir(storage_index), str(share.shnum))

    def _is_open(self, share: StagedShare, storage_index: bytes) -> bool:
        """Whether a stock writer has the share open: its close would rename over ours.

        The writers in memory are asked, not the files in shares/incoming: only a writer renames, and it is in
        this dictionary from the call that made its file to the one that renamed or removed it. A file alone
        may be left over from an allocation that failed after creating it, and would be in the way until the
        node restarts; or be gone under a writer.
        """
        incoming = os.path.join(self._stock.incomingdir, storage_index_to_dir(storage_index), str(share.shnum))
        return incoming in self._stock._bucket_writers

    def _report(self, error: BaseException | None) -> None:
        self.log.error("shares could not be published: {reason}", reason=reason_of(error))
