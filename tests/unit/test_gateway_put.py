"""PUT /uri and PUT /uri/DIRCAP/..., against a whole helper in memory and a node that links."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from urllib.parse import quote

import pytest
from allmydata import uri
from gateway_world import DIRECTORY, PARAMETERS, GatewayWorld, chunked, request
from hypothesis import given, settings
from hypothesis import strategies as st
from world import expected, plaintext

from client_shim.dedup import DedupMode

DATA = plaintext(25_000)
FILE = f"/uri/{quote(DIRECTORY, safe='')}/sub/name"


@pytest.fixture
def world() -> Iterator[GatewayWorld]:
    with GatewayWorld() as world:
        yield world


def assert_stored(world: GatewayWorld, cap: bytes, data: bytes) -> None:
    """The cap is of exactly these bytes, and every share of it is published."""
    parsed = uri.from_string(cap)
    if len(data) <= 55:
        assert parsed.data == data
        return
    world.helper.wait(1)
    encoded = expected(data, PARAMETERS, parsed.key)
    assert cap == encoded.cap
    world.helper.check_shares(encoded)


def assert_nothing_left(world: GatewayWorld) -> None:
    world.helper.wait(1)
    world.helper.check_nothing_left()
    assert {upload.session.state.value for upload in world.helper.uploads._by_name.values()} <= {"aborted"}


@settings(max_examples=40)
@given(size=st.sampled_from([0, 1, 55, 56, 57, 10_001, 10_002, 10_003, 25_000]),
       cuts=st.lists(st.integers(0, 25_000), max_size=5), declared=st.booleans())
def test_any_body_becomes_its_cap(size: int, cuts: list[int], declared: bool) -> None:
    data = plaintext(size)
    places = [0, *sorted(cut % (size + 1) for cut in cuts), size]
    pieces = [data[a:b] for a, b in pairwise(places) if a < b]
    with GatewayWorld() as world:
        answer = world.ask(request("PUT", "/uri", data) if declared else chunked("PUT", "/uri", *pieces))
        assert answer.status == 200
        assert_stored(world, answer.body, data)
        assert world.accesses[0][:5] == ("PUT", "put-uri", 200, size, len(answer.body))


def test_what_became_of_an_upload_is_said(world: GatewayWorld) -> None:
    assert world.ask(request("PUT", "/uri", DATA)).headers["tahoe-dedup"] == "published"
    assert world.ask(request("PUT", FILE, DATA)).headers["tahoe-dedup"] == "published"


@pytest.mark.parametrize(("query", "wanted"), [
    ("", None), ("?dedup=on", DedupMode.ON), ("?dedup=off&format=CHK", DedupMode.OFF),
    ("?dedup=trust", DedupMode.TRUST)])
def test_whether_a_stored_file_is_looked_for_can_be_asked_for(world: GatewayWorld, query: str,
                                                              wanted: DedupMode | None) -> None:
    assert world.ask(request("PUT", f"/uri{query}", DATA)).status == 200
    assert world.ask(request("PUT", f"{FILE}{query}", DATA)).status == 201
    assert world.dedup_wanted == [wanted, wanted]


def test_another_word_for_that_is_refused(world: GatewayWorld) -> None:
    answer = world.ask(request("PUT", "/uri?dedup=yes", DATA))
    assert (answer.status, answer.body) == (400, b"the query argument dedup: expected on or trust or off\n")
    assert not world.uploads


def test_a_declared_size_is_told_to_the_helper(world: GatewayWorld) -> None:
    for data, size in ((request("PUT", "/uri", DATA), len(DATA)), (chunked("PUT", "/uri", DATA), None)):
        world.ask(data)
        assert world.uploads[-1].progress.size == size


def test_a_short_body_needs_no_helper_if_that_is_known(world: GatewayWorld) -> None:
    assert world.ask(request("PUT", "/uri", b"short")).body.startswith(b"URI:LIT:")
    assert world.connects == 0


def test_a_short_body_of_unknown_size_leaves_nothing_at_the_helper(world: GatewayWorld) -> None:
    assert world.ask(chunked("PUT", "/uri", b"short")).body.startswith(b"URI:LIT:")
    assert world.connects == 1
    assert_nothing_left(world)


def test_pieces_are_with_the_helper_before_the_last_one_comes(world: GatewayWorld) -> None:
    client = world.client()
    world.send(client, chunked("PUT", "/uri", DATA, end=False))
    assert world.helper.only_upload().session.durable == len(DATA)
    assert client.take() == b""
    world.send(client, b"0\r\n\r\n")
    assert client.answers("PUT")[0].status == 200


@pytest.mark.parametrize("data", [
    request("PUT", "/uri", DATA)[:-1], chunked("PUT", "/uri", DATA, end=False), chunked("PUT", "/uri", DATA)[:-2],
    request("PUT", FILE, DATA)[:-1], chunked("PUT", FILE, DATA, end=False)])
def test_a_cut_connection_aborts(world: GatewayWorld, data: bytes) -> None:
    client = world.client()
    world.send(client, data)
    client.transport.cut()
    assert_nothing_left(world)
    assert client.take() == b""
    assert world.node.links == {}
    assert world.accesses[0][2] == "gone"


def test_bad_chunks_abort(world: GatewayWorld) -> None:
    client = world.client()
    world.send(client, chunked("PUT", "/uri", DATA, end=False) + b"nonsense\r\n")
    assert client.answers("PUT")[0].status == 400
    assert client.over
    assert_nothing_left(world)


def test_a_client_that_goes_before_the_cap_is_known_has_no_upload(world: GatewayWorld) -> None:
    client = world.client()
    world.helper.hold_work()
    client.send(request("PUT", "/uri", DATA))
    world.helper.turn()
    client.transport.cut()
    world.helper.release_work()
    assert_nothing_left(world)


def test_a_file_that_is_to_be_linked_is_so_even_if_the_client_goes(world: GatewayWorld) -> None:
    client = world.client()
    world.send(client, request("PUT", FILE, DATA)[:-10])
    world.helper.hold_work()
    client.send(DATA[-10:])
    client.transport.cut()
    world.helper.release_work()
    world.helper.wait(5)
    assert_stored(world, world.node.links["sub/name"][1].encode(), DATA)


def test_backpressure_of_the_helper_reaches_the_client(world: GatewayWorld) -> None:
    size = 3_000_000
    client = world.client()
    world.helper.hold_work()
    client.send(request("PUT", "/uri", bytes(size))[:-size])
    client.send(bytes(size))
    world.helper.wait(5)
    assert client.paused
    assert len(client.transport.undelivered) > size // 2
    world.helper.release_work()
    world.helper.wait(600)
    assert client.answers("PUT")[0].status == 200


# -- the helper ----------------------------------------------------------------------------------------------

EXPECT = ("Expect: 100-continue",)


@pytest.mark.parametrize("data", [
    request("PUT", "/uri", DATA, *EXPECT)[:-len(DATA)], chunked("PUT", "/uri", end=False, fields=EXPECT),
    request("PUT", FILE, DATA, *EXPECT)[:-len(DATA)]])
def test_continue_only_when_the_upload_is_open(world: GatewayWorld, data: bytes) -> None:
    client = world.client()
    world.helper_is_up = False
    client.send(data)
    world.helper.wait(5)
    assert client.take() == b""
    world.helper_is_up = True
    world.helper.wait(5)
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert len(world.helper.uploads._by_name) == 1


@pytest.mark.parametrize(("changes", "status", "code"), [
    ({"upload_quota": 4000}, 413, "quota-exceeded"), ({"uploads_max": 1}, 503, "too-many-uploads")])
def test_what_the_helper_refuses_is_refused_before_the_body(changes: dict[str, int], status: int, code: str) -> None:
    with GatewayWorld(**changes) as world:
        if code == "too-many-uploads":
            world.send(world.client(), chunked("PUT", "/uri", DATA, end=False))
        client = world.client()
        world.send(client, request("PUT", "/uri", DATA, *EXPECT)[:-len(DATA)])
        (answer,) = client.answers("PUT")
        assert (answer.status, answer.informed, client.over) == (status, [], True)
        assert answer.headers["content-type"] == "text/plain;charset=utf-8"
        assert ("retry-after" in answer.headers) is (status == 503)
        assert not any(letter in answer.body for letter in (b"URI:", b"pb://"))


@pytest.mark.parametrize("target", ["/uri", FILE])
def test_a_helper_that_stays_away_is_told_after_a_while(world: GatewayWorld, target: str) -> None:
    world.helper_is_up = False
    began = world.clock.seconds()
    answer = world.ask(request("PUT", target, DATA))
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert b"no connection to the helper" in answer.body
    assert 5 <= world.clock.seconds() - began <= 12
    assert 4 <= world.connects <= 12
    assert world.clock.getDelayedCalls() == [] or all(
        call.getTime() > world.clock.seconds() for call in world.clock.getDelayedCalls())


def test_an_upload_in_progress_waits_for_its_helper(world: GatewayWorld) -> None:
    client = world.client()
    world.send(client, chunked("PUT", "/uri", DATA[:3000], end=False))
    world.helper_is_up = False
    world.helper.restart()
    world.send(client, b"%x\r\n%b\r\n0\r\n\r\n" % (len(DATA) - 3000, DATA[3000:]))
    world.helper.wait(600)
    assert client.take() == b""
    world.helper_is_up = True
    world.helper.wait(30)
    (answer,) = client.answers("PUT")
    assert_stored(world, answer.body, DATA)


def test_a_helper_that_does_not_come_back_ends_the_upload_though_the_client_says_nothing() -> None:
    with GatewayWorld(patience=60) as world:
        client = world.client()
        world.send(client, chunked("PUT", "/uri", DATA, end=False))
        world.helper_is_up = False
        world.helper.kill()
        world.helper.wait(100)
        (answer,) = client.answers("PUT")
        assert (answer.status, client.over) == (503, True)
        assert b"connection to the helper broke" in answer.body


def test_too_few_servers(world: GatewayWorld) -> None:
    for server in world.helper.grid.servers[:4]:
        server.disconnect()
    assert world.ask(request("PUT", "/uri", DATA)).status == 503


def test_stopping_waits_until_the_helper_has_heard_of_what_is_given_up(world: GatewayWorld) -> None:
    client = world.client()
    world.send(client, chunked("PUT", "/uri", DATA, end=False))
    client.transport.cut()
    world.helper.run(world.streams.stop())
    assert world.helper.only_upload().session.state.value == "aborted"


# -- linking -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replace", ["", "?replace=true", "?replace=only-files", "?replace=false"])
def test_a_new_name(world: GatewayWorld, replace: str) -> None:
    answer = world.ask(request("PUT", FILE + replace, DATA))
    assert answer.status == 201
    assert_stored(world, answer.body, DATA)
    assert world.node.links == {"sub/name": ("immutable", answer.body.decode())}
    asked = "false" if replace.endswith("false") else "only-files"
    assert [(method, target) for method, target, _body in world.node.requests] == [
        ("GET", f"{FILE}?t=json"), ("PUT", f"{FILE}?t=uri&replace={asked}")]


def test_an_old_name_is_replaced(world: GatewayWorld) -> None:
    world.node.links["sub/name"] = ("immutable", "URI:LIT:old")
    answer = world.ask(chunked("PUT", FILE, DATA))
    assert answer.status == 200
    assert_stored(world, answer.body, DATA)
    assert world.node.links["sub/name"][1] == answer.body.decode()


def test_an_old_name_that_is_not_to_be_replaced(world: GatewayWorld) -> None:
    world.node.links["sub/name"] = ("immutable", "URI:LIT:old")
    client = world.client()
    world.send(client, request("PUT", FILE + "?replace=false", DATA, *EXPECT)[:-len(DATA)])
    (answer,) = client.answers("PUT")
    assert (answer.status, answer.informed) == (409, [])
    assert answer.body == b"There was already a child by that name, and you asked me to not replace it.\n"
    assert world.connects == 0


@pytest.mark.parametrize("kind", ["mutable", "directory"])
def test_what_only_the_node_can_do_is_passed_on(world: GatewayWorld, kind: str) -> None:
    world.node.links["sub/name"] = (kind, "URI:other")
    answer = world.ask(chunked("PUT", FILE, DATA[:2000], DATA[2000:]))
    assert (answer.status, answer.body, answer.headers["server"]) == (200, b"passed on: " + DATA, "node")
    assert world.node.requests[-1] == ("PUT", FILE, DATA)
    assert world.connects == 0


def test_a_conflict_that_comes_up_meanwhile_gives_the_cap(world: GatewayWorld) -> None:
    client = world.client()
    world.send(client, chunked("PUT", FILE + "?replace=false", DATA, end=False))
    world.node.links["sub/name"] = ("immutable", "URI:LIT:another")
    world.send(client, b"0\r\n\r\n")
    (answer,) = client.answers("PUT")
    assert answer.status == 409
    cap = answer.headers["tahoe-cap"].encode()
    assert answer.body.splitlines()[-1] == cap
    assert b"stored" in answer.body
    assert_stored(world, cap, DATA)
    assert world.node.links["sub/name"][1] == "URI:LIT:another"


def test_a_directory_that_comes_up_meanwhile_is_not_replaced(world: GatewayWorld) -> None:
    client = world.client()
    world.send(client, chunked("PUT", FILE, DATA, end=False))
    world.node.links["sub/name"] = ("directory", "URI:DIR2:x")
    world.send(client, b"0\r\n\r\n")
    assert client.answers("PUT")[0].status == 409
    assert world.node.links["sub/name"] == ("directory", "URI:DIR2:x")


def test_a_node_that_is_away_before_the_upload(world: GatewayWorld) -> None:
    world.memory_node.up = False
    answer = world.ask(request("PUT", FILE, DATA))
    assert (answer.status, world.connects) == (502, 0)
    assert b"client node behind this gateway does not answer" in answer.body


def test_a_node_that_restarts_meanwhile_is_waited_for(world: GatewayWorld) -> None:
    client = world.client()
    world.send(client, chunked("PUT", FILE, DATA, end=False))
    world.memory_node.kill()
    world.send(client, b"0\r\n\r\n")
    world.helper.wait(5)
    assert client.take() == b""
    world.memory_node.up = True
    world.helper.wait(2)
    assert client.answers("PUT")[0].status == 201


def test_a_node_that_stays_away_costs_the_link_and_not_the_cap(world: GatewayWorld) -> None:
    client = world.client()
    world.send(client, chunked("PUT", FILE, DATA, end=False))
    world.memory_node.kill()
    world.send(client, b"0\r\n\r\n")
    world.helper.wait(20)
    (answer,) = client.answers("PUT")
    assert answer.status == 502
    assert_stored(world, answer.body.splitlines()[-1], DATA)


@pytest.mark.parametrize("status", [400, 404, 410, 500, 302])
def test_the_nodes_status_is_that_of_the_answer(world: GatewayWorld, status: int) -> None:
    node = world.node

    class Refuses:
        async def __call__(self, exchange: object) -> None:
            if exchange.head.argument("t") == "uri":  # type: ignore[attr-defined]
                await exchange.respond(status, [], b"URI:DIR2:secret in the node's own words")  # type: ignore[attr-defined]
            else:
                await node(exchange)  # type: ignore[arg-type]

    world.memory_node.handler = Refuses()  # type: ignore[assignment]
    answer = world.ask(request("PUT", FILE, DATA))
    assert answer.status == (status if status >= 400 else 502)
    assert b"DIR2" not in answer.body
    assert_stored(world, answer.body.splitlines()[-1], DATA)
