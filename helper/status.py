"""What a helper shows of itself: a snapshot of its uploads, spool and servers, as JSON and as statistics.

Nothing in it is secret: an upload is named by the first letters of the hash of its upload ID, and neither storage
indexes nor what errors say beside their code are in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import attrs

from helper.room import RoomStatus
from helper.session import ENDED, State
from helper.shares import ShareState, ShareStatus
from helper.upload import Upload
from helper.uploads import Uploads

#: Of `waits_for`, besides what Upload.waits_for says: an upload of an earlier run whose ciphertext is not read yet; a
#: colon and a reason follow if that was tried.
NOT_READ_YET = "not read yet"
#: Uploads in progress that are listed; of more, those that wait, then the oldest.
LIVE_MAX = 1000
#: Uploads that have ended are listed for so long (seconds; the sweeper counts it), and no more than so many.
ENDED_SHOWN_FOR = 3600
ENDED_MAX = 100
#: And no more of either than may have so many shares: a page is made in one turn of the reactor, and 10,000 take 0.2 s.
SHARES_MAX = 10_000

#: Grows when a field of the JSON is renamed, removed or changes its meaning; not when one is added.
JSON_FORMAT = 1


@attrs.frozen
class UploadStatus:
    """One upload. Sizes in bytes, durations in seconds.

    `received`, `durable` and `pushed` are None while they are not known (NOT_READ_YET); `pushed` is the position of
    the share that completes the answer rule (protocol.txt §6.4). `spooled`: bytes of ciphertext kept for it.
    `waits_for` as in protocol.txt §4.3. `idle`: since the last call for it. `error`: why it ended without a result.
    """

    upload: str
    state: str
    size: int | None
    received: int | None
    durable: int | None
    pushed: int | None
    spooled: int
    waits_for: str
    idle: int
    open: int
    error: str | None
    shares: tuple[ShareStatus, ...]


@attrs.frozen
class HelperStatus:
    """A helper at one moment. `states` counts all uploads, those that are not listed included; `on_disk` is what the
    spool's files take, `servers` those that could take a share now. `not_recording`: why nothing can be recorded."""

    uploads: tuple[UploadStatus, ...]
    not_listed: int
    states: dict[str, int]
    waiting: dict[str, int]
    room: RoomStatus
    on_disk: int
    servers: int
    staging_servers: int
    not_recording: str = ""


def snapshot(uploads: Uploads, live_max: int = LIVE_MAX, ended_max: int = ENDED_MAX) -> HelperStatus:
    """The helper as it is now; no more than so many uploads in progress, and that have ended, are listed."""
    live = [u for u in uploads.known if not u.over or uploads.room.stored(u.name)]
    ended = [u for u in uploads.known if u.over and not uploads.room.stored(u.name)
             and u.over_for <= ENDED_SHOWN_FOR]
    ended.reverse()
    ended.sort(key=lambda u: u.over_for)
    listed = _first(sorted(live, key=lambda u: not u.waits_for), live_max) + _first(ended, ended_max)
    servers = uploads.grid.servers_for(bytes(16))
    return HelperStatus(
        tuple(_upload(upload, uploads) for upload in listed), len(live) + len(ended) - len(listed),
        _states(uploads), _waiting(uploads), uploads.room.status(), uploads.spool_on_disk,
        len(servers), sum(server.stages for server in servers), uploads.not_recording)


def _first(uploads: list[Upload], most: int) -> list[Upload]:
    """As many as may be listed."""
    shares = accumulate(upload.session.parameters.n for upload in uploads)
    return [upload for upload, so_far in zip(uploads[:most], shares, strict=False) if so_far <= SHARES_MAX]


def _upload(upload: Upload, uploads: Uploads) -> UploadStatus:
    session, now = upload.session, uploads.clock.seconds()
    unread = upload in uploads.unread
    return UploadStatus(
        upload=upload.short,
        state=_state(upload, uploads).value,
        size=session.parameters.size if unread or session.finish is None else session.finish.size,
        received=None if unread else session.received,
        durable=None if unread else session.durable,
        pushed=None if unread else session.pushed,
        spooled=uploads.room.stored(upload.name),
        waits_for=_unread_because(upload, uploads) if unread else upload.waits_for,
        idle=max(0, int(now - upload.asked_at)),
        open=max(0, int(now - upload.opened_at)),
        error=None if session.error is None or session.state is State.DEDUPLICATED else session.error.code,
        shares=tuple(upload.status().shares))


def _unread_because(upload: Upload, uploads: Uploads) -> str:
    why = uploads.unread_because(upload)
    return f"{NOT_READ_YET}: {why}" if why else NOT_READ_YET


def _state(upload: Upload, uploads: Uploads) -> State:
    return upload.recorded_state if upload in uploads.unread else upload.session.state


def _states(uploads: Uploads) -> dict[str, int]:
    counts = Counter(_state(upload, uploads) for upload in uploads.known)
    return {state.value: counts[state] for state in State}


def _waiting(uploads: Uploads) -> dict[str, int]:
    """How many uploads wait for what."""
    counts = Counter(upload.waits_for.split(":")[0] for upload in uploads.known if not upload.over)
    return {**{what: counts[what] for what in ("servers", "room", "disk")}, NOT_READ_YET: len(uploads.unread)}


def statistics(uploads: Uploads) -> dict[str, int]:
    """For the node's statistics (allmydata.interfaces.IStatsProducer)."""
    room = uploads.room.status()
    waiting = {f"waiting_for_{what}": count for what, count in _waiting(uploads).items() if what != NOT_READ_YET}
    values = {
        **{f"uploads_{state}": count for state, count in _states(uploads).items()},
        **waiting, "waiting": sum(waiting.values()), "not_read_yet": len(uploads.unread),
        "spool_stored": room.stored, "spool_reserved": room.reserved, "spool_on_disk": uploads.spool_on_disk}
    return {**uploads.get_stats(), **{f"streaming_helper.{name}": value for name, value in values.items()}}


def still_placing(upload: UploadStatus) -> bool:
    """Whether the result is known, and the last shares are still on their way."""
    return upload.state == State.FINISHED.value and upload.spooled > 0


def in_progress(upload: UploadStatus) -> bool:
    """Whether something is still to be done for the upload."""
    return State(upload.state) not in ENDED | {State.FINISHED} or upload.spooled > 0


def placed(upload: UploadStatus) -> int:
    """How many shares are readable."""
    return sum(share.state == ShareState.CLOSED.value for share in upload.shares)


def as_json(status: HelperStatus) -> dict[str, Any]:
    """What /streaming?t=json answers, and `tahoe-stream status --json` prints."""
    room = attrs.asdict(status.room)
    return {
        "format": JSON_FORMAT,
        "uploads": [_upload_as_json(upload) for upload in status.uploads],
        "uploads-not-listed": status.not_listed,
        "states": status.states,
        "waiting": {what.replace(" ", "-"): count for what, count in status.waiting.items()},
        "spool": {**_dashed(room), "on-disk": status.on_disk},
        "servers": {"connected": status.servers, "staging": status.staging_servers},
        "not-recording": status.not_recording,
    }


def _upload_as_json(upload: UploadStatus) -> dict[str, Any]:
    fields = {name: value for name, value in _items(upload) if name != "shares"}
    return {**_dashed(fields), "shares": [
        {"number": s.shnum, "server": s.server, "state": s.state, "position": s.position} for s in upload.shares]}


def _items(upload: UploadStatus) -> Iterator[tuple[str, Any]]:
    return ((a.name, getattr(upload, a.name)) for a in attrs.fields(UploadStatus))


def _dashed(fields: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in fields.items()}
