"""The threats S1 to S21 of the threat model: which test carries each out, or why it does not apply here (THREATS).

Below it those to a helper's Tub, against a helper in a process of its own (protocol.txt §10.5). Those to uploads and
to room are in test_threats_uploads.py, those of storage servers and to disks in test_threats_storage.py, those of
storage servers to memory in test_threats_servers.py.
"""

from __future__ import annotations

import gc
import os
import re
import socket
import ssl
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import attrs
import pytest
import reactor_loop
from foolscap.api import SturdyRef
from foolscap_tokens import begun_call, call, call_head, string, token
from loopback import LoopbackHelper, client_tub
from threat_helper import RawPeer, ThreatenedHelper, peak_memory, zeros
from twisted.internet.defer import Deferred
from world import expected, write_all

from client_shim.errors import HelperRefused
from client_shim.helper_edge import HelperLink, connect
from client_shim.upload import StreamingUpload
from helper.bounded_broker import NEGOTIATION_BYTES
from helper.connection_memory import ConnectionBounds
from helper.interfaces import LARGEST_MESSAGE_MAX, SIZE_MAX, MiB
from helper.parameters import Parameters
from helper.settings import Settings
from helper.token_stream import CLOSE, INT, LONGINT, OPEN, STRING

#: Threat: (tests that carry it out, as `file: name` in tests/; what is left to say).
THREATS: dict[str, tuple[list[str], str]] = {
    "S1 two-time pad on resume": ([
        "unit/test_reconnect.py: test_s1_over_any_schedule_of_cuts_no_offset_carries_two_ciphertexts",
        "unit/test_client_upload.py: test_no_offset_ever_carries_two_ciphertexts",
        "integration/test_convergent.py: test_edit_during_the_second_pass"],
        "A client that is killed loses its key, and never goes on."),
    "S2 a helper that lies": ([
        "unit/test_client_upload.py: test_a_lie_about_the_ueb_gives_no_cap",
        "unit/test_verify.py: test_another_files_ueb", "unit/test_verify.py: test_no_edited_ueb_gives_a_cap",
        "integration/test_lying_helper.py: test_s2_a_helper_that_stores_something_else",
        "integration/test_lying_helper.py: test_s2_a_helper_that_tells_of_another_file"], ""),
    "S3 poisoned storage index": ([
        "unit/test_threats_uploads.py: test_s3_who_knows_the_storage_index_but_not_the_id_can_do_nothing_to_the_upload",
        ("unit/test_threats_uploads.py: "
        "test_s3_an_upload_of_the_attackers_own_never_gets_the_storage_index_of_another"),
        "unit/test_threats_uploads.py: test_s3_a_storage_index_is_bound_once"],
        "The upload ID is a bearer capability; it is not bound to a client."),
    "S4 stolen upload ID": ([], "The upload ID is a bearer capability (protocol.txt §10.1): it is meant to be enough."),
    "S5 oracles for IDs": ([
        "unit/test_threats.py: test_s5_probes_for_upload_ids_leave_no_state_and_get_one_answer",
        "unit/test_uploads.py: test_an_id_that_never_was_and_one_that_was_forgotten_get_the_same_answer"],
        "IDs are looked up by their hash."),
    "S6 convergence": ([
        "unit/test_threats_uploads.py: test_s6_the_same_plaintext_twice_has_nothing_in_common_on_the_wire"], ""),
    "S7 malicious storage servers": ([
        f"unit/test_threats_storage.py: {name}" for name in (
            "test_s7_a_server_that_says_it_has_a_share_already_is_not_counted_unverified",
            "test_s7_a_share_of_which_a_staging_server_says_that_it_holds_more_than_was_pushed_does_not_count",
            "test_s7_nor_does_one_that_it_has_lost_when_it_comes_back",
            "test_s7_of_what_a_staging_server_says_it_has_lost_all_is_pushed_again",
            "test_s7_no_answer_of_a_staging_server_harms_an_upload",
            "test_s7_no_answer_of_a_stock_server_harms_an_upload",
            "test_s7_a_share_that_claims_to_have_a_huge_ueb_is_not_believed")]
        + ["integration/test_put.py: test_verify_of_a_file_that_cannot_be_read"],
        "Who closes a share and discards it is found by `put --verify`, a check or a repair, as with stock uploads."),
    "S8 memory by Foolscap": ([
        "unit/test_threats.py: test_s8_a_violation_takes_no_memory_and_ends_the_connection",
        "unit/test_threats.py: test_s8_calls_without_answers_are_not_read_beyond_a_bound",
        ("unit/test_threats.py: "
         "test_s8_uploads_that_wait_with_all_the_memory_give_it_up_to_one_that_can_go_on"),
        "integration/test_helper_tub.py: test_s8_a_peer_that_announces_too_much_is_disconnected_and_others_go_on",
        "unit/test_threats_servers.py: test_s8_a_storage_server_that_answers_too_much_is_disconnected"], ""),
    "S9 secrets in logs": ([
        "unit/test_log_secrets.py: test_s9_what_is_outside_of_the_protocol_is_not_logged",
        "unit/test_log_secrets.py: test_uploads_full_of_faults_tell_no_secrets",
        "integration/test_no_leaks.py: test_nothing_secret_is_logged"], ""),
    "S10 filling the spool": ([
        "unit/test_threats_uploads.py: test_s10_a_thousand_opens_by_one_client_end_at_the_cap_and_disturb_nobody",
        "unit/test_threats_uploads.py: test_s10_the_disk_is_never_filled_beyond_its_floor",
        "unit/test_room.py: test_never_more_than_the_quota"],
        "The cap is of all clients together: a client has no identity, a new Tub ID costs nothing."),
    "S11 slow clients": ([
        "unit/test_bounded_broker.py: test_who_does_not_complete_its_message_while_others_wait_has_to_go",
        "unit/test_threats.py: test_s8_many_connections_that_say_nothing_do_not_keep_others_out",
        "unit/test_http_connection.py: test_a_head_must_be_complete_in_time_whatever_trickles_in",
        "unit/test_http_connection.py: test_a_body_that_brings_nothing_ends",
        "unit/test_http_factory.py: test_slow_clients_make_room",
        "integration/test_gateway_pace.py: test_slow_clients_do_not_slow_others"],
        "A body has no least rate: a pipe may be slow, and what it costs is one of the connections that are limited."),
    "S12 plaintext on disk": ([
        "integration/test_no_leaks.py: test_no_plaintext_on_any_disk",
        "integration/test_gateway_leaks.py: test_a_long_body_is_nowhere"], ""),
    "S13 spool at rest": ([
        f"unit/test_threats_storage.py: {name}" for name in (
            "test_s13_files_of_a_helper_are_for_its_owner_and_named_by_hashes",
            "test_s13_a_link_under_the_name_of_a_new_spool_file_is_not_followed",
            "test_s13_a_flipped_byte_is_found_at_the_next_start",
            "test_s13_a_second_helper_on_the_same_files_is_refused",
            "test_s13_staged_files_are_for_their_owner_and_named_by_hashes",
            "test_s13_links_in_the_staging_directory_are_not_followed",
            "test_s13_a_second_node_on_the_same_staged_shares_is_refused")]
        + ["unit/test_spool_recovery.py: test_any_byte_changed_anywhere"],
        "A byte that changes in a staged share is found by its readers, as in any share."),
    "S14 path traversal": ([
        "unit/test_threats_storage.py: test_s14_no_upload_id_is_ever_a_path",
        "unit/test_threats_storage.py: test_s14_no_staging_name_is_ever_a_path",
        "unit/test_upload_handles_http.py: test_no_name_of_an_upload_is_ever_a_path"], ""),
    "S15 CSRF, DNS rebinding": ([
        "unit/test_gateway_protection.py: test_other_hosts_are_refused_whatever_is_asked",
        "unit/test_gateway_protection.py: test_who_may_write",
        "unit/test_gateway_site.py: test_what_is_refused_reaches_no_handler",
        "unit/test_gateway_page.py: test_other_pages", "unit/test_gateway_page.py: test_list_has_no_secrets",
        "integration/test_gateway.py: test_other_sites_may_not_write"],
        "Pages carry no token: browsers say where a request comes from (Origin, Sec-Fetch-Site, Referer)."),
    "S16 CORS": ([
        "unit/test_gateway_protection.py: test_an_allowed_origin", "unit/test_gateway_protection.py: test_preflights",
        "unit/test_gateway_site.py: test_cors_for_an_allowed_origin"], ""),
    "S17 HTTP parsing": ([
        "unit/test_http_connection.py: test_malformed_requests_reach_no_handler",
        "unit/test_http_connection.py: test_bad_chunks_are_told_to_the_handler",
        "unit/test_http_connection.py: test_nothing_is_taken_as_a_request_after_a_chunked_body_that_came_with_it",
        "unit/test_gateway_protection.py: test_encoded_bodies",
        "integration/test_gateway.py: test_malformed_requests_on_a_real_socket"], ""),
    "S18 arithmetic of offsets": ([
        "unit/test_threats.py: test_s18_numbers_out_of_bounds_are_refused_and_change_nothing",
        "unit/test_upload_handles_http.py: test_numbers",
        "unit/test_upload_handles_http.py: test_boundaries_of_lengths",
        "unit/test_upload_handles_http.py: test_boundaries_of_offsets",
        "unit/test_upload_handles_http.py: test_boundaries_of_bodies"], ""),
    "S19 reflected work": ([
        "unit/test_threats_uploads.py: test_s19_ten_thousand_opens_ask_no_storage_server_for_anything"],
        ("Placements at a time are not bounded: each costs its client an upload (64 KiB, or a whole file), and each "
        "server one request, no more than a stock client costs it.")),
    "S20 stalled servers": ([
        "unit/test_threats_uploads.py: test_s20_what_three_of_ten_servers_do_not_take_is_not_held_for_them",
        "unit/test_pushing.py: test_memory_is_bounded_whatever_servers_do",
        "integration/test_stalled_servers.py: test_s20_three_of_ten_servers_stop_reading"], ""),
    "S21 downgrade, identity": ([
        "unit/test_threats.py: test_s21_versions_of_tls", "unit/test_threats.py: test_s21_modes_of_furl_files",
        "unit/test_foolscap_edge.py: test_version_information_that_is_not_of_the_protocol"],
        ("A furl file that others may read is not refused: it is in private/, which Tahoe makes with mode 0700, and a "
        "stock helper is as tolerant.")),
}


