"""Both ends of the wire (helper/foolscap_edge.py, client_shim/helper_edge.py) over real loopback connections."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import reactor_loop
from allmydata.immutable.offloaded import Helper
from fakes import FakeGrid
from foolscap.api import DeadReferenceError, Referenceable, RemoteException, Violation
from loopback import LoopbackHelper, client_tub
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredList
from world import KEY, SI, SMALL, expected, plaintext

from client_shim.cipher import Encryptor
from client_shim.client import StreamingClient
from client_shim.errors import (
    BadFurl,
    HelperLost,
    HelperMisbehaved,
    HelperRefused,
    HelperUnreachable,
    StockHelper,
    UploadClosed,
    UploadError,
)
from client_shim.helper_edge import HelperAnswer, HelperLink, ShareSeen, connect
from client_shim.node_config import NodeConfig
from client_shim.upload import StreamingUpload
from helper.ciphertext import CiphertextHasher
from helper.errors import BY_CODE, StreamingError
from helper.foolscap_edge import wire_refusal
from helper.interfaces import (
    LARGEST_MESSAGE_MAX,
    SEEDS_MAX,
    VERSION_FURL,
    VERSION_KEY,
    VERSION_LARGEST_MESSAGE,
    RIStreamingHelper,
)
from helper.parameters import Parameters

reactor: Any = _reactor  # it has more interfaces than its declared type

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(5000)
CIPHERTEXT = Encryptor(KEY).encrypt(DATA)
ID = bytes(range(32))


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[LoopbackHelper]:
    with LoopbackHelper(tmp_path) as helper:
        yield helper


def finish_arguments() -> tuple[int, bytes, bytes, bytes]:
    hasher = CiphertextHasher(PARAMETERS.k, PARAMETERS.max_segment_size)
    hasher.update(CIPHERTEXT)
    hashes = hasher.hashes()
    return hashes.size, SI, hashes.crypttext_hash, hashes.crypttext_root_hash


def fails(call: Callable[[], Any], kind: type[UploadError]) -> Any:
    with pytest.raises(kind) as caught:
        reactor_loop.run(call)
    return caught.value


# -- what should work -----------------------------------------------------------------------------------------


def test_every_method_makes_the_round_trip(helper: LoopbackHelper) -> None:
    link = helper.connect()
    assert link.largest_message == SMALL.largest_message
    opened = helper.run(lambda: link.open(ID, PARAMETERS.to_wire()))
    assert opened.code == "ok"
    assert opened.fields["state"] == b"open"
    assert opened.number("credit") == SMALL.credit
    assert opened.shares == []
    order = b"".join(i.to_bytes(2, "big") for i in range(10))
    assert ordered(helper, order) == ({b"code": b"ok", b"state": b"open"}, [])
    assert helper.run(lambda: link.assign(ID, SI)) == HelperAnswer("ok", {"state": b"open"}, [])
    put = helper.run(lambda: link.put_ciphertext(ID, 0, CIPHERTEXT))
    assert put == HelperAnswer("ok", {"durable": 5000, "credit": SMALL.credit}, [])
    assert helper.run(lambda: link.status(ID)).number("durable") == 5000
    finished = helper.run(lambda: link.finish(ID, *finish_arguments()))
    assert finished.fields == {"state": b"finished", "ueb": expected(DATA, PARAMETERS).ueb}
    assert sorted(finished.shares, key=lambda share: share.shnum) == [
        ShareSeen(shnum, server.name, "closed", 5000)
        for shnum, server in enumerate(helper.grid.in_order(SI))]
    other = bytes(32)
    helper.run(lambda: link.open(other, PARAMETERS.to_wire()))
    assert helper.run(lambda: link.abort(other)) == HelperAnswer("ok", {"state": b"aborted"}, [])


def ordered(helper: LoopbackHelper, order: bytes) -> Any:
    """The answer, as it comes over the wire, to the order of servers for the upload ID."""

    async def call() -> Any:
        rref = await helper.client.getReference(helper.streaming_furl)
        return await rref.callRemote("order", ID, order)

    return helper.run(call)


def test_an_order_of_servers_has_its_bounds_on_the_wire(helper: LoopbackHelper) -> None:
    link = helper.connect()
    helper.run(lambda: link.open(ID, PARAMETERS.to_wire()))
    fields, _shares = ordered(helper, bytes(SEEDS_MAX))
    assert fields[b"code"] == b"bad-argument"
    with pytest.raises(Violation):
        ordered(helper, bytes(SEEDS_MAX + 1))


@pytest.mark.parametrize("size", [None, 300_000])
def test_a_whole_upload(helper: LoopbackHelper, size: int | None) -> None:
    data = plaintext(300_000)
    parameters = Parameters(3, 7, 10, 32 * 1024, size)
    cap = helper.run(lambda: helper.upload(parameters, data, KEY, 10_000))
    encoded = expected(data, attrs.evolve(parameters, size=None))
    assert cap == encoded.cap
    copies = helper.grid.copies(SI)
    assert {shnum: [share.data for _server, share in found] for shnum, found in copies.items()} == {
        shnum: [share] for shnum, share in encoded.shares.items()}


def test_the_second_object_is_reached_over_the_same_connection(helper: LoopbackHelper) -> None:
    helper.connect()
    helper.connect()

    async def count() -> int:
        return len(helper.tub.brokers)

    assert helper.run(count) == 1


def test_a_stock_client_finds_what_it_knows_in_the_version(helper: LoopbackHelper) -> None:
    async def version() -> Any:
        rref = await helper.client.getReference(helper.furl)
        return await rref.callRemote("get_version")

    assert {key: value for key, value in helper.run(version).items() if key != VERSION_KEY} == Helper.VERSION


def test_a_clients_own_tub_does_as_well(helper: LoopbackHelper, tmp_path: Path) -> None:
    async def go() -> bytes:
        client = StreamingClient(NodeConfig(tmp_path, PARAMETERS, helper.furl))
        upload = client.upload(key=KEY)
        await upload.write(DATA)
        cap = await upload.close()
        await client.stop()
        return cap

    assert helper.run(go) == expected(DATA, PARAMETERS).cap


def test_an_upload_of_a_client_that_was_stopped_fails(helper: LoopbackHelper, tmp_path: Path) -> None:
    async def go() -> None:
        client = StreamingClient(NodeConfig(tmp_path, PARAMETERS, helper.furl))
        upload = client.upload(key=KEY)
        await upload.write(DATA)
        await client.stop()
        await upload.close()

    fails(lambda: go(), UploadClosed)


# -- refusals -------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Scripted(Referenceable):  # type: ignore[misc]
    """Gives the same answer to every call. It says that it has our interface, and does not keep to it."""

    answer: Any

    def getInterface(self) -> None:
        return None  # so that nothing is checked on the way out

    def getInterfaceName(self) -> str:
        return str(RIStreamingHelper.__remote_name__)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("remote_"):
            raise AttributeError(name)
        return lambda *_arguments: self.answer


def scripted(helper: LoopbackHelper, answer: Any) -> HelperLink:
    async def go() -> HelperLink:
        rref = await helper.client.getReference(helper.register(Scripted(answer)))
        return HelperLink(rref, 1000)

    return helper.run(go)


def an_error(kind: type[StreamingError]) -> StreamingError:
    """One with something in every field."""
    fields = attrs.fields(cast(Any, kind))
    return kind(**{field.name: 7 if field.type in ("int", int) else "some text" for field in fields})


@pytest.mark.parametrize("code", BY_CODE)
def test_every_error_arrives_with_code_text_and_fields(helper: LoopbackHelper, code: str) -> None:
    error = an_error(BY_CODE[code])
    link = scripted(helper, wire_refusal(error))
    refused = fails(lambda: link.status(ID), HelperRefused)
    assert refused.code == code
    assert refused.text() == error.text()
    assert refused.fields() == {name.replace("_", "-"): value for name, value in error.fields().items()}
    assert str(refused) == str(error)


def test_refusals_of_a_real_helper(helper: LoopbackHelper) -> None:
    link = helper.connect()
    assert fails(lambda: link.status(ID), HelperRefused).code == "unknown-upload"
    assert fails(lambda: link.status(b"short"), HelperRefused).code == "bad-upload-id"
    assert fails(lambda: link.open(ID, {b"k": 3}), HelperRefused).code == "bad-argument"
    helper.run(lambda: link.open(ID, PARAMETERS.to_wire()))
    assert fails(lambda: link.put_ciphertext(ID, 5, b"data"), HelperRefused).fields() == {"expected": 0, "came": 5}
    assert fails(lambda: link.put_ciphertext(ID, -1, b"data"), HelperRefused).code == "bad-argument"
    assert fails(lambda: link.put_ciphertext(ID, 2**64 - 1, b"data"), HelperRefused).code == "bad-argument"
    assert fails(lambda: link.assign(ID, b"short"), HelperRefused).code == "bad-storage-index"
    assert fails(lambda: link.finish(ID, -2**63, *finish_arguments()[1:]), HelperRefused).code == "size-mismatch"


def test_a_bug_in_the_helper_arrives_as_internal_error_without_its_text(tmp_path: Path) -> None:
    class BrokenGrid(FakeGrid):
        def when_connected(self, count: int, timeout: float) -> Deferred[int]:
            raise KeyError("a secret")

    with LoopbackHelper(tmp_path, grid=BrokenGrid(reactor, 10)) as helper:
        link = helper.connect()
        refused = fails(lambda: link.open(ID, PARAMETERS.to_wire()), HelperRefused)
        assert (refused.code, refused.fields()) == ("internal-error", {"kind": "KeyError"})
        assert "secret" not in str(refused)


# -- bounds ---------------------------------------------------------------------------------------------------


def test_a_message_larger_than_announced_is_refused_by_code(tmp_path: Path) -> None:
    with LoopbackHelper(tmp_path, attrs.evolve(SMALL, largest_message=20_000)) as helper:
        link = helper.connect()
        helper.run(lambda: link.open(ID, PARAMETERS.to_wire()))
        refused = fails(lambda: link.put_ciphertext(ID, 0, bytes(20_001)), HelperRefused)
        assert (refused.code, refused.fields()) == ("message-too-large", {"limit": 20_000, "came": 20_001})
        refused = fails(lambda: link.put_ciphertext(ID, 0, bytes(LARGEST_MESSAGE_MAX)), HelperRefused)
        assert refused.code == "message-too-large"
        assert helper.run(lambda: link.put_ciphertext(ID, 0, bytes(20_000))).number("durable") == 20_000


def test_a_message_larger_than_any_may_be_is_not_even_sent(helper: LoopbackHelper) -> None:
    link = helper.connect()
    fails(lambda: link.put_ciphertext(ID, 0, bytes(LARGEST_MESSAGE_MAX + 1)), HelperMisbehaved)
    fails(lambda: link.status(bytes(65)), HelperMisbehaved)
    fails(lambda: link.assign(ID, bytes(33)), HelperMisbehaved)
    fails(lambda: link.put_ciphertext(ID, 2**64, b"data"), HelperMisbehaved)
    fails(lambda: link.open(ID, {b"%d" % i: i for i in range(17)}), HelperMisbehaved)
    assert fails(lambda: link.status(ID), HelperRefused).code == "unknown-upload"


#: Calls that a client which keeps to no schema could make.
MONSTROUS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "data": ("put_ciphertext", (ID, 0, bytes(48 * 1024 * 1024))),
    "upload ID": ("status", (bytes(1024 * 1024),)),
    "text": ("status", ("text" * 8,)),
    "none": ("status", (None,)),
    "offset": ("put_ciphertext", (ID, 2**80, b"data")),
    "no number": ("put_ciphertext", (ID, b"0", b"data")),
    "float": ("put_ciphertext", (ID, 0.0, b"data")),
    "parameters": ("open", (ID, {b"%d" % i: i for i in range(1000)})),
    "nested": ("open", (ID, {b"k": [b"x"] * 100})),
    "too many": ("abort", (ID, ID)),
    "too few": ("abort", ()),
}


@pytest.mark.parametrize("name", MONSTROUS)
def test_arguments_outside_the_schema_are_refused_by_the_helper_too(helper: LoopbackHelper, name: str) -> None:
    method, arguments = MONSTROUS[name]

    async def call() -> None:
        rref = await helper.client.getReference(helper.streaming_furl)
        await rref.callRemote(method, *arguments, _useSchema=False)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((RemoteException, DeadReferenceError)):
        helper.run(call)
    # the sender's own copies are in this process as well: one in the transport, one being encrypted
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 160 * 1024
    link = helper.connect()  # others, and this client, go on
    assert fails(lambda: link.status(ID), HelperRefused).code == "unknown-upload"


@pytest.mark.parametrize("method", ["no_such_method", "__init__", "uploads"])
def test_methods_that_are_not_of_the_interface_are_refused(helper: LoopbackHelper, method: str) -> None:
    async def call() -> None:
        rref = await helper.client.getReference(helper.streaming_furl)
        rref.tracker.interface = None  # or it would not even be sent
        await rref.callRemote(method)

    with pytest.raises((RemoteException, DeadReferenceError)):
        helper.run(call)
    link = helper.connect()
    assert fails(lambda: link.status(ID), HelperRefused).code == "unknown-upload"


# -- not finding a helper -------------------------------------------------------------------------------------


def test_a_stock_helper_is_told_apart(helper: LoopbackHelper, tmp_path: Path) -> None:
    async def stock() -> str:
        return helper.register(Helper(str(tmp_path / "other"), None, None, None, None))

    furl = helper.run(stock)
    error = fails(lambda: connect(helper.client, furl), StockHelper)
    assert "stock" in error.text()


@pytest.mark.parametrize("furl", ["", "x", "pb:", "pb://", "pb://" + "a" * 32, "http://127.0.0.1/",
                                  "pb://!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!@tcp:127.0.0.1:1/name",
                                  "pb://" + "a" * 32 + "@tcp:127.0.0.1:1,,/name", "pb://\u00e9@tcp:127.0.0.1:1/name"])
def test_what_is_no_furl_is_told(helper: LoopbackHelper, furl: str) -> None:
    error = fails(lambda: connect(helper.client, furl), BadFurl)
    assert furl not in error.text() or len(furl) < 2


def a_furl_like(helper: LoopbackHelper, tub_id: str | None = None, hints: str | None = None,
                name: str | None = None) -> str:
    scheme, rest = helper.furl.split("//")
    mine, rest = rest.split("@")
    my_hints, my_name = rest.split("/")
    return f"{scheme}//{tub_id or mine}@{my_hints if hints is None else hints}/{name or my_name}"


def test_a_furl_that_leads_nowhere_is_told(helper: LoopbackHelper) -> None:
    async def try_it(furl: str) -> None:
        tub = client_tub("another client")  # one that has no connection yet
        try:
            await connect(tub, furl)
        finally:
            await tub.stopService()

    for furl in ("pb://x@y/z", a_furl_like(helper, name="a" * 32), a_furl_like(helper, tub_id="a" * 32),
                 a_furl_like(helper, hints=""), a_furl_like(helper, hints="tcp:127.0.0.1:1"),
                 a_furl_like(helper, hints="nonsense")):
        error = fails(partial(try_it, furl), HelperUnreachable)
        assert helper.furl.rsplit("/", 1)[1] not in str(error)


def test_something_that_is_no_helper_is_told(helper: LoopbackHelper) -> None:
    class Other(Referenceable):  # type: ignore[misc]
        def remote_something(self) -> None: ...

    async def other() -> str:
        return helper.register(Other())

    furl = helper.run(other)
    fails(lambda: connect(helper.client, furl), HelperMisbehaved)


class Versioned(Referenceable):  # type: ignore[misc]
    def __init__(self, version: Any) -> None:
        self.version = version

    def remote_get_version(self) -> Any:
        return self.version


FURL = b"pb://" + b"a" * 32 + b"@tcp:127.0.0.1:1/name"


@pytest.mark.parametrize(("version", "kind"), [
    ({}, StockHelper), ([], StockHelper), (5, StockHelper), (None, StockHelper), ({VERSION_KEY: None}, StockHelper),
    ({VERSION_KEY: 5}, HelperMisbehaved), ({VERSION_KEY: {}}, HelperMisbehaved),
    ({VERSION_KEY: {VERSION_FURL: FURL}}, HelperMisbehaved),
    ({VERSION_KEY: {VERSION_FURL: FURL, VERSION_LARGEST_MESSAGE: 20_000}}, HelperMisbehaved),  # another Tub's
    ({VERSION_KEY: {VERSION_FURL: b"pb://", VERSION_LARGEST_MESSAGE: 20_000}}, HelperMisbehaved),
    ({VERSION_KEY: {VERSION_FURL: b"pb://x@y/z", VERSION_LARGEST_MESSAGE: 20_000}}, HelperMisbehaved),
    ({VERSION_KEY: {VERSION_FURL: b"\xff", VERSION_LARGEST_MESSAGE: 20_000}}, HelperMisbehaved),
    ({VERSION_KEY: {VERSION_FURL: 5, VERSION_LARGEST_MESSAGE: 20_000}}, HelperMisbehaved),
    ({VERSION_KEY: {VERSION_FURL: "own", VERSION_LARGEST_MESSAGE: 0}}, HelperMisbehaved),
    ({VERSION_KEY: {VERSION_FURL: "own", VERSION_LARGEST_MESSAGE: -1}}, HelperMisbehaved),
    ({VERSION_KEY: {VERSION_FURL: "own", VERSION_LARGEST_MESSAGE: LARGEST_MESSAGE_MAX + 1}}, HelperMisbehaved),
    ({VERSION_KEY: {VERSION_FURL: "own", VERSION_LARGEST_MESSAGE: b"20000"}}, HelperMisbehaved),
])
def test_version_information_that_is_not_of_the_protocol(
        helper: LoopbackHelper, version: Any, kind: type[UploadError]) -> None:
    if isinstance(version, dict) and isinstance(version.get(VERSION_KEY), dict):
        own = {key: helper.streaming_furl.encode() if value == "own" else value
               for key, value in version[VERSION_KEY].items()}
        version = {VERSION_KEY: own}

    async def versioned() -> str:
        return helper.register(Versioned(version))

    furl = helper.run(versioned)
    fails(lambda: connect(helper.client, furl), kind)


# -- a connection that breaks ---------------------------------------------------------------------------------


def test_a_connection_that_breaks_under_a_call(helper: LoopbackHelper) -> None:
    link = helper.connect()
    helper.run(lambda: link.open(ID, PARAMETERS.to_wire()))
    lost: list[int] = []

    async def watch() -> None:
        link.on_lost(lambda: lost.append(1))
        forget = link.on_lost(lambda: lost.append(2))
        forget()

    helper.run(watch)

    async def call() -> list[tuple[bool, Any]]:
        calls = [Deferred.fromCoroutine(link.put_ciphertext(ID, 1000 * i, bytes(1000))) for i in range(5)]
        for broker in list(helper.client.brokers.values()):
            broker.transport.abortConnection()
        return await DeferredList(calls, consumeErrors=True)

    for success, result in helper.run(call):
        assert success or isinstance(result.value, HelperLost)
    helper.run(lambda: reactor_loop.turns(lambda: bool(lost)))
    fails(lambda: link.status(ID), HelperLost)
    assert lost == [1]
    again = helper.connect()
    assert helper.run(lambda: again.status(ID)).fields["state"] == b"open"


async def an_upload(helper: LoopbackHelper, **options: Any) -> StreamingUpload:

    async def link() -> HelperLink:
        return await connect(helper.client, helper.furl)

    upload = StreamingUpload(link, PARAMETERS, reactor, key=KEY, **options)
    await upload.write(DATA)
    return upload


def test_without_patience_an_upload_whose_connection_breaks_fails_and_says_so(helper: LoopbackHelper) -> None:
    told: list[int] = []
    upload = helper.run(partial(an_upload, helper, patience=0, on_failed=lambda: told.append(1)))
    helper.cut()
    helper.run(lambda: reactor_loop.turns(lambda: bool(told)))
    error = fails(lambda: upload.write(DATA), HelperLost)
    assert fails(upload.close, HelperLost) is error
    helper.run(upload.abort)


def test_an_upload_goes_on_over_another_connection(helper: LoopbackHelper) -> None:
    told: list[str] = []
    upload = helper.run(partial(an_upload, helper, on_paused=lambda why, _patience: told.append(why.code),
                                on_resumed=lambda _seconds: told.append("resumed")))
    for cuts in (1, 2):
        helper.cut()
        helper.run(lambda cuts=cuts: reactor_loop.turns(lambda: told.count("resumed") == cuts))  # type: ignore[misc]
        helper.run(partial(upload.write, DATA))
    helper.cut()
    assert helper.run(upload.close) == expected(3 * DATA, PARAMETERS).cap
    assert told == ["helper-lost", "resumed"] * 3


def test_two_clients_do_not_disturb_each_other(helper: LoopbackHelper) -> None:
    async def go() -> tuple[str, str]:
        other = client_tub("another client")
        mine = await connect(helper.client, helper.furl)
        theirs = await connect(other, helper.furl)
        await mine.open(ID, PARAMETERS.to_wire())
        await theirs.open(bytes(32), PARAMETERS.to_wire())
        await mine.put_ciphertext(ID, 0, CIPHERTEXT)
        await other.stopService()
        answer = await mine.finish(ID, *finish_arguments())
        return str(answer.code), bytes(answer.fields["state"]).decode()

    assert helper.run(go) == ("ok", "finished")


# -- a helper that lies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [
    None, 5, b"ok", [], (), ({}, [], 5), ({b"code": b"ok"},), [{b"code": b"ok"}, []],
    ({b"code": [b"ok"]}, []), ({"code": b"ok"}, []), ({b"code": "ok"}, []), ({b"code": None}, []),
    ({b"code": b"x" * 65537}, []), ({b"k" * 65: 1}, []), ({b"%d" % i: i for i in range(33)}, []),
    ({b"code": 2**64}, []), ({b"code": b"ok"}, [5]), ({b"code": b"ok"}, [(1, b"name", b"state")]),
    ({b"code": b"ok"}, [(1, b"n" * 65, b"state", 5)]), ({b"code": b"ok"}, [(0, b"", b"", 0)] * 257),
    ({b"code": b"x" * (8 * 1024 * 1024)}, []),
])
def test_answers_outside_the_schema(helper: LoopbackHelper, answer: Any) -> None:
    link = scripted(helper, answer)
    fails(lambda: link.status(ID), HelperMisbehaved)
    fails(lambda: link.put_ciphertext(ID, 0, b"data"), (HelperMisbehaved, HelperLost))  # type: ignore[arg-type]


@pytest.mark.parametrize(("answer", "code"), [
    (({}, []), "internal-error"), (({b"code": 5}, []), "internal-error"), (({b"code": b""}, []), "internal-error"),
    (({b"code": b"never heard of"}, []), "never heard of"), (({b"code": b"\xff"}, []), "\ufffd")])
def test_answers_within_the_schema_that_mean_nothing_are_refusals(
        helper: LoopbackHelper, answer: Any, code: str) -> None:
    link = scripted(helper, answer)
    assert fails(lambda: link.status(ID), HelperRefused).code == code


def test_a_helper_that_raises_is_misbehaving(helper: LoopbackHelper) -> None:
    class Raising(Scripted):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("remote_"):
                raise ValueError(f"{name}: a traceback for you")
            raise AttributeError(name)

    async def go() -> HelperLink:
        return HelperLink(await helper.client.getReference(helper.register(Raising(None))), 1000)

    link = helper.run(go)
    error = fails(lambda: link.status(ID), HelperMisbehaved)
    assert "traceback for you" not in error.text()
