"""What both dialects of /uploads/ have in common: numbers, links, the other dialect's uploads, who may ask."""

from __future__ import annotations

import base64
import json
import random
import sys
from collections.abc import Iterator

import pytest
from dedup_worlds import Reader, dedup_of, put_as_stock
from http_world import Answer
from upload_world import DIRECTORY, PARAMETERS, UploadWorld, fields_of, request

from client_shim.dedup import DedupMode
from client_shim.gateway.exchange import Headers, RequestHead
from client_shim.gateway.handle_errors import UnknownHandle
from client_shim.gateway.handle_settings import HandleSettings
from client_shim.gateway.upload_errors import BadField
from client_shim.gateway.upload_fields import NUMBER_MAX, file_name_of, length_of, number_of, structured_number
from client_shim.gateway.upload_resource import Notes, UploadPatience, Uploads, handle_id_of

DATA = bytes(range(251)) * 10
SIZE = len(DATA)
TUS = {"Tus-Resumable": "1.0.0"}
TUS_BODY = TUS | {"Content-Type": "application/offset+octet-stream"}
DRAFT = {"Upload-Draft-Interop-Version": "8"}
DRAFT_BODY = DRAFT | {"Content-Type": "application/partial-upload", "Upload-Complete": "?1"}
FILE_MAX = 10**15 - 1


@pytest.fixture
def world() -> Iterator[UploadWorld]:
    with UploadWorld() as world:
        yield world


def path_of(answer: Answer) -> str:
    assert answer.status in (200, 201), answer.body
    return fields_of(answer)["location"]


def tus_upload(world: UploadWorld, size: int | None = SIZE, **metadata: str) -> str:
    length = {"Upload-Defer-Length": "1"} if size is None else {"Upload-Length": str(size)}
    return path_of(world.ask("POST", "/uploads/", TUS | length | upload_metadata(metadata)))


def upload_metadata(metadata: dict[str, str]) -> dict[str, str]:
    pairs = [f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in metadata.items()]
    return {"Upload-Metadata": ",".join(pairs)} if pairs else {}


# -- numbers -----------------------------------------------------------------------------------------------


def field(value: str) -> Headers:
    return Headers((("N", value),))


#: What one parser of digits takes, and what one of structured integers takes: None where it is refused, or ignored.
NUMBERS: list[tuple[str, int | None, int | None]] = [
    ("0", 0, 0), ("1", 1, 1), ("007", 7, 7), ("999999999999999", 10**15 - 1, 10**15 - 1),
    ("1000000000000000", 10**15, None), (str(2**53 - 1), 2**53 - 1, None), (str(2**53), None, None),
    (str(2**63), None, None), (str(2**64), None, None), ("9" * 5000, None, None), ("-1", None, None), ("-0", None, 0),
    ("+1", None, None), ("1.0", None, None), ("1e3", None, None), ("0x10", None, None), ("1_000", None, None),
    ("1,000", None, None), ("", None, None), ("\u0661".encode().decode("latin-1"), None, None), ("\xb2", None, None),
    ("true", None, None), ("?1", None, None), ("nan", None, None), ("1 2", None, None), ("1\t", None, None),
]


@pytest.mark.parametrize(("text", "digits", "structured"), NUMBERS, ids=range(len(NUMBERS)))
def test_numbers(text: str, digits: int | None, structured: int | None) -> None:
    try:
        got = number_of(field(text), "n")
    except BadField:
        got = None
    assert got == digits
    assert structured_number(field(text), "n") == structured


def test_field_that_is_there_twice() -> None:
    twice = Headers((("N", "1"), ("n", "1")))
    for parse in (number_of, length_of):
        with pytest.raises(BadField, match="once"):
            parse(twice, "n")
    assert structured_number(twice, "n") is None
    assert number_of(Headers(), "n") is length_of(Headers(), "n") is structured_number(Headers(), "n") is None


@pytest.mark.parametrize(("text", "length"), [
    ("0", 0), ("00", 0), ("5", 5), ("0" * 100 + "5", 5), (str(2**53), NUMBER_MAX), ("9" * 5000, NUMBER_MAX),
    (str(2**53 - 1), 2**53 - 1)])
def test_lengths_that_are_only_too_large_are_known_as_such(text: str, length: int) -> None:
    assert length_of(field(text), "n") == length


