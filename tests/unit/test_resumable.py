"""Upload handles in the dialect of draft-ietf-httpbis-resumable-upload-12: every sentence that binds a server.

The sentences are quoted in the docstrings; test_sentences.py checks that none was forgotten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from http_world import Answer, HttpWorld
from upload_world import DIRECTORY, UploadWorld, fields_of, request

from client_shim.gateway.handle_settings import DAY, HandleSettings
from client_shim.gateway.handles import HandleState

DRAFT = {"Upload-Draft-Interop-Version": "8"}
BODY = {"Content-Type": "application/partial-upload"}
DATA = bytes(range(251)) * 10
SIZE = len(DATA)
FILE_MAX = 10**15 - 1
MORE, LAST = {"Upload-Complete": "?0"}, {"Upload-Complete": "?1"}
PROBLEMS = "https://iana.org/assignments/http-problem-types#"


@pytest.fixture
def world() -> Iterator[UploadWorld]:
    with UploadWorld() as world:
        yield world


def post(world: UploadWorld, body: bytes, fields: dict[str, str], *, chunked: bool = False) -> Answer:
    return world.ask("POST", "/uploads/", DRAFT | fields, body, chunked=chunked)


def create(world: UploadWorld, size: int | None = SIZE, body: bytes = b"") -> str:
    answer = post(world, body, MORE | ({} if size is None else {"Upload-Length": str(size)}))
    assert answer.status == 201
    return fields_of(answer)["location"]


def patch(world: UploadWorld, path: str, offset: int, body: bytes, fields: dict[str, str], *,
          chunked: bool = False) -> Answer:
    return world.ask("PATCH", path, DRAFT | BODY | {"Upload-Offset": str(offset)} | fields, body, chunked=chunked)


def head(world: UploadWorld, path: str, method: str = "HEAD") -> dict[str, str]:
    answer = world.ask(method, path, DRAFT)
    assert answer.status == 204
    return fields_of(answer)


def offset_of(world: UploadWorld, path: str) -> int:
    return int(head(world, path)["upload-offset"])


def begun(world: UploadWorld, path: str, length: int, offset: int = 0, fields: dict[str, str] = LAST) -> HttpWorld:
    """A client that has sent a part of the rest, and is silent."""
    client = world.client()
    fields = DRAFT | BODY | {"Upload-Offset": str(offset)} | fields
    world.send(client, request("PATCH", path, fields, DATA[offset:offset + length], declared=SIZE - offset))
    return client


def problem(answer: Answer) -> dict[str, object]:
    assert fields_of(answer)["content-type"] == "application/problem+json"
    value: dict[str, object] = json.loads(answer.body)
    assert value["status"] == answer.status
    return value


# -- whole uploads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 55, 56, 1000, SIZE])
@pytest.mark.parametrize("chunked", [False, True])
def test_upload_in_one_request(world: UploadWorld, size: int, chunked: bool) -> None:
    """Example 1, without an interruption: the answer is that of PUT /uri."""
    answer = post(world, DATA[:size], LAST, chunked=chunked)
    assert answer.status == 200
    fields = fields_of(answer)
    assert fields["content-type"].startswith("text/plain")
    assert fields["upload-complete"] == "?1"
    assert fields["tahoe-cap"].encode() == answer.body
    world.check_stored(answer.body, DATA[:size])


@pytest.mark.parametrize("size", [0, 1, 55, 56, 1000, SIZE])
@pytest.mark.parametrize("step", [60, 600])
@pytest.mark.parametrize("known", [False, True])
def test_upload_in_parts(world: UploadWorld, size: int, step: int, known: bool) -> None:
    """Example 2: the last request has no content, or the rest of it."""
    path = create(world, size if known else None)
    for offset in range(0, size, step):
        answer = patch(world, path, offset, DATA[offset:min(size, offset + step)], MORE, chunked=offset % 7 == 0)
        assert (answer.status, fields_of(answer)["upload-complete"]) == (204, "?0")
    answer = patch(world, path, size, b"", LAST)
    assert (answer.status, fields_of(answer)["upload-complete"]) == (200, "?1")
    world.check_stored(answer.body, DATA[:size])


def test_upload_that_was_interrupted(world: UploadWorld) -> None:
    """Example 1."""
    client = world.client()
    world.send(client, request("POST", "/uploads/", DRAFT | LAST, DATA[:1111], declared=SIZE))
    client.transport.cut()
    ((status, informed), *_others) = client.answers("POST")[0].informed
    assert status == 104
    path = informed["location"]
    assert head(world, path)["upload-offset"] == "1111"
    answer = patch(world, path, 1111, DATA[1111:], LAST)
    world.check_stored(answer.body, DATA)
    assert world.ask("DELETE", path, DRAFT).status == 204


# -- state -------------------------------------------------------------------------------------------------


def test_uploads_are_unique(world: UploadWorld) -> None:
    """[Upload Resource] An upload resource SHOULD be unique."""
    assert len({create(world) for _ in range(20)}) == 20


def test_names_are_not_used_again(world: UploadWorld) -> None:
    """[Upload Resource] Reuse of a URI for a different upload resource SHOULD be avoided in order to reduce the chance
    of misdirected or corrupted upload resources, as well as the potential security issues described in."""
    used = set()
    for _ in range(5):
        path = create(world)
        world.ask("DELETE", path, DRAFT)
        world.restart()
        assert path not in used
        used.add(path)
        assert world.ask("HEAD", path, DRAFT).status == 404


def test_offset_does_not_decrease(world: UploadWorld) -> None:
    """[State / Offset] Representation data processed by the upload resource cannot be removed again and, therefore, the
    offset MUST NOT decrease."""
    path, stated = create(world), 0
    for length in (10, 50, 400, 1200):
        client = begun(world, path, length, stated)
        for disturb in (client.transport.cut, world.restart, world.helper.restart):
            disturb()
            offset = offset_of(world, path)
            assert offset >= stated
            stated = offset
    answer = patch(world, path, stated, DATA[stated:], LAST)
    world.check_stored(answer.body, DATA)


def test_lost_state_ends_the_upload(world: UploadWorld) -> None:
    """[State / Offset] If the server loses any part of the state, it MUST deactivate the upload resource and reject
    further interaction with it."""
    path = create(world, SIZE, DATA[:1000])
    (upload_id, _parameters) = world.helper._links[0].sent[0][1]
    world.helper.run(world.helper.link().abort(upload_id))  # as if its spool were lost
    world.helper.restart()
    answer = patch(world, path, 1000, DATA[1000:], LAST)
    assert answer.status == 410
    for method in ("HEAD", "GET"):
        again = world.ask(method, path, DRAFT)
        assert (again.status, "upload-offset" in fields_of(again)) == (410, False)
    assert patch(world, path, 1000, DATA[1000:], LAST).status == 410


OTHER_VALUES = ["-1", "1.0", '"0"', "zero", "?1", "", "0, 0", "(0)", "1000000000000000", "0x0", ":AA==:", "0;", "--0"]


@pytest.mark.parametrize("value", OTHER_VALUES)
def test_offset_of_another_form(world: UploadWorld, value: str) -> None:
    """[State / Offset] Other values MUST cause the entire header field to be ignored."""
    path = create(world)
    answer = world.ask("PATCH", path, DRAFT | BODY | LAST | {"Upload-Offset": value}, b"a")
    without = world.ask("PATCH", path, DRAFT | BODY | LAST, b"a")
    assert (answer.status, answer.body) == (without.status, without.body)
    assert answer.status == 400
    assert offset_of(world, path) == 0


@pytest.mark.parametrize("value", ["1", "0", "true", "?2", "?", "", "?1, ?1", '"?1"', "(?1)", "?1.0", "? 1"])
def test_completeness_of_another_form(world: UploadWorld, value: str) -> None:
    """[State / Completeness] Other values MUST cause the entire header field to be ignored."""
    assert post(world, b"hello", {"Upload-Complete": value}).status == 400
    assert world.paths() == []
    path = create(world)
    answer = patch(world, path, 0, b"hello", {"Upload-Complete": value})
    assert answer.status == world.ask("PATCH", path, DRAFT | BODY | {"Upload-Offset": "0"}, b"hello").status == 400
    assert offset_of(world, path) == 0


@pytest.mark.parametrize("value", OTHER_VALUES)
def test_length_of_another_form(world: UploadWorld, value: str) -> None:
    """[State / Length] Other values MUST cause the entire header field to be ignored."""
    answer = post(world, b"", MORE | {"Upload-Length": value})
    assert answer.status == 201
    path = fields_of(answer)["location"]
    assert "upload-length" not in head(world, path)
    assert patch(world, path, 0, b"a", MORE | {"Upload-Length": value}).status == 204
    assert "upload-length" not in head(world, path)


@pytest.mark.parametrize(("field", "value"), [
    ("Upload-Offset", "0;a=1"), ("Upload-Length", "5;a"), ("Upload-Offset", "-0"), ("Upload-Complete", "?1;x=?0"),
    ("Upload-Length", "005")])
def test_fields_may_have_parameters(world: UploadWorld, field: str, value: str) -> None:
    path = create(world, None)
    answer = patch(world, path, 0, b"hello", LAST | {field: value})
    assert (answer.status, answer.body) == (200, b"URI:LIT:nbswy3dp")


def test_both_ways_to_tell_the_length_agree(world: UploadWorld) -> None:
    """[State / Length] If indicators (1) and (2) are both present in the same request, their indicated lengths MUST
    match."""
    answer = post(world, b"hello", LAST | {"Upload-Length": "6"})
    assert answer.status == 400
    assert problem(answer)["type"] == PROBLEMS + "inconsistent-upload-length"
    assert world.paths() == []
    path = create(world, None, b"hello")
    for length in ("5", "10", "12"):
        answer = patch(world, path, 5, b" world", LAST | {"Upload-Length": length})
        assert answer.status == 400
        assert problem(answer)["type"] == PROBLEMS + "inconsistent-upload-length"
        assert fields_of(answer)["upload-complete"] == "?0"
    assert head(world, path)["upload-offset"] == "5"
    answer = patch(world, path, 5, b" world", LAST | {"Upload-Length": "11"})
    assert answer.body == b"URI:LIT:nbswy3dpeb3w64tmmq"


def test_lengths_of_several_requests_agree(world: UploadWorld) -> None:
    """[State / Length] If multiple requests include indicators, their indicated values MUST match."""
    path = create(world, 11, b"hello")
    for fields, body in ((MORE | {"Upload-Length": "12"}, b" world"), (LAST, b" world!"), (LAST, b" worl"), (LAST, b""),
                         (MORE | {"Upload-Length": "10"}, b"")):
        answer = patch(world, path, 5, body, fields)
        assert answer.status == 400
        assert problem(answer)["type"] == PROBLEMS + "inconsistent-upload-length"
    assert offset_of(world, path) == 5
    assert head(world, path)["upload-length"] == "11"
    assert patch(world, path, 5, b" world", LAST | {"Upload-Length": "11"}).status == 200


def test_end_before_the_length(world: UploadWorld) -> None:
    """A chunked body tells its length only when it ends."""
    path = create(world, 11, b"hello")
    answer = patch(world, path, 5, b" worl", LAST, chunked=True)
    assert answer.status == 400
    assert problem(answer)["type"] == PROBLEMS + "inconsistent-upload-length"
    assert head(world, path)["upload-complete"] == "?0"
    assert patch(world, path, 10, b"d", LAST).status == 200


# -- limits ------------------------------------------------------------------------------------------------


def limits_of(answer: dict[str, str]) -> dict[str, int]:
    return {name: int(value) for name, value in (each.split("=") for each in answer["upload-limit"].split(", "))}


def test_limits_stay(world: UploadWorld) -> None:
    """[State / Limits] Throughout the lifetime of the upload resource, these limits SHOULD NOT change in a way that
    causes failures for clients adhering to the initially discovered limits."""
    path = create(world)
    first = limits_of(head(world, path))
    world.helper.wait(DAY)
    patch(world, path, 0, DATA, LAST)
    world.helper.wait(DAY)
    assert limits_of(head(world, path)).keys() == first.keys() == {"max-size", "max-age"}


def test_largest_size_stays(world: UploadWorld) -> None:
    """[State / Limits] max-size and max-append-size SHOULD NOT decrease."""
    path = create(world)
    sizes = [limits_of(fields_of(world.ask("OPTIONS", "/uploads/", {})))["max-size"],
             limits_of(head(world, path))["max-size"]]
    patch(world, path, 0, DATA[:1000], MORE)
    sizes.append(limits_of(head(world, path))["max-size"])
    assert sizes == [FILE_MAX] * 3


def test_end_of_life_comes_no_sooner(world: UploadWorld) -> None:
    """[State / Limits] Between subsequent responses, the end of the upload resource's lifetime as implied by `max-age`
    SHOULD NOT decrease."""
    path, ends = create(world), []
    for offset in (0, 700, 1400):
        fields = fields_of(patch(world, path, offset, DATA[offset:offset + 700], MORE))
        ends.append(world.clock.seconds() + limits_of(fields)["max-age"])
        world.helper.wait(DAY)
        ends.append(world.clock.seconds() + limits_of(head(world, path))["max-age"])
    patch(world, path, 2100, DATA[2100:], LAST)
    ends.append(world.clock.seconds() + limits_of(head(world, path))["max-age"])
    assert ends == pytest.approx(sorted(ends), abs=2)
    assert ends[0] >= 7 * DAY - 2


def test_options_tells_limits(world: UploadWorld) -> None:
    """[State / Limits] When responding to an `OPTIONS` request without the `Upload-Complete` header field, if the
    resource that is the target of the request supports the creation of a resumable upload resource, the server MUST
    include the `Upload-Limit` header field with the corresponding limits in the response."""
    for path in ("/uploads/", "/uploads"):
        answer = world.ask("OPTIONS", path, DRAFT)
        assert (answer.status, fields_of(answer)["upload-limit"]) == (204, f"max-size={FILE_MAX}")
    assert "upload-limit" not in fields_of(world.ask("OPTIONS", create(world), DRAFT))


def test_limits_told_before_are_those_that_hold(world: UploadWorld) -> None:
    """[State / Limits] To reduce the likelihood of failing requests, the limits announced in an `OPTIONS` response
    SHOULD NOT be less restrictive than the limits applied to an upload once the upload resource has been created,
    unless the request to create an upload resource included additional information that warrants different limits."""
    told = limits_of(fields_of(world.ask("OPTIONS", "/uploads/", DRAFT)))
    assert told["max-size"] == limits_of(head(world, create(world, told["max-size"])))["max-size"]


def test_refusal_of_a_size_tells_limits(world: UploadWorld) -> None:
    """[State / Limits] A server responding with a `413 (Content Too Large)` status code as a result of its upload
    limits SHOULD include the `Upload-Limit` header field in this response if possible."""
    client = world.client()
    client.send(request("POST", "/uploads/", DRAFT | LAST, b"a", declared=FILE_MAX + 1))
    answer = world.answer(client, "POST")
    assert (answer.status, limits_of(fields_of(answer))["max-size"]) == (413, FILE_MAX)
    assert world.paths() == []
    client = world.client()
    fields = DRAFT | BODY | LAST | {"Upload-Offset": "0"}
    client.send(request("PATCH", create(world, None), fields, b"a", declared=FILE_MAX + 1))
    answer = world.answer(client, "PATCH")
    assert (answer.status, limits_of(fields_of(answer))["max-size"]) == (413, FILE_MAX)


# -- creation ----------------------------------------------------------------------------------------------


def test_creation_is_announced(world: UploadWorld) -> None:
    """[Upload Creation / Server Behavior] If so, the server SHOULD announce the upload resource by sending an interim
    response with the `104 (Upload Resumption Supported)` status code unless the server is not capable of sending
    interim responses."""
    client = world.client()
    client.send(request("POST", "/uploads/", DRAFT | LAST, declared=SIZE))
    world.helper.wait(1)  # before the first byte of the body
    (answer,) = client.answers_so_far("POST")
    assert ([status for status, _fields in answer.informed], answer.status) == ([104], 0)


def test_announcement_has_location_and_limits(world: UploadWorld) -> None:
    """[Upload Creation / Server Behavior] When sent, it MUST include `Location` header field pointing to the upload
    resource and MUST include the `Upload-Limit` header field with the corresponding limits if existing."""
    for fields in (LAST, MORE):
        ((_status, informed), *_others) = post(world, DATA, fields).informed
        assert head(world, informed["location"])["upload-offset"] == str(SIZE)
        assert informed["upload-limit"] == f"max-size={FILE_MAX}, max-age={7 * DAY}"


def test_creation_of_a_part_has_location_and_limits(world: UploadWorld) -> None:
    """[Upload Creation / Server Behavior] If the request content was fully processed, the server MUST include the
    `Location` response header field pointing to the upload resource and MUST include the `Upload-Limit` header field
    with the corresponding limits if existing."""
    for body in (b"", b"hello", DATA):
        for version in ({}, DRAFT):
            answer = fields_of(world.ask("POST", "/uploads/", version | MORE, body))
            assert head(world, answer["location"])["upload-offset"] == str(len(body))
            assert limits_of(answer)["max-size"] == FILE_MAX


def test_creation_of_a_part_is_201(world: UploadWorld) -> None:
    """[Upload Creation / Server Behavior] Servers are RECOMMENDED to use the `201 (Created)` status code."""
    for body in (b"", b"hello", DATA):
        answer = post(world, body, MORE)
        assert (answer.status, fields_of(answer)["upload-complete"]) == (201, "?0")


def test_creation_records_the_length(world: UploadWorld) -> None:
    """[Upload Creation / Server Behavior] The server MUST record the length according to if the `Upload-Length` or
    `Upload-Complete: ?1` header fields are included in the request."""
    assert head(world, create(world, 7))["upload-length"] == "7"
    assert "upload-length" not in head(world, create(world, None))
    client = world.client()
    world.send(client, request("POST", "/uploads/", DRAFT | LAST, DATA[:10], declared=SIZE))
    path = client.answers_so_far("POST")[0].informed[0][1]["location"]
    assert head(world, path)["upload-length"] == str(SIZE)


@pytest.mark.parametrize("fields", [LAST, MORE])
def test_locations_of_one_request_are_the_same(world: UploadWorld, fields: dict[str, str]) -> None:
    """[Upload Creation / Server Behavior] Where a response requires a `Location` header field to be included, all
    interim and final response messages for the same request MUST contain an identical `Location` value."""
    client = world.client()
    client.send(request("POST", "/uploads/", DRAFT | fields, declared=SIZE))
    for start in range(0, SIZE, 500):
        world.send(client, DATA[start:start + 500], 2)
    answer = world.answer(client, "POST")
    assert len(answer.informed) > 2
    locations = {informed["location"] for _status, informed in answer.informed}
    assert locations == {fields_of(answer)["location"]} == set(world.paths())


def test_answers_to_creation_tell_completeness(world: UploadWorld) -> None:
    """[Upload Creation / Server Behavior] The server SHOULD include the `Upload-Complete` header field in the response
    to indicate whether it is the result of processing the uploaded representation."""
    answers = [post(world, b"hello", LAST), post(world, b"hello", MORE), post(world, b"hello", {}),
               post(world, b"hello", LAST | {"Upload-Length": "6"}),
               post(world, b"", MORE | {"Tahoe-Directory": "URI:CHK:x"})]
    assert [answer.status for answer in answers] == [200, 201, 400, 400, 400]
    assert [fields_of(answer)["upload-complete"] for answer in answers] == ["?1", "?0", "?0", "?0", "?0"]


def test_interrupted_creation_keeps_what_came(world: UploadWorld) -> None:
    """[Upload Creation / Server Behavior] In this case, the server SHOULD append as much of the request content as
    possible to the upload resource, allowing the client to resume the upload from where it was interrupted."""
    for length in (1, 55, 56, 2000, SIZE - 1):
        path = interrupted_creation(world, length)
        assert offset_of(world, path) == length


def interrupted_creation(world: UploadWorld, length: int) -> str:
    client = world.client()
    world.send(client, request("POST", "/uploads/", DRAFT | LAST, DATA[:length], declared=SIZE))
    path = client.answers("POST")[0].informed[0][1]["location"]
    client.transport.cut()
    return path


def test_interrupted_creation_is_not_complete(world: UploadWorld) -> None:
    """[Upload Creation / Server Behavior] In addition, the upload resource MUST NOT be considered complete then."""
    path = interrupted_creation(world, SIZE - 1)
    world.helper.wait(DAY)
    assert head(world, path)["upload-complete"] == "?0"
    assert world.status(path).state is HandleState.OPEN
    assert not world.helper.holders()


def test_interrupted_creation_without_announcement_leaves_nothing(world: UploadWorld) -> None:
    """Its client does not know where to go on."""
    client = world.client()
    world.send(client, request("POST", "/uploads/", LAST, DATA[:1000], declared=SIZE))
    assert len(world.paths()) == 1
    client.transport.cut()
    world.helper.wait(10)
    assert world.paths() == []
    world.helper.check_nothing_left()


# -- offset retrieval --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_offset_is_told(world: UploadWorld, method: str) -> None:
    """[Offset Retrieval / Server Behavior] MUST include the offset in the `Upload-Offset` header field,"""
    path = create(world)
    for offset in (0, 1, 55, 56, 2000):
        begun(world, path, offset - offset_of(world, path), offset_of(world, path))
        assert head(world, path, method)["upload-offset"] == str(offset)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_completeness_is_told(world: UploadWorld, method: str) -> None:
    """[Offset Retrieval / Server Behavior] MUST include the `Upload-Complete` header field indicating whether a final
    response was produced from processing the uploaded representation,"""
    path = create(world)
    assert head(world, path, method)["upload-complete"] == "?0"
    patch(world, path, 0, DATA, MORE)
    assert head(world, path, method)["upload-complete"] == "?0"  # all bytes are there, but nobody has said so
    cap = patch(world, path, SIZE, b"", LAST).body.decode()
    assert head(world, path, method)["upload-complete"] == "?1"
    assert head(world, path, method)["tahoe-cap"] == cap


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_length_is_told(world: UploadWorld, method: str) -> None:
    """[Offset Retrieval / Server Behavior] MUST include the length in the `Upload-Length` header field, unless the
    client has not supplied one, by providing the corresponding headers as described in,"""
    assert head(world, create(world), method)["upload-length"] == str(SIZE)
    path = create(world, None)
    assert "upload-length" not in head(world, path, method)
    patch(world, path, 0, b"", MORE | {"Upload-Length": str(SIZE)})
    assert head(world, path, method)["upload-length"] == str(SIZE)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_limits_are_told(world: UploadWorld, method: str) -> None:
    """[Offset Retrieval / Server Behavior] MUST indicate the limits in the `Upload-Limit` header field, and"""
    assert limits_of(head(world, create(world), method)) == {"max-size": FILE_MAX, "max-age": 7 * DAY}


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_offset_is_not_cached(world: UploadWorld, method: str) -> None:
    """[Offset Retrieval / Server Behavior] SHOULD include the `Cache-Control` header field with the value `no-store` to
    prevent HTTP caching."""
    assert head(world, create(world), method)["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/uploads/", f"/uploads/{'a' * 52}/", f"/uploads/{'a' * 52}", "/uploads//x"])
def test_offset_retrieval_is_not_redirected(world: UploadWorld, path: str) -> None:
    """[Offset Retrieval / Server Behavior] The resource SHOULD NOT generate a response with the
    `301 (Moved Permanently)` and `302 (Found)` status codes because clients might follow the redirect without
    preserving the `HEAD` method."""
    assert world.ask("HEAD", path, DRAFT).status == (404 if path != "/uploads/" else 200)  # which is the node's
    assert world.ask("HEAD", create(world), DRAFT).status == 204


# -- append ------------------------------------------------------------------------------------------------


def test_append_without_completeness(world: UploadWorld) -> None:
    """[Upload Append / Client Behavior] The request MUST include the `Upload-Complete` header field."""
    path = create(world)
    assert patch(world, path, 0, b"hello", {}).status == 400
    assert offset_of(world, path) == 0


@pytest.mark.parametrize("media_type", ["", "application/octet-stream", "text/plain"])
def test_append_of_another_type(world: UploadWorld, media_type: str) -> None:
    path = create(world)
    fields = DRAFT | LAST | {"Upload-Offset": "0"} | ({"Content-Type": media_type} if media_type else {})
    answer = world.ask("PATCH", path, fields, DATA)
    assert (answer.status, fields_of(answer)["accept-patch"]) == (415, "application/partial-upload")
    assert offset_of(world, path) == 0


def test_interrupted_append_keeps_what_came(world: UploadWorld) -> None:
    """[Upload Append / Server Behavior] In this case, the server SHOULD append as much of the patch document as
    possible to the upload resource, starting at its beginning and without discontinuities."""
    path = create(world)
    for offset, length in ((0, 40), (40, 15), (55, 1), (56, 1444), (1500, 1)):
        begun(world, path, length, offset).transport.cut()
        assert offset_of(world, path) == offset + length
    world.check_stored(patch(world, path, 1501, DATA[1501:], LAST).body, DATA)


def test_interrupted_append_is_not_complete(world: UploadWorld) -> None:
    """[Upload Append / Server Behavior] In addition, the upload resource MUST NOT be considered complete then."""
    path = create(world)
    begun(world, path, SIZE - 1).transport.cut()
    world.helper.wait(DAY)
    assert head(world, path)["upload-complete"] == "?0"
    assert world.status(path).state is HandleState.OPEN


@pytest.mark.parametrize("offset", [0, 99, 101, SIZE, SIZE + 1, FILE_MAX])
@pytest.mark.parametrize("fields", [MORE, LAST])
def test_append_at_another_offset(world: UploadWorld, offset: int, fields: dict[str, str]) -> None:
    """[Upload Append / Server Behavior] If the `Upload-Offset` request header field value does not match the current
    offset, the server MUST reject the request with a `409 (Conflict)` status code and the `Upload-Complete` header
    field set to false."""
    path = create(world, None, DATA[:100])
    answer = patch(world, path, offset, b"other bytes", fields)
    assert (answer.status, fields_of(answer)["upload-complete"]) == (409, "?0")
    world.check_stored(patch(world, path, 100, DATA[100:], LAST).body, DATA)


def test_refused_append_tells_the_offset(world: UploadWorld) -> None:
    """[Upload Append / Server Behavior] The response MUST include the correct offset in the `Upload-Offset` header
    field."""
    path = create(world, None, DATA[:100])
    assert fields_of(patch(world, path, 7, b"a", LAST))["upload-offset"] == "100"
    patch(world, path, 100, DATA[100:], LAST)
    answer = patch(world, path, 7, b"a", LAST)  # of an upload that is complete
    assert (answer.status, fields_of(answer)["upload-offset"], fields_of(answer)["upload-complete"]) == (
        409, str(SIZE), "?0")


def test_last_append_is_answered_as_the_creation_would_be(world: UploadWorld) -> None:
    """[Upload Append / Server Behavior] If the request content was fully processed, the upload is marked as complete
    and the server SHOULD generate the response that matches what the resource, that was targeted by the initial upload
    creation, would have generated if it had processed the entire representation in the initial request."""
    at_once = post(world, DATA, LAST)
    last = patch(world, create(world, None, DATA[:100]), 100, DATA[100:], LAST)
    assert (last.status, fields_of(last)["content-type"]) == (at_once.status, fields_of(at_once)["content-type"])
    for answer in (at_once, last):
        world.check_stored(answer.body, DATA)


def test_last_append_tells_that_it_is_complete(world: UploadWorld) -> None:
    """[Upload Append / Server Behavior] However, the response MUST include the `Upload-Complete` header field with a
    true value, allowing clients to identify whether a response, in particular error responses, is related to the
    resumable upload itself or the processing of the uploaded representation."""
    path = create(world)
    client = begun(world, path, SIZE - 1)
    world.helper._links[0].lie = lambda method, wire: lying(wire) if method == "finish" else wire
    client.send(DATA[SIZE - 1:])
    answer = world.answer(client, "PATCH")
    assert (answer.status, fields_of(answer)["upload-complete"]) == (410, "?1")
    world.helper._links[0].lie = lambda _method, wire: wire
    assert fields_of(patch(world, create(world), 0, DATA, LAST))["upload-complete"] == "?1"


def lying(wire: Any) -> Any:
    """The answer of a helper that has made another file."""
    fields, shares = wire
    return ({**fields, b"ueb": b"another"}, shares) if b"ueb" in fields else wire


@pytest.mark.parametrize("length", [11, SIZE])
def test_final_answer_can_be_had_again(world: UploadWorld, length: int) -> None:
    """The first was lost."""
    path = create(world)
    world.ask("DELETE", path, DRAFT)
    path = create(world, None)
    cap = patch(world, path, 0, DATA[:length], LAST).body
    again = patch(world, path, length, b"", LAST)
    assert (again.status, again.body, fields_of(again)["upload-complete"]) == (200, cap, "?1")
    for fields, body in ((MORE, b""), (MORE, b"a"), (LAST, b"a")):
        answer = patch(world, path, length, body, fields)
        assert answer.status in (400, 403)
        assert fields_of(answer)["upload-complete"] == "?0"
    assert head(world, path)["tahoe-cap"].encode() == cap


def test_append_records_the_length(world: UploadWorld) -> None:
    """[Upload Append / Server Behavior] The server MUST record the length according to if the `Upload-Length` or
    `Upload-Complete` header fields are included in the request."""
    path = create(world, None)
    patch(world, path, 0, b"", MORE | {"Upload-Length": "7"})
    assert head(world, path)["upload-length"] == "7"
    path = create(world, None)
    begun(world, path, 10).transport.cut()
    assert head(world, path)["upload-length"] == str(SIZE)
    world.restart()
    assert head(world, path)["upload-length"] == str(SIZE)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [20, 2000])
def test_more_bytes_than_the_length_end_the_upload(world: UploadWorld, chunked: bool, size: int) -> None:
    """[Upload Append / Server Behavior] If the length is known, the server MUST prevent the offset from exceeding the
    upload length by rejecting the request once the offset exceeds the length, marking the upload resource invalid and
    rejecting any further interaction with it."""
    path = create(world, size, DATA[:10])
    answer = patch(world, path, 10, DATA[10:size + 1], MORE, chunked=chunked)
    assert (answer.status, fields_of(answer)["upload-complete"]) == (400, "?0")
    assert problem(answer)["type"] == PROBLEMS + "inconsistent-upload-length"
    assert world.ask("HEAD", path, DRAFT).status == 404
    assert patch(world, path, 10, b"a", MORE).status == 404
    world.helper.wait(10)
    world.helper.check_nothing_left()


def test_progress_of_an_append(world: UploadWorld) -> None:
    """[Upload Append / Server Behavior] While the request content is being processed, the server SHOULD send interim
    responses with a `104 (Upload Resumption Supported)` status code and the `Upload-Offset` header field set to the
    current offset to inform the client about the upload progress."""
    answer = appended_slowly(world)
    offsets = [int(fields["upload-offset"]) for _status, fields in answer.informed]
    assert len(offsets) > 2
    assert offsets == sorted(set(offsets))
    assert all(0 < offset < SIZE for offset in offsets)
    world.check_stored(answer.body, DATA)


def test_progress_of_an_append_has_no_location(world: UploadWorld) -> None:
    """[Upload Append / Server Behavior] These interim responses MUST NOT include the `Location` header field."""
    assert all("location" not in fields for _status, fields in appended_slowly(world).informed)


def appended_slowly(world: UploadWorld, version: str = "8") -> Answer:
    client = begun(world, create(world), 0, fields=LAST | {"Upload-Draft-Interop-Version": version})
    for start in range(0, SIZE, 251):
        world.send(client, DATA[start:start + 251], 2)
    return world.answer(client, "PATCH")


def test_answers_to_append_tell_completeness(world: UploadWorld) -> None:
    """[Upload Append / Server Behavior] The server SHOULD include the `Upload-Complete` header field in the response to
    indicate whether it is the result of processing the uploaded representation."""
    path = create(world)
    answers = [patch(world, path, 0, DATA[:9], MORE), patch(world, path, 0, b"a", MORE), patch(world, path, 9, b"a",
    {}), patch(world, path, 9, b"a", MORE | {"Content-Type": "text/plain"}),
               patch(world, path, 9, b"a", MORE | {"Upload-Length": "3"}), patch(world, path, 9, DATA[9:], LAST)]
    assert [answer.status for answer in answers] == [204, 409, 400, 415, 400, 200]
    assert [fields_of(answer)["upload-complete"] for answer in answers] == ["?0", "?0", "?0", "?0", "?0", "?1"]


# -- cancellation ------------------------------------------------------------------------------------------


def test_cancelled_upload_is_gone(world: UploadWorld) -> None:
    """[Upload Cancellation / Server Behavior] Upon receiving a `DELETE` request, the server SHOULD deactivate the
    upload resource."""
    for path in (create(world), create(world, SIZE, DATA[:1500]), fields_of(post(world, DATA, LAST))["location"]):
        assert world.ask("DELETE", path, DRAFT).status == 204
        for method in ("HEAD", "GET", "DELETE"):
            assert world.ask(method, path, DRAFT).status == 404
        assert patch(world, path, 0, b"", LAST).status == 404


def test_cancellation_ends_requests_in_progress(world: UploadWorld) -> None:
    """[Upload Cancellation / Server Behavior] The server SHOULD terminate any in-flight requests to the upload resource
    before sending the response by abruptly terminating their HTTP connection(s) or stream(s) as described in."""
    path = create(world)
    client = begun(world, path, 1500)
    over = []

    def watch() -> None:
        over.append(client.over)

    client.connection._exchange.on_gone(watch)  # type: ignore[union-attr]
    assert world.ask("DELETE", path, DRAFT).status == 204
    assert (client.over, len(over), client.take()) == (True, 1, b"")
    world.helper.wait(10)
    world.helper.check_nothing_left()


@pytest.mark.parametrize("path", ["/uploads/", f"/uploads/{'a' * 52}/", f"/uploads/{'a' * 52}", "/uploads//x"])
def test_cancellation_is_not_redirected(world: UploadWorld, path: str) -> None:
    """[Upload Cancellation / Server Behavior] The server SHOULD NOT generate a response with the
    `301 (Moved Permanently)` and `302 (Found)` status codes because clients might follow the redirect without
    preserving the `DELETE` method."""
    assert world.ask("DELETE", path, DRAFT).status == (405 if path == "/uploads/" else 404)
    assert world.ask("DELETE", create(world), DRAFT).status == 204


# -- concurrency -------------------------------------------------------------------------------------------


def test_appends_at_the_same_time_do_not_mix(world: UploadWorld) -> None:
    """[Concurrency] Therefore, the server MUST take measures to prevent race conditions, data loss and corruption from
    concurrent requests to append representation data and/or cancellation to the same upload resource."""
    path = create(world)
    older = begun(world, path, 700)
    newer = world.client()
    fields = DRAFT | BODY | LAST | {"Upload-Offset": "700"}
    newer.send(request("PATCH", path, fields, DATA[700:], declared=SIZE - 700))
    older.send(bytes(SIZE))  # what the older one still sends is not taken
    world.check_stored(world.answer(newer, "PATCH").body, DATA)
    assert (older.over, older.take()) == (True, b"")


def test_many_requests_at_the_same_time(world: UploadWorld) -> None:
    path = create(world)
    clients = []
    for _ in range(8):
        clients.append(world.client())
        clients[-1].send(request("HEAD", path, DRAFT))
        clients.append(begun(world, path, 0) if len(clients) % 4 else world.client())
    assert world.answer(clients[-2], "HEAD").status == 204
    assert offset_of(world, path) == 0
    world.check_stored(patch(world, path, 0, DATA, LAST).body, DATA)


def test_offset_is_never_an_old_one(world: UploadWorld) -> None:
    """[Concurrency] In addition, the server MUST NOT send outdated information in responses when retrieving the
    offset."""
    path = create(world)
    client = begun(world, path, 700)
    world.helper.hold_work()  # nothing becomes durable
    world.send(client, DATA[700:900], 0)
    asking = world.client()
    asking.send(request("HEAD", path, DRAFT))
    world.helper.turn()
    assert asking.answers_so_far("HEAD") == []  # while bytes are on their way there is no offset to tell
    assert client.over
    world.helper.release_work()
    assert fields_of(world.answer(asking, "HEAD"))["upload-offset"] == "900"


def test_offset_told_is_one_that_is_taken(world: UploadWorld) -> None:
    """[Concurrency] This means that the offset sent by the server MUST be accepted in a subsequent request to append
    representation data if no other request to append representation data or cancel was received in the meantime."""
    path, offset = create(world), 0
    for length in (5, 50, 1, 300, 1000):
        begun(world, path, length, offset)
        offset = offset_of(world, path)
        world.helper.wait(120)
        assert patch(world, path, offset, b"", MORE).status == 204
        if length == 300:
            world.restart()
            assert patch(world, path, offset, b"", MORE).status == 204
    world.check_stored(patch(world, path, offset, DATA[offset:], LAST).body, DATA)


def test_recommended_way_of_concurrency(world: UploadWorld) -> None:
    """[Concurrency] The RECOMMENDED approach is as follows:"""
    for method in ("HEAD", "GET", "DELETE"):
        path = create(world)
        client = begun(world, path, 100)
        world.ask(method, path, DRAFT)
        assert client.over


@pytest.mark.parametrize("creating", [False, True])
def test_newer_request_ends_the_older(world: UploadWorld, creating: bool) -> None:
    """[Concurrency] If a server receives a new request to retrieve the offset, append representation data, or cancel
    the upload while a previous request for creating the upload or appending representation data to the same upload
    resource is still ongoing, the server SHOULD prevent race conditions, data loss, and corruption by terminating the
    previous request before processing the new request."""
    if creating:
        client = world.client()
        world.send(client, request("POST", "/uploads/", DRAFT | LAST, DATA[:100], declared=SIZE))
        path = client.answers("POST")[0].informed[0][1]["location"]
    else:
        path = create(world)
        client = begun(world, path, 100)
    assert offset_of(world, path) == 100
    assert client.over
    client = begun(world, path, 100, 100)
    assert patch(world, path, 200, DATA[200:300], MORE).status == 204
    assert client.over
    client = begun(world, path, 100, 300)
    assert world.ask("DELETE", path, DRAFT).status == 204
    assert client.over


# -- 104 and 100 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("creating", [False, True])
def test_continue_is_sent_beside_104(world: UploadWorld, creating: bool) -> None:
    """[Status Code `104 (Upload Resumption Supported)`] However, the server MUST NOT omit the `100 (Continue)` response
    because it has sent an interim response with the `104 (Upload Resumption Supported)` status code."""
    client, fields = world.client(), DRAFT | LAST | {"Expect": "100-continue"}
    if creating:
        world.send(client, request("POST", "/uploads/", fields, declared=5))
    else:
        world.send(client, request("PATCH", create(world, 5), fields | BODY | {"Upload-Offset": "0"}, declared=5))
    statuses = [status for status, _fields in client.answers_so_far("POST")[0].informed]
    assert statuses == ([104, 100] if creating else [100])
    client.send(b"hello")
    assert world.answer(client, "POST").status == 200


def test_mismatch_problem_has_both_offsets(world: UploadWorld) -> None:
    """[Mismatching Offset] A response using this problem type SHOULD populate both members, with the value of
    `expected-offset` taken from the upload resource and the value of `provided-offset` taken from the upload append
    request."""
    path = create(world, SIZE, DATA[:125])
    value = problem(patch(world, path, 250, b"a", LAST))
    assert value["type"] == PROBLEMS + "mismatching-upload-offset"
    assert (value["expected-offset"], value["provided-offset"]) == (125, 250)


# -- security ----------------------------------------------------------------------------------------------


def test_who_does_not_know_the_name_gets_nothing(world: UploadWorld) -> None:
    """[Security Considerations] To prevent this, the server SHOULD ensure that only authorized clients can access the
    upload resource."""
    path = create(world, SIZE, DATA[:1000])
    near = path[:-1] + ("a" if path[-1] != "a" else "b")
    append = DRAFT | BODY | LAST | {"Upload-Offset": "1000"}
    for other in (near, path[:-1], path.upper().replace("UPLOADS", "uploads"), path + "/"):
        assert world.ask("PATCH", other, append, b"").status == 404
        for method in ("HEAD", "GET", "DELETE"):
            assert world.ask(method, other, DRAFT).status == 404
    assert offset_of(world, path) == 1000


def test_names_cannot_be_guessed(world: UploadWorld) -> None:
    """[Security Considerations] To reduce the risk of unauthorized access, it is RECOMMENDED to generate upload
    resource URIs in such a way that makes it hard to be guessed by unauthorized clients."""
    names = [create(world).removeprefix("/uploads/") for _ in range(30)]
    assert all(re.fullmatch("[a-z2-7]{52}", name) for name in names)  # of 32 random bytes
    assert all(len({name[place] for name in names}) > 5 for place in range(51))


def test_names_tell_nothing(world: UploadWorld) -> None:
    """[Security Considerations] If so, they MUST ensure that no internal information is leaked in the URI that is not
    intended to be exposed."""
    path = create(world, SIZE, DATA[:1000])
    (upload_id, _parameters) = world.helper._links[0].sent[0][1]
    assert upload_id.hex() not in path
    assert world.status(path).id == path.removeprefix("/uploads/")  # nothing but randomness is in it, see above
    assert all(path.removeprefix("/uploads/") not in str(access) for access in world.accesses)


@pytest.mark.parametrize(("cap", "disposition"), [
    ("URI:CHK:x", "inline; filename=a"), ("", "inline; filename=a"), ("URI:DIR2-RO:x:y", "inline; filename=a"),
    ("{}", ""), ("{}", "inline"), ("{}", 'inline; filename="a/b"'), ("{}", "inline; filename*=UTF-8''a%2Fb"),
    ("{}/../x", "inline; filename=a"), ("../../etc", "inline; filename=a")])
def test_metadata_are_validated(world: UploadWorld, cap: str, disposition: str) -> None:
    """[Security Considerations] In addition, metadata MUST be validated and/or sanitized if the server takes its values
    into consideration for processing or storing the representation."""
    fields = {"Tahoe-Directory": cap.replace("{}", DIRECTORY)}
    if disposition:
        fields["Content-Disposition"] = disposition
    answer = post(world, b"hello", LAST | fields)
    assert (answer.status, problem(answer)["code"]) == (400, "bad-link")
    assert world.paths() == []
    assert world.node.requests == []


def test_slow_clients_cannot_hold_the_gateway() -> None:
    """[Security Considerations] Servers SHOULD provide mitigations for Slowloris attacks, such as increasing the
    maximum number of clients the server will allow, limiting the number of uploads a single client is allowed to make,
    imposing restrictions on the minimum transfer speed an upload is allowed to have, and restricting the length of time
    an upload resource can exist."""
    with UploadWorld(HandleSettings(handles_max=3)) as world:
        paths = [create(world) for _ in range(3)]
        assert post(world, b"", MORE).status == 503
        silent = begun(world, paths[0], 1)
        world.helper.wait(2 * DAY)
        assert silent.over
        world.helper.wait(6 * DAY)
        assert [world.ask("HEAD", path, DRAFT).status for path in paths] == [410] * 3
        assert post(world, b"", MORE).status == 201


# -- version -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, "7", "9", "", "8.0", "eight", '"8"', "8, 8"])
def test_no_104_for_other_versions(world: UploadWorld, version: str | None) -> None:
    """[Draft Version Identification] Server implementations of draft versions of the protocol MUST NOT send a
    `104 (Upload Resumption Supported)` informational response when the interop version indicated by the
    `Upload-Draft-Interop-Version` header field in the request is missing or mismatching."""
    fields = {} if version is None else {"Upload-Draft-Interop-Version": version}
    for complete in (LAST, MORE):
        assert world.ask("POST", "/uploads/", fields | complete, DATA).informed == []
    if version is not None:
        assert appended_slowly(world, version).informed == []


def test_104_has_the_version(world: UploadWorld) -> None:
    """[Draft Version Identification] Server implementations of draft versions of the protocol MUST also send a header
    field `Upload-Draft-Interop-Version` with the interop version as its value to the
    `104 (Upload Resumption Supported)` informational response."""
    informed = [*post(world, DATA, LAST).informed, *appended_slowly(world).informed]
    assert len(informed) > 3
    assert {status for status, _fields in informed} == {104}
    assert {fields["upload-draft-interop-version"] for _status, fields in informed} == {"8"}