def test_every_threat_has_a_test_or_a_reason() -> None:
    assert [name.split()[0] for name in THREATS] == [f"S{number}" for number in range(1, 22)]
    tests = Path(__file__).parents[1]
    for threat, (covered_by, reason) in THREATS.items():
        assert covered_by or reason, threat
        for place in covered_by:
            file, name = place.split(": ")
            assert f"def {name}(" in (tests / file).read_text(encoding="utf-8"), f"{threat}: {place}"
    listed = {place.split(": ")[1] for covered_by, _reason in THREATS.values() for place in covered_by}
    for file in ("test_threats_servers.py", "test_threats_uploads.py", "test_threats_storage.py"):
        names = re.findall(r"^def (test_s[0-9]+_\w+)", (tests / "unit" / file).read_text(encoding="utf-8"), re.M)
        assert {*names} <= listed


#: What one connection may add to an idle helper.
ALLOWED = 50 * MiB
HUGE = 256 * MiB

PARAMETERS = Parameters(3, 7, 10, 128 * 1024)


@pytest.fixture(scope="module")
def threatened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreatenedHelper]:
    with ThreatenedHelper(tmp_path_factory.mktemp("threatened")) as helper:
        yield helper


async def upload_meanwhile(helper: ThreatenedHelper) -> None:
    """Somebody else streams a file, and gets the right cap. (The fake servers of that helper keep the shares.)"""
    tub = client_tub("somebody else")

    async def link() -> HelperLink:
        return await connect(tub, helper.furl)

    data, key = os.urandom(300_000), os.urandom(16)
    upload = StreamingUpload(link, PARAMETERS, reactor_loop.reactor, key=key)
    for start in range(0, len(data), 100_000):
        await upload.write(data[start:start + 100_000])
    assert await upload.close() == expected(data, PARAMETERS, key).cap
    await tub.stopService()