BOUNDARIES = [0, 1, 55, 56, SIZE - 1, SIZE, SIZE + 1, 2**31, 2**32, FILE_MAX, FILE_MAX + 1, 2**53 - 1, 2**53, 2**63,
              2**64]


@pytest.mark.parametrize("number", BOUNDARIES)
def test_boundaries_of_lengths(world: UploadWorld, number: int) -> None:
    """In every request that may have one (RELIABILITY: offset arithmetic)."""
    expected = 413 if number > FILE_MAX else None
    answer = world.ask("POST", "/uploads/", TUS | {"Upload-Length": str(number)})
    assert answer.status == (expected or 201)
    draft = world.ask("POST", "/uploads/", DRAFT | {"Upload-Complete": "?0", "Upload-Length": str(number)})
    assert draft.status == 201  # structured integers that are too long are ignored
    told = fields_of(world.ask("HEAD", path_of(draft), DRAFT)).get("upload-length")
    assert told == (str(number) if number <= FILE_MAX else None)
    deferred = tus_upload(world, None)
    world.ask("PATCH", deferred, TUS_BODY | {"Upload-Offset": "0"}, DATA[:60])
    answer = world.ask("PATCH", deferred, TUS_BODY | {"Upload-Offset": "60", "Upload-Length": str(number)}, b"")
    assert answer.status == (expected or (400 if number < 60 else 204))
    answer = world.ask("PATCH", deferred, DRAFT_BODY | {"Upload-Complete": "?0", "Upload-Offset": "60",
                                                        "Upload-Length": str(number)}, b"")
    assert answer.status == (204 if number >= 60 else 400)
    assert fields_of(world.ask("HEAD", deferred, TUS))["upload-offset"] == "60"


@pytest.mark.parametrize("number", BOUNDARIES)
@pytest.mark.parametrize("dialect", [TUS_BODY, DRAFT_BODY], ids=["tus", "draft"])
def test_boundaries_of_offsets(world: UploadWorld, number: int, dialect: dict[str, str]) -> None:
    path = tus_upload(world)
    world.ask("PATCH", path, TUS_BODY | {"Upload-Offset": "0"}, DATA[:56])
    answer = world.ask("PATCH", path, dialect | {"Upload-Offset": str(number)}, DATA[56:])
    largest = NUMBER_MAX if dialect is TUS_BODY else FILE_MAX
    assert answer.status == (400 if number > largest else 409 if number != 56 else 204 if dialect is TUS_BODY else 200)
    assert fields_of(world.ask("HEAD", path, TUS))["upload-offset"] == ("56" if number != 56 else str(SIZE))


@pytest.mark.parametrize("declared", [SIZE - 57, SIZE - 55, 2**31, 2**53, 2**63])
@pytest.mark.parametrize("dialect", [TUS_BODY, DRAFT_BODY], ids=["tus", "draft"])
def test_boundaries_of_bodies(world: UploadWorld, declared: int, dialect: dict[str, str]) -> None:
    path = tus_upload(world)
    world.ask("PATCH", path, TUS_BODY | {"Upload-Offset": "0"}, DATA[:56])
    client = world.client()
    client.send(request("PATCH", path, dialect | {"Upload-Offset": "56"}, DATA[56:57], declared=declared))
    if 56 + declared > SIZE or dialect is DRAFT_BODY:
        assert world.answer(client, "PATCH").status in (400, 413)
        assert fields_of(world.ask("HEAD", path, TUS))["upload-offset"] == "56"
    else:
        world.helper.wait(1)
        assert client.answers_so_far("PATCH") == []
        assert fields_of(world.ask("HEAD", path, TUS))["upload-offset"] == "57"


# -- one resource ------------------------------------------------------------------------------------------


def test_each_dialect_goes_on_with_the_others_upload(world: UploadWorld) -> None:
    for path in (tus_upload(world), path_of(world.ask("POST", "/uploads/", DRAFT | {"Upload-Complete": "?0"}, b""))):
        assert world.ask("PATCH", path, TUS_BODY | {"Upload-Offset": "0"}, DATA[:100]).status == 204
        more = DRAFT_BODY | {"Upload-Complete": "?0", "Upload-Offset": "100"}
        assert world.ask("PATCH", path, more, DATA[100:200]).status == 204
        for dialect in (TUS, DRAFT, {}):
            assert fields_of(world.ask("HEAD", path, dialect))["upload-offset"] == "200"
        cap = world.ask("PATCH", path, DRAFT_BODY | {"Upload-Offset": "200"}, DATA[200:]).body.decode()
        world.check_stored(cap, DATA)
        for dialect in (TUS, DRAFT, {}):
            assert fields_of(world.ask("HEAD", path, dialect))["tahoe-cap"] == cap


