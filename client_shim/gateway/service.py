"""`tahoe-stream gateway run`: from the client node's configuration to a service that listens."""

from __future__ import annotations

import resource
import socket
from functools import partial
from pathlib import Path
from typing import Any, TextIO, cast

import attrs
from twisted.internet import reactor as _reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from client_shim.client import StreamingClient
from client_shim.gateway.checksums import CheckedBodies
from client_shim.gateway.errors import CannotListen
from client_shim.gateway.exchange import Exchange
from client_shim.gateway.forms import PostForm
from client_shim.gateway.handle_links import HandleLinks
from client_shim.gateway.handles import Handles
from client_shim.gateway.http_connection import Timeouts
from client_shim.gateway.http_factory import ConnectionLimits, HttpFactory
from client_shim.gateway.journal import JOURNAL_NAME, Journal, JournalFile
from client_shim.gateway.linking import Linker
from client_shim.gateway.node_client import NodeClient
from client_shim.gateway.page import UploadPage, page_routes
from client_shim.gateway.protection import Protection, hosts_of
from client_shim.gateway.proxy import Proxy
from client_shim.gateway.put_uri import PutLinked, PutUnlinked
from client_shim.gateway.receive_window import LISTENING, SEGMENT
from client_shim.gateway.settings import GatewaySettings, read_gateway_settings
from client_shim.gateway.site import Route, Site
from client_shim.gateway.state import StateDirectory
from client_shim.gateway.streams import Streams
from client_shim.gateway.upload_requests import is_form, is_put_unlinked, place_of_put
from client_shim.gateway.upload_resource import UploadPatience, Uploads
from client_shim.gateway.upload_routes import upload_routes
from client_shim.interruption import Interruption
from client_shim.node_config import NodeConfig, read_node_config
from helper.errors import StreamingError
from helper.streaming_cfg import SettingsError

reactor: Any = _reactor  # it has more interfaces than its declared type

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where one listens at all, this one is reached

_log = Logger()