Attack = Callable[[ThreatenedHelper, RawPeer], Any]


async def method_name(_helper: ThreatenedHelper, peer: RawPeer) -> None:
    head = call_head(1, 0, b"")[:-1] + token(STRING, HUGE)
    await peer.pour(head, zeros(HUGE)).done


def get_reference(name: bytes) -> bytes:
    """Of a call of getReferenceByName, all but its end."""
    return begun_call(1, 0, b"getReferenceByName", string(b"name"), name, count=0)


async def name_in_furl(_helper: ThreatenedHelper, peer: RawPeer) -> None:
    await peer.pour(get_reference(token(STRING, HUGE)), zeros(HUGE)).done


async def large_number(_helper: ThreatenedHelper, peer: RawPeer) -> None:
    await peer.pour(token(OPEN) + string(b"call") + token(LONGINT, HUGE), zeros(HUGE)).done


async def argument_name(helper: ThreatenedHelper, peer: RawPeer) -> None:
    obj = await peer.reference(helper.hanging_furl)
    await peer.pour(begun_call(5, obj, b"hang", token(STRING, HUGE), count=0), zeros(HUGE)).done


async def argument(helper: ThreatenedHelper, peer: RawPeer) -> None:
    obj = await peer.reference(helper.hanging_furl)
    await peer.pour(begun_call(5, obj, b"hang", token(STRING, LARGEST_MESSAGE_MAX + 1)), zeros(HUGE)).done


