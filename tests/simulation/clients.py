"""Clients of a simulation: each is a process with one real StreamingUpload over connections that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from allmydata import uri
from dedup_worlds import SECRET, Reader
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from world import begin

from client_shim.cipher import Encryptor
from client_shim.dedup import Dedup, Outcome
from client_shim.errors import HelperUnreachable, UploadError
from client_shim.upload import StreamingUpload
from helper.foolscap_edge import WireAnswer
from helper.upload import hashed_name
from simulation.clocks import SettableClock
from simulation.links import FaultyLink
from simulation.schedule import File, Program

if TYPE_CHECKING:
    from simulation.simulated_world import SimulatedWorld


class Client:
    """One client, and what is known of its upload from outside."""

    def __init__(self, number: int, program: Program, world: SimulatedWorld) -> None:
        self.number = number
        self.program = program
        self.file = program.file
        self.ciphertext = Encryptor(program.file.key).encrypt(program.file.data)
        self.process = SettableClock(world.clock)
        self.link: FaultyLink | None = None
        self.slowness = 0.0
        self.acknowledged = 0  # bytes, in answers that the helper gave, whether or not they arrived
        self.seen_durable = 0
        self.seen: object = None  # of its upload in the helper, when it was looked last
        self.opened = False  # the helper has answered `open`
        self.decided = False  # a share was published
        self.called_for = 0.0  # how long the helper had run when it last was seen not to count its upload as idle
        self.looked_at: float | None = None  # when the helper was asked what is stored already
        self.placed_meanwhile: set[bytes] = set()  # storage indexes of files that the helper was placing since then
        self.aborting = self.died = self.garbled = False
        self.refusals: list[str] = []
        self.cap: bytes | None = None
        self.error: UploadError | None = None
        self.crash: Failure | None = None
        self._world = world
        self._armed: list[tuple[str, float, Callable[[], None]]] = []
        self._connected_once = False

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.died or self.cap is not None or self.error is not None or self.crash is not None

    @property
    def name(self) -> str:
        """Of its upload in the helper."""
        return self._name

    @property
    def wants_nothing(self) -> bool:
        """Whether it has gone, or said that it gives up, or failed."""
        return self.died or self.aborting or self.upload._helper.error is not None

    def start(self) -> None:
        file = self.file
        self.upload = StreamingUpload(self._connect, file.parameters, self.process, key=file.key,
                                      reveal=self.program.reveal, dedup=self._dedup())
        self._name = hashed_name(self.upload._upload_id)
        self.process.callLater(self.program.begins, self._begin)

    def _dedup(self) -> Dedup | None:
        return Dedup(SECRET, self._read, lambda count: self.number % count) if self.program.dedup else None

    async def _read(self, cap: bytes, start: int, end: int) -> bytes:
        """Through a node of its own."""
        await deferLater(self.process, self._delay())
        return Reader(self._world, self.file.parameters).file(cap)[start:end]

    @property
    def result(self) -> File:
        """The file whose cap it has: its own, or that of somebody else who had the same."""
        if self.upload.outcome is Outcome.PUBLISHED or self.cap is None:
            return self.file
        key = uri.from_string(self.cap).key
        return next((file for file in self._world.files if file.key == key), self.file)

    @property
    def adopts(self) -> bool:
        """Whether it has asked to take another file."""
        return self.upload._helper._adopting

    def arm(self, fate: str, amount: float, fired: Callable[[], None]) -> None:
        """Something happens to the next message that goes over its connection."""
        if fate == "garble finish":
            fired_before = fired

            def fired() -> None:
                self.garbled = True
                fired_before()

        self._armed.append((fate, amount, fired))

    def disarm(self) -> None:
        self._armed.clear()
        self.slowness = 0.0

    # -- what it does ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        begin(self._run()).addCallbacks(self._got, self._failed)

    def _got(self, cap: bytes | None) -> None:
        self.cap = cap
        if cap is not None:
            self._world.cap_given(self)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, UploadError):
            self.error = error
        else:
            self.crash = failure

    async def _run(self) -> bytes | None:
        offset, ending = 0, self.program.ending
        for size, pause in self.program.writes:
            await self.upload.write(self.file.data[offset:offset + size])
            offset += size
            if pause:
                await deferLater(self.process, pause)
        if ending == "abort":
            await self._abort()
        if ending == "die":
            self.die()
            return await Deferred()
        if ending in ("abort while closing", "die while closing"):
            self.process.callLater(self.program.patience, self.die if ending.startswith("die") else self._give_up)
        return await self.upload.close()

    async def _abort(self) -> None:
        self.aborting = True
        await self.upload.abort()

    def _give_up(self) -> None:
        if not self.over:
            begin(self._abort())

    def die(self) -> None:
        """Its process is killed."""
        if not self.over:
            self.died = True
            self.process.end()
            if self.link is not None:
                self.link.vanish()

    # -- its connections -----------------------------------------------------------------------------------------

    async def _connect(self) -> FaultyLink:
        """The first time it waits for the helper: one that is not there then is an error at once, and not our
        subject."""
        await deferLater(self.process, self._delay())
        if not self._connected_once:
            await self._world.when_running()
            self._connected_once = True
        if not self._world.running:
            raise HelperUnreachable("ConnectionRefusedError")
        self.link = self._world.link_for(self, self._delay, self._answered)
        self.link.armed = self._armed
        return self.link

    def _delay(self) -> float:
        return self._world.duration(self._world.schedule.network) + self.slowness

    def arrived(self, method: str) -> None:
        """The helper is asked something."""
        if method == "look_up" and self.looked_at is None:
            self.looked_at = self._world.clock.seconds()

    def _answered(self, method: str, arguments: tuple[Any, ...], wire: WireAnswer) -> None:
        """The helper has given an answer."""
        fields = wire[0]
        code = fields[b"code"]
        if code != b"ok":
            if isinstance(code, bytes):
                self.refusals.append(f"{method}: {code.decode()}")
            return
        if method == "open":  # a repeat, whose first answer was lost, may say that it has ended
            self.opened = self.opened or fields[b"state"] != b"failed"
        elif method.endswith("put_ciphertext"):
            offset, data = arguments[1], arguments[2]
            self._world.acknowledged(self, offset, data, fields[b"durable"])
