"""Every part of Tahoe-LAFS and Foolscap that we use, public or not, is there in the installed version.

The lists are compared with what the sources really use, so that a new use has to be written down here. When
the pin of tahoe-lafs moves, a failure here is the first thing to look at.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
import warnings
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
from allmydata.client import SecretHolder, _Client
from allmydata.immutable.layout import ReadBucketProxy
from allmydata.immutable.offloaded import Helper
from allmydata.interfaces import RIBucketWriter, RIStorageServer
from allmydata.introducer.client import IntroducerClient
from allmydata.node import _Config
from allmydata.stats import StatsProvider
from allmydata.storage.immutable import ShareFile
from allmydata.storage.immutable_schema import NEWEST_SCHEMA_VERSION
from allmydata.storage.lease import LeaseInfo
from allmydata.storage.server import StorageServer
from allmydata.storage_client import NativeStorageServer, StorageFarmBroker
from foolscap.broker import Broker
from foolscap.negotiate import Negotiation
from foolscap.pb import Listener, Tub
from twisted.application.service import IServiceCollection
from twisted.internet.tcp import Connection as TCPConnection
from twisted.protocols.tls import BufferingTLSTransport
from twisted.web.resource import Resource

from helper import large_reads, large_writes
from helper.long_strings import LongStrings

ROOT = Path(__file__).parents[2]

#: Formats and hashes: stable for as long as there are caps.
FORMATS = {
    "allmydata.hashtree.HashTree",
    "allmydata.hashtree.IncompleteHashTree",
    "allmydata.hashtree.empty_leaf_hash",
    "allmydata.hashtree.pair_hash",
    "allmydata.hashtree.roundup_pow2",
    "allmydata.uri.CHKFileURI",
    "allmydata.uri.DirectoryURI",
    "allmydata.uri.LiteralFileURI",
    "allmydata.uri.MDMFDirectoryURI",
    "allmydata.uri.from_string",
    "allmydata.uri.pack_extension",
    "allmydata.uri.unpack_extension",
    "allmydata.util.abbreviate.abbreviate_space",
    "allmydata.util.abbreviate.abbreviate_time",
    "allmydata.util.abbreviate.parse_abbreviated_size",
    "allmydata.util.base32.a2b",
    "allmydata.util.happinessutil.servers_of_happiness",
    "allmydata.util.hashutil.CIPHERTEXT_SEGMENT_TAG",
    "allmydata.util.hashutil.CIPHERTEXT_TAG",
    "allmydata.util.hashutil.CONVERGENT_ENCRYPTION_TAG",
    "allmydata.util.hashutil._SHA256d_Hasher",
    "allmydata.util.hashutil.block_hash",
    "allmydata.util.hashutil.bucket_cancel_secret_hash",
    "allmydata.util.hashutil.bucket_renewal_secret_hash",
    "allmydata.util.hashutil.convergence_hasher",
    "allmydata.util.hashutil.crypttext_hasher",
    "allmydata.util.hashutil.crypttext_segment_hasher",
    "allmydata.util.hashutil.file_cancel_secret_hash",
    "allmydata.util.hashutil.file_renewal_secret_hash",
    "allmydata.util.hashutil.permute_server_hash",
    "allmydata.util.hashutil.storage_index_hash",
    "allmydata.util.hashutil.tagged_hash",
    "allmydata.util.hashutil.tagged_pair_hash",
    "allmydata.util.hashutil.uri_extension_hash",
    "allmydata.util.netstring.netstring",
    "allmydata.util.time_format.parse_duration",
}
#: The node and its parts, which may change with any version: only in these modules.
NODE = {
    "allmydata.client._Client": {"helper/service.py"},
    "allmydata.client.create_client_from_config": {"helper/service.py"},
    "allmydata.client.read_config": {"helper/service.py"},
    "allmydata.immutable.layout.ReadBucketProxy": {"helper/stock.py"},
    "allmydata.immutable.offloaded.Helper": {"helper/foolscap_edge.py"},
    "allmydata.interfaces.IAnnounceableStorageServer": {"helper/staging_plugin.py"},
    "allmydata.interfaces.IFoolscapStoragePlugin": {"helper/staging_plugin.py"},
    "allmydata.interfaces.IStatsProducer": {"helper/service.py", "helper/staging_plugin.py"},
    "allmydata.interfaces.NoSpace": {"helper/staging_publisher.py"},
    "allmydata.scripts.tahoe_run.get_pidfile": {"helper/service.py"},
    "allmydata.scripts.tahoe_run.identify_node_type": {"helper/service.py"},
    "allmydata.scripts.tahoe_run.on_stdin_close": {"helper/service.py"},
    "allmydata.storage.common.UnknownImmutableContainerVersionError": {"helper/staging_publisher.py"},
    "allmydata.storage.common.storage_index_to_dir": {"helper/staging_publisher.py"},
    "allmydata.storage.immutable.ShareFile": {"helper/staged_share.py", "helper/staging_publisher.py"},
    "allmydata.storage.immutable_schema.NEWEST_SCHEMA_VERSION": {"helper/staged_share.py"},
    "allmydata.storage.lease.LeaseInfo": {"helper/staged_share.py", "helper/staging.py"},
    "allmydata.storage.server.DEFAULT_RENEWAL_TIME": {"helper/staging.py"},
    "allmydata.util.configutil.UnknownConfigError": {"helper/service.py"},
    "allmydata.util.pid.InvalidPidFile": {"helper/service.py"},
    "allmydata.util.pid.ProcessInTheWay": {"helper/service.py"},
    "allmydata.util.pid.check_pid_process": {"helper/service.py"},
    "allmydata.util.pid.cleanup_pidfile": {"helper/service.py"},
}
FOOLSCAP = {
    "foolscap.api.DeadReferenceError",
    "foolscap.api.DictOf",
    "foolscap.api.IntegerConstraint",
    "foolscap.api.ListOf",
    "foolscap.api.Referenceable",
    "foolscap.api.RemoteInterface",
    "foolscap.api.StringConstraint",
    "foolscap.api.SturdyRef",
    "foolscap.api.Tub",
    "foolscap.api.TupleOf",
    "foolscap.api.Violation",
    "foolscap.api.eventually",
    "foolscap.banana.STRING",
    "foolscap.banana.int2b128",
    "foolscap.broker.Broker",
    "foolscap.broker.LoopbackTransport",
    "foolscap.eventual.eventually",
    "foolscap.furl.BadFURLError",
    "foolscap.ipb.ISlicer",
    "foolscap.negotiate.Negotiation",
    "foolscap.referenceable.ReferenceableSlicer",
    "foolscap.schema.ChoiceOf",
    "foolscap.tokens.BananaError",
    "foolscap.tokens.NegotiationError",
}
#: Private names that are not ours: attributes, and keyword arguments.
PRIVATE = {"_Client", "_SHA256d_Hasher", "_bucket_writers", "_client_factory", "_negotiationClass", "_secret_holder",
           "_tub_maker",
           # of Twisted: large_writes.TLS_ATTRIBUTES and SOCKET_ATTRIBUTES
           "_aggregator", "_appSendBuffer", "_bufferedWrite", "_handshakeDone", "_lostTLSConnection", "_tempDataBuffer",
           "_tempDataLen", "_tlsConnection", "_tlsShutdownFinished"}

#: Attributes that a class of ours takes from the stock class it extends, or replaces.
INHERITED = {
    (_Client, "helper/service.py"): {
        "_secret_holder", "config", "getServiceNamed", "helper", "history", "init_helper", "init_web",
        "introducer_clients", "stats_provider", "storage_broker", "tub"},
    (Helper, "helper/foolscap_edge.py"): {"VERSION"},
}
#: The same of Foolscap's connections. `_negotiationClass` of its listeners is assigned as well.
CONNECTIONS = {
    Broker: {
        "_callFinished", "buffer", "callFailed", "connectionAbandoned", "connectionLost", "connectionMade",
        "dataLastReceivedAt", "dataReceived", "disconnectTimerFired", "disconnected", "doNextCall", "finish",
        "getTrackerForMyReference", "getTrackerForYourReference", "handleError", "inboundDeliveryQueue",
        "myReferenceByCLID", "remote_tubref",
        "reportReceiveError", "scheduleCall", "sendFailed", "sendPONG", "shutdown", "transport", "waitingForAnswers",
        "yourReferenceByCLID"},
    Negotiation: {"brokerClass", "buffer", "connectionLost", "connectionMade", "dataReceived", "switchToBanana",
                  "transport"},
}
#: Classes of ours between those and the ones that bound them.
OURS = {Broker: ["LongStrings"]}
#: What is used of objects that the node hands us: (class, source, expression there) to names.
OBJECTS = {
    (StorageFarmBroker, "helper/service.py", "storage_farm_broker"): {"_tub_maker"},
    (StorageFarmBroker, "helper/grid.py", "self._broker"): {
        "get_connected_servers", "get_known_servers", "get_servers_for_psi"},
    (IntroducerClient, "helper/grid.py", "introducer"): {"subscribe_to"},
    (SecretHolder, "helper/grid.py", "self._secrets"): {"get_cancel_secret", "get_renewal_secret"},
    (NativeStorageServer, "helper/grid.py", "native"): {
        "get_available_space", "get_rref", "get_storage_server", "on_status_changed"},
    (NativeStorageServer, "helper/stock.py", "self.native"): {
        "get_lease_seed", "get_permutation_seed", "get_rref", "get_serverid"},
    (NativeStorageServer, "helper/stock.py", "native"): {"get_name"},
    (NativeStorageServer, "helper/staging_client.py", "stock.native"): {"get_lease_seed"},
    (NativeStorageServer, "helper/staging_links.py", "native"): {"get_announcement", "get_rref", "get_serverid"},
    (StorageServer, "helper/staging.py", "self._stock"): {"my_nodeid"},
    (StorageServer, "helper/staging_room.py", "self._stock"): {
        "allocated_size", "get_available_space", "readonly_storage"},
    (StorageServer, "helper/staging.py", "stock"): {"storedir"},
    (StorageServer, "helper/staging_plugin.py", "stock"): {"stats_provider"},
    (StorageServer, "helper/staging_publisher.py", "self._stock"): {
        "_bucket_writers", "get_available_space", "incomingdir", "sharedir"},
    (StatsProvider, "helper/staging_plugin.py", "stock.stats_provider"): {"register_producer"},
    (ShareFile, "helper/staged_share.py", "ShareFile"): {"LEASE_SIZE"},
    (ShareFile, "helper/staged_share.py", "ShareFile(str(self.path))"): {"add_lease"},
    (type(NEWEST_SCHEMA_VERSION), "helper/staged_share.py", "NEWEST_SCHEMA_VERSION"): {"header"},
    (ReadBucketProxy, "helper/stock.py", "self.proxy"): {"get_block_data", "get_uri_extension"},
    (_Config, "helper/service.py", "self.config"): {"get_config_path", "get_private_path"},
    (_Config, "helper/service.py", "config"): {"config", "get_config", "get_config_path"},
}
#: Remote methods called in stock.py, by the expression they are called on, and how many arguments they get.
REMOTE = {
    (RIStorageServer, "self.native.get_rref()"): {"get_version": 0, "get_buckets": 1, "add_lease": 3},
    (RIStorageServer, "rref"): {"allocate_buckets": 6},
    (RIBucketWriter, "self.writer"): {"abort": 0, "close": 0, "write": 2},
}


# -- what the sources use -------------------------------------------------------------------------------


@attrs.frozen
class Source:
    """One of our modules."""

    path: str
    tree: ast.Module

    def nodes(self) -> Iterator[ast.AST]:
        return ast.walk(self.tree)


SOURCES = [
    Source(str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8")))
    for package in ("helper", "client_shim") for path in sorted((ROOT / package).rglob("*.py"))]


def is_module(name: str) -> bool:
    try:
        return isinstance(importlib.import_module(name), ModuleType)
    except ImportError:
        return False


def imported(source: Source, package: str) -> dict[str, str]:
    """Local name to full name of what is imported from a package."""
    names = {}
    for node in source.nodes():
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            # `import allmydata.x` would hide uses from this test
            assert not [alias.name for alias in node.names if alias.name.split(".")[0] == package], source.path
    return names


def used_names(source: Source, package: str) -> set[str]:
    """Full names used of a package; of an imported module, the attributes that are used."""
    used = set()
    for local, full in imported(source, package).items():
        if not is_module(full):
            used.add(full)
            continue
        used |= {
            f"{full}.{node.attr}" for node in source.nodes()
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == local}
    return used


def all_used_names(package: str) -> dict[str, set[str]]:
    """Full name to the modules that use it."""
    users: dict[str, set[str]] = {}
    for source in SOURCES:
        for name in used_names(source, package):
            users.setdefault(name, set()).add(source.path)
    return users


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names() -> set[str]:
    """Names that our sources define: functions, classes, variables, attributes, parameters."""
    names: set[str] = set()
    for source in SOURCES:
        for node in source.nodes():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and (
                    isinstance(node.value, ast.Name) and node.value.id == "self"):
                names.add(node.attr)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
    return names


def test_foreign_private_names() -> None:
    own, found = own_names(), set()
    for source in SOURCES:
        for node in source.nodes():
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.keyword) and node.arg is not None:
                found.add(node.arg)
            elif isinstance(node, ast.ImportFrom):
                found |= {alias.name for alias in node.names}
    assert {name for name in found if is_private(name)} - own == PRIVATE


def test_names_of_allmydata() -> None:
    used = all_used_names("allmydata")
    assert set(used) == FORMATS | set(NODE)
    assert {name: users for name, users in used.items() if name in NODE} == NODE


def test_names_of_foolscap() -> None:
    assert set(all_used_names("foolscap")) == FOOLSCAP


def attributes_of_self(cls: ast.ClassDef) -> tuple[set[str], set[str]]:
    """(used, defined) attributes of self in a class of ours."""
    used: set[str] = set()
    defined: set[str] = set()
    for node in ast.walk(cls):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.attr)
    return used, defined


def test_what_our_classes_inherit() -> None:
    found: dict[tuple[Any, str], set[str]] = {}
    for source in SOURCES:
        names = imported(source, "allmydata")
        for node in source.nodes():
            if not isinstance(node, ast.ClassDef):
                continue
            for base in node.bases:
                module, _, rest = ast.unparse(base).partition(".")
                if module in names:
                    stock = resolve(names[module] + ("." + rest if rest else ""))
                    used, defined = attributes_of_self(node)
                    # what we define may replace something of theirs: Helper.VERSION, _Client.init_helper
                    theirs = {name for name in defined if provides(stock, name)} - {"__init__"}
                    found[stock, source.path] = used - defined | theirs
    assert found == INHERITED


def test_what_our_connections_inherit() -> None:
    source = next(s for s in SOURCES if s.path == "helper/bounded_broker.py")
    found: dict[Any, set[str]] = {}
    for node in source.nodes():
        if isinstance(node, ast.ClassDef):
            for base in CONNECTIONS:
                if ast.unparse(node.bases[0] if node.bases else node) in (base.__name__, *OURS.get(base, ())):
                    used, defined = attributes_of_self(node)
                    theirs = {name for name in defined if provides(base, name)} - {"__init__"}
                    found[base] = used - defined | theirs
    assert found == CONNECTIONS


def test_what_long_strings_use_of_foolscap() -> None:
    assert LongStrings.__bases__ == (Broker,)
    assert "self.sendToken(obj)" in inspect.getsource(Broker.produce)


def test_what_large_writes_use_of_their_transports() -> None:
    """Where anything is missing they would go the slow way, without a word."""
    assert all(provides_of_twisted(BufferingTLSTransport, name) for name in large_writes.TLS_ATTRIBUTES)
    assert all(provides_of_twisted(TCPConnection, name) for name in large_writes.SOCKET_ATTRIBUTES)


def test_what_large_reads_use_of_their_transports() -> None:
    assert all(provides_of_twisted(BufferingTLSTransport, name) for name in large_reads.TLS_ATTRIBUTES)
    assert all(provides_of_twisted(TCPConnection, name) for name in large_reads.SOCKET_ATTRIBUTES)
    assert "self.socket.recv(self.bufferSize)" in inspect.getsource(TCPConnection.doRead)
    assert "self._tlsConnection.recv(" in inspect.getsource(BufferingTLSTransport._flushReceiveBIO)


def provides_of_twisted(cls: type, name: str) -> bool:
    sources = "".join(inspect.getsource(base) for base in cls.__mro__ if base.__module__.startswith("twisted."))
    return hasattr(cls, name) or f"self.{name} = " in sources or f"self.{name}: " in sources


def test_how_a_tub_chooses_its_connections() -> None:
    assert provides(Tub, "brokerClass")
    assert provides(Listener, "_negotiationClass")
    assert "self._negotiationClass(" in inspect.getsource(Listener.buildProtocol)
    assert "self.brokerClass(" in inspect.getsource(Negotiation.switchToBanana)


def test_what_is_used_of_the_nodes_objects() -> None:
    wanted = {(path, expression) for _cls, path, expression in OBJECTS}
    found: dict[tuple[str, str], set[str]] = {}
    for source in SOURCES:
        for node in source.nodes():
            if isinstance(node, ast.Attribute) and (source.path, ast.unparse(node.value)) in wanted:
                found.setdefault((source.path, ast.unparse(node.value)), set()).add(node.attr)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                key = (source.path, ast.unparse(node.args[0]))
                if key in wanted:
                    found.setdefault(key, set()).add(ast.literal_eval(node.args[1]))
    assert found == {(path, expression): names for (_cls, path, expression), names in OBJECTS.items()}


def test_which_remote_methods_are_called() -> None:
    source = next(s for s in SOURCES if s.path == "helper/stock.py")
    found: dict[str, dict[str, int]] = {}
    for node in source.nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "callRemote":
            assert not node.keywords
            found.setdefault(ast.unparse(node.func.value), {})[ast.literal_eval(node.args[0])] = len(node.args) - 1
    assert found == {expression: methods for (_interface, expression), methods in REMOTE.items()}


# -- what is installed ----------------------------------------------------------------------------------


def resolve(full: str) -> Any:
    """The object of that full name. AttributeError or ImportError if there is none."""
    parts = full.split(".")
    for i in range(len(parts), 0, -1):
        name = ".".join(parts[:i])
        if is_module(name):
            found: Any = importlib.import_module(name)
            for part in parts[i:]:
                found = getattr(found, part)
            return found
    raise ImportError(full)


def provides(cls: type, name: str) -> bool:
    """Whether instances have that attribute: of the class, or assigned in a method or declared as a field."""
    if hasattr(cls, name) or name in {a.name for a in getattr(cls, "__attrs_attrs__", ())}:
        return True
    bases = [base for base in cls.__mro__ if base.__module__.startswith(("allmydata.", "foolscap."))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about their sources' escape sequences
        trees = [ast.parse(textwrap.dedent(inspect.getsource(base))) for base in bases]
    return any(
        isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == name
        and isinstance(node.value, ast.Name) and node.value.id == "self"
        for tree in trees for node in ast.walk(tree))


def test_versions() -> None:
    assert version("tahoe-lafs").split(".")[:2] == ["1", "20"]
    pins = [line for line in requires("tahoe-stream") or () if line.startswith("tahoe-lafs")]
    assert [pin.replace(" ", "") for pin in pins] == ["tahoe-lafs==1.20.*"]


@pytest.mark.parametrize("name", sorted(FORMATS | set(NODE) | FOOLSCAP))
def test_name_exists(name: str) -> None:
    resolve(name)


@pytest.mark.parametrize(("cls", "name"), [
    (cls, name) for (cls, *_where), names in [*INHERITED.items(), *OBJECTS.items()] for name in sorted(names)])
def test_object_has(cls: type, name: str) -> None:
    assert provides(cls, name)


def test_nothing_is_found_that_is_not_there() -> None:
    assert not provides(_Client, "_no_such_thing")
    with pytest.raises(AttributeError):
        resolve("allmydata.client._NoSuchClient")
    with pytest.raises(ImportError):
        resolve("no_such_package.name")


@pytest.mark.parametrize(("interface", "method", "count"), [
    (interface, method, count) for (interface, _expression), methods in REMOTE.items()
    for method, count in methods.items()])
def test_remote_method(interface: Any, method: str, count: int) -> None:
    assert len(interface[method].argumentNames) == count


@pytest.mark.parametrize(("function", "arguments"), [
    (resolve("allmydata.client.create_client_from_config"), ["_client_factory"]),
    (resolve("allmydata.client.read_config"), ["basedir", "portnumfile"]),
    (_Client.__init__, ["self", "config", "main_tub", "i2p_provider", "tor_provider", "introducer_clients",
                        "storage_farm_broker"]),
    (Helper.__init__, ["self", "basedir", "storage_broker", "secret_holder", "stats_provider", "history"]),
    (_Client.init_helper, ["self"]),
    (_Client.init_web, ["self", "webport"]),
    (StorageFarmBroker.get_servers_for_psi, ["self", "peer_selection_index", "for_upload"]),
    (StorageFarmBroker.get_known_servers, ["self"]),
    (NativeStorageServer.on_status_changed, ["self", "status_changed"]),
    (IntroducerClient.subscribe_to, ["self", "service_name", "callback"]),
    (ReadBucketProxy.__init__, ["self", "rref", "server", "storage_index"]),
    (ReadBucketProxy.get_block_data, ["self", "blocknum", "blocksize", "thisblocksize"]),
    (LeaseInfo, ["owner_num", "renew_secret", "cancel_secret", "expiration_time", "nodeid"]),
    (ShareFile.__init__, ["self", "filename"]),
    (ShareFile.add_lease, ["self", "lease_info"]),
    (NEWEST_SCHEMA_VERSION.header, ["max_size"]),
    (resolve("allmydata.storage.common.storage_index_to_dir"), ["storageindex"]),
    (StatsProvider.register_producer, ["self", "stats_producer"]),
    (resolve("allmydata.util.pid.check_pid_process"), ["pidfile"]),
    (resolve("allmydata.util.pid.cleanup_pidfile"), ["pidfile"]),
    (resolve("allmydata.scripts.tahoe_run.on_stdin_close"), ["reactor", "fn"]),
], ids=lambda value: value.__qualname__ if callable(value) else "")
def test_parameters(function: Any, arguments: list[str]) -> None:
    parameters = list(inspect.signature(function).parameters)
    assert [name for name in parameters if name in arguments] == arguments


def test_pages_can_be_added_to_the_nodes() -> None:
    """StreamingClient puts one there: `init_web` makes a service of this name, whose root is an ordinary resource."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # twisted.web.static, of itself
        server = resolve("allmydata.webish.WebishServer")
    assert server.name == "webish"
    assert provides(server, "root")
    assert issubclass(resolve("allmydata.web.root.Root"), Resource)
    assert "WebishServer(" in inspect.getsource(_Client.init_web)
    assert "self.init_helper()" in inspect.getsource(_Client.__init__).split("self.init_web(")[0]


