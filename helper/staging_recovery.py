"""What a staging server finds at its start: protocol.txt §17.

What can be there of an assignment that was cut is said in staging_publisher.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs
from twisted.logger import Logger

from helper.interfaces import STORAGE_INDEX_SIZE
from helper.layout import DATA_OFFSET
from helper.staged_share import CONTAINER_HEADER, SETTLED, Means, Outcome, StagedShare
from helper.staging_publisher import Publisher
from helper.staging_records import StagedRecord, StagedState, StagingRecords, remove, update


@attrs.frozen
class Recovered:
    """The shares that are still staged, and what has become of those that were being assigned."""

    shares: list[StagedShare]
    outcomes: list[Outcome]


class Recovery:
    """Makes files and records agree, before there are any calls. `directory` is storage/staging."""

    log = Logger()

    def __init__(self, directory: Path, records: StagingRecords, publisher: Publisher, means: Means) -> None:
        self._directory = directory
        self._records = records
        self._publisher = publisher
        self._means = means
        self._outcomes: list[Outcome] = []

    def run(self) -> Recovered:
        """Blocks, for a few syncs of every share that was being assigned.

        Raises OSError and sqlite3.Error.
        """
        found = [self._recover(record) for record in self._records.all()]
        shares = [share for share in found if share is not None]
        self._remove_strangers({share.path for share in shares})
        return Recovered(shares, self._outcomes)

    def _recover(self, record: StagedRecord) -> StagedShare | None:
        share = StagedShare(self._directory / record.name / str(record.shnum), record, self._means)
        if not share.path.exists():
            # Removed, or published: a share being assigned loses its staged name last.
            if record.state is StagedState.ASSIGNING:
                self._outcomes.append(Outcome.ASSIGNED)
            self._forget(share)
            return None
        there = share.path.stat().st_size - CONTAINER_HEADER
        if share.synced > max(there, DATA_OFFSET):
            self.log.error("a staged share has {there} bytes, {synced} were synced: removed",
                           there=there, synced=share.synced)
            self._forget(share)
            return None
        if record.state is StagedState.ASSIGNING:
            outcome = self._complete(share, record.storage_index)
            self._outcomes.append(outcome)
            if outcome in SETTLED:
                self._forget(share)
                return None
            share.end_assignment(outcome)
            self._records.apply([update(share.record())])
        return share

    def _forget(self, share: StagedShare) -> None:
        self._records.apply([remove(share.name, share.shnum)])

    def _complete(self, share: StagedShare, storage_index: bytes | None) -> Outcome:
        if storage_index is None or len(storage_index) != STORAGE_INDEX_SIZE:
            return Outcome.FAILED
        outcome = self._publisher.place(share, storage_index)
        if outcome in SETTLED:
            try:
                self._publisher.settle([share], storage_index)
            except OSError:
                self.log.failure("a decided share could not be published")
                return self._publisher.take_back(share, storage_index)
        return outcome

    def _remove_strangers(self, known: set[Path]) -> None:
        """Files without a record: made, but never acknowledged; or published, and their staged name came back."""
        for directory in self._directory.iterdir():
            if not re.fullmatch(r"[a-z2-7]{52}", directory.name) or directory.is_symlink():
                continue  # nothing of ours, nor is what a link leads to
            try:
                for path in {*directory.iterdir()} - known:
                    self._means.disk.unlink(path)
                if not any(directory.iterdir()):
                    self._means.disk.remove_directory(directory)
            except OSError:  # they are in nobody's way
                self.log.failure("what nobody needs could not be removed")
