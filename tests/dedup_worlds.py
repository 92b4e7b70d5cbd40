"""Worlds (world.py) in which files are streamed that are there already, and clients that read what is there."""

from __future__ import annotations

from typing import Any, Protocol, Self

import attrs
import oracle
from allmydata import uri
from fakes import FakeServer, Published
from simulation.reader import read_file
from world import WireLink, World, plaintext, write_all

from client_shim.cipher import convergent_key
from client_shim.dedup import Dedup, Outcome
from client_shim.errors import VerifyFailed
from client_shim.upload import StreamingUpload
from helper.parameters import Parameters

PARAMETERS = Parameters(3, 7, 10, 1000)
SECRET = b"a convergence secret............"
DATA = plaintext(5500)


class HasGrid(Protocol):
    """As much of a world as a reader sees."""

    grid: Any


class SlowWorld(World):
    """A world in which calls and answers take a while, so that a helper may end between any two of them."""

    def __enter__(self) -> Self:
        super().__enter__()
        for number, server in enumerate(self.grid.servers):
            server.latency = 0.001 + 0.001 * (number % 3)
        return self

    def link(self, latency: float = 0.0005, rate: float | None = None) -> WireLink:
        return super().link(latency, rate)

    def end_after(self, steps: int, orderly: bool) -> list[int]:
        """The helper ends, and starts again, after so many further steps. The list has something in it then."""
        ended: list[int] = []
        left = steps

        def end() -> None:
            self.watch = lambda: None
            ended.append(steps)
            if orderly:
                self.stop()
            else:
                self.kill()
            self.start()

        def watch() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                end()

        self.watch = watch
        if steps == 0:
            end()
        return ended


@attrs.define
class Reader:
    """What a client's own node reads, from the shares that the servers have. `reads`: caps, and from where to where."""

    world: HasGrid
    parameters: Parameters = PARAMETERS
    reads: list[tuple[bytes, int, int]] = attrs.field(factory=list)

    async def read(self, cap: bytes, start: int, end: int) -> bytes:
        self.reads.append((cap, start, end))
        return self.file(cap)[start:end]

    def file(self, cap: bytes) -> bytes:
        """Raises VerifyFailed."""
        parsed = uri.from_string(cap)
        copies = self.world.grid.copies(parsed.get_storage_index())
        if len(copies) < parsed.needed_shares:
            raise VerifyFailed("too few shares")
        shares = {shnum: copies[shnum][0][1].data for shnum in sorted(copies)[:parsed.needed_shares]}
        k_n = attrs.evolve(self.parameters, k=parsed.needed_shares, n=parsed.total_shares)
        return read_file(shares, parsed.key, k_n)


def dedup_of(reader: Reader, secret: bytes = SECRET, segment: int = 0) -> Dedup:
    """With `segment` the one that is chosen (client_shim/one_segment.py)."""
    return Dedup(secret, reader.read, lambda count: 0 if count == segment + 1 else 1)


def streaming(world: World, dedup: Dedup | None, parameters: Parameters = PARAMETERS, link: WireLink | None = None,
              **options: Any) -> StreamingUpload:
    return world.upload(parameters, link, None, dedup=dedup, **options)


def stream(world: World, data: bytes = DATA, dedup: Dedup | None = None, parameters: Parameters = PARAMETERS,
           link: WireLink | None = None, settle: bool = True) -> tuple[bytes, Outcome]:
    """Stream `data`, by default as one who looks for it; wait until all its shares are placed."""
    upload = streaming(world, dedup_of(Reader(world, parameters)) if dedup is None else dedup, parameters, link)
    cap = world.run(write_all(upload, data))
    world.run(upload.settle(10))
    if settle:
        world.wait(60)
    return cap, upload.outcome


def key_of(data: bytes = DATA, parameters: Parameters = PARAMETERS, secret: bytes = SECRET) -> bytes:
    return convergent_key(parameters.k, parameters.n, parameters.max_segment_size, len(data), secret, [data])


def put_as_stock(world: World, data: bytes = DATA, parameters: Parameters = PARAMETERS, *,
                 key: bytes | None = None) -> oracle.Encoded:
    """A stock client has put `data` before; under `key`, if it is one of those who do what they should not."""
    encoded = oracle.encode(data, parameters.k, parameters.n, parameters.max_segment_size,
                            key=key or key_of(data, parameters), layout=2)
    servers = world.grid.in_order(encoded.storage_index)
    for shnum, share in encoded.shares.items():
        store(servers[shnum % len(servers)], encoded.storage_index, shnum, share)
    return encoded


def store(server: FakeServer, storage_index: bytes, shnum: int, share: bytes) -> None:
    server.published[storage_index, shnum] = Published(share, len(share))


def shares_on(world: World) -> set[tuple[str, bytes, int]]:
    """Server, storage index and number of every share."""
    return {(server.name, si, shnum) for server in world.grid.servers for si, shnum in server.published}