def test_draft_upload_is_complete_only_when_somebody_says_so(world: UploadWorld) -> None:
    more = DRAFT | {"Upload-Complete": "?0", "Upload-Length": str(SIZE)}
    path = path_of(world.ask("POST", "/uploads/", more, DATA))
    answer = fields_of(world.ask("HEAD", path, TUS))
    assert (answer["upload-offset"], "tahoe-cap" in answer) == (str(SIZE), False)
    answer = fields_of(world.ask("PATCH", path, TUS_BODY | {"Upload-Offset": str(SIZE)}, b""))
    world.check_stored(answer["tahoe-cap"], DATA)


def test_without_a_dialect(world: UploadWorld) -> None:
    path = tus_upload(world)
    assert world.ask("HEAD", path, {}).status == 204
    for method in ("POST", "PUT"):
        answer = world.ask(method, path, {}, b"a")
        assert (answer.status, fields_of(answer)["allow"]) == (405, "HEAD, GET, PATCH, DELETE")
    answer = world.ask("POST", "/uploads/", {}, b"a")
    assert (answer.status, json.loads(answer.body)["code"]) == (400, "missing-field")
    assert fields_of(world.ask("GET", "/uploads/", {}))["content-type"].startswith("text/html")  # no upload


def test_uploads_go_on_after_a_restart(world: UploadWorld) -> None:
    path = tus_upload(world)
    client = world.client()
    client.send(request("PATCH", path, TUS_BODY | {"Upload-Offset": "0"}, DATA[:2000], declared=SIZE))
    world.helper.turn()
    world.restart()
    offset = int(fields_of(world.ask("HEAD", path, TUS))["upload-offset"])
    answer = world.ask("PATCH", path, TUS_BODY | {"Upload-Offset": str(offset)}, DATA[offset:])
    world.check_stored(fields_of(answer)["tahoe-cap"], DATA)


@pytest.mark.parametrize("length", [50, 1000])
@pytest.mark.parametrize("dialect", [TUS_BODY, DRAFT_BODY | {"Upload-Complete": "?0"}], ids=["tus", "draft"])
@pytest.mark.parametrize("creating", [False, True])
def test_nothing_is_acknowledged_before_it_is_durable(world: UploadWorld, dialect: dict[str, str], length: int,
                                                      creating: bool) -> None:
    path = tus_upload(world)
    client = world.client()
    if creating:
        fields, method = dialect | {"Upload-Length": str(SIZE)}, "POST"
        client.send(request("POST", "/uploads/", fields, declared=length))
    else:
        fields, method = dialect | {"Upload-Offset": "0"}, "PATCH"
        client.send(request("PATCH", path, fields, declared=length))
    world.helper.wait(5)
    client.take()  # a 104
    world.helper.hold_work()  # no disk syncs
    world.send(client, DATA[:length], 5)
    assert client.take() == b""
    world.helper.release_work()
    answer = fields_of(world.answer(client, method))
    assert answer["upload-offset"] == str(length)
    assert world.status(answer.get("location", path)).offset == length


def test_journal_that_fails(world: UploadWorld) -> None:
    path = tus_upload(world)
    world._file.close()
    answer = world.ask("PATCH", path, TUS_BODY | {"Upload-Offset": "0"}, DATA)
    assert (answer.status, "retry-after" in fields_of(answer)) == (503, True)
    world.helper.wait(30)
    assert fields_of(world.ask("HEAD", path, TUS))["upload-offset"] == "0"
    answer = world.ask("PATCH", path, TUS_BODY | {"Upload-Offset": "0"}, DATA)
    world.check_stored(fields_of(answer)["tahoe-cap"], DATA)


def test_backpressure_reaches_the_client() -> None:
    with UploadWorld(HandleSettings(ring_memory=64 * 1024)) as world:
        path = tus_upload(world, 10_000_000)
        world.helper_goes()
        client = world.client()
        client.send(request("PATCH", path, TUS_BODY | {"Upload-Offset": "0"}, declared=10_000_000))
        world.send(client, bytes(1_000_000), 30)
        assert client.paused
        assert len(client.transport.undelivered) > 700_000
        assert world.ask("HEAD", path, TUS).status == 503
        assert client.over


