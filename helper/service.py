"""`tahoe-stream helper run`: a Tahoe node with the streaming helper beside the stock one.

Everything about the node is stock: its directory, pid file, logging, web pages and shutdown. Only
`init_helper` differs, and there is one page more. This module and grid.py are the only ones that use
parts of allmydata that are not its formats; tests/unit/test_allmydata_names.py lists every such name.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TextIO

from allmydata import client as tahoe_client
from allmydata.interfaces import IStatsProducer
from allmydata.scripts.tahoe_run import get_pidfile, identify_node_type, on_stdin_close
from allmydata.util.configutil import UnknownConfigError
from allmydata.util.pid import InvalidPidFile, ProcessInTheWay, check_pid_process, cleanup_pidfile
from twisted.application.service import MultiService, Service
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath
from twisted.python.threadpool import ThreadPool
from twisted.scripts import twistd
from zope.interface import implementer

from helper import free_memory
from helper.bounded_broker import bound, new_memory
from helper.codec import describe_code
from helper.connection_memory import TO_STORAGE_SERVERS, for_connections
from helper.foolscap_edge import AnnouncingHelper, StreamingHelper
from helper.grid import TahoeGrid
from helper.ledger import Ledger
from helper.ledger_file import LEDGER_NAME, LedgerFile, LedgerUnusable
from helper.settings import Settings, SettingsError, read_settings
from helper.spool import Spool, SpoolLocked
from helper.status import statistics
from helper.status_page import PAGE, StatusPage
from helper.uploads import Uploads

reactor: Any = _reactor  # it has more interfaces than its declared type

#: Threads that write, sync and read. More than cores: most of the time they wait for disks.
DISK_THREADS = 8
#: Threads that read through what an earlier run has left. Others again: clients that all come back at once would have
#: every disk thread read gigabytes for them.
RECOVERY_THREADS = 2
#: Threads that encode and hash. Others, so that no ciphertext waits to become durable while much is encoded.
ENCODING_THREADS = 4

#: k and N of the code that the log tells of at the start; clients choose their own (these are Tahoe's).
LOGGED_CODE = 3, 10

#: Bytes of free memory that are kept for reuse (with 8 MiB, half a second of processor time a GiB more),
#: in each of so many arenas. Threads mostly wait for disks, or work
#: outside of the interpreter's lock with memory they have: two arenas are enough.
KEPT_MEMORY, ARENAS = 24 * free_memory.MiB, 2

#: Below NODEDIR/helper, where the stock helper keeps its files too.
STREAMING_DIRECTORY = Path("streaming")
SPOOL_DIRECTORY = STREAMING_DIRECTORY / "spool"


class ConfigurationError(Exception):
    """The node cannot run as it is configured; the text is for its operator."""


@implementer(IStatsProducer)
class StreamingHelperService(Service):
    """The spool, the uploads and their threads, from the node's start to its end."""

    log = Logger()

    def __init__(self, settings: Settings, directory: Path, grid: TahoeGrid, introducer_clients: list[Any]) -> None:
        self._disk_threads = ThreadPool(1, DISK_THREADS, "streaming helper disk")
        self._encoding_threads = ThreadPool(1, ENCODING_THREADS, "streaming helper encoding")
        self._recovery_threads = ThreadPool(1, RECOVERY_THREADS, "streaming helper recovery")
        self._spool = Spool(directory / SPOOL_DIRECTORY, partial(deferToThreadPool, reactor, self._disk_threads),
                            recover_in_thread=partial(deferToThreadPool, reactor, self._recovery_threads))
        self._ledger = Ledger(LedgerFile(directory / STREAMING_DIRECTORY / LEDGER_NAME),
                              partial(deferToThreadPool, reactor, self._disk_threads), reactor)
        self._grid = grid
        self._introducer_clients = introducer_clients
        self.uploads = Uploads(settings, self._spool, self._ledger, grid, reactor,
                               partial(deferToThreadPool, reactor, self._encoding_threads))
        self._giving_back = LoopingCall(self._give_memory_back)
        self._started = False

    def startService(self) -> None:
        """Take the spool and the ledger. Raises SpoolLocked if another process has them, LedgerUnusable."""
        self.log.info("erasure code: {code}", code=describe_code(*LOGGED_CODE))
        self._spool.start()
        recorded = self._ledger.open(len(self._spool.names()))
        self._disk_threads.start()
        self._recovery_threads.start()
        self._encoding_threads.start()
        self._started = True
        self._grid.follow(self._introducer_clients)
        self.uploads.start(recorded)
        self._giving_back.start(free_memory.INTERVAL, now=False)
        super().startService()

    def get_stats(self) -> dict[str, int]:
        """What the node's /statistics page shows of us."""
        return statistics(self.uploads)

    def _give_memory_back(self) -> Deferred[None]:
        """If that fails it is tried again with the next turn."""
        return deferToThreadPool(reactor, self._encoding_threads, free_memory.give_back).addErrback(
            lambda failure: self.log.failure("memory could not be given back", failure))

    async def _stop(self) -> None:
        if self._started:  # else no thread would ever do what is asked of it
            self.uploads.stop()
            if self._giving_back.running:
                self._giving_back.stop()
            self._grid.stop()
            await self._ledger.close()
            for threads in (self._encoding_threads, self._recovery_threads, self._disk_threads):
                threads.stop()
        self._spool.stop()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())


