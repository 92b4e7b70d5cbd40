"""A share on its way, and its cursor on the spool."""

from __future__ import annotations

import enum
from collections import deque

import attrs

from helper.sinks import ExistingShare, ShareSink, StorageServer


class ShareState(enum.Enum):
    """Where a share is; the values are seen in `status`."""

    UNPLACED = "unplaced"
    WAITING = "waiting"  # for the storage index, which its server wants first
    AWAY = "away"  # its server, which keeps it, is not connected; it is waited for
    ALLOCATING = "allocating"
    PUSHING = "pushing"
    READY = "ready"
    PUBLISHING = "publishing"
    CLOSED = "closed"
    LOST = "lost"


#: Shares that have a server, one that may still do what is asked of it.
LIVE = frozenset(ShareState) - {ShareState.UNPLACED, ShareState.LOST}
HOLDS_BLOCKS = frozenset({ShareState.PUSHING, ShareState.READY, ShareState.PUBLISHING, ShareState.CLOSED})


#: Where the cursor of a share stands that its server has whole.
ALL_SEGMENTS = 2**62


@attrs.define(eq=False)
class Share:
    """One share and its cursor."""

    shnum: int
    state: ShareState = ShareState.UNPLACED
    server: StorageServer | None = None
    sink: ShareSink | None = None
    existing: ExistingShare | None = None
    file_bound: int = 0  # the largest file whose share fits in what was allocated
    next_segment: int = 0  # the first one not yet handed to the sink
    segments_held: int = 0  # acknowledged by the server, without gaps
    in_flight: int = 0  # bytes
    unacknowledged: deque[tuple[int, int]] = attrs.field(factory=deque)  # (bytes, segments held once acknowledged)
    ended: bool = False  # trailer and header are handed to the sink
    reading: bool = False  # a block is on its way from the spool
    sealing: bool = False
    unanswered: deque[tuple[str, float]] = attrs.field(factory=deque)  # (kind of call, when it was made)
    waited: float = 0.0  # seconds since the last answer, or the first call, while calls are unanswered
    #: Grows with every new home; answers to an older one are ignored.
    generation: int = 0
    staged_anew_on: bytes | None = None  # a server (ID) that was told to remove what it said it had prepared
    #: On which servers (IDs) this run of the helper has asked for it: what is prepared there is of this very file.
    sealed_on: set[bytes] = attrs.field(factory=set)
    #: On which servers (IDs) this run has begun it, or found what it believes: what they hold is of this very file.
    known_on: set[bytes] = attrs.field(factory=set)
    segments_before: int = 0  # acknowledged by the server before it went away
    tried: set[bytes] = attrs.field(factory=set)  # servers that this share was lost on
    furthest: tuple[bool, int] = (False, 0)  # whether it was ever closed, and the furthest that it came; in this run

    def leave(self, state: ShareState) -> ShareSink | None:
        """Forget the present home; returns its sink."""
        sink, self.sink, self.existing = self.sink, None, None
        self.state = state
        self.generation += 1
        self.next_segment = self.segments_held = self.in_flight = 0
        self.unacknowledged.clear()
        self.unanswered.clear()
        self.waited = 0.0
        self.ended = self.reading = self.sealing = False
        return sink


@attrs.frozen
class ShareStatus:
    """What `status` shows of a share; `position` in bytes of ciphertext."""

    shnum: int
    server: str
    state: str
    position: int