# -- links -------------------------------------------------------------------------------------------------


def tus_linked(world: UploadWorld, name: str = "a") -> dict[str, str]:
    path = tus_upload(world, dircap=DIRECTORY, filename=name)
    return fields_of(world.ask("PATCH", path, TUS_BODY | {"Upload-Offset": "0"}, DATA))


def draft_linked(world: UploadWorld, disposition: str) -> Answer:
    fields = {"Upload-Complete": "?1", "Tahoe-Directory": DIRECTORY, "Content-Disposition": disposition}
    return world.ask("POST", "/uploads/", DRAFT | fields, DATA)


@pytest.mark.parametrize("name", ["a", "ä b", "%2F", "x" * 300])
def test_tus_upload_is_linked(world: UploadWorld, name: str) -> None:
    cap = tus_linked(world, name)["tahoe-cap"]
    assert world.node.links == {name: ("immutable", cap)}
    world.check_stored(cap, DATA)


@pytest.mark.parametrize(("disposition", "name"), [
    ("inline; filename=a", "a"), ('inline; filename="a b"', "a b"), ("inline; filename*=UTF-8''%C3%A4%20b", "ä b"),
    ("attachment; filename=\"x\"; filename*=UTF-8''file%20n%C3%A4me", "file näme"), ("form-data; filename=a", "a")])
def test_draft_upload_is_linked(world: UploadWorld, disposition: str, name: str) -> None:
    answer = draft_linked(world, disposition)
    assert answer.status == 200
    assert world.node.links == {name: ("immutable", answer.body.decode())}


def test_small_file_is_linked(world: UploadWorld) -> None:
    path = tus_upload(world, 0, dircap=DIRECTORY, filename="empty")
    assert world.node.links == {"empty": ("immutable", "URI:LIT:")}
    assert fields_of(world.ask("HEAD", path, TUS))["tahoe-cap"] == "URI:LIT:"


def test_directory_may_be_in_a_field_of_tus_too(world: UploadWorld) -> None:
    fields = TUS | {"Upload-Length": "0", "Tahoe-Directory": DIRECTORY} | upload_metadata({"filename": "a"})
    answer = fields_of(world.ask("POST", "/uploads/", fields))
    assert world.node.links == {"a": ("immutable", "URI:LIT:")}
    assert DIRECTORY not in str(world.ask("HEAD", answer["location"], TUS).headers)


@pytest.mark.parametrize("cause", ["node away", "refused"])
def test_link_that_fails_in_tus(world: UploadWorld, cause: str) -> None:
    break_links(world, cause)
    path = tus_upload(world, dircap=DIRECTORY, filename="a")
    answer = world.ask("PATCH", path, TUS_BODY | {"Upload-Offset": "0"}, DATA)
    fields = fields_of(answer)
    assert (answer.status, fields["upload-offset"]) == (424, str(SIZE))
    code = "node-away" if cause == "node away" else "link-refused"
    assert fields["tahoe-link-error"] == code
    world.check_stored(fields["tahoe-cap"], DATA)
    assert answer.body.startswith(b"the file is stored, but could not be linked into the directory: ")
    assert answer.body.endswith(f"Its cap:\n{fields['tahoe-cap']}\n".encode())
    again = fields_of(world.ask("HEAD", path, TUS))
    assert (again["tahoe-cap"], again["tahoe-link-error"]) == (fields["tahoe-cap"], code)


@pytest.mark.parametrize("cause", ["node away", "refused"])
def test_link_that_fails_in_the_draft(world: UploadWorld, cause: str) -> None:
    break_links(world, cause)
    answer = draft_linked(world, "inline; filename=a")
    fields = fields_of(answer)
    assert (answer.status, fields["upload-complete"]) == (424, "?1")
    problem = json.loads(answer.body)
    assert problem["cap"] == fields["tahoe-cap"]
    assert problem["code"] == "link-failed"
    world.check_stored(problem["cap"], DATA)
    again = fields_of(world.ask("HEAD", fields["location"], DRAFT))
    assert (again["upload-complete"], again["tahoe-cap"]) == ("?1", fields["tahoe-cap"])


