"""What the owner of a gateway may say about upload handles. Durations in seconds, sizes in bytes."""

from __future__ import annotations

import attrs

from helper.streaming_cfg import Key, count_of, duration_of, size_of

DAY = 24 * 3600
MiB = 1024 * 1024


@attrs.frozen
class HandleSettings:
    """What holds for all upload handles of a gateway."""

    #: How many uploads may be unfinished at a time; and of how many ended ones the newest are remembered.
    handles_max: int = 10_000
    #: An unfinished upload for which nothing came for so long is given up; so long one that ended without a cap is
    #: remembered. The helper's own default: it would have given it up itself.
    handle_expiry: int = 7 * DAY
    #: How long the cap of a finished one can be asked for.
    result_retention: int = 7 * DAY
    #: What all uploads together may hold that is not at the helper yet; in memory, and about so much in the journal.
    ring_memory: int = 256 * MiB
    #: How long a request waits for a helper that is away, or takes nothing, before it is told to come again.
    helper_wait: int = 10


#: Keys of section [gateway] of streaming.cfg that are fields of HandleSettings; `helper_wait` is the gateway's own too.
HANDLE_KEYS = {
    "handles-max": Key("handles_max", count_of, "a number of uploads"),
    "handle-expiry": Key("handle_expiry", duration_of, "a duration such as 7 days", least=60),
    "result-retention": Key("result_retention", duration_of, "a duration such as 7 days", least=60),
    "ring-memory": Key("ring_memory", size_of, "a size such as 256 MiB, at least 1 MiB", least=MiB),
}
