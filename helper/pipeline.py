"""From the spool through the encoder: the blocks of one upload, a segment at a time, in order.

Blocks stay in memory for the shares that keep up; a share that does not asks for its own blocks of a
segment again, from the spool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from allmydata.util import hashutil
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from helper.block_memory import BlockMemory
from helper.encoder import Completion, Encoder
from helper.parameters import SEGMENT_BLOCKS_MAX, Parameters
from helper.segments import SegmentCutter
from helper.spool import RunInThread, SpoolDamaged, SpoolFile

#: Blocks of one upload that wait in memory to be pushed, those of a segment at least; and these together with what is
#: in flight to servers.
RECENT_BLOCKS_MAX = SEGMENT_BLOCKS_MAX
ALL_BLOCKS_MAX = 2 * SEGMENT_BLOCKS_MAX


class Pipeline:
    """Encodes what is durable in `spool`, in threads, and keeps the newest blocks. `memory` counts them.

    `on_blocks` is called when there is a new segment or the completion; `on_failed` (once) with a Failure
    if spool or encoder break.
    """

    def __init__(self, parameters: Parameters, spool: SpoolFile, run_in_thread: RunInThread, memory: BlockMemory,
                 on_blocks: Callable[[], None], on_failed: Callable[[Failure], None]) -> None:
        self._run_in_thread = run_in_thread
        self._memory = memory
        self._when_short: Callable[[], None] = lambda: None
        self._encoding = 0  # bytes of the blocks that are being made
        self._in_flight = 0  # bytes of blocks on their way to servers
        self._parameters = parameters
        self._spool = spool
        self._on_blocks = on_blocks
        self._on_failed = on_failed
        self._encoder = Encoder(parameters.k, parameters.n, parameters.max_segment_size, parameters.size)
        self._cutter = SegmentCutter(parameters.k, parameters.max_segment_size, parameters.size)
        blocks_size = parameters.full_segment_size // parameters.k * parameters.n
        self._recent_max = max(1, RECENT_BLOCKS_MAX // blocks_size)
        self._recent: dict[int, list[bytes]] = {}
        self._durable = 0
        self._size: int | None = None  # once Complete was asked for
        self._needed_from = 0  # the first segment that shares which keep up have not taken yet
        self._running = False
        self._stopped = False
        self.encoded = 0  # full segments
        self.completion: Completion | None = None

    @property
    def segment_size(self) -> int | None:
        """Bytes, once it is known."""
        if self.completion is not None:
            return self.completion.layout.geometry.segment_size
        return self._cutter.segment_size(self._durable)

    def set_durable(self, durable: int) -> None:
        """There are now so many bytes to encode."""
        self._durable = durable
        self._run()

    def complete(self, size: int) -> None:
        """Make the Completion of a file that ends at `size` bytes, all of them durable."""
        self._size = size
        self._durable = max(self._durable, size)
        self._run()

    def reopen(self) -> None:
        """Forget the Completion: the file goes on after all."""
        self._size, self.completion = None, None
        self._recent.pop(self.encoded, None)  # of what was the tail

    def needed_from(self, segment: int) -> None:
        """Blocks of segments before `segment` need no longer be kept."""
        self._needed_from = segment
        for old in [s for s in self._recent if s < segment]:
            del self._recent[old]
        self._count()
        self._run()

    def set_in_flight(self, size: int) -> None:
        """So many bytes of blocks are on their way to servers."""
        fewer = size < self._in_flight
        self._in_flight = size
        if fewer:
            self._run()

    def stop(self) -> None:
        """Encode nothing more and forget everything: an upload is remembered long after it has ended."""
        self._stopped = True
        self._memory.cancel(self)
        self._recent.clear()
        self._count()
        self.completion = None
        self._encoder = Encoder(self._parameters.k, self._parameters.n, self._parameters.max_segment_size)

    @property
    def segments(self) -> int:
        """How many segments there are blocks of now."""
        return self._all_segments if self._all_segments is not None else self.encoded

    @property
    def _all_segments(self) -> int | None:
        return None if self.completion is None else self.completion.layout.geometry.num_segments

    def block(self, segment: int, shnum: int) -> bytes | None:
        """A block if it is in memory; otherwise ask for it with `reencode`."""
        blocks = self._recent.get(segment)
        return None if blocks is None else blocks[shnum]

    def block_size(self, segment: int) -> int:
        """Bytes of one block of a segment that was encoded. ValueError if there is none."""
        return -(-self._length(segment) // self._parameters.k)

    def reencode(self, segment: int, shnum: int) -> Deferred[bytes]:
        """One block of a segment encoded before, from the spool. Fails with SpoolDamaged if its hash is
        not the one it had then."""
        block_hash = (self._encoder if self.completion is None else self.completion).block_hash
        return self._spool.using(self._run_in_thread, self._reencode, segment, shnum, self._length(segment), block_hash)

    def _length(self, segment: int) -> int:
        """Bytes of ciphertext in a segment."""
        size = self.segment_size
        if size is None:
            raise ValueError("no segment has been encoded")
        if self.completion is None:
            return size
        return min(size, self.completion.layout.geometry.size - segment * size)

    def _reencode(self, segment: int, shnum: int, length: int, block_hash: Callable[[int, int], bytes]) -> bytes:
        start = segment * (self.segment_size or 0)
        block = self._encoder.reencode(self._spool.read(start, length), [shnum])[0]
        if hashutil.block_hash(block) != block_hash(segment, shnum):
            raise SpoolDamaged(f"segment {segment} is not what it was when it was encoded")
        return block

    @property
    def expects_more(self) -> bool:
        """Whether there will be more blocks, or `on_blocks` or `set_durable` be called, in a moment and by itself."""
        return bool(self._encoding) or self._spool.committing

    @property
    def full(self) -> bool:
        """Whether encoding waits for blocks to be taken (see `needed_from`), here or in another upload."""
        return not self._has_room or self.short

    @property
    def _has_room(self) -> bool:
        """Whether there may be blocks of one more segment. If there are none at all they may be more than the limit."""
        size = self.segment_size or 0
        with_one_more = (len(self._recent) + 1) * self._blocks_of(size) + self._in_flight
        return len(self._recent) < self._recent_max and (with_one_more <= ALL_BLOCKS_MAX or not self._recent)

    @property
    def short(self) -> bool:
        """Whether there is no room for the blocks of all uploads."""
        return self._memory.short

    def _blocks_of(self, length: int) -> int:
        """Bytes of all blocks of a segment of `length` bytes."""
        return -(-length // self._parameters.k) * self._parameters.n

    def _count(self) -> None:
        recent = sum(len(blocks[0]) for blocks in self._recent.values()) * self._parameters.n
        self._memory.holds(self, recent + self._encoding)

    def _next(self) -> tuple[Callable[..., Any], int, int] | None:
        """What can be encoded now: how, from where on, and how many bytes of ciphertext."""
        size = self.segment_size
        start = 0 if size is None else self.encoded * size
        if size is not None and start + size <= self._durable:
            return (self._encode_next, start, size) if self._has_room else None
        if self._size is not None and self.completion is None:
            return self._complete, start, self._size - start
        return None

    def _run(self) -> None:
        if self._running or self._stopped:
            return
        following = self._next()
        if following is not None:
            self._running = True
            if following[2]:
                self._memory.ask(self, self._blocks_of(following[2]))
            else:
                self.granted()

    def granted(self) -> None:
        """See block_memory.Holder."""
        following = self._next()
        self._encoding = 0 if following is None else self._blocks_of(following[2])
        self._running = following is not None
        self._count()
        if following is not None:
            function, start, length = following
            d = self._spool.using(self._run_in_thread, function, start, length)
            d.addCallback(self._ran)
            d.addErrback(self._failed)

    def make_room(self) -> None:
        """See block_memory.Holder."""
        self._when_short()

    def call_when_short(self, callback: Callable[[], None]) -> None:
        """Whom to call when memory is short: `full` and `short` are asked then."""
        self._when_short = callback

    def _encode_next(self, start: int, size: int) -> list[bytes]:
        return self._encoder.encode(self._spool.read(start, size))

    def _complete(self, start: int, length: int) -> Completion:
        return self._encoder.complete(self._spool.read(start, length) if length else b"")

    def _ran(self, result: list[bytes] | Completion) -> None:
        self._running, self._encoding = False, 0
        if self._stopped:
            self._count()
            return
        if isinstance(result, Completion):
            if self._size is not None:
                self._keep(result.tail_blocks)
                self.completion = attrs.evolve(result, tail_blocks=None)
        else:
            self._keep(result)
            self.encoded += 1
        self._count()
        self._on_blocks()
        self._run()

    def _keep(self, blocks: list[bytes] | None) -> None:
        """Those of the segment after the last; not if that would be too many, or they are not needed."""
        if blocks is not None and self.encoded >= self._needed_from and len(self._recent) < self._recent_max:
            self._recent[self.encoded] = blocks

    def _failed(self, failure: Failure) -> None:
        self._running, self._encoding = False, 0
        if self._stopped:
            self._count()
        else:
            self.stop()
            self._on_failed(failure)
