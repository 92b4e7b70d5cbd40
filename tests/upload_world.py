"""Upload handles behind HTTP, in memory: clients' connections, the gateway's handles and journal, a whole helper."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import oracle
from allmydata import uri
from gateway_world import DIRECTORY, PretendNode
from http_world import Answer, HttpWorld, MemoryNode
from twisted.internet.defer import Deferred
from world import ProcessClock, WireLink, World

from client_shim.dedup import Dedup, DedupMode
from client_shim.errors import HelperUnreachable
from client_shim.gateway.checksums import CheckedBodies
from client_shim.gateway.handle_links import HandleLinks
from client_shim.gateway.handle_settings import HandleSettings
from client_shim.gateway.handles import Handles, HandleStatus
from client_shim.gateway.journal import JOURNAL_NAME, Journal, JournalFile
from client_shim.gateway.linking import Linker
from client_shim.gateway.page import UploadPage, page_routes
from client_shim.gateway.protection import Protection
from client_shim.gateway.proxy import Proxy
from client_shim.gateway.site import Route, Site
from client_shim.gateway.upload_resource import UploadPatience, Uploads
from client_shim.gateway.upload_routes import upload_routes
from helper.parameters import Parameters

__all__ = ["DIRECTORY", "UploadWorld", "fields_of"]

PARAMETERS = Parameters(3, 7, 10, 1000)
EPOCH = 1_700_000_000.0
CHECKSUM_BODY_MAX = 10_000
#: Seconds of pretended time in which a request must be answered.
PATIENCE = 600


class UploadWorld:
    """Everything shares one clock; use it as a context manager."""

    def __init__(self, settings: HandleSettings | None = None, patience: float = 3600) -> None:
        self.helper = World()
        self.clock = self.helper.clock
        self.settings = settings or HandleSettings()
        self.node = PretendNode()
        self.memory_node = MemoryNode(self.node, self.clock)
        self.helper_is_up = True
        self.bodies = CheckedBodies(CHECKSUM_BODY_MAX)
        #: How files that are stored already are found, and whether they are looked for.
        self.dedup: Callable[[DedupMode], Dedup | None] = lambda _mode: None
        self.dedup_mode = DedupMode.OFF
        self.accesses: list[tuple[Any, ...]] = []
        self._patience = UploadPatience(self.settings.helper_wait, patience)
        self._protection = Protection()

    def __enter__(self) -> Self:
        self.helper.__enter__()
        self._directory = Path(tempfile.mkdtemp(prefix="tahoe-stream-test", dir=self.helper.directory))
        self.start()
        return self

    def __exit__(self, *why: object) -> None:
        self.process.end()
        self._file.close()
        self.helper.__exit__(*why)  # type: ignore[arg-type]

    # -- the gateway -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """The gateway's process begins."""
        self.process = ProcessClock(self.clock)
        self._file = JournalFile(self._directory / JOURNAL_NAME)
        linker = Linker(self.memory_node.client, self.settings.helper_wait, self.process)
        self.handles = Handles(Journal(self._file, self._in_thread(self.process)), self._connector(self.process),
                               PARAMETERS, self.settings, self.process, HandleLinks(linker), now=self._epoch_time,
                               dedup=lambda mode: self.dedup(mode), dedup_mode=self.dedup_mode)
        uploads = Uploads(self.handles, self._patience, self.process, self._epoch_time)
        self.site = Site([
            *page_routes(UploadPage(self.handles, self.settings, self.process, self._epoch_time)),
            *upload_routes(uploads, self.bodies, self._protection.check),
            Route("node", lambda _head: True, Proxy(self.memory_node.client)),
        ], self._protection, self.process, lambda *access: self.accesses.append(access))
        self.helper.run(self.handles.start())

    def restart(self) -> None:
        """The gateway is killed, and started again; what its journal has is what was synced."""
        self.process.end()
        for link in list(self.helper._links):
            link.cut()
        after = Path(tempfile.mkdtemp(dir=self.helper.directory))
        shutil.copytree(self._directory, after, dirs_exist_ok=True)
        self._file.close()
        self._directory = after
        self.start()

    def _in_thread(self, process: ProcessClock) -> Callable[..., Deferred[Any]]:
        return lambda function, *arguments: self.helper.in_thread(function, *arguments, process=process)

    def _connector(self, process: ProcessClock) -> Any:
        async def connect() -> WireLink:
            if process.ended:
                await Deferred()
            if not self.helper_is_up:
                raise HelperUnreachable("ConnectionRefusedError")
            return self.helper.link()

        return connect

    def _epoch_time(self) -> float:
        return EPOCH + self.clock.seconds()

    def helper_goes(self) -> None:
        """The helper is away: connections break, and there are no new ones."""
        self.helper_is_up = False
        self.helper.restart()

    # -- clients ---------------------------------------------------------------------------------------------

    def client(self) -> HttpWorld:
        """A client's connection."""
        return HttpWorld(self.site, clock=self.clock)

    def send(self, client: HttpWorld, data: bytes, seconds: float = 1) -> None:
        """Send, and let some time go by."""
        client.send(data)
        self.helper.wait(seconds)

    def answer(self, client: HttpWorld, method: str) -> Answer:
        """The answer to the request that was sent, when it is complete; it is forgotten then."""
        deadline = self.clock.seconds() + PATIENCE
        while self.clock.seconds() < deadline:
            answers = client.answers_so_far(method)
            if answers and answers[0].complete:
                client.take()
                return answers[0]
            if client.over:
                raise ConnectionError("the connection was cut")
            due = self.helper._next_due()
            self.helper.wait(0.05 if due is None else max(0.0, min(due - self.clock.seconds(), 5)))
        raise AssertionError("no answer")

    def ask(self, method: str, path: str, fields: dict[str, str], body: bytes | None = None, *,
            chunked: bool = False) -> Answer:
        """One request on a connection of its own, and its answer."""
        client = self.client()
        client.send(request(method, path, fields, body, chunked=chunked))
        return self.answer(client, method)

    # -- what is there ---------------------------------------------------------------------------------------

    def status(self, path: str) -> HandleStatus:
        """That of the upload at a path."""
        return self.handles.get(path.rsplit("/", 1)[1]).status

    def paths(self) -> list[str]:
        """Of all uploads."""
        return [f"/uploads/{status.id}" for status in self.handles.all()]

    def check_stored(self, cap: str | bytes, data: bytes) -> None:
        """`cap` is that of `data`, bit for bit as stock makes it, and its shares are on the servers."""
        cap = cap.encode() if isinstance(cap, str) else cap
        file = uri.from_string(cap)
        if isinstance(file, uri.LiteralFileURI):
            assert file.data == data
            return
        encoded = oracle.encode(data, PARAMETERS.k, PARAMETERS.n, PARAMETERS.max_segment_size, key=file.key, layout=2)
        assert cap == encoded.cap
        self.helper.wait(10)
        self.helper.check_shares(encoded)


def request(method: str, path: str, fields: dict[str, str], body: bytes | None = None, *, chunked: bool = False,
            declared: int | None = None) -> bytes:
    """A request; `declared`: the length that its head tells."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in fields.items())]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
        body = b"".join(_chunks(body or b""))
    elif body is not None or declared is not None:
        lines.append(f"Content-Length: {len(body or b'') if declared is None else declared}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def _chunks(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 300):
        yield b"%x\r\n%b\r\n" % (len(body[start:start + 300]), body[start:start + 300])
    yield b"0\r\n\r\n"


def fields_of(answer: Answer) -> dict[str, str]:
    """By names in lower case."""
    return {name.lower(): value for name, value in answer.headers.items()}