class StreamingClient(tahoe_client._Client):  # type: ignore[misc]
    """A Tahoe client node whose helper streams."""

    def __init__(self, config: Any, main_tub: Any, i2p_provider: Any, tor_provider: Any,
                 introducer_clients: Any, storage_farm_broker: Any) -> None:
        settings = read_settings(Path(config.get_config_path()))
        self._connection_memory = new_memory(for_connections(settings.connections_max))
        bound(_quiet(main_tub), self._connection_memory)
        bound_to_servers(storage_farm_broker)
        super().__init__(config, main_tub, i2p_provider, tor_provider, introducer_clients, storage_farm_broker)

    def init_helper(self) -> None:
        """Publish both helpers, the stock one at the furl it always had."""
        directory = Path(self.config.get_config_path("helper"))
        self.helper = AnnouncingHelper(
            str(directory), self.storage_broker, self._secret_holder, self.stats_provider, self.history)
        settings = read_settings(Path(self.config.get_config_path()))
        service = StreamingHelperService(
            settings, directory,
            TahoeGrid(self.storage_broker, self._secret_holder, reactor, self.tub.getReference),
            self.introducer_clients)
        service.setServiceParent(self)
        self._streaming = service
        self._connection_memory.on_stuck = service.uploads.memory_wanted
        self.stats_provider.register_producer(service)
        furl = self.tub.registerReference(
            StreamingHelper(service.uploads), furlFile=self._furl_file("streaming-helper.furl"))
        self.helper.announce(furl, settings.largest_message)
        self.tub.registerReference(self.helper, furlFile=self._furl_file("helper.furl"))

    def init_web(self, webport: str) -> None:
        """The stock pages, and ours beside them."""
        super().init_web(webport)
        self.getServiceNamed("webish").root.putChild(PAGE, StatusPage(self._streaming.uploads))

    def _furl_file(self, name: str) -> bytes:
        return os.fsencode(self.config.get_private_path(name))


def bound_to_servers(storage_farm_broker: Any) -> None:
    """Let the Tubs that the broker makes, one for each storage server, be quiet and keep to bounds, together."""
    make_tub, memory = storage_farm_broker._tub_maker, new_memory(TO_STORAGE_SERVERS)

    def make_bounded(overrides: Any) -> Any:
        tub = _quiet(make_tub(overrides))
        bound(tub, memory)
        return tub

    storage_farm_broker._tub_maker = make_bounded


def _quiet(tub: Any) -> Any:
    """Without these a failed call is logged with its arguments: upload IDs, storage indexes, data."""
    tub.setOption("logLocalFailures", False)
    tub.setOption("logRemoteFailures", False)
    return tub