def break_links(world: UploadWorld, cause: str) -> None:
    if cause == "node away":
        world.memory_node.kill()
    else:
        world.node.links["a"] = ("directory", "URI:DIR2:x")


def test_bad_links_are_refused_at_once(world: UploadWorld) -> None:
    for metadata in ({"dircap": DIRECTORY}, {"dircap": DIRECTORY, "filename": "a/b"}, {"dircap": "x", "filename": "a"},
                     {"dircap": DIRECTORY, "filename": ""}):
        answer = world.ask("POST", "/uploads/", TUS | {"Upload-Length": "0"} | upload_metadata(metadata))
        assert answer.status == 400
    for cap in (b"\xff\xfe", b""):
        text = f"dircap {base64.b64encode(cap).decode()},filename YQ=="
        assert world.ask("POST", "/uploads/", TUS | {"Upload-Length": "0", "Upload-Metadata": text}).status == 400
    text = f"filename {base64.b64encode(bytes([255])).decode()}"
    assert world.ask("POST", "/uploads/", TUS | {"Upload-Length": "0", "Upload-Metadata": text}).status == 400
    assert world.paths() == []
    assert world.node.requests == []


# -- small things ------------------------------------------------------------------------------------------


def test_notes_are_kept(world: UploadWorld) -> None:
    path = tus_upload(world, filename="ä")
    world.restart()
    notes = Notes.from_bytes(world.status(path).metadata)
    assert (notes.dialect, notes.name) == ("tus", "ä")
    for other in (b"", b"\xff", b"{}", b"[]", b'{"dialect": "tus", "more": 1}'):
        assert Notes.from_bytes(other) == Notes("")


@pytest.mark.parametrize(("value", "name"), [
    ("inline", None), ("", None), ('inline; filename=""', None), ("inline; filename=a", "a"),
    ('inline; filename="\xc3\xa4"', "ä"), ('inline; filename="\xe4"', "ä"), ("inline; filename*=UTF-8''a%C3%A4", "aä"),
    ("inline; filename*=unheard''a", "a"), ("inline; filename*=UTF-8''%FF", "ÿ"),
    ('inline; FILENAME="b"; name=c', "b"), ("inline; filename=b; filename*=UTF-8''c", "c")])
def test_file_names(value: str, name: str | None) -> None:
    assert file_name_of(Headers((("content-disposition", value),))) == name
    assert file_name_of(Headers()) is None


def test_pages_of_other_sites_cannot_make_uploads(world: UploadWorld) -> None:
    for fields in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}):
        head = request("POST", "/uploads/", {"Upload-Complete": "?1"} | fields, b"hello")
        if "Host" in fields:
            head = head.replace(b"Host: localhost\r\n", b"")
        client = world.client()
        client.send(head)
        assert world.answer(client, "POST").status == 403
    assert world.paths() == []


def test_names_of_uploads_and_caps_are_in_no_log(world: UploadWorld) -> None:
    path = tus_upload(world, dircap=DIRECTORY, filename="a")
    world.ask("PATCH", path, TUS_BODY | {"Upload-Offset": "0"}, DATA)
    text = str(world.accesses)
    assert "PATCH" in text
    assert path.rsplit("/", 1)[1] not in text
    assert "URI:" not in text


_opened: list[object] | None = None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove"):
        _opened.append(arguments[0])


@pytest.fixture(scope="module")
def audited() -> None:
    sys.addaudithook(_audit)  # for as long as the process lives


def test_no_name_of_an_upload_is_ever_a_path(world: UploadWorld, audited: None) -> None:
    global _opened
    uploads = Uploads(world.handles, UploadPatience(), world.clock)
    rng = random.Random(14)
    pieces = ["..", "/", "%2f", "%2e", "\0", "a", "z7", "~", "\\", "C:", "\xff", "\u2025", "a" * 52, "?", "#", "*"]
    _opened = []
    try:
        for _ in range(10_000):
            name = "".join(rng.choices(pieces, k=rng.randrange(1, 12)))
            head = RequestHead("HEAD", f"/uploads/{name}", Headers())
            try:
                uploads.find(head)
            except UnknownHandle:
                continue
            raise AssertionError(name)
        with pytest.raises(UnknownHandle):
            uploads.find(RequestHead("HEAD", "/uploads/" + "a" * 2**20, Headers()))
        assert _opened == []
    finally:
        _opened = None


