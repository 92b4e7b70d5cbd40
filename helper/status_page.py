"""The page /streaming of the node's web port: status.py in the style of the node's own pages, or as JSON.

It works without scripts, and without anything that the node itself does not serve.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from allmydata.util.abbreviate import abbreviate_space, abbreviate_time
from twisted.web import http
from twisted.web.iweb import IRequest
from twisted.web.pages import errorPage, notFound
from twisted.web.resource import IResource, Resource
from twisted.web.template import Element, Tag, TagLoader, renderElement, tags

from helper.status import HelperStatus, UploadStatus, as_json, in_progress, placed, snapshot, still_placing
from helper.uploads import Uploads

#: The name of the page below the web port's root.
PAGE = b"streaming"

_POLICY = "default-src 'none'; style-src 'self'; img-src 'self'"


class _Page(Element):
    """What is rendered as it is."""


class StatusPage(Resource):
    """GET: the page, for people; with t=json for programs."""

    def __init__(self, uploads: Uploads) -> None:
        super().__init__()
        self._uploads = uploads

    def getChild(self, path: bytes, request: IRequest) -> IResource:  # noqa: ARG002
        """The same page with a slash at the end of its name; there is nothing below it."""
        return notFound() if path else self

    def render(self, request: IRequest) -> object:
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"allow", b"GET, HEAD")
            return errorPage(http.NOT_ALLOWED, "Method Not Allowed", "expected GET or HEAD").render(request)
        return super().render(request)

    def render_GET(self, request: IRequest) -> object:
        request.setHeader(b"referrer-policy", b"no-referrer")
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"content-security-policy", _POLICY.encode("ascii"))
        request.setHeader(b"x-content-type-options", b"nosniff")
        wanted = request.args.get(b"t", [b""])[0]
        if wanted == b"json":
            request.setHeader(b"content-type", b"application/json; charset=utf-8")
            return json.dumps(as_json(snapshot(self._uploads)), indent=1).encode("ascii") + b"\n"
        if wanted:
            return errorPage(http.BAD_REQUEST, "Bad Format", "t: expected json, or nothing").render(request)
        request.setHeader(b"content-type", b"text/html; charset=utf-8")
        return renderElement(request, _Page(loader=TagLoader(page_of(snapshot(self._uploads)))))


def page_of(status: HelperStatus) -> Tag:
    """The whole page."""
    live = [upload for upload in status.uploads if in_progress(upload)]
    ended = [upload for upload in status.uploads if not in_progress(upload)]
    more = [tags.p(f"{status.not_listed} more are not listed.")] if status.not_listed else []
    return tags.html(
        tags.head(
            tags.title("Tahoe-LAFS - Streaming Uploads"),
            tags.link(href="/tahoe.css", rel="stylesheet", type="text/css"),
            tags.link(href="/icon.png", rel="shortcut icon"),
            tags.meta(charset="utf-8")),
        tags.body(
            tags.h1("Streaming Uploads"),
            tags.ul(*(tags.li(line) for line in summary(status))),
            tags.h2("In Progress"), _table(live),
            tags.h2("Ended in the Last Hour"), _table(ended), *more,
            tags.div("The same ", tags.a("as JSON", href="/streaming?t=json"), "; counters are among the node's ",
                     tags.a("statistics", href="/statistics"), "."),
            tags.div("Return to the ", tags.a("Welcome Page", href="/"))))


def summary(status: HelperStatus) -> list[str]:
    """What is to be said of the helper as a whole; a line each."""
    room = status.room
    quota = "no quota" if room.quota is None else f"quota {abbreviate_space(room.quota)}"
    states = ", ".join(f"{count} {state}" for state, count in status.states.items() if count)
    waiting = ", ".join(
        f"{count} {what}" if what == "not read yet" else f"{count} for {what}"
        for what, count in status.waiting.items() if count)
    free, left_free = abbreviate_space(room.disk_free), abbreviate_space(room.disk_left_free)
    why = status.not_recording
    return [
        *([f"Nothing can be recorded now ({why}): new uploads are refused"] if why else []),
        f"Uploads: {states or 'none'}",
        f"Waiting: {waiting or 'none'}",
        f"Spool: {abbreviate_space(room.stored)} stored, {abbreviate_space(room.reserved)} reserved, {quota}",
        f"Disk of the spool: {free} free, of which {left_free} are to be left free",
        f"Storage servers: {status.servers} connected, {status.staging_servers} of them staging",
    ]


_HEADINGS = ("Upload", "State", "Size", "Received", "Durable", "Pushed", "Spooled", "Waits For", "Idle", "Open",
             "Shares")


def _table(uploads: Iterable[UploadStatus]) -> Tag:
    rows = [_row(upload) for upload in uploads]
    if not rows:
        return tags.p("None.")
    heading = tags.tr(*(tags.th(text) for text in _HEADINGS))
    return tags.table(heading, *rows, class_="table-headings-top")


def _row(upload: UploadStatus) -> Tag:
    state = upload.state if upload.error is None else f"{upload.state} ({upload.error})"
    if still_placing(upload):
        state += ", placing the last shares"
    sizes = (upload.size, upload.received, upload.durable, upload.pushed, upload.spooled)
    return tags.tr(
        tags.td(upload.upload, class_="nodeid"), tags.td(state),
        *(tags.td(abbreviate_space(size)) for size in sizes),
        tags.td(upload.waits_for), tags.td(abbreviate_time(upload.idle)), tags.td(abbreviate_time(upload.open)),
        tags.td(_shares(upload)))


def _shares(upload: UploadStatus) -> Tag:
    if not upload.shares:
        return tags.span("none yet")
    lines = (f"{s.shnum} on {s.server}: {s.state}, {abbreviate_space(s.position)}" for s in upload.shares)
    return tags.div(f"{placed(upload)} of {len(upload.shares)} published", tags.ul(*(tags.li(line) for line in lines)))
