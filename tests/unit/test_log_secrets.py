"""Nothing secret ever reaches a log, an error text, standard output or a file name, whatever fails."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import attrs
import pytest
import reactor_loop
from allmydata import uri
from allmydata.util import base32
from fakes import FakeGrid, Fault
from foolscap.api import DeadReferenceError, RemoteException
from foolscap.logging import log as foolscap_log
from foolscap_tokens import begun_call, call, call_head, end_of_call, string, token
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import LoopbackHelper, client_tub
from threat_helper import RawPeer
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import ILogObserver, LogEvent, Logger, eventAsText, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.template import flattenString
from world import SMALL, World, begin, expected, outcome, plaintext, with_size

from client_shim.errors import UploadError
from client_shim.helper_edge import HelperLink, connect
from client_shim.upload import StreamingUpload
from helper.parameters import Parameters
from helper.placement import Allocation
from helper.sinks import Granted
from helper.status import as_json, snapshot, statistics
from helper.status_page import page_of
from helper.upload import hashed_name

reactor: Any = _reactor  # it has more interfaces than its declared type

PARAMETERS = Parameters(3, 7, 10, 300)
MARKER = b"Canary-0815-4711"
KEY = b"KEY-canary-16byt"


class Everything:
    """A context manager that keeps all that is logged or printed meanwhile, as text."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._printed = io.StringIO()

    def __enter__(self) -> Self:
        self._printing = contextmanager(self._redirected)()
        self._printing.__enter__()
        globalLogPublisher.addObserver(cast(ILogObserver, self._twisted))
        foolscap_log.theLogger.addImmediateObserver(self._foolscap)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        foolscap_log.theLogger.removeImmediateObserver(self._foolscap)
        globalLogPublisher.removeObserver(cast(ILogObserver, self._twisted))
        self._printing.__exit__(kind, error, traceback)

    def _redirected(self) -> Iterator[None]:
        with redirect_stdout(self._printed), redirect_stderr(self._printed):
            yield

    def _twisted(self, event: LogEvent) -> None:
        self.add(formatEvent(event))
        self.add(eventAsText(event, includeTraceback=True))
        for name, value in event.items():
            if name not in ("log_source", "log_logger", "log_trace"):
                self.add(f"{name}={value!r}")
            if isinstance(value, Failure):
                self.add(value.getTraceback())
                self.add(repr(value.value) + str(value.value) + repr(getattr(value.value, "args", "")))

    def _foolscap(self, event: dict[str, Any]) -> None:
        self.add(repr(event))
        self.add(foolscap_log.format_message(event))
        failure = event.get("failure")
        if isinstance(failure, Failure):
            self.add(failure.getTraceback() + str(failure.value))

    def add(self, text: str) -> None:
        self._parts.append(text)

    @property
    def text(self) -> str:
        return "\n".join([*self._parts, self._printed.getvalue()])


def forms(secret: bytes) -> set[str]:
    """How a secret could look in a text."""
    return {
        secret.decode("latin-1"), secret.decode("utf-8", "replace"), repr(secret)[2:-1], repr(bytearray(secret)),
        secret.hex(), secret.hex().upper(), base64.b64encode(secret).decode().rstrip("="),
        base64.urlsafe_b64encode(secret).decode().rstrip("="), base64.b32encode(secret).decode().rstrip("="),
        base32.b2a(secret).decode(), str(list(secret)), str(int.from_bytes(secret, "big")),
    }


def found(text: str, secrets: dict[str, bytes]) -> list[tuple[str, str]]:
    """Which secrets stand in `text`, and in what form."""
    while "\\\\" in text:  # the repr of a text that holds the repr of a secret
        text = text.replace("\\\\", "\\")
    return [(name, form) for name, secret in secrets.items() for form in sorted(forms(secret))
            if len(form) >= 8 and form in text]