class Gateway:
    """The gateway beside one client node."""

    def __init__(self, config: NodeConfig, settings: GatewaySettings) -> None:
        self._config = config
        self._settings = settings
        self._state = StateDirectory(config.directory)
        if settings.dedup is not None:
            config = attrs.evolve(config, settings=attrs.evolve(config.settings, dedup=settings.dedup))
        self._client = StreamingClient(config)
        self._streams = Streams(self._client.upload, settings.helper_wait, reactor)
        self._linker = Linker(NodeClient(config.node_url, reactor), settings.helper_wait, reactor)
        # one thread: changes wait for each other, and what is asked for meanwhile becomes the next one
        self._journal_thread = ThreadPool(1, 1, "gateway journal")
        journal = Journal(JournalFile(self._state.path / JOURNAL_NAME),
                          partial(deferToThreadPool, reactor, self._journal_thread))
        self._handles = Handles(journal, self._client.link, config.parameters, settings.handles, reactor,
                                HandleLinks(self._linker), reveal=config.settings.reveal,
                                dedup=self._client.dedup_in, dedup_mode=config.settings.dedup)
        self._site: Site | None = None
        self._factory = HttpFactory(
            self._handle, Timeouts(settings.head_timeout, settings.body_timeout, settings.idle_timeout),
            ConnectionLimits(settings.connections_max, settings.connections_per_host), reactor)
        self._port: IListeningPort | None = None

    async def start(self) -> str:
        """Take the state directory and listen. Returns where, for people; raises StreamingError."""
        _ = self._config.helper_furl  # NoHelperConfigured
        self._state.take()
        try:
            self._journal_thread.start()
            await self._handles.start()
            self._port = await self._listen()
            address = self._port.getHost()
            protection = self._protection(address)
            self._site = Site(self._routes(protection), protection, reactor)
            url = url_of(address, "https" if self._settings.listen.startswith("ssl:") else "http")
            if url is None:
                return str(address)
            try:
                self._state.listening(url)
            except OSError as e:
                raise CannotListen(url, f"node.url cannot be written ({e.strerror})") from e
            return url
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Listen no more, end uploads and connections, release the state directory. Safe to repeat."""
        port, self._port = self._port, None
        if port is not None:
            await _done(port.stopListening())
        await self._factory.close_all()
        await self._handles.stop()
        if self._journal_thread.started:
            self._journal_thread.stop()
        await self._streams.stop()
        await self._client.stop()
        self._state.release()

    async def _listen(self) -> IListeningPort:
        where = self._settings.listen
        try:
            port: IListeningPort = await serverFromString(reactor, where).listen(self._factory)
            if where.startswith("tcp"):  # tcp:, tcp6:; a TLS transport would not let its window grow
                _offer_little(port)
            return port
        except CannotListenError as e:
            raise CannotListen(where, str(e.socketError)) from e
        except (ValueError, TypeError, KeyError) as e:
            raise CannotListen(where, "it is no endpoint that Twisted knows") from e

    def _protection(self, address: IAddress) -> Protection:
        here = [address.host] if isinstance(address, IPv4Address | IPv6Address) else []
        return Protection(hosts_of([*here, *self._settings.hosts]), frozenset(self._settings.allow_origins))

    def _routes(self, protection: Protection) -> list[Route]:
        proxy = Proxy(NodeClient(self._config.node_url, reactor))
        uploads = Uploads(self._handles, UploadPatience(self._settings.helper_wait, self._config.settings.patience),
                          reactor)
        return [
            Route("put-uri", is_put_unlinked, PutUnlinked(self._streams)),
            Route("put-child", lambda head: place_of_put(head) is not None,
                  PutLinked(self._streams, self._linker, proxy)),
            Route("post-uri", is_form, PostForm(self._streams, proxy)),
            *page_routes(UploadPage(self._handles, self._settings.handles, reactor)),
            *upload_routes(uploads, CheckedBodies(self._settings.checksum_body_max), protection.check),
            Route("node", lambda _head: True, proxy),
        ]

    async def _handle(self, exchange: Exchange) -> None:
        if self._site is not None:
            await self._site(exchange)


def _offer_little(port: IListeningPort) -> None:
    """Connections begin with a small window and usual segments: receive_window.py."""
    listener = getattr(port, "socket", None)
    if isinstance(listener, socket.socket) and listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LISTENING)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)


def url_of(address: IAddress, scheme: str = "http") -> str | None:
    """Where a browser finds what listens at `address`; None for what no browser can reach."""
    if isinstance(address, IPv4Address):
        return f"{scheme}://{_ANY_ADDRESS.get(address.host, address.host)}:{address.port}/"
    if isinstance(address, IPv6Address):
        return f"{scheme}://[{_ANY_ADDRESS.get(address.host, address.host)}]:{address.port}/"
    return None


async def _done(deferred: Any) -> None:
    if isinstance(deferred, Deferred):
        await deferred


def run_gateway(node_directory: Path, listen: str | None, err: TextIO) -> int:
    """Run the reactor until SIGINT or SIGTERM. Returns the exit status: 1 if the gateway could not start."""
    try:
        config = read_node_config(node_directory)
        settings = read_gateway_settings(config.directory)
    except (StreamingError, SettingsError) as e:
        print(f"tahoe-stream: {e}", file=err)
        return 1
    if listen is not None:
        settings = attrs.evolve(settings, listen=listen)
    globalLogBeginner.beginLoggingTo([_log_to(err)], redirectStandardIO=False, discardBuffer=True)
    _raise_limit_of_files()
    return _Run(Gateway(config, settings), err).run()


def _log_to(err: TextIO) -> ILogObserver:
    """Everything but Twisted's own routine: factories that start, a loop that ends."""
    write = textFileLogObserver(err)

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_level") is not LogLevel.info or not str(event.get("log_namespace")).startswith("twisted."):
            write(event)

    return cast(ILogObserver, observe)


def _raise_limit_of_files() -> None:
    """Each request that is passed on needs two."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Run:
    """The reactor from start to stop."""

    def __init__(self, gateway: Gateway, err: TextIO) -> None:
        self._gateway = gateway
        self._err = err
        self._status = 1

    def run(self) -> int:
        """Returns the exit status."""
        reactor.callWhenRunning(lambda: Deferred.fromCoroutine(self._start()).addErrback(self._broken))
        Interruption(lambda: Deferred.fromCoroutine(self._stop()).addErrback(self._broken)).run_reactor()
        return self._status

    async def _start(self) -> None:
        try:
            where = await self._gateway.start()
        except StreamingError as e:
            print(f"tahoe-stream: {e}", file=self._err, flush=True)
            reactor.stop()
            return
        self._status = 0
        _log.info("the gateway listens at {where}", where=where)

    async def _stop(self) -> None:
        try:
            await self._gateway.stop()
        finally:
            reactor.stop()

    def _broken(self, failure: Failure) -> None:
        print(f"tahoe-stream: internal-error: {failure.getTraceback()}", file=self._err, flush=True)
        self._status = 1
        if reactor.running:
            reactor.stop()