def begun_list(obj: int) -> bytes:
    return begun_call(5, obj, b"hang", token(OPEN, 4) + string(b"list"))


async def many_small_tokens(helper: ThreatenedHelper, peer: RawPeer) -> None:
    obj = await peer.reference(helper.hanging_furl)
    await peer.pour(begun_list(obj), (token(INT, 5) * 4000 for _ in range(10_000))).done


async def many_lists(helper: ThreatenedHelper, peer: RawPeer) -> None:
    obj = await peer.reference(helper.hanging_furl)
    empty = token(OPEN, 9) + string(b"list") + token(CLOSE, 9)
    await peer.pour(begun_list(obj), (empty * 4000 for _ in range(1000))).done


async def deep_lists(helper: ThreatenedHelper, peer: RawPeer) -> None:
    obj = await peer.reference(helper.hanging_furl)
    await peer.pour(begun_list(obj), ((token(OPEN, 9) + string(b"list")) * 1000 for _ in range(1000))).done


#: These go beyond a bound: who does it is disconnected.
VIOLATIONS: list[Attack] = [method_name, name_in_furl, large_number, argument_name, argument, many_small_tokens,
                            many_lists, deep_lists]


@pytest.mark.parametrize("attack", VIOLATIONS, ids=lambda attack: attack.__name__)
def test_s8_a_violation_takes_no_memory_and_ends_the_connection(
        threatened: ThreatenedHelper, attack: Attack) -> None:
    async def go() -> None:
        peer = await RawPeer.connect(threatened.furl)
        await attack(threatened, peer)
        await reactor_loop.turns(lambda: bool(peer.lost))
        await peer.close()

    with peak_memory(threatened.pid) as grown:
        reactor_loop.run(go)
        reactor_loop.run(partial(upload_meanwhile, threatened))
    assert grown() < ALLOWED


def test_s8_records_of_two_bytes_take_little_more_memory_than_bytes(threatened: ThreatenedHelper) -> None:
    async def go() -> None:
        peer = await RawPeer.connect(threatened.furl)
        obj = await peer.reference(threatened.hanging_furl)
        peer.write_record(begun_call(5, obj, b"hang", token(STRING, LARGEST_MESSAGE_MAX)))
        await upload_meanwhile(threatened)
        with peak_memory(threatened.pid) as grown:
            for _ in range(400):
                for _ in range(1000):
                    peer.write_record(b"xx")
                await call_meanwhile(threatened)
            assert not peer.lost
            assert grown() < 8 * MiB
        await peer.close()

    reactor_loop.run(go, patience=60)


async def call_meanwhile(helper: ThreatenedHelper) -> None:
    """One call by somebody else."""
    tub = client_tub("somebody else")
    rref = await tub.getReference(helper.hanging_furl)
    assert await rref.callRemote("tell", 5) == bytes(5)
    await tub.stopService()


def test_s8_calls_without_answers_are_not_read_beyond_a_bound(threatened: ThreatenedHelper) -> None:
    async def go() -> int:
        peer = await RawPeer.connect(threatened.furl)
        obj = await peer.reference(threatened.hanging_furl)
        calls = (call(5 + i, obj, b"hang", string(bytes(MiB))) for i in range(256))
        pouring = peer.pour(b"", calls)
        before = -1
        while pouring.poured != before:  # as long as any is read
            before = pouring.poured
            await upload_meanwhile(threatened)
        assert not peer.lost
        poured: int = pouring.poured
        await peer.close()
        return poured

    with peak_memory(threatened.pid) as grown:
        assert 15 * MiB < reactor_loop.run(go, patience=60) < 40 * MiB
    assert grown() < ALLOWED