def with_halves(secrets: dict[str, bytes]) -> dict[str, bytes]:
    """Half of a secret is one as well."""
    halves = {f"{name}, half": secret[:len(secret) // 2] for name, secret in secrets.items()}
    return {**secrets, **halves}


def secrets_of(cap: bytes, upload_ids: set[bytes]) -> dict[str, bytes]:
    parsed = uri.from_string(cap)
    return with_halves({
        "key": KEY, "cap": cap, "marker": MARKER, "storage index": parsed.get_storage_index(),
        **{f"upload ID {i}": upload_id for i, upload_id in enumerate(sorted(upload_ids))}})


DATA = MARKER * 200


# -- everything in memory -------------------------------------------------------------------------------------


class Raising(FakeGrid):
    """A grid whose servers fail with texts that tell everything they know."""

    def __init__(self, world: World) -> None:
        super().__init__(world.clock, 10)
        self.grid = world.grid

    def gossip(self, number: int) -> None:
        server = self.servers[number]

        def allocate(storage_index: bytes, shnums: Any, _allocation: Allocation) -> Deferred[Granted]:
            raise KeyError(f"allocate({storage_index!r}, {shnums!r}) by {server.name}")

        server.allocate = allocate  # type: ignore[assignment, method-assign]


OPERATIONS = ["space", "allocate", "write", "seal", "publish", "abort"]


@settings(max_examples=settings().max_examples // 2)
@given(data=st.data())
def test_uploads_full_of_faults_tell_no_secrets(data: st.DataObject) -> None:
    faults = data.draw(st.lists(st.tuples(
        st.integers(0, 9), st.sampled_from(OPERATIONS), st.integers(1, 5), st.sampled_from(list(Fault))), max_size=8))
    gossips = data.draw(st.lists(st.integers(0, 9), max_size=5))
    breaks_at = data.draw(st.none() | st.integers(0, 9))
    size = data.draw(st.sampled_from([None, len(DATA), len(DATA) - 1, len(DATA) + 1]))
    nonsense = data.draw(st.lists(st.sampled_from(
        ["gap", "conflict", "large", "finish", "assign", "open", "abort", "status"]), max_size=4))
    breaks_disk = data.draw(st.sampled_from([False, False, False, True]))
    with Everything() as everything, World(settings=attrs.evolve(SMALL, first_bound=1024)) as world:
        grid = Raising(world)
        world.grid.servers = grid.servers
        for number, operation, nth, fault in faults:
            grid.servers[number].plan(operation, nth, fault)
        for number in gossips:
            grid.gossip(number)
        link = world.link()
        link.breaks = lambda _method, count: count == breaks_at
        upload = world.upload(with_size(PARAMETERS, size), link, KEY)
        errors = [outcome(begin(upload.write(DATA[:1000])))]
        world.wait(1)
        upload_ids = {arguments[0] for _method, arguments in link.sent}
        names = [path.name for path in world.spool_files()]
        shown = [everything_shown(world)]
        if breaks_disk:
            for path in world.spool_files():
                os.truncate(path, 10)
        for upload_id in upload_ids:
            errors += [outcome(begin(call)) for call in
                       (nonsense_call(world, upload_id, kind) for kind in nonsense)]
        errors += [outcome(begin(upload.write(DATA[1000:]))), outcome(begin(upload.close()))]
        world.wait(600)
        errors.append(outcome(begin(upload.abort())))
        world.wait(10)
        shown.append(everything_shown(world))
        errors.append(outcome(begin(Deferred.fromCoroutine(stop(world)))))
        world.wait(10)
        world.errors.clear()
        for results in errors:
            for result in results:
                if isinstance(result, Failure):
                    assert isinstance(result.value, UploadError), result
                    everything.add(str(result.value) + repr(result.value.fields()))
        text = everything.text + "".join(names)
    secrets = secrets_of(expected(DATA, PARAMETERS, KEY).cap, upload_ids)
    assert not found(text, secrets)
    for page in shown:
        assert not found(page, secrets)
        for upload_id in upload_ids:
            assert hashed_name(upload_id)[:8] in page
            assert hashed_name(upload_id)[:9] not in page


def everything_shown(world: World) -> str:
    """What the page /streaming shows, to people and to programs, and the statistics."""
    status = snapshot(world.uploads)
    pages: list[bytes] = []
    flattenString(None, page_of(status)).addCallback(pages.append)
    return json.dumps(as_json(status)) + pages[0].decode() + json.dumps(statistics(world.uploads))


async def stop(world: World) -> None:
    world.uploads.stop()


def nonsense_call(world: World, upload_id: bytes, kind: str) -> Any:
    link = world.link()
    return {
        "gap": lambda: link.put_ciphertext(upload_id, 10**6, DATA[:100]),
        "conflict": lambda: link.put_ciphertext(upload_id, 0, DATA[:100]),
        "large": lambda: link.put_ciphertext(upload_id, 0, DATA * 1000),
        "finish": lambda: link.finish(upload_id, 1000, bytes(16), KEY * 2, KEY * 2),
        "assign": lambda: link.assign(upload_id, KEY),
        "open": lambda: link.open(upload_id, {b"k": 1, b"color": 5}),
        "abort": lambda: link.abort(upload_id[:31]),
        "status": lambda: link.status(KEY * 2),
    }[kind]()


# -- over the wire --------------------------------------------------------------------------------------------


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[LoopbackHelper]:
    with LoopbackHelper(tmp_path) as helper:
        yield helper


#: Calls that Foolscap itself refuses, at one end or the other, and what it would like to say about them.
WRONG_CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("put_ciphertext", (KEY * 2, 0, MARKER * 400_000)),
    ("put_ciphertext", (KEY * 2, MARKER, MARKER)),
    ("put_ciphertext", (KEY * 2, 2**70, MARKER)),
    ("put_ciphertext", (KEY.decode() * 2, 0, MARKER)),
    ("status", (KEY * 100,)),
    ("status", (KEY * 2, MARKER)),
    ("open", (KEY * 2, {KEY * 5: 1})),
    ("open", (KEY * 2, {KEY: MARKER})),
    ("finish", (KEY * 2, 5, MARKER, KEY, [KEY])),
    ("abort", ([KEY],)),
    (KEY.decode().replace("-", "_"), (KEY,)),
]


@pytest.mark.parametrize("checked", [True, False], ids=["client checks", "client does not check"])
def test_calls_that_foolscap_refuses_tell_no_secrets(helper: LoopbackHelper, checked: bool) -> None:
    async def call(method: str, arguments: tuple[Any, ...]) -> None:
        rref = await helper.client.getReference(helper.streaming_furl)
        link = HelperLink(rref, 1000)
        if checked:
            await link._call(method, *arguments)
        else:
            rref.tracker.interface = None
            await rref.callRemote(method, *arguments, _useSchema=False)

    with Everything() as everything:
        for method, arguments in WRONG_CALLS:
            with pytest.raises((UploadError, RemoteException, DeadReferenceError)) as caught:
                helper.run(partial(call, method, arguments))
            if isinstance(caught.value, UploadError):
                everything.add(str(caught.value) + repr(caught.value.fields()))
    furls = {"furl": helper.furl.rsplit("/", 1)[1].encode(), "ours": helper.streaming_furl.rsplit("/", 1)[1].encode()}
    assert not found(everything.text, {**with_halves({"key": KEY, "marker": MARKER}), **furls})


#: What Foolscap would log, or answer, with what came.
OUTSIDE: dict[str, bytes] = {
    "header": bytes(65) + KEY + MARKER * 10,
    "header in a call": call_head(5, 1, MARKER) + bytes(80) + KEY + MARKER,
    "type": token(0x88) + string(MARKER * 5),
    "at the top": string(MARKER + KEY),
    "error": token(0x8D, len(MARKER), MARKER),
    "long error": token(0x8D, 10_000, MARKER * 600),
    "method": call(5, 1, MARKER + KEY, string(KEY)),
    "long method": call_head(5, 1, MARKER * 1000),
    "no such object": call(5, 77, MARKER, string(KEY)),
    "not UTF-8": call(5, 1, b"\xff" + MARKER, string(KEY)),
    "argument": begun_call(5, 1, b"status", string(MARKER), string(KEY), count=0) + end_of_call(5),
    "furl name": call(5, 0, b"getReferenceByName", string(MARKER)),
}


@pytest.mark.parametrize("outside", OUTSIDE)
def test_s9_what_is_outside_of_the_protocol_is_not_logged(helper: LoopbackHelper, outside: str) -> None:
    async def go() -> None:
        peer = await RawPeer.connect(helper.furl)
        await peer.reference(helper.streaming_furl)
        peer.write(OUTSIDE[outside])
        tub = client_tub("another client")
        await (await tub.getReference(helper.furl)).callRemote("get_version")
        await tub.stopService()
        await peer.close()

    with Everything() as everything:
        helper.run(go)
    assert not found(everything.text, with_halves({"key": KEY, "marker": MARKER}))


def test_uploads_over_broken_connections_tell_no_secrets(helper: LoopbackHelper) -> None:
    upload_ids: set[bytes] = set()

    async def one(cut_after: int | None) -> None:
        async def link() -> HelperLink:
            return await connect(helper.client, helper.furl)

        upload = StreamingUpload(link, PARAMETERS, reactor, key=KEY)
        upload_ids.add(upload._upload_id)
        try:
            for start in range(0, len(DATA), 400):
                await upload.write(DATA[start:start + 400])
                if start == cut_after:
                    for broker in list(helper.tub.brokers.values()):
                        broker.transport.abortConnection()
            await upload.close()
        except UploadError as e:
            everything.add(str(e) + repr(e.fields()))
        await upload.abort()

    async def two_at_once() -> None:
        await DeferredList([Deferred.fromCoroutine(one(None)), Deferred.fromCoroutine(one(None))])

    with Everything() as everything:
        for cut_after in (0, 1200, 2800, None):
            helper.run(partial(one, cut_after))
        helper.run(two_at_once)
        helper.grid.servers[0].disconnect()
        for server in helper.grid.servers[1:5]:
            server.refuse_from_now_on()
        helper.run(lambda: one(None))
        everything.add("".join(os.listdir(helper.directory / "spool")))
    secrets = secrets_of(expected(DATA, PARAMETERS, KEY).cap, upload_ids)
    furls = {"furl": helper.furl.rsplit("/", 1)[1].encode(), "ours": helper.streaming_furl.rsplit("/", 1)[1].encode()}
    assert "upload" in everything.text
    assert not found(everything.text, {**secrets, **furls})


# -- the test itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", sorted(forms(KEY)))
def test_a_secret_would_be_found_in_every_form(form: str) -> None:
    if len(form) < 8:
        return
    log = Logger()
    with Everything() as everything:
        log.info("the key is {form}", form=form)
    assert found(everything.text, {"key": KEY})
    with Everything() as everything:
        foolscap_log.msg(f"the key is {form}")
    assert found(everything.text, {"key": KEY})
    with Everything() as everything:
        print(form)
    assert found(everything.text, {"key": KEY})


def test_a_secret_would_be_found_in_a_field_or_failure() -> None:
    log = Logger()
    with Everything() as everything:
        log.info("nothing to see", hidden=KEY)
    assert found(everything.text, {"key": KEY})
    for error in (KeyError(KEY), KeyError(f"no {KEY!r}"), KeyError(repr(f"no {bytes(range(16))!r}"))):
        with Everything() as everything:
            log.failure("oops", Failure(error))
        assert found(everything.text, {"key": KEY, "other": bytes(range(16))})


def test_the_logs_are_not_empty() -> None:
    with Everything() as everything, World() as world:
        world.put(plaintext(1000), PARAMETERS)
    assert "finished" in everything.text


def test_the_reactor_of_these_tests_runs() -> None:
    assert reactor_loop.now(lambda: True)
