"""Uploads of an earlier run of the helper: found in the ledger at once, their ciphertext read through one by one.

protocol.txt §11. Reading a spool through and hashing it again takes a while, so it is done in the background, and
at once for an upload that somebody asks for. Only what is shown to be damaged ends an upload here; ciphertext that
cannot be read now may well be read later.
"""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper import errors
from helper.disk import reason_of
from helper.errors import SpoolFailed
from helper.patient_reading import is_lost, retry_delay, why_unread
from helper.session import ENDED, State
from helper.spool import Spool, SpoolFile
from helper.upload import Services, Upload
from helper.upload_records import UploadRecord

T = TypeVar("T")

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
        #: Of those, why the last attempt to read them failed, without a path.
        self.unread_because: dict[Upload, str] = {}
        self._under_way: set[Upload] = set()  # also between two attempts
        self._tries: dict[Upload, int] = {}
        self._retries: dict[Upload, IDelayedCall] = {}
        self._broken: set[Upload] = set()  # left to a later run
        self._stopped = False

    def find(self, records: list[UploadRecord]) -> list[Upload]:
        """Every upload of the ledger, in the same order. Spool files of those that are over are removed; others that
        no upload needs are put aside."""
        files = set(self._spool.names())
        uploads = [self._found(record, record.name in files) for record in records]
        wanted, known = {upload.name for upload in self.waiting}, {record.name for record in records}
        strangers = sorted(files - wanted)
        for name in strangers:
            (self._spool.remove if name in known else self._spool.put_aside)(name)
        if unknown := [name for name in strangers if name not in known]:
            self.log.warn("put {count} spool files aside that no upload is known of", count=len(unknown))
        if removed := len(strangers) - len(unknown):
            self.log.info("removed {count} spool files that no upload needs", count=removed)
        return uploads

    def begin(self) -> None:
        """Read through what nobody has asked for yet, one upload after the other."""
        upload = next((u for u in self.waiting if u not in self._under_way), None)
        if upload is not None and not self._stopped:
            self._recover(upload).addBoth(self._go_on)

    def now(self, upload: Upload) -> Deferred[None]:
        """Fires when the upload can be asked. Fails with HelperStopping if that will not be in this run."""
        if upload not in self.waiting:
            return succeed(None)
        if upload in self._broken:
            return fail(errors.HelperStopping())
        d: Deferred[None] = Deferred()
        self.waiting[upload].append(d)
        if upload not in self._under_way:
            self._recover(upload)
        return d

    def stop(self) -> None:
        """Begin with nothing any more, and resume nothing; whoever waits need not wait any longer."""
        self._stopped = True
        for call in self._retries.values():
            call.cancel()
        self._retries.clear()
        for callers in self.waiting.values():
            _tell(callers)

    def _go_on(self, result: T) -> T:
        self.begin()
        return result

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

    def _recover(self, upload: Upload) -> Deferred[None]:
        """Fires when it is recovered, or will be tried again later."""
        self._under_way.add(upload)
        read = self._spool.recover(upload.name, upload.stored, upload.store_failed, upload.disk_full,
                                   upload.decided_size)
        recovered: Deferred[None] = read.addCallbacks(
            lambda spool_file: self._resume(upload, spool_file), lambda failure: self._not_read(upload, failure))
        return recovered.addErrback(lambda failure: self._leave(upload, failure))

    def _resume(self, upload: Upload, spool_file: SpoolFile) -> Deferred[None]:
        if self._stopped:
            return succeed(None)
        resumed = upload.resume(spool_file)
        resumed.addErrback(lambda _stopped: None)  # else it waits until that is recorded
        return resumed.addCallback(lambda _none: self._recovered(upload))

    def _not_read(self, upload: Upload, failure: Failure) -> None:
        if self._stopped:
            return  # the next run will find the same
        error = failure.value
        self._tries[upload] = tries = self._tries.get(upload, 0) + 1
        if isinstance(error, SpoolFailed) and is_lost(error, tries):
            upload.resume_without_spool(error, lambda: self._put_aside(upload.name))
            self._recovered(upload)
            return
        why, delay = why_unread(error), retry_delay(tries)
        self.log.error("the ciphertext of upload {upload} cannot be read: {why}; it will be tried again in {delay} s",
                       upload=upload.short, why=why, delay=round(delay))
        self.unread_because[upload] = why
        self._retries[upload] = self._services.clock.callLater(delay, self._try_again, upload)

    def _try_again(self, upload: Upload) -> None:
        del self._retries[upload]
        self._recover(upload)

    def _leave(self, upload: Upload, failure: Failure) -> None:
        """A bug. What was acknowledged is still there, for a helper without it."""
        self.log.failure("upload {upload} could not be resumed", failure, upload=upload.short)
        self._broken.add(upload)
        self.unread_because[upload] = reason_of(failure.value)
        callers, self.waiting[upload] = self.waiting[upload], []
        for d in callers:
            d.errback(errors.HelperStopping())
        upload.stop()

    def _put_aside(self, name: str) -> None:
        if name in self._spool.names():
            self._spool.put_aside(name)

    def _recovered(self, upload: Upload) -> None:
        self._under_way.discard(upload)
        self._tries.pop(upload, None)
        self.unread_because.pop(upload, None)
        _tell(self.waiting.pop(upload))


def _tell(callers: list[Deferred[None]]) -> None:
    told = callers.copy()
    callers.clear()
    for d in told:
        d.callback(None)
