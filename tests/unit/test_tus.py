"""Upload handles in the dialect of tus 1.0.0: every sentence of the protocol that binds a server, one by one.

The sentences are quoted in the docstrings; test_sentences.py checks that none was forgotten.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import pytest
from http_world import Answer
from upload_world import CHECKSUM_BODY_MAX, DIRECTORY, EPOCH, UploadWorld, fields_of, request

from client_shim.gateway.handle_settings import DAY, HandleSettings
from client_shim.gateway.handles import HandleState

TUS = {"Tus-Resumable": "1.0.0"}
BODY = {"Content-Type": "application/offset+octet-stream"}
DATA = bytes(range(251)) * 10
SIZE = len(DATA)
FILE_MAX = 10**15 - 1


@pytest.fixture
def world() -> Iterator[UploadWorld]:
    with UploadWorld() as world:
        yield world


def post(world: UploadWorld, size: int | None, body: bytes | None = None, **fields: str) -> Answer:
    length = {"Upload-Defer-Length": "1"} if size is None else {"Upload-Length": str(size)}
    media_type = BODY if body is not None else {}
    return world.ask("POST", "/uploads/", TUS | length | media_type | named(fields), body)


def create(world: UploadWorld, size: int | None = SIZE, **fields: str) -> str:
    answer = post(world, size, **fields)
    assert answer.status == 201
    return fields_of(answer)["location"]


def patch(world: UploadWorld, path: str, offset: int, body: bytes, *, chunked: bool = False, **fields: str) -> Answer:
    return world.ask("PATCH", path, TUS | BODY | {"Upload-Offset": str(offset)} | named(fields), body, chunked=chunked)


def head(world: UploadWorld, path: str) -> dict[str, str]:
    answer = world.ask("HEAD", path, TUS)
    assert answer.status == 200
    return fields_of(answer)


def named(fields: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in fields.items()}


def metadata(**values: bytes) -> str:
    return ",".join(f"{name} {base64.b64encode(value).decode()}" for name, value in values.items())


def checksum(data: bytes, algorithm: str = "sha1") -> str:
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


def extensions(world: UploadWorld) -> list[str]:
    return fields_of(world.ask("OPTIONS", "/uploads/", {}))["tus-extension"].split(",")


# -- core protocol -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 55, 56, 1000, SIZE])
@pytest.mark.parametrize("step", [7, 600, 5000])
def test_core_protocol(world: UploadWorld, size: int, step: int) -> None:
    """[Core Protocol] All Clients and Servers MUST implement the core protocol."""
    data, step = DATA[:size], max(step, size // 20 + 1)
    answer = post(world, size)
    path = fields_of(answer)["location"]
    while (offset := int(head(world, path)["upload-offset"])) < size:
        answer = patch(world, path, offset, data[offset:offset + step])
        assert answer.status == 204
    world.check_stored(fields_of(answer)["tahoe-cap"], data)
    assert head(world, path)["tahoe-cap"] == fields_of(answer)["tahoe-cap"]


def test_offsets_are_non_negative_integers(world: UploadWorld) -> None:
    """[Core Protocol / Headers / Upload-Offset] The value MUST be a non-negative integer."""
    path = create(world)
    for value in ("-1", "0x0", "1.0", "", "zero", "+0", "0 0", "1e1"):
        assert world.ask("PATCH", path, TUS | BODY | {"Upload-Offset": value}, b"a").status == 400
    assert world.ask("PATCH", path, TUS | BODY, b"a").status == 400
    assert head(world, path)["upload-offset"] == "0"
    assert fields_of(patch(world, path, 0, b"a"))["upload-offset"] == "1"


def test_lengths_are_non_negative_integers(world: UploadWorld) -> None:
    """[Core Protocol / Headers / Upload-Length] The value MUST be a non-negative integer."""
    for value in ("-1", "0x0", "1.0", "", "zero", "+0", "0 0", "1e1"):
        assert world.ask("POST", "/uploads/", TUS | {"Upload-Length": value}).status == 400
    assert world.paths() == []
    assert head(world, create(world, 7))["upload-length"] == "7"


def test_versions_are_a_list(world: UploadWorld) -> None:
    """[Core Protocol / Headers / Tus-Version] The Tus-Version response header MUST be a comma-separated list of
    protocol versions supported by the Server."""
    assert fields_of(world.ask("OPTIONS", "/uploads/", {}))["tus-version"].split(",") == ["1.0.0"]


def test_preferred_version_is_the_first(world: UploadWorld) -> None:
    """[Core Protocol / Headers / Tus-Version] The list MUST be sorted by Server's preference where the first one is
    the most preferred one."""
    answer = fields_of(world.ask("OPTIONS", "/uploads/", {}))
    assert answer["tus-version"].split(",")[0] == answer["tus-resumable"]


def test_every_answer_has_the_version(world: UploadWorld) -> None:
    """[Core Protocol / Headers / Tus-Resumable] The `Tus-Resumable` header MUST be included in every request and
    response except for `OPTIONS` requests."""
    path = create(world)
    answers = [
        post(world, 5), post(world, 5, b"hello"), post(world, FILE_MAX + 1), world.ask("POST", "/uploads/", TUS),
        world.ask("HEAD", path, TUS), patch(world, path, 0, b"a"), patch(world, path, 0, b"a"),
        world.ask("PATCH", path, TUS, b"a"), world.ask("PUT", path, TUS, b"a"),
        world.ask("DELETE", path, TUS), world.ask("DELETE", path, TUS), world.ask("HEAD", path, TUS),
    ]
    assert [answer.status for answer in answers] == [201, 201, 413, 400, 200, 204, 409, 415, 405, 204, 404, 404]
    assert {fields_of(answer)["tus-resumable"] for answer in answers} == {"1.0.0"}
    for method in ("POST", "PATCH"):  # known by its body
        assert world.ask(method, "/uploads/", BODY, b"a").status == 412


def test_version_is_one_that_is_spoken(world: UploadWorld) -> None:
    """[Core Protocol / Headers / Tus-Resumable] The value MUST be the version of the protocol used by the Client or
    the Server."""
    for version in ("", "1", "1.0", "1.0.0, 1.0.0", "1.0.0 ", "v1.0.0"):
        expected = 201 if version == "1.0.0 " else 412  # HTTP has no space at the end of a value
        assert world.ask("POST", "/uploads/", {"Tus-Resumable": version, "Upload-Length": "1"}).status == expected


def test_other_version_is_refused(world: UploadWorld) -> None:
    """[Core Protocol / Headers / Tus-Resumable] If the version specified by the Client is not supported by the Server,
    it MUST respond with the `412 Precondition Failed` status and MUST include the `Tus-Version` header into the
    response."""
    path = create(world)
    for method in ("POST", "HEAD", "PATCH", "DELETE"):
        answer = world.ask(method, path if method != "POST" else "/uploads/", {"Tus-Resumable": "0.2.2"})
        assert (answer.status, fields_of(answer)["tus-version"]) == (412, "1.0.0")


def test_request_of_another_version_does_nothing(world: UploadWorld) -> None:
    """[Core Protocol / Headers / Tus-Resumable] In addition, the Server MUST NOT process the request."""
    path = create(world)
    old = {"Tus-Resumable": "0.2.2"}
    assert world.ask("POST", "/uploads/", old | {"Upload-Length": "1"}).status == 412
    assert world.ask("PATCH", path, old | BODY | {"Upload-Offset": "0"}, b"a").status == 412
    assert world.ask("DELETE", path, old).status == 412
    assert world.paths() == [path]
    assert head(world, path)["upload-offset"] == "0"


def test_extensions_are_a_list(world: UploadWorld) -> None:
    """[Core Protocol / Headers / Tus-Extension] The `Tus-Extension` response header MUST be a comma-separated list of
    the extensions supported by the Server."""
    assert extensions(world) == ["creation", "creation-with-upload", "creation-defer-length", "expiration", "checksum",
                                 "termination"]


def test_largest_size_is_an_integer(world: UploadWorld) -> None:
    """[Core Protocol / Headers / Tus-Max-Size] The `Tus-Max-Size` response header MUST be a non-negative integer
    indicating the maximum allowed size of an entire upload in bytes."""
    most = fields_of(world.ask("OPTIONS", "/uploads/", {}))["tus-max-size"]
    assert most.isdigit()
    assert post(world, int(most)).status == 201
    assert post(world, int(most) + 1).status == 413


def test_largest_size_is_told(world: UploadWorld) -> None:
    """[Core Protocol / Headers / Tus-Max-Size] The Server SHOULD set this header if there is a known hard limit."""
    assert "tus-max-size" in fields_of(world.ask("OPTIONS", "/uploads/", {}))


@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
def test_method_of_another_name(world: UploadWorld, method: str) -> None:
    """[Core Protocol / Headers / X-HTTP-Method-Override] The `X-HTTP-Method-Override` request header MUST be a string
    which MUST be interpreted as the request's method by the Server, if the header is presented."""
    path = create(world, 5)
    fields = TUS | BODY | {"Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    answer = world.ask(method, path, fields, b"hello")
    assert (answer.status, fields_of(answer)["upload-offset"]) == (204, "5")
    assert world.ask(method, path, TUS | {"X-HTTP-Method-Override": "DELETE"}).status == 204
    assert world.paths() == []


def test_actual_method_does_not_matter(world: UploadWorld) -> None:
    """[Core Protocol / Headers / X-HTTP-Method-Override] The actual method of the request MUST be ignored."""
    path = create(world, 5)
    for method in ("DELETE", "PATCH"):
        answer = world.ask(method, path, TUS | {"X-HTTP-Method-Override": "HEAD"})
        assert (answer.status, fields_of(answer)["upload-offset"]) == (200, "0")
    assert world.ask("DELETE", path, TUS | {"X-HTTP-Method-Override": "STRANGE"}).status == 405
    assert world.paths() == [path]


def test_pages_of_other_sites_cannot_write_by_another_method(world: UploadWorld) -> None:
    path = create(world, 5)
    fields = TUS | {"Sec-Fetch-Site": "cross-site", "X-HTTP-Method-Override": "DELETE"}
    assert world.ask("GET", path, fields).status == 403
    assert world.paths() == [path]


def test_head_has_the_offset(world: UploadWorld) -> None:
    """[Core Protocol / Requests / HEAD] The Server MUST always include the `Upload-Offset` header in the response for a
    `HEAD` request, even if the offset is `0`, or the upload is already considered completed."""
    path = create(world)
    assert head(world, path)["upload-offset"] == "0"
    patch(world, path, 0, DATA[:100])
    assert head(world, path)["upload-offset"] == "100"
    patch(world, path, 100, DATA[100:])
    assert head(world, path)["upload-offset"] == str(SIZE)


def test_head_has_the_length(world: UploadWorld) -> None:
    """[Core Protocol / Requests / HEAD] If the size of the upload is known, the Server MUST include the `Upload-Length`
    header in the response."""
    path = create(world)
    assert head(world, path)["upload-length"] == str(SIZE)
    patch(world, path, 0, DATA)
    assert head(world, path)["upload-length"] == str(SIZE)
    deferred = create(world, None)
    assert "upload-length" not in head(world, deferred)
    patch(world, deferred, 0, b"a", Upload_Length="3")
    assert head(world, deferred)["upload-length"] == "3"


@pytest.mark.parametrize("name", ["a" * 52, "A" * 52, "x", "..", "%2e%2e", "../../private/aliases", "a" * 51 + "1",
                                  "a" * 53, "%00", "a/b"])
def test_head_of_nothing(world: UploadWorld, name: str) -> None:
    """[Core Protocol / Requests / HEAD] If the resource is not found, the Server SHOULD return either the
    `404 Not Found`, `410 Gone` or `403 Forbidden` status without the `Upload-Offset` header."""
    create(world)
    answer = world.ask("HEAD", f"/uploads/{name}", TUS)
    assert answer.status == 404
    assert "upload-offset" not in fields_of(answer)


def test_head_succeeds(world: UploadWorld) -> None:
    """[Core Protocol / Requests / HEAD] The Server SHOULD acknowledge successful `HEAD` requests with a `200 OK` or
    `204 No Content` status."""
    assert world.ask("HEAD", create(world), TUS).status == 200


def test_head_is_not_cached(world: UploadWorld) -> None:
    """[Core Protocol / Requests / HEAD] The Server MUST prevent the client and/or proxies from caching the response by
    adding the `Cache-Control: no-store` header to the response."""
    path = create(world, 5)
    assert head(world, path)["cache-control"] == "no-store"
    patch(world, path, 0, b"hello")
    assert head(world, path)["cache-control"] == "no-store"


def test_patch_appends(world: UploadWorld) -> None:
    """[Core Protocol / Requests / PATCH] The Server SHOULD accept `PATCH` requests against any upload URL and apply the
    bytes contained in the message at the given offset specified by the `Upload-Offset` header."""
    paths = [create(world, 1000), create(world, None), fields_of(post(world, 1000, DATA[:400]))["location"]]
    for path in paths:
        offset = int(head(world, path)["upload-offset"])
        patch(world, path, offset, DATA[offset:700])
        answer = patch(world, path, 700, DATA[700:1000], Upload_Length="1000")
        world.check_stored(fields_of(answer)["tahoe-cap"], DATA[:1000])


@pytest.mark.parametrize("media_type", ["", "application/octet-stream", "application/partial-upload", "text/plain"])
def test_patch_of_another_type(world: UploadWorld, media_type: str) -> None:
    """[Core Protocol / Requests / PATCH] All `PATCH` requests MUST use
    `Content-Type: application/offset+octet-stream`, otherwise the server SHOULD return a `415 Unsupported Media Type`
    status."""
    path = create(world)
    fields = TUS | {"Upload-Offset": "0"} | ({"Content-Type": media_type} if media_type else {})
    assert world.ask("PATCH", path, fields, b"a").status == 415
    assert head(world, path)["upload-offset"] == "0"
    assert patch(world, path, 0, b"a", Content_Type="Application/Offset+Octet-Stream; x=y").status == 204


@pytest.mark.parametrize("offset", [0, 99, 101, SIZE, SIZE + 1, 2**53 - 1])
def test_patch_at_another_offset(world: UploadWorld, offset: int) -> None:
    """[Core Protocol / Requests / PATCH] The `Upload-Offset` header's value MUST be equal to the current offset of the
    resource."""
    path = create(world)
    patch(world, path, 0, DATA[:100])
    answer = patch(world, path, offset, b"a")
    assert (answer.status, fields_of(answer)["upload-offset"]) == (409, "100")


def test_refused_patch_changes_nothing(world: UploadWorld) -> None:
    """[Core Protocol / Requests / PATCH] If the offsets do not match, the Server MUST respond with the `409 Conflict`
    status without modifying the upload resource."""
    path = create(world, None)
    patch(world, path, 0, DATA[:100])
    assert patch(world, path, 50, b"other bytes", Upload_Length="61").status == 409
    assert patch(world, path, 200, b"other bytes", chunked=True).status == 409
    assert head(world, path)["upload-offset"] == "100"
    assert "upload-length" not in head(world, path)
    answer = patch(world, path, 100, DATA[100:], Upload_Length=str(SIZE))
    world.check_stored(fields_of(answer)["tahoe-cap"], DATA)


def test_patch_is_acknowledged(world: UploadWorld) -> None:
    """[Core Protocol / Requests / PATCH] The Server MUST acknowledge successful `PATCH` requests with the
    `204 No Content` status."""
    path = create(world)
    assert patch(world, path, 0, b"").status == 204
    assert patch(world, path, 0, DATA[:10]).status == 204
    assert patch(world, path, 10, DATA[10:]).status == 204
    assert patch(world, path, SIZE, b"").status == 204


def test_patch_tells_the_offset(world: UploadWorld) -> None:
    """[Core Protocol / Requests / PATCH] It MUST include the `Upload-Offset` header containing the new offset."""
    path = create(world)
    assert fields_of(patch(world, path, 0, DATA[:10]))["upload-offset"] == "10"
    assert fields_of(patch(world, path, 10, b""))["upload-offset"] == "10"
    assert fields_of(patch(world, path, 10, DATA[10:]))["upload-offset"] == str(SIZE)


@pytest.mark.parametrize("chunked", [False, True])
def test_offset_is_the_sum(world: UploadWorld, chunked: bool) -> None:
    """[Core Protocol / Requests / PATCH] The new offset MUST be the sum of the offset before the `PATCH` request and
    the number of bytes received and processed or stored during the current `PATCH` request."""
    path = create(world)
    offset = 0
    for length in (1, 54, 1, 600, 1200):
        answer = patch(world, path, offset, DATA[offset:offset + length], chunked=chunked)
        offset += length
        assert fields_of(answer)["upload-offset"] == str(offset)
    assert world.status(path).offset == offset


def test_patch_of_nothing(world: UploadWorld) -> None:
    """[Core Protocol / Requests / PATCH] If the server receives a `PATCH` request against a non-existent resource it
    SHOULD return a `404 Not Found` status."""
    assert patch(world, f"/uploads/{'a' * 52}", 0, b"a").status == 404
    assert patch(world, "/uploads/a", 0, b"a").status == 404


def test_cut_connection_keeps_what_came(world: UploadWorld) -> None:
    """[Core Protocol / Requests / PATCH] Both Client and Server, SHOULD attempt to detect and handle network errors
    predictably."""
    path = create(world)
    client = world.client()
    fields = TUS | BODY | {"Upload-Offset": "0"}
    world.send(client, request("PATCH", path, fields, DATA[:1234], declared=SIZE))
    client.transport.cut()
    assert head(world, path)["upload-offset"] == "1234"
    answer = patch(world, path, 1234, DATA[1234:])
    world.check_stored(fields_of(answer)["tahoe-cap"], DATA)


def test_silent_client_is_closed(world: UploadWorld) -> None:
    """[Core Protocol / Requests / PATCH] A timeout SHOULD be handled by closing the underlying connection."""
    path = create(world)
    client = world.client()
    world.send(client, request("PATCH", path, TUS | BODY | {"Upload-Offset": "0"}, DATA[:100], declared=SIZE))
    world.helper.wait(2 * DAY)
    assert client.over
    assert head(world, path)["upload-offset"] == "100"


def test_all_that_came_before_a_fault_is_kept(world: UploadWorld) -> None:
    """[Core Protocol / Requests / PATCH] The Server SHOULD always attempt to store as much of the received data as
    possible."""
    path = create(world)
    client = world.client()
    head_and_some = request("PATCH", path, TUS | BODY | {"Upload-Offset": "0", "Transfer-Encoding": "chunked"})
    world.send(client, head_and_some + b"64\r\n" + DATA[:100] + b"\r\nno number\r\n")
    assert client.answers("PATCH")[0].status == 400
    assert head(world, path)["upload-offset"] == "100"
    assert patch(world, path, 100, bytes(SIZE), chunked=True).status == 413  # more than was declared
    offset = int(head(world, path)["upload-offset"])
    assert 100 < offset <= SIZE


def test_options_has_the_versions(world: UploadWorld) -> None:
    """[Core Protocol / Requests / OPTIONS] A successful response indicated by the `204 No Content` or `200 OK` status
    MUST contain the `Tus-Version` header."""
    for path in ("/uploads/", "/uploads", create(world), "/uploads/unknown"):
        answer = world.ask("OPTIONS", path, {})
        assert (answer.status, fields_of(answer)["tus-version"]) == (204, "1.0.0")


@pytest.mark.parametrize("version", ["1.0.0", "0.2.2", "nonsense"])
def test_options_ignores_the_version(world: UploadWorld, version: str) -> None:
    """[Core Protocol / Requests / OPTIONS] The Client SHOULD NOT include the `Tus-Resumable` header in the request and
    the Server MUST ignore the header."""
    answer = world.ask("OPTIONS", "/uploads/", {"Tus-Resumable": version})
    without = world.ask("OPTIONS", "/uploads/", {})
    assert answer.status == without.status == 204
    assert {**answer.headers, "date": ""} == {**without.headers, "date": ""}


# -- creation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/uploads/", "/uploads"])
def test_uploads_can_be_created(world: UploadWorld, path: str) -> None:
    """[Protocol Extensions / Creation] The Client and the Server SHOULD implement the upload creation extension."""
    assert world.ask("POST", path, TUS | {"Upload-Length": "1"}).status == 201
    assert len(world.paths()) == 1


def test_creation_is_told(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation] If the Server supports this extension, it MUST add `creation` to the
    `Tus-Extension` header."""
    assert "creation" in extensions(world)


@pytest.mark.parametrize("value", ["0", "2", "true", "", "1, 1", "01", "-1"])
def test_defer_length_is_one(world: UploadWorld, value: str) -> None:
    """[Protocol Extensions / Creation / Headers / Upload-Defer-Length] Its value MUST be `1`."""
    assert world.ask("POST", "/uploads/", TUS | {"Upload-Defer-Length": value}).status == 400
    assert world.paths() == []


def test_length_is_deferred_or_not(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation / Headers / Upload-Defer-Length] If the length of an upload is not deferred, this
    header MUST be omitted."""
    both = {"Upload-Defer-Length": "1", "Upload-Length": "5"}
    assert world.ask("POST", "/uploads/", TUS | both).status == 400
    assert "upload-defer-length" not in head(world, create(world, 5))


@pytest.mark.parametrize(("text", "status"), [
    ("filename d29ybGQ=,is_confidential", 201), ("a,b,c", 201), ("a ,b ", 201), ("a d29ybGQ=, b d29ybGQ=", 201),
    ("", 201), (",", 400), ("a,,b", 400), ("a,", 400)])
def test_metadata_are_pairs(world: UploadWorld, text: str, status: int) -> None:
    """[Protocol Extensions / Creation / Headers / Upload-Metadata] The `Upload-Metadata` request and response header
    MUST consist of one or more comma-separated key-value pairs."""
    assert post(world, 5, Upload_Metadata=text).status == status


@pytest.mark.parametrize(("separator", "status"),
                         [(" ", 201), ("", 400), ("=", 400), (":", 400), ("  ", 400), ("\t", 400)])
def test_metadata_have_a_space_between(world: UploadWorld, separator: str, status: int) -> None:
    """[Protocol Extensions / Creation / Headers / Upload-Metadata] The key and value MUST be separated by a space."""
    text = metadata(dircap=DIRECTORY.encode()) + f",filename{separator}d29ybGQ="
    assert post(world, 5, Upload_Metadata=text).status == status  # without its name a file cannot be linked


@pytest.mark.parametrize("text", ["a b d29ybGQ=", "a,,b", "a, ,b", ",", "a d29ybGQ=,"])
def test_metadata_keys_have_no_space(world: UploadWorld, text: str) -> None:
    """[Protocol Extensions / Creation / Headers / Upload-Metadata] The key MUST NOT contain spaces and commas and MUST
    NOT be empty."""
    assert post(world, 5, Upload_Metadata=text).status == 400
    assert world.paths() == []


@pytest.mark.parametrize("value", ["%", "abc", "d29ybGQ", "d29y\xe4bGQ=", "d29y-_==", "=", "d29ybGQ=d29ybGQ="])
def test_metadata_values_are_base64(world: UploadWorld, value: str) -> None:
    """[Protocol Extensions / Creation / Headers / Upload-Metadata] The key SHOULD be ASCII encoded and the value MUST
    be Base64 encoded."""
    assert post(world, 5, Upload_Metadata=f"name {value}").status == 400
    assert world.paths() == []


def test_metadata_keys_are_unique(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation / Headers / Upload-Metadata] All keys MUST be unique."""
    assert post(world, 5, Upload_Metadata="a d29ybGQ=,b,a d29ybGQ=").status == 400
    assert post(world, 5, Upload_Metadata="a,a").status == 400
    assert world.paths() == []


def test_metadata_cannot_smuggle_fields(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation / Headers / Upload-Metadata] Since metadata can contain arbitrary binary values,
    Servers SHOULD carefully validate metadata values or sanitize them before using them as header values to avoid
    header smuggling."""
    text = metadata(filename=b"a\r\nSet-Cookie: x=y\r\n\r\nGET / HTTP/1.1")
    path = create(world, 5, Upload_Metadata=text)
    answer = head(world, path)
    assert answer["upload-metadata"] == text
    assert "set-cookie" not in answer
    assert "set-cookie" not in fields_of(patch(world, path, 0, b"hello"))


def test_length_or_deferral_is_needed(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation / Requests / POST] The request MUST include one of the following headers:"""
    assert world.ask("POST", "/uploads/", TUS).status == 400
    assert world.ask("POST", "/uploads/", TUS | BODY, b"hello").status == 400
    assert world.paths() == []
    assert post(world, 5).status == post(world, None).status == 201


def test_length_is_set_once(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation / Requests / POST] Once set the length MUST NOT be changed."""
    path = create(world, None)
    assert patch(world, path, 0, DATA[:10], Upload_Length="700").status == 204
    assert patch(world, path, 10, b"", Upload_Length="700").status == 204
    for other in ("10", "699", "701"):
        assert patch(world, path, 10, b"", Upload_Length=other).status == 400
    assert head(world, path)["upload-length"] == "700"
    fixed = create(world, 5)
    assert patch(world, fixed, 0, b"hello", Upload_Length="6").status == 400
    assert head(world, fixed)["upload-offset"] == "0"


def test_head_tells_that_the_length_is_deferred(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation / Requests / POST] As long as the length of the upload is not known, the Server
    MUST set `Upload-Defer-Length: 1` in all responses to `HEAD` requests."""
    path = create(world, None)
    assert head(world, path)["upload-defer-length"] == "1"
    patch(world, path, 0, DATA[:100])
    assert head(world, path)["upload-defer-length"] == "1"
    patch(world, path, 100, b"", Upload_Length=str(SIZE))
    assert "upload-defer-length" not in head(world, path)


def test_deferring_length_is_told(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation / Requests / POST] If the Server supports deferring length, it MUST add
    `creation-defer-length` to the `Tus-Extension` header."""
    assert "creation-defer-length" in extensions(world)


def test_head_has_the_metadata(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation / Requests / POST] If an upload contains additional metadata, responses to `HEAD`
    requests MUST include the `Upload-Metadata` header and its value as specified by the Client during the creation."""
    text = "filename d29ybGRfZG9taW5hdGlvbl9wbGFuLnBkZg==,is_confidential, x "
    path = create(world, 5, Upload_Metadata=text)
    assert head(world, path)["upload-metadata"] == text.strip()
    world.restart()
    patch(world, path, 0, b"hello")
    assert head(world, path)["upload-metadata"] == text.strip()
    assert "upload-metadata" not in head(world, create(world, 5))


@pytest.mark.parametrize("size", [FILE_MAX + 1, 2**53 - 1, 2**53, 2**64, pytest.param(10**400, id="10**400")])
def test_too_long_a_file(world: UploadWorld, size: int) -> None:
    """[Protocol Extensions / Creation / Requests / POST] If the length of the upload exceeds the maximum, which MAY be
    specified using the `Tus-Max-Size` header, the Server MUST respond with the `413 Request Entity Too Large`
    status."""
    assert post(world, size).status == 413
    assert world.paths() == []
    assert patch(world, create(world, None), 0, b"", Upload_Length=str(size)).status == 413


def test_creation_is_acknowledged(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation / Requests / POST] The Server MUST acknowledge a successful upload creation with
    the `201 Created` status."""
    for answer in (post(world, 0), post(world, 5), post(world, None), post(world, 5, b"hel"), post(world, 5, b"hello")):
        assert answer.status == 201


def test_creation_tells_the_location(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation / Requests / POST] The Server MUST set the `Location` header to the URL of the
    created resource."""
    for answer in (post(world, 0), post(world, 5), post(world, None), post(world, 5, b"hel"), post(world, 5, b"hello")):
        assert world.ask("HEAD", fields_of(answer)["location"], TUS).status == 200


def test_empty_file_is_complete_at_once(world: UploadWorld) -> None:
    """Such an upload is immediately complete after its creation without transferring data using `PATCH` requests."""
    answer = fields_of(post(world, 0))
    assert answer["tahoe-cap"] == "URI:LIT:"
    assert head(world, answer["location"])["tahoe-cap"] == "URI:LIT:"


# -- creation with upload ----------------------------------------------------------------------------------


def test_creation_with_upload_is_told(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation With Upload] If the Server supports this extension, it MUST advertise this by
    including `creation-with-upload` in the `Tus-Extension` header."""
    assert "creation-with-upload" in extensions(world)


def test_creation_with_upload_is_told_with_creation(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation With Upload] Therefore, if the Server does not offer the Creation extension, it
    MUST NOT offer the Creation With Upload extension either."""
    assert {"creation", "creation-with-upload"} <= set(extensions(world))


def test_creation_with_a_body_of_another_type(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation With Upload] The Client MUST include the
    `Content-Type: application/offset+octet-stream` header."""
    for fields in ({}, {"Content-Type": "application/octet-stream"}):
        for chunked in (False, True):
            answer = world.ask("POST", "/uploads/", TUS | {"Upload-Length": "5"} | fields, b"hello", chunked=chunked)
            assert answer.status == 415
    assert world.paths() == []


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("length", [1, 56, 1300, SIZE])
def test_creation_with_upload(world: UploadWorld, length: int, chunked: bool) -> None:
    """[Protocol Extensions / Creation With Upload] The Server SHOULD accept as many bytes as possible and MUST include
    the `Upload-Offset` header in the response and MUST set its value to the offset of the upload after applying the
    accepted bytes."""
    fields = TUS | BODY | {"Upload-Length": str(SIZE)}
    answer = fields_of(world.ask("POST", "/uploads/", fields, DATA[:length], chunked=chunked))
    assert answer["upload-offset"] == str(length)
    assert head(world, answer["location"])["upload-offset"] == str(length)
    if length < SIZE:
        answer = fields_of(patch(world, answer["location"], length, DATA[length:]))
    world.check_stored(answer["tahoe-cap"], DATA)


def test_creation_is_refused_before_the_body_is_sent(world: UploadWorld) -> None:
    """[Protocol Extensions / Creation With Upload] In addition, the Client SHOULD include the `Expect: 100-continue`
    header in the request to receive early feedback from the Server on whether it will accept the creation request,
    before attempting to transfer the first chunk."""
    client = world.client()
    fields = TUS | BODY | {"Upload-Length": str(FILE_MAX + 1), "Expect": "100-continue"}
    client.send(request("POST", "/uploads/", fields, declared=5))
    assert world.answer(client, "POST").status == 413
    client = world.client()
    world.send(client, request("POST", "/uploads/", fields | {"Upload-Length": "5"}, declared=5))
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hello")
    assert world.answer(client, "POST").status == 201


def test_creation_that_was_cut_leaves_nothing(world: UploadWorld) -> None:
    """Its client does not know where to go on."""
    client = world.client()
    fields = TUS | BODY | {"Upload-Length": str(SIZE)}
    world.send(client, request("POST", "/uploads/", fields, DATA[:1000], declared=SIZE))
    assert len(world.paths()) == 1
    client.transport.cut()
    world.helper.wait(10)
    assert world.paths() == []
    world.helper.check_nothing_left()


def test_creation_with_too_many_bytes_leaves_nothing(world: UploadWorld) -> None:
    assert post(world, 5, b"hello!").status == 413
    fields = TUS | BODY | {"Upload-Length": "1000"}
    assert world.ask("POST", "/uploads/", fields, DATA, chunked=True).status == 413
    assert world.paths() == []


# -- expiration --------------------------------------------------------------------------------------------


def test_expiration_is_told(world: UploadWorld) -> None:
    """[Protocol Extensions / Expiration] In order to indicate this behavior to the Client, the Server MUST add
    `expiration` to the `Tus-Extension` header."""
    assert "expiration" in extensions(world)


def test_patch_tells_when_it_expires(world: UploadWorld) -> None:
    """[Protocol Extensions / Expiration / Headers / Upload-Expires] This header MUST be included in every `PATCH`
    response if the upload is going to expire."""
    path = create(world)
    assert "upload-expires" in fields_of(patch(world, path, 0, DATA[:10]))
    for answer in (patch(world, path, 0, b"a"), patch(world, path, 10, b"a", Content_Type="text/plain"),
                   patch(world, path, 10, b"a", Upload_Checksum="sha1 AAAA"),
                   patch(world, path, 10, DATA)):
        assert answer.status >= 400
        assert "upload-expires" in fields_of(answer)
    assert "upload-expires" not in fields_of(patch(world, path, 10, DATA[10:]))


def test_creation_tells_when_it_expires(world: UploadWorld) -> None:
    """[Protocol Extensions / Expiration / Headers / Upload-Expires] If the expiration is known at the creation, the
    `Upload-Expires` header MUST be included in the response to the initial `POST` request."""
    for answer in (post(world, 5), post(world, None), post(world, 5, b"hel")):
        assert "upload-expires" in fields_of(answer)


def test_expired_upload_is_gone(world: UploadWorld) -> None:
    """[Protocol Extensions / Expiration / Headers / Upload-Expires] If a Client does attempt to resume an upload which
    has since been removed by the Server, the Server SHOULD respond with the`404 Not Found` or `410 Gone` status."""
    path = expired(world)
    assert patch(world, path, 100, b"a").status == 410
    assert world.ask("DELETE", path, TUS).status == 410
    world.helper.check_nothing_left()


def test_expired_upload_is_remembered(world: UploadWorld) -> None:
    """[Protocol Extensions / Expiration / Headers / Upload-Expires] The latter one SHOULD be used if the Server is
    keeping track of expired uploads."""
    path = expired(world)
    answer = world.ask("HEAD", path, TUS)
    assert answer.status == 410
    assert "upload-offset" not in fields_of(answer)
    world.restart()
    assert world.ask("HEAD", path, TUS).status == 410


def expired(world: UploadWorld) -> str:
    path = create(world)
    told = parsedate_to_datetime(fields_of(patch(world, path, 0, DATA[:100]))["upload-expires"])
    assert told == datetime.fromtimestamp(int(EPOCH + world.clock.seconds()) + 7 * DAY, UTC)
    world.helper.wait(7 * DAY - 60)
    assert world.status(path).state is HandleState.OPEN
    world.helper.wait(300)
    return path


def test_expiry_is_a_date(world: UploadWorld) -> None:
    """[Protocol Extensions / Expiration / Headers / Upload-Expires] The value of the `Upload-Expires` header MUST be in
    RFC 9110 datetime format."""
    value = fields_of(post(world, 5))["upload-expires"]
    assert datetime.strptime(value, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp() == pytest.approx(
        EPOCH + 7 * DAY, abs=2)


# -- checksum ----------------------------------------------------------------------------------------------


def test_checksum_is_told(world: UploadWorld) -> None:
    """[Protocol Extensions / Checksum] If supported, the Server MUST add `checksum` to the `Tus-Extension` header."""
    assert "checksum" in extensions(world)
    assert "checksum-trailer" not in extensions(world)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512", "md5"])
@pytest.mark.parametrize("chunked", [False, True])
def test_checksum_is_verified(world: UploadWorld, algorithm: str, chunked: bool) -> None:
    """[Protocol Extensions / Checksum] Once the entire request has been received, the Server MUST verify the uploaded
    chunk against the provided checksum using the specified algorithm."""
    path = create(world)
    good, bad = checksum(DATA[:1000], algorithm), checksum(DATA[:1001], algorithm)
    assert patch(world, path, 0, DATA[:1000], chunked=chunked, Upload_Checksum=bad).status == 460
    assert patch(world, path, 0, DATA[:1000], chunked=chunked, Upload_Checksum=good).status == 204
    answer = patch(world, path, 1000, DATA[1000:], Upload_Checksum=checksum(DATA[1000:], algorithm))
    world.check_stored(fields_of(answer)["tahoe-cap"], DATA)


@pytest.mark.parametrize(("value", "status"), [
    ("crc32 AAAAAA==", 400), ("SHA1 " + checksum(DATA[:9]).split()[1], 400), ("", 400), ("sha1", 460), ("sha1 %", 400),
    ("sha1 AAAA", 460), (checksum(DATA[:8]), 460)])
def test_chunk_with_a_bad_checksum_is_discarded(world: UploadWorld, value: str, status: int) -> None:
    """[Protocol Extensions / Checksum] In the first two cases the uploaded chunk MUST be discarded, and the upload and
    its offset MUST NOT be updated."""
    path = create(world)
    patch(world, path, 0, DATA[:100])
    sent = len(ciphertext(world))
    assert patch(world, path, 100, b"bad bytes", Upload_Checksum=value).status == status
    assert head(world, path)["upload-offset"] == "100"
    assert len(ciphertext(world)) == sent  # nothing was even encrypted: the next bytes are under the same key stream
    assert world.bodies.held == 0
    answer = patch(world, path, 100, DATA[100:])
    world.check_stored(fields_of(answer)["tahoe-cap"], DATA)


def ciphertext(world: UploadWorld) -> bytes:
    """What the helper was sent."""
    return b"".join(arguments[-1] for link in world.helper._links for method, arguments in link.sent
                    if method == "put_ciphertext")


def test_sha1_is_known(world: UploadWorld) -> None:
    """[Protocol Extensions / Checksum] The Server MUST support at least the SHA1 checksum algorithm identified by
    `sha1`."""
    path = create(world)
    value = "sha1 " + base64.b64encode(hashlib.sha1(b"hello").digest()).decode()
    assert patch(world, path, 0, b"hello", Upload_Checksum=value).status == 204


def test_names_of_algorithms(world: UploadWorld) -> None:
    """[Protocol Extensions / Checksum] The names of the checksum algorithms MUST only consist of ASCII characters with
    the modification that uppercase characters are excluded."""
    for name in fields_of(world.ask("OPTIONS", "/uploads/", {}))["tus-checksum-algorithm"].split(","):
        assert name.isascii()
        assert name == name.lower()


def test_options_has_the_algorithms(world: UploadWorld) -> None:
    """[Protocol Extensions / Checksum] The `Tus-Checksum-Algorithm` header MUST be included in the response to an
    `OPTIONS` request."""
    assert "tus-checksum-algorithm" in fields_of(world.ask("OPTIONS", "/uploads/", {}))


def test_algorithms_are_a_list(world: UploadWorld) -> None:
    """[Protocol Extensions / Checksum / Headers / Tus-Checksum-Algorithm] The `Tus-Checksum-Algorithm` response header
    MUST be a comma-separated list of the checksum algorithms supported by the server."""
    names = fields_of(world.ask("OPTIONS", "/uploads/", {}))["tus-checksum-algorithm"].split(",")
    assert names == ["sha1", "sha256", "sha512", "md5"]
    path = create(world)
    for offset, name in enumerate(names):
        data = DATA[offset:offset + 1]
        assert patch(world, path, offset, data, Upload_Checksum=checksum(data, name)).status == 204


@pytest.mark.parametrize("value", ["sha1:AAAA", "sha1  AAAA", "AAAA sha1", "sha1 AAAA sha1 AAAA", "sha1\tAAAA"])
def test_form_of_a_checksum(world: UploadWorld, value: str) -> None:
    """[Protocol Extensions / Checksum / Headers / Upload-Checksum] The header MUST consist of the name of the used
    checksum algorithm and the Base64 encoded checksum separated by a space."""
    assert patch(world, create(world), 0, b"hello", Upload_Checksum=value).status == 400


def test_creation_with_a_checksum(world: UploadWorld) -> None:
    assert post(world, SIZE, DATA, Upload_Checksum=checksum(b"other")).status == 460
    assert world.paths() == []
    answer = fields_of(post(world, SIZE, DATA, Upload_Checksum=checksum(DATA)))
    world.check_stored(answer["tahoe-cap"], DATA)
    assert world.bodies.held == 0


def test_bodies_with_checksums_are_bounded(world: UploadWorld) -> None:
    big = bytes(CHECKSUM_BODY_MAX + 1)
    path = create(world, 2 * len(big))
    for chunked in (False, True):
        assert patch(world, path, 0, big, chunked=chunked, Upload_Checksum=checksum(big)).status == 413
    assert head(world, path)["upload-offset"] == "0"
    clients = []
    for _ in range(9):
        other = create(world, 2 * len(big))
        clients.append(world.client())
        fields = TUS | BODY | {"Upload-Offset": "0", "Upload-Checksum": checksum(big[1:])}
        world.send(clients[-1], request("PATCH", other, fields, big[2:], declared=len(big) - 1))
    answer = world.answer(clients[-1], "PATCH")
    assert (answer.status, "retry-after" in fields_of(answer)) == (503, True)
    assert world.bodies.held == 8 * (CHECKSUM_BODY_MAX - 1)
    clients[0].transport.cut()
    clients[1].send(b"\0")
    assert world.answer(clients[1], "PATCH").status == 204
    assert patch(world, path, 0, big[1:], Upload_Checksum=checksum(big[1:])).status == 204
    for client in clients[2:]:
        if not client.over:
            client.transport.cut()
    assert world.bodies.held == 0


# -- termination -------------------------------------------------------------------------------------------


def test_termination_is_told(world: UploadWorld) -> None:
    """[Protocol Extensions / Termination] If this extension is supported by the Server, it MUST be announced by adding
    `termination` to the `Tus-Extension` header."""
    assert "termination" in extensions(world)


def test_termination(world: UploadWorld) -> None:
    """[Protocol Extensions / Termination / Requests / DELETE] When receiving a `DELETE` request for an existing upload
    the Server SHOULD free associated resources and MUST respond with the `204 No Content` status confirming that the
    upload was terminated."""
    for path in (create(world), create(world, None), fields_of(post(world, SIZE, DATA[:1500]))["location"]):
        assert world.ask("DELETE", path, TUS).status == 204
    assert world.paths() == []
    world.helper.wait(10)
    world.helper.check_nothing_left()


def test_nothing_is_there_after_termination(world: UploadWorld) -> None:
    """[Protocol Extensions / Termination / Requests / DELETE] For all future requests to this URL, the Server SHOULD
    respond with the `404 Not Found` or `410 Gone` status."""
    paths = [create(world), fields_of(post(world, SIZE, DATA[:1500]))["location"],
             fields_of(post(world, SIZE, DATA))["location"]]
    for path in paths:
        world.ask("DELETE", path, TUS)
        assert world.ask("HEAD", path, TUS).status == 404
        assert patch(world, path, 0, b"a").status == 404
        assert world.ask("DELETE", path, TUS).status == 404


def test_termination_ends_a_request_in_progress(world: UploadWorld) -> None:
    path = create(world)
    client = world.client()
    world.send(client, request("PATCH", path, TUS | BODY | {"Upload-Offset": "0"}, DATA[:1500], declared=SIZE))
    assert world.ask("DELETE", path, TUS).status == 204
    assert client.over
    assert client.take() == b""


# -- what is not offered, and what is ours -----------------------------------------------------------------


@pytest.mark.parametrize("value", ["partial", "final;/uploads/a /uploads/b"])
def test_concatenation_is_not_offered(world: UploadWorld, value: str) -> None:
    assert "concatenation" not in extensions(world)
    assert world.ask("POST", "/uploads/", TUS | {"Upload-Concat": value, "Upload-Length": "5"}).status == 400
    assert world.paths() == []


def test_last_patch_may_be_empty(world: UploadWorld) -> None:
    """As tus-js-client ends an upload of deferred length."""
    path = create(world, None)
    patch(world, path, 0, DATA)
    answer = fields_of(patch(world, path, SIZE, b"", Upload_Length=str(SIZE)))
    assert answer["upload-offset"] == str(SIZE)
    world.check_stored(answer["tahoe-cap"], DATA)


def test_lost_last_answer_can_be_asked_for(world: UploadWorld) -> None:
    path = create(world)
    client = world.client()
    client.send(request("PATCH", path, TUS | BODY | {"Upload-Offset": "0"}, DATA))
    client.transport.cut()
    answer = head(world, path)
    assert answer["upload-offset"] == answer["upload-length"] == str(SIZE)
    world.check_stored(answer["tahoe-cap"], DATA)
    assert fields_of(patch(world, path, SIZE, b""))["tahoe-cap"] == answer["tahoe-cap"]


def test_upload_whose_bytes_are_all_there_is_completed_by_whoever_asks(world: UploadWorld) -> None:
    """The gateway was killed between the last byte and the end of the file."""
    path = create(world)
    client = world.client()
    client.send(request("PATCH", path, TUS | BODY | {"Upload-Offset": "0"}, DATA[:-1], declared=SIZE))
    world.helper.wait(5)
    world.helper.hold_work()
    world.send(client, DATA[-1:], 0)
    world.helper.release_work()
    world.helper.turn()
    world.restart()
    offset = int(head(world, path)["upload-offset"])
    answer = head(world, path) if offset == SIZE else fields_of(patch(world, path, offset, DATA[offset:]))
    world.check_stored(answer["tahoe-cap"], DATA)


def test_helper_that_is_away(world: UploadWorld) -> None:
    path = create(world)
    patch(world, path, 0, DATA[:1000])
    world.helper_goes()
    created = post(world, SIZE)
    assert created.status == 201  # nothing is needed of the helper yet
    for answer in (world.ask("HEAD", path, TUS), patch(world, path, 1000, b"a")):
        assert answer.status == 503
        assert int(fields_of(answer)["retry-after"]) > 0
        assert "upload-offset" not in fields_of(answer)
    client = world.client()
    other = fields_of(created)["location"]
    world.send(client, request("PATCH", other, TUS | BODY | {"Upload-Offset": "0"}, DATA), 100)
    assert client.answers_so_far("PATCH") == []  # it waits
    world.helper_is_up = True
    world.check_stored(fields_of(world.answer(client, "PATCH"))["tahoe-cap"], DATA)
    world.check_stored(fields_of(patch(world, path, 1000, DATA[1000:]))["tahoe-cap"], DATA)


def test_helper_that_stays_away() -> None:
    with UploadWorld(patience=120) as world:
        path = create(world)
        world.helper_goes()
        client = world.client()
        world.send(client, request("PATCH", path, TUS | BODY | {"Upload-Offset": "0"}, DATA), 300)
        answer = world.answer(client, "PATCH")
        assert (answer.status, "retry-after" in fields_of(answer)) == (503, True)
        world.helper_is_up = True
        world.helper.wait(60)
        answer_of_head = head(world, path)
        assert answer_of_head["upload-offset"] == str(SIZE)  # it went on by itself
        world.check_stored(answer_of_head["tahoe-cap"], DATA)


def test_failed_upload_is_gone(world: UploadWorld) -> None:
    path = create(world)
    client = world.client()
    world.send(client, request("PATCH", path, TUS | BODY | {"Upload-Offset": "0"}, DATA[:1500], declared=SIZE))
    (upload_id, _parameters) = world.helper._links[0].sent[0][1]
    world.helper.run(world.helper.link().abort(upload_id))
    client.send(DATA[1500:1600])
    answer = world.answer(client, "PATCH")  # though more of its body is waited for
    assert answer.status == 410
    assert world.ask("HEAD", path, TUS).status == 410


def test_newer_request_ends_the_older(world: UploadWorld) -> None:
    path = create(world)
    older = world.client()
    world.send(older, request("PATCH", path, TUS | BODY | {"Upload-Offset": "0"}, DATA[:1500], declared=SIZE))
    assert head(world, path)["upload-offset"] == "1500"
    assert older.over
    assert older.take() == b""
    answer = patch(world, path, 1500, DATA[1500:])
    world.check_stored(fields_of(answer)["tahoe-cap"], DATA)


def test_handle_expires_sooner_if_the_owner_says_so() -> None:
    with UploadWorld(HandleSettings(handle_expiry=DAY)) as world:
        value = parsedate_to_datetime(fields_of(post(world, 5))["upload-expires"])
        assert value == datetime.fromtimestamp(EPOCH + DAY, UTC)


def test_too_many_uploads() -> None:
    with UploadWorld(HandleSettings(handles_max=2)) as world:
        assert [post(world, 5).status for _ in range(3)] == [201, 201, 503]


def test_too_long_metadata(world: UploadWorld) -> None:
    assert post(world, 5, Upload_Metadata=metadata(a=bytes(15_000))).status == 413