def test_s8_who_does_not_read_answers_is_not_read_either(threatened: ThreatenedHelper) -> None:
    async def go() -> int:
        peer = await RawPeer.connect(threatened.furl)
        obj = await peer.reference(threatened.hanging_furl)
        peer.broker.transport.pauseProducing()
        calls = (call(5 + i, obj, b"tell", token(INT, 100_000)) for i in range(100_000))
        pouring = peer.pour(b"", (b"".join(chunk) for chunk in by_hundreds(calls)))
        before = -1
        while pouring.poured != before:
            before = pouring.poured
            await upload_meanwhile(threatened)
        poured: int = pouring.poured
        await peer.close()
        return poured

    with peak_memory(threatened.pid) as grown:
        reactor_loop.run(go, patience=60)
    assert grown() < ALLOWED


def by_hundreds(items: Iterator[bytes]) -> Iterator[list[bytes]]:
    for first in items:
        yield list(chain([first], (item for item, _ in zip(items, range(99), strict=False))))


def test_s8_many_connections_that_say_nothing_do_not_keep_others_out(threatened: ThreatenedHelper) -> None:
    _, port = SturdyRef(threatened.furl).locationHints[0].rsplit(":", 1)
    with peak_memory(threatened.pid) as grown, ExitStack() as stack:
        many = []
        for _ in range(2 * ConnectionBounds().strangers):
            many.append(stack.enter_context(socket.create_connection(("127.0.0.1", int(port)))))
            many[-1].sendall(b"x" * NEGOTIATION_BYTES)
        reactor_loop.run(partial(upload_meanwhile, threatened))
        many[0].settimeout(20)
        with pytest.raises(ConnectionResetError):
            many[0].recv(1)  # the oldest made room
        assert grown() < ALLOWED


def test_s8_uploads_that_wait_with_all_the_memory_give_it_up_to_one_that_can_go_on(tmp_path: Path) -> None:
    """The spool is full but for what is reserved for the first; all others wait for room, each on a connection of its
    own, with more than all connections may hold."""
    declared = os.urandom(300_000)
    bounds = ConnectionBounds(in_all=MiB, reserve=MiB, always=8 * 1024, patience=4)
    settings = Settings(spool_quota=400_000, free_disk=0)

    async def go(helper: LoopbackHelper) -> None:
        async def link(tub: Any) -> HelperLink:
            return await connect(tub, helper.furl)

        tubs = [client_tub(f"waits {i}") for i in range(11)]
        first = StreamingUpload(lambda: link(helper.client), attrs.evolve(PARAMETERS, size=len(declared)),
                                reactor_loop.reactor, key=b"d" * 16)
        await first.write(declared[:1000])
        answers: list[Any] = []
        for i, tub in enumerate(tubs):
            other = await link(tub)
            await other.open(bytes([i]) * 32, PARAMETERS.to_wire())
            Deferred.fromCoroutine(other.put_ciphertext(bytes([i]) * 32, 0, bytes(200_000))).addBoth(answers.append)
        await reactor_loop.turns(lambda: helper.memory.held >= bounds.in_all + bounds.reserve)
        assert await write_all(first, declared[1000:]) == expected(declared, PARAMETERS, b"d" * 16).cap
        # How many messages are complete when the memory is full depends on how much is read of each at a time.
        assert {answer.value.code for answer in answers} == {"memory-short"}
        for tub in tubs:
            await tub.stopService()

    with LoopbackHelper(tmp_path, settings, bounds=bounds) as helper:
        reactor_loop.run(partial(go, helper), patience=60)
        assert helper.uploads.counters["messages_given_up"]


# -- other threats at this edge ----------------------------------------------------------------------------


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[LoopbackHelper]:
    with LoopbackHelper(tmp_path) as helper:
        yield helper


