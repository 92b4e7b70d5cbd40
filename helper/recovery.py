"""Uploads of an earlier run of the helper: found in the ledger at once, their ciphertext read through one by one.

protocol.txt §11. Reading a spool through and hashing it again takes a while, so it is done in the background, and
at once for an upload that somebody asks for.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper import errors
from helper.session import ENDED, State
from helper.spool import Spool, SpoolFile
from helper.upload import Services, Upload
from helper.upload_records import UploadRecord

#: So many times the sweep interval an upload lives at least after a start, however long ago somebody called for it:
#: its client may be about to come back.
GRACE = 6

_ENDED = frozenset(state.value for state in ENDED)


class Recovery:
    """Brings uploads of the ledger back. `waiting`: those whose ciphertext has not been read through yet."""

    log = Logger()

    def __init__(self, spool: Spool, services: Services) -> None:
        self._spool = spool
        self._services = services
        self.waiting: dict[Upload, list[Deferred[None]]] = {}
        self._under_way: set[Upload] = set()
        self._stopped = False

    def find(self, records: list[UploadRecord]) -> list[Upload]:
        """Every upload of the ledger, in the same order. Spool files that none needs are removed."""
        files = set(self._spool.names())
        uploads = [self._found(record, record.name in files) for record in records]
        wanted = {upload.name for upload in self.waiting}
        strangers = [name for name in sorted(files) if name not in wanted]
        for name in strangers:
            self._spool.remove(name)
        if strangers:
            self.log.info("removed {count} spool files that no upload needs", count=len(strangers))
        return uploads

    def begin(self) -> None:
        """Read through what nobody has asked for yet, one upload after the other."""
        upload = next((u for u in self.waiting if u not in self._under_way), None)
        if upload is not None and not self._stopped:
            self._recover(upload, self.begin)

    def now(self, upload: Upload) -> Deferred[None]:
        """Fires when the upload can be asked."""
        if upload not in self.waiting:
            return succeed(None)
        d: Deferred[None] = Deferred()
        self.waiting[upload].append(d)
        if upload not in self._under_way:
            self._recover(upload, lambda: None)
        return d

    def stop(self) -> None:
        """Begin with nothing any more, and resume nothing; whoever waits need not wait any longer."""
        self._stopped = True
        for callers in self.waiting.values():
            _tell(callers)

    def _found(self, record: UploadRecord, has_file: bool) -> Upload:
        upload = Upload(record, self._services)
        age = max(0.0, self._services.uptime.seconds - record.wanted_at)
        over = record.state in _ENDED or record.state == State.FINISHED.value
        settings = self._services.settings
        limit = settings.idle_expiry if has_file or record.finish is not None else settings.empty_expiry
        most = max(0.0, limit - GRACE * settings.sweep_interval)
        upload.idle, upload.over_for = (0.0, age) if over else (min(age, most), 0.0)
        if record.state in _ENDED or (over and not has_file):
            upload.resume_without_spool(record.error)
        else:
            self.waiting[upload] = []
            stored = self._spool.size_of(record.name) if has_file else 0
            self._services.room.resume(record.name, record.parameters.size, stored)
        return upload

    def _recover(self, upload: Upload, then: Callable[[], None]) -> None:
        self._under_way.add(upload)
        d = self._spool.recover(upload.name, upload.stored, upload.store_failed, upload.disk_full,
                                upload.decided_size)
        d.addCallback(lambda spool_file: self._read_through(upload, spool_file))
        d.addErrback(lambda failure: self._damaged(upload, failure))
        d.addCallback(lambda _none: self._recovered(upload))
        d.addCallback(lambda _none: then())

    def _read_through(self, upload: Upload, spool_file: SpoolFile) -> Deferred[None]:
        if self._stopped:
            return succeed(None)
        return upload.resume(spool_file).addErrback(lambda _stopped: None)  # else it waits until that is recorded

    def _damaged(self, upload: Upload, failure: Failure) -> None:
        if self._stopped:
            return  # the next run will find the same
        error = errors.fault_of(failure.value)
        if not isinstance(failure.value, errors.StreamingError):
            self.log.failure("upload {upload} could not be resumed", failure, upload=upload.short)
        upload.resume_without_spool(error, lambda: self._remove(upload.name))

    def _remove(self, name: str) -> None:
        if name in self._spool.names():
            self._spool.remove(name)

    def _recovered(self, upload: Upload) -> None:
        self._under_way.discard(upload)
        _tell(self.waiting.pop(upload))


def _tell(callers: list[Deferred[None]]) -> None:
    told = callers.copy()
    callers.clear()
    for d in told:
        d.callback(None)