async def create_node(node_directory: str) -> MultiService:
    """The node in `node_directory`, ready to be started. Raises ConfigurationError, and what Tahoe raises."""
    config = tahoe_client.read_config(node_directory, "client.port")
    if not config.get_config("helper", "enabled", False, boolean=True):
        raise ConfigurationError(
            f"{node_directory}: this node is not a helper; put\n\n    [helper]\n    enabled = true\n\n"
            "into its tahoe.cfg")
    # Shares are streamed to storage servers over Foolscap: over HTTP a share's header cannot be written
    # last, and its size cannot be more than is written.
    config.config.set("client", "force_foolscap", "true")
    node: MultiService = await tahoe_client.create_client_from_config(config, _client_factory=StreamingClient)
    return node


class _NodeStarter(Service):
    """Creates the node once the reactor runs, as `tahoe run` does, and stops the reactor if it cannot."""

    def __init__(self, node_directory: str, exit_with_stdin: bool, stderr: TextIO) -> None:
        self._node_directory = node_directory
        self._exit_with_stdin = exit_with_stdin
        self._stderr = stderr
        self.failed = False

    def startService(self) -> None:
        super().startService()
        reactor.callWhenRunning(lambda: Deferred.fromCoroutine(self._start()).addErrback(self._give_up))

    async def _start(self) -> None:
        node = await create_node(self._node_directory)
        node.setServiceParent(self.parent)
        if self._exit_with_stdin:
            on_stdin_close(reactor, reactor.stop)

    def _give_up(self, failure: Failure) -> None:
        self.failed = True
        if failure.check(ConfigurationError, LedgerUnusable, SettingsError, SpoolLocked, UnknownConfigError):
            self._stderr.write(f"\nERROR: {failure.value}\n\n")
        else:
            self._stderr.write("\nERROR: the node could not be started:\n")
            failure.printTraceback(self._stderr)
        reactor.stop()


class _Plugin:
    """What twistd makes a service of."""

    tapname = "tahoestream"

    def __init__(self, starter: _NodeStarter) -> None:
        self._starter = starter

    def makeService(self, _options: object) -> MultiService:
        service = MultiService()
        self._starter.setServiceParent(service)
        return service


class _Twistd(twistd.ServerOptions):  # type: ignore[misc,name-defined]
    """twistd knows one application: our node."""

    subCommands: ClassVar[list[Any]] = [("TahoeStreamHelper", None, usage.Options, "node")]  # noqa: N815


def run_helper(node_directory: Path, allow_stdin_close: bool, twistd_arguments: tuple[str, ...] = (),
               stdout: TextIO | None = None, stderr: TextIO | None = None) -> int:
    """Run the node in the foreground until SIGTERM or SIGINT (or end of standard input, unless
    `allow_stdin_close`). Returns the exit status."""
    out, err = stdout or sys.stdout, stderr or sys.stderr
    directory = str(node_directory.absolute())
    if identify_node_type(directory) != "client":
        print(f"ERROR: {directory} is not the directory of a Tahoe client node", file=err)
        return 1
    pid_file = FilePath(get_pidfile(directory))
    try:
        check_pid_process(pid_file)
    except (ProcessInTheWay, InvalidPidFile) as e:
        print(f"ERROR: {e}", file=err)
        return 1
    reactor.addSystemEventTrigger("after", "shutdown", cleanup_pidfile, pid_file)
    free_memory.keep(KEPT_MEMORY, ARENAS)
    starter = _NodeStarter(directory, not allow_stdin_close, err)
    options = _Twistd()
    options.stdout, options.stderr = out, err
    options.parseOptions(["--nodaemon", "--rundir", directory, "--pidfile", None,
                          *twistd_arguments, "TahoeStreamHelper"])
    options.loadedPlugins = {"TahoeStreamHelper": _Plugin(starter)}
    print(f"running the streaming helper node in {directory}", file=out, flush=True)
    twistd.runApp(options)
    return 1 if starter.failed else 0
