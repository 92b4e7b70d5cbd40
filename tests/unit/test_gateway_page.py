"""The page at /uploads/ and what is told as JSON: what is served, with which headers, and who is told what."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from http_world import Answer
from upload_world import DIRECTORY, EPOCH, UploadWorld, fields_of, request

from client_shim.gateway.handle_errors import HandleFailed, LinkFailed
from client_shim.gateway.handle_settings import HandleSettings
from client_shim.gateway.handles import HandleState, HandleStatus
from client_shim.gateway.page import ENDED_LISTED, LISTED_MAX, PARTS, list_as_json, short_name, upload_as_json

DATA = bytes(range(251)) * 10
SIZE = len(DATA)
TUS = {"Tus-Resumable": "1.0.0"}
TUS_BODY = TUS | {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
#: "näme" in Base64.
NAMED = {"Upload-Metadata": "filename bsOkbWU="}
FOREIGN = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}


@pytest.fixture
def world() -> Iterator[UploadWorld]:
    with UploadWorld() as world:
        yield world


def new_upload(world: UploadWorld, **fields: str) -> str:
    """The path of an upload of SIZE bytes, of which none came."""
    answer = world.ask("POST", "/uploads/", TUS | NAMED | {"Upload-Length": str(SIZE)} | fields)
    return fields_of(answer)["location"]


def finished_upload(world: UploadWorld, **fields: str) -> tuple[str, str]:
    """Path and cap."""
    path = new_upload(world, **fields)
    return path, fields_of(world.ask("PATCH", path, TUS_BODY, DATA))["tahoe-cap"]


def told(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    assert fields_of(answer)["content-type"] == "application/json"
    assert fields_of(answer)["cache-control"] == "no-store"
    assert fields_of(answer)["cross-origin-resource-policy"] == "same-origin"
    return json.loads(answer.body)


def listed(world: UploadWorld) -> Any:
    world.helper.wait(1)  # as long as a list is good
    return told(world.ask("GET", "/uploads/?t=json", {}))


# -- the page ----------------------------------------------------------------------------------------------


def test_page(world: UploadWorld) -> None:
    answer = world.ask("GET", "/uploads/", {})
    fields = fields_of(answer)
    assert (answer.status, fields["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.body.startswith(b"<!DOCTYPE html>")
    assert fields["referrer-policy"] == "no-referrer"
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["x-frame-options"] == "DENY"
    assert fields["cross-origin-opener-policy"] == "same-origin"
    policy = dict(rule.split(" ", 1) for rule in fields["content-security-policy"].split("; "))
    assert policy.pop("default-src") == policy.pop("frame-ancestors") == policy.pop("base-uri") == "'none'"
    assert policy.pop("form-action") == policy.pop("trusted-types") == "'none'"
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert set(policy.values()) == {"'self'"}
    head = world.ask("HEAD", "/uploads/", {})
    assert (head.status, head.body, fields_of(head)["content-length"]) == (200, b"", str(len(answer.body)))


@pytest.mark.parametrize("name", PARTS)
def test_parts(world: UploadWorld, name: str) -> None:
    answer = world.ask("GET", f"/uploads/{name}", {})
    assert (answer.status, fields_of(answer)["content-type"]) == (200, PARTS[name])
    assert fields_of(answer)["x-content-type-options"] == "nosniff"
    assert len(answer.body) > 100
    refusal = world.ask("POST", f"/uploads/{name}", {}, b"")
    assert (refusal.status, fields_of(refusal)["allow"]) == (405, "GET, HEAD")


def test_page_needs_nothing_else(world: UploadWorld) -> None:
    """Whatever the page and its parts name is served here, and nothing is inline (the policy would refuse it)."""
    page = files("client_shim.gateway").joinpath("page")
    names = {each.name for each in page.iterdir()}
    assert names - {"index.html"} <= PARTS.keys()
    html = page.joinpath("index.html").read_text()
    loaded = re.findall(r'(?:src|link rel="[a-z]+" href)="([^"]*)"', html)
    assert set(loaded) == {"style.css", "page.js", "logo.png", "icon.png"}
    assert not re.search(r"\son[a-z]+=|\sstyle=|<style|<script(?![^>]* src=)", html)
    for name in names:
        text = page.joinpath(name).read_text()
        assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"^\s*//.*|\s// .*", "", text, flags=re.MULTILINE))
        assert {part.removeprefix("./") for part in re.findall(r'from "([^"]*)"', text)} <= names
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|url\(|@import", text)


def test_path_without_slash_and_other_forms(world: UploadWorld) -> None:
    answer = world.ask("GET", "/uploads", {})
    assert (answer.status, fields_of(answer)["location"]) == (308, "/uploads/")
    refusal = world.ask("GET", "/uploads/?t=xml", {})
    assert (refusal.status, refusal.body) == (400, b"the query argument t: expected json, or nothing\n")
    assert world.ask("GET", "/uploads/other.js", {}).status == 404


@pytest.mark.parametrize("path", ["/uploads/", "/uploads/?t=json", "/uploads/page.js"])
def test_hosts_that_are_not_ours(world: UploadWorld, path: str) -> None:
    client = world.client()
    client.send(f"GET {path} HTTP/1.1\r\nHost: rebound.example\r\n\r\n".encode())
    assert world.answer(client, "GET").status == 403


def test_other_pages(world: UploadWorld) -> None:
    """They read nothing, and write nothing; ours writes as browsers make it."""
    for path in ("/uploads/", "/uploads/?t=json"):
        assert "access-control-allow-origin" not in fields_of(world.ask("GET", path, FOREIGN))
    length = {"Upload-Length": "5"}
    for fields in (FOREIGN, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://localhost:1"}):
        assert world.ask("POST", "/uploads/", TUS | length | fields).status == 403
    assert world.paths() == []
    ours = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert world.ask("POST", "/uploads/", TUS | length | ours).status == 201


# -- JSON --------------------------------------------------------------------------------------------------


def test_list(world: UploadWorld) -> None:
    assert listed(world) == {"format": 1, "uploads": [], "uploads-not-listed": 0}
    path = new_upload(world)
    client = world.client()
    world.send(client, request("PATCH", path, TUS_BODY, DATA[:2000], declared=SIZE))
    (upload,) = listed(world)["uploads"]
    assert upload.pop("rate") >= 0
    assert EPOCH <= upload.pop("created") <= EPOCH + world.clock.seconds() + 1
    assert upload.pop("expires") >= EPOCH + world.settings.handle_expiry
    assert upload == {
        "upload": short_name(path.rsplit("/", 1)[1]), "protocol": "tus", "state": "open", "offset": 2000,
        "received": 2000, "size": SIZE, "writing": True, "waits-for": None, "error": None}
    draft = {"Upload-Complete": "?0"}
    assert world.ask("POST", "/uploads/", draft, DATA[:100]).status == 201
    newer, older = listed(world)["uploads"]
    assert (newer["protocol"], newer["offset"], newer["size"], newer["writing"]) == ("draft", 100, None, False)
    assert older["offset"] == 2000


def test_list_has_no_secrets(world: UploadWorld) -> None:
    path, cap = finished_upload(world)
    other = new_upload(world, **{"Tahoe-Directory": DIRECTORY})
    text = json.dumps(listed(world))
    for secret in (path.rsplit("/", 1)[1], other.rsplit("/", 1)[1], cap, DIRECTORY, "n\\u00e4me", "bsOkbWU"):
        assert secret not in text
    assert "URI" not in text
    assert [upload["state"] for upload in listed(world)["uploads"]] == ["open", "finished"]
    assert all(not access[1].startswith("/") for access in world.accesses), "routes, not paths, in the log"


def test_one_upload(world: UploadWorld) -> None:
    """Those who know its name are told all; and its writer is not disturbed, as HEAD would."""
    path = new_upload(world)
    client = world.client()
    world.send(client, request("PATCH", path, TUS_BODY, DATA[:2000], declared=SIZE))
    (listing,) = listed(world)["uploads"]
    one = told(world.ask("GET", f"{path}?t=json", {}))
    assert one.keys() - listing.keys() == {"format", "name", "cap", "dedup"}
    assert (one["upload"], one["offset"], one["size"]) == (listing["upload"], 2000, SIZE)
    assert (one["format"], one["name"], one["cap"], one["writing"]) == (1, "n\u00e4me", None, True)
    assert one["dedup"] is None
    world.send(client, DATA[2000:])
    cap = fields_of(world.answer(client, "PATCH"))["tahoe-cap"]
    one = told(world.ask("GET", f"{path}?t=json", {}))
    assert (one["state"], one["cap"], one["offset"], one["writing"]) == ("finished", cap, SIZE, False)
    assert one["dedup"] == "published"
    assert world.ask("HEAD", f"{path}?t=json", {}).status == 204, "HEAD is the dialects'"


def test_upload_that_is_not_there(world: UploadWorld) -> None:
    path = new_upload(world)
    assert world.ask("DELETE", path, TUS).status == 204
    for name in (path, "/uploads/nonsense", "/uploads/..%2f"):
        answer = world.ask("GET", f"{name}?t=json", {})
        assert (answer.status, json.loads(answer.body)["code"]) == (404, "unknown-handle")


def test_helper_that_is_away(world: UploadWorld) -> None:
    path = new_upload(world)
    client = world.client()
    world.send(client, request("PATCH", path, TUS_BODY, DATA[:2000], declared=SIZE))
    world.helper_goes()
    world.send(client, DATA[2000:2100], 5)
    (upload,) = listed(world)["uploads"]
    assert (upload["waits-for"], upload["offset"], upload["received"]) == (
        "helper-lost", 2000, 2100)


def test_list_is_made_once_a_second(world: UploadWorld) -> None:
    assert listed(world)["uploads"] == []
    new_upload(world)
    assert told(world.ask("GET", "/uploads/?t=json", {}))["uploads"] == []
    assert len(listed(world)["uploads"]) == 1


# -- which are listed --------------------------------------------------------------------------------------

SETTINGS = HandleSettings()


def status(state: HandleState = HandleState.OPEN, created: float = 0, ended: float = 0, **fields: Any) -> HandleStatus:
    kept = SETTINGS.result_retention if state is HandleState.FINISHED else SETTINGS.handle_expiry
    known: dict[str, Any] = {
        "id": "a" * 52, "state": state, "offset": 1, "received": 2, "size": 3, "cap": None, "created": created,
        "expires": ended + kept, "error": None, "metadata": b"", "rate": 1.6, "writing": False, "away": ""}
    return HandleStatus(**known | fields)


def test_those_in_progress_come_first_then_the_newest() -> None:
    statuses = [status(created=1), status(HandleState.FINISHED, 5, 6), status(HandleState.FAILED, 7, 8),
                status(HandleState.LINKING, 2), status(HandleState.COMPLETING, 3)]
    shown = list_as_json(statuses, SETTINGS, 10)["uploads"]
    assert [upload["created"] for upload in shown] == [3, 2, 1, 7, 5]


@pytest.mark.parametrize("state", [HandleState.FINISHED, HandleState.FAILED])
def test_what_has_ended_is_listed_for_an_hour(state: HandleState) -> None:
    ended = status(state, 5, 1000)
    assert len(list_as_json([ended], SETTINGS, 1000 + ENDED_LISTED - 1)["uploads"]) == 1
    assert list_as_json([ended], SETTINGS, 1000 + ENDED_LISTED)["uploads"] == []


def test_no_more_are_listed_than_a_page_can_show() -> None:
    statuses = [status(created=i) for i in range(LISTED_MAX + 7)]
    shown = list_as_json(statuses, SETTINGS, 0)
    assert (len(shown["uploads"]), shown["uploads-not-listed"]) == (LISTED_MAX, 7)
    assert shown["uploads"][0]["created"] == LISTED_MAX + 6


def test_errors_are_told_by_their_codes() -> None:
    assert upload_as_json(status(error=HandleFailed("quota-exceeded", "secret")))["error"] == "quota-exceeded"
    linked = upload_as_json(status(error=LinkFailed("link-refused", "secret", b"URI:CHK:secret")))
    assert linked["error"] == "link-refused"
    assert "secret" not in json.dumps(linked)
    assert upload_as_json(status())["protocol"] is None
    assert upload_as_json(status(away="helper-lost"))["waits-for"] == "helper-lost"


def test_short_names() -> None:
    names = {short_name(letter * 52) for letter in "abcdefgh234567"}
    assert len(names) == 14
    assert all(re.fullmatch("[0-9a-f]{8}", name) for name in names)