def test_encoding_is_the_nodes(world: UploadWorld) -> None:
    answer = world.ask("POST", "/uploads/", DRAFT | {"Upload-Complete": "?1"}, DATA)
    assert answer.body.endswith(f":{PARAMETERS.k}:{PARAMETERS.n}:{SIZE}".encode())


def test_target_is_not_decoded() -> None:
    for target, name in (("/uploads/", None), ("/uploads", None), ("/uploads/a", "a"), ("/uploads/a?b=c", "a"),
                         ("/uploads/%61", "%61"), ("/uploadsa", None), ("/uploads/a/b", "a/b"), ("//uploads/a", None)):
        assert handle_id_of(RequestHead("GET", target, Headers())) == name


# -- files that are stored already ---------------------------------------------------------------------------


def modes(world: UploadWorld) -> list[DedupMode]:
    """Of all uploads."""
    return [handle.record.dedup for handle in world.handles._handles.values()]


@pytest.mark.parametrize("mode", DedupMode, ids=lambda mode: mode.value)
def test_dedup_is_chosen_when_an_upload_is_made(world: UploadWorld, mode: DedupMode) -> None:
    query = f"/uploads/?dedup={mode.value}"
    assert world.ask("POST", query, TUS | {"Upload-Length": "7"}).status == 201
    assert world.ask("POST", query, DRAFT | {"Upload-Complete": "?0"}).status == 201
    tus_upload(world, 7, dedup=mode.value)
    other = upload_metadata({"dedup": "off"})
    assert world.ask("POST", query, TUS | {"Upload-Length": "7"} | other).status == 201  # the address goes before
    assert modes(world) == [mode] * 4


def test_dedup_is_the_gateways_otherwise(world: UploadWorld) -> None:
    world.dedup_mode = DedupMode.TRUST
    world.restart()
    tus_upload(world, 7)
    assert world.ask("POST", "/uploads/", DRAFT | {"Upload-Complete": "?0"}).status == 201
    assert modes(world) == [DedupMode.TRUST] * 2


def test_dedup_of_another_form(world: UploadWorld) -> None:
    answer = world.ask("POST", "/uploads/?dedup=yes", TUS | {"Upload-Length": "7"})
    assert (answer.status, answer.body) == (400, b"the query argument dedup: expected on or trust or off\n")
    assert world.ask("POST", "/uploads/?dedup=", DRAFT | {"Upload-Complete": "?0"}).status == 400
    for value in ("yes", "\u00fcber"):
        answer = world.ask("POST", "/uploads/", TUS | {"Upload-Length": "7"} | upload_metadata({"dedup": value}))
        assert answer.status == 400
        assert b"a dedup that is on, trust or off" in answer.body
    assert modes(world) == []


@pytest.mark.parametrize("dialect", [TUS_BODY, DRAFT_BODY], ids=["tus", "draft"])
def test_the_last_answer_says_what_became_of_it(world: UploadWorld, dialect: dict[str, str]) -> None:
    stocks = put_as_stock(world.helper, DATA, PARAMETERS)
    reader = Reader(world.helper, PARAMETERS)
    world.dedup = lambda mode: None if mode is DedupMode.OFF else dedup_of(reader)
    for mode, outcome in [("on", "existing"), ("off", "published")]:
        begins = dialect | {"Upload-Complete": "?0", "Upload-Length": str(SIZE)}
        answer = world.ask("POST", f"/uploads/?dedup={mode}", begins, DATA[:1500])
        path = path_of(answer)
        assert "tahoe-dedup" not in fields_of(answer)
        world.restart()
        answer = world.ask("PATCH", path, dialect | {"Upload-Offset": "1500"}, DATA[1500:])
        told = fields_of(answer)
        assert told["tahoe-dedup"] == outcome
        assert (told["tahoe-cap"] == stocks.cap.decode()) == (mode == "on")
        for asks in (TUS, DRAFT):
            fields = fields_of(world.ask("HEAD", path, asks))
            assert (fields["tahoe-cap"], fields["tahoe-dedup"]) == (told["tahoe-cap"], outcome)


def test_a_literal_is_published(world: UploadWorld) -> None:
    path = tus_upload(world, 5)
    answer = world.ask("PATCH", path, TUS_BODY | {"Upload-Offset": "0"}, b"hello")
    assert fields_of(answer)["tahoe-dedup"] == "published"