def test_s5_probes_for_upload_ids_leave_no_state_and_get_one_answer(helper: LoopbackHelper) -> None:
    link = helper.connect()
    hashes = bytes(32)
    ended = bytes(32)
    helper.run(lambda: link.open(ended, PARAMETERS.to_wire()))

    async def probe() -> set[tuple[str, str, str]]:
        answers = set()
        for i in range(10_000):
            upload_id = i.to_bytes(32, "big") if i else b"\xff" * 32
            method = (link.status, link.abort, partial(link.put_ciphertext, offset=0, data=b"x"),
                      partial(link.assign, storage_index=bytes(16)),
                      partial(link.finish, size=100, storage_index=bytes(16), crypttext_hash=hashes,
                              crypttext_root_hash=hashes))[i % 5]
            try:
                await method(upload_id)
            except HelperRefused as refused:
                answers.add((refused.code, refused.text(), repr(refused.fields())))
        return answers

    def state() -> tuple[int, list[str]]:
        gc.collect()
        return len(helper.uploads._by_name), sorted(os.listdir(helper.directory / "spool"))

    before = reactor_loop.now(state)
    answers = helper.run(probe)
    assert [code for code, _text, _fields in answers] == ["unknown-upload"]
    assert reactor_loop.now(state) == before


NUMBERS: list[Any] = [-2**64, -2**63 - 1, -2**63, -2**31 - 1, -1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1,
                      2**64, 2**80, 2**448, 0.5, float("nan"), float("inf"), True, None, b"0", "0", [0]]


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
@pytest.mark.parametrize("method", ["put_ciphertext", "finish", "open"])
def test_s18_numbers_out_of_bounds_are_refused_and_change_nothing(
        helper: LoopbackHelper, method: str, number: Any) -> None:
    upload_id = bytes(range(32))
    link = helper.connect()
    helper.run(lambda: link.open(upload_id, PARAMETERS.to_wire()))
    helper.run(lambda: link.put_ciphertext(upload_id, 0, b"first"))
    arguments = {
        "put_ciphertext": (upload_id, number, b"data"),
        "finish": (upload_id, number, bytes(16), bytes(32), bytes(32)),
        "open": (bytes(32), {**PARAMETERS.to_wire(), b"size": number}),
    }[method]

    async def send() -> str:
        tub = client_tub("another client")
        try:
            rref = await tub.getReference(helper.streaming_furl)
            fields, _shares = await rref.callRemote(method, *arguments, _useSchema=False)
            return str(fields[b"code"].decode())
        except Exception as e:  # noqa: BLE001 (by Foolscap's schema or by our bounds, at either end)
            return type(e).__name__
        finally:
            await tub.stopService()

    came = helper.run(send)
    in_bounds = method == "open" and type(number) is int and 0 <= number <= SIZE_MAX
    assert came in ({"ok", "spool-full"} if in_bounds else {
        "bad-argument", "offset-gap", "size-mismatch", "RemoteException", "DeadReferenceError", "Violation"})
    assert helper.run(lambda: link.status(upload_id)).number("received") == 5


@pytest.mark.parametrize(("version", "taken"), [
    (ssl.TLSVersion.TLSv1, False), (ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True),
    (ssl.TLSVersion.TLSv1_3, True)], ids=lambda value: getattr(value, "name", None))
def test_s21_versions_of_tls(helper: LoopbackHelper, version: ssl.TLSVersion, taken: bool) -> None:
    furl = SturdyRef(helper.furl)
    host, port = furl.locationHints[0].removeprefix("tcp:").rsplit(":", 1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # nothing on our side is in the way of old versions
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    with socket.create_connection((host, int(port)), timeout=20) as plain:
        plain.sendall(f"GET /id/{furl.tubID} HTTP/1.1\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += plain.recv(1)
        assert b"101" in answer
        if taken:
            with context.wrap_socket(plain) as secured:
                assert secured.version() == version.name.replace("_", ".")
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(plain)


def test_s21_modes_of_furl_files(helper: LoopbackHelper, tmp_path: Path) -> None:
    """As service.py has them written. Tahoe makes their directory for its owner only."""
    from allmydata.node import create_node_dir

    mask = os.umask(0)
    try:
        create_node_dir(str(tmp_path / "node"), "a text")
        path = tmp_path / "node" / "private" / "helper.furl"
        reactor_loop.now(lambda: helper.tub.registerReference(helper.stock, furlFile=os.fsencode(path)))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