def test_the_stock_helpers_version_can_be_extended() -> None:
    """AnnouncingHelper adds a key to a dictionary that remote_get_version answers."""
    assert isinstance(Helper.VERSION, dict)
    assert "VERSION" in Helper.remote_get_version.__code__.co_names


def test_open_writers_are_found_by_their_incoming_file(tmp_path: Path) -> None:
    """The staging plugin asks for them so; and its service is started and stopped with the stock server."""
    stock = StorageServer(str(tmp_path), b"i" * 20)
    _already, writers = stock.allocate_buckets(b"s" * 16, b"r" * 32, b"c" * 32, {7}, 10)
    sub = resolve("allmydata.storage.common.storage_index_to_dir")(b"s" * 16)
    path = str(Path(stock.incomingdir, sub, "7"))
    assert stock._bucket_writers == {path: writers[7]}
    assert Path(path).exists()
    writers[7].abort()
    assert stock._bucket_writers == {}
    assert IServiceCollection.providedBy(stock)


def test_the_brokers_tub_maker_makes_every_tub() -> None:
    """StreamingClient wraps it so that tubs log no arguments; it must be what servers are given."""
    sources = inspect.getsource(StorageFarmBroker) + inspect.getsource(NativeStorageServer)
    assert "self._tub_maker," in sources
    assert "self._tub_maker(self._handler_overrides)" in sources
