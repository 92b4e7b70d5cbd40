"""The helper's settings: section [helper] of `streaming.cfg` in its node directory (streaming_cfg.py)."""

from __future__ import annotations

from pathlib import Path

import attrs

from helper.interfaces import LARGEST_MESSAGE, LARGEST_MESSAGE_MAX, LARGEST_MESSAGE_MIN, SIZE_MAX
from helper.patience import Patience, StallLimits
from helper.room import RoomLimits
from helper.streaming_cfg import FILE_NAME, Key, SettingsError, count_of, duration_of, read_section, size_of

__all__ = ["FILE_NAME", "Settings", "SettingsError", "read_settings"]

MiB = 1024 * 1024
GiB = 1024 * MiB

SECTION = "helper"


@attrs.frozen
class Settings:
    """Sizes in bytes, durations in seconds."""

    #: Bytes of one upload that may be received and not yet durable: bounds memory.
    credit: int = 8 * MiB
    #: Bytes that may be durable and not yet on enough servers before put_ciphertext waits; fast servers: protocol §7.3.
    pushing_lag: int = 4 * MiB
    #: Largest `data` of one put_ciphertext.
    largest_message: int = LARGEST_MESSAGE
    #: Bytes that are durable before a storage server is contacted: small uploads that are given up cost none.
    contact_after: int = 64 * 1024
    #: File size for which shares are first allocated when the size is unknown (protocol.txt §8.4).
    first_bound: int = 1 * GiB
    #: Bytes of ciphertext that all uploads together may keep on the disk, and one of them.
    spool_quota: int = SIZE_MAX
    upload_quota: int = SIZE_MAX
    #: Bytes of the spool's disk that are left free.
    free_disk: int = 256 * MiB
    #: How long all may wait for room in the spool before the smallest upload ends.
    room_patience: int = 600
    #: Uploads open at a time.
    uploads_max: int = 10_000
    #: Connections of clients at a time.
    connections_max: int = 512
    #: An upload with data that is idle for so long is given up.
    idle_expiry: int = 7 * 86400
    #: An upload without a byte that is idle for so long is given up.
    empty_expiry: int = 3600
    #: How often expired uploads are looked for.
    sweep_interval: int = 300
    #: How long the answer of a finished, failed or aborted upload can be asked for again.
    result_retention: int = 7 * 86400
    #: How long a staging server that was lost is waited for, and any server without which there are too few.
    away_patience: int = 60
    needed_patience: int = 600
    #: A storage server that does not answer is given up: see helper/patience.py.
    stall_servers: int = 3
    stall_factor: int = 2
    stall_least: int = 10
    stall_most: int = 60
    #: How long after its answer shares of an upload are still placed.
    placing_patience: int = 86400
    #: How long storage servers are asked whether a file is stored already; a slower one has nothing.
    look_up_patience: int = 1
    #: Sealed records kept (protocol.txt §4.10); each takes some 300 bytes of the ledger.
    sealed_records_max: int = 100_000
    #: How long `open` waits for storage servers after the node has started.
    server_wait: int = 10

    @property
    def room_limits(self) -> RoomLimits:
        """How much the spool may take."""
        return RoomLimits(self.spool_quota, self.upload_quota, self.free_disk, self.room_patience)

    @property
    def patience(self) -> Patience:
        """What an upload waits for."""
        stall = StallLimits(self.stall_servers, self.stall_factor, self.stall_least, self.stall_most)
        return Patience(self.away_patience, self.needed_patience, self.placing_patience, stall)


_SIZE = "a size such as 4 MiB"
_DURATION = "a duration such as 7 days"
_KEYS = {
    "credit": Key("credit", size_of, f"{_SIZE}, at least 64 kiB", least=65536),
    "pushing-lag": Key("pushing_lag", size_of, _SIZE),
    "largest-message": Key("largest_message", size_of, f"{_SIZE}, 16 kiB to 4 MiB",
                            LARGEST_MESSAGE_MIN, LARGEST_MESSAGE_MAX),
    "contact-after": Key("contact_after", size_of, _SIZE),
    "first-bound": Key("first_bound", size_of, _SIZE),
    "spool-quota": Key("spool_quota", size_of, _SIZE),
    "upload-quota": Key("upload_quota", size_of, _SIZE),
    "free-disk": Key("free_disk", size_of, _SIZE, least=0),
    "room-patience": Key("room_patience", duration_of, _DURATION),
    "uploads-max": Key("uploads_max", count_of, "a number"),
    "connections-max": Key("connections_max", count_of, "a number from 1 to 10000", most=10_000),
    "idle-expiry": Key("idle_expiry", duration_of, _DURATION),
    "empty-expiry": Key("empty_expiry", duration_of, _DURATION),
    "sweep-interval": Key("sweep_interval", duration_of, _DURATION),
    "result-retention": Key("result_retention", duration_of, _DURATION),
    "away-patience": Key("away_patience", duration_of, _DURATION),
    "needed-patience": Key("needed_patience", duration_of, _DURATION),
    "stall-servers": Key("stall_servers", count_of, "a number"),
    "stall-factor": Key("stall_factor", count_of, "a number"),
    "stall-least": Key("stall_least", duration_of, _DURATION),
    "stall-most": Key("stall_most", duration_of, _DURATION),
    "placing-patience": Key("placing_patience", duration_of, _DURATION),
    "look-up-patience": Key("look_up_patience", duration_of, "a duration such as 1 second"),
    "sealed-records-max": Key("sealed_records_max", count_of, "a number", least=0),
    "server-wait": Key("server_wait", duration_of, "a duration such as 10 seconds", least=0),
}


def read_settings(node_directory: Path) -> Settings:
    """The settings in `streaming.cfg` of a node directory; defaults where it or a key is missing.

    Raises SettingsError for an unknown section or key and for a value that cannot be used.
    """
    return Settings(**read_section(node_directory, SECTION, _KEYS))
