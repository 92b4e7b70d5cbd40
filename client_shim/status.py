"""`tahoe-stream status`: what a helper on this machine says of its uploads (its page /streaming), for people."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urljoin

from allmydata.util.abbreviate import abbreviate_space, abbreviate_time

from client_shim.errors import NodeNotRunning, NoNodeDirectory, NoStreamingHelper, StatusError, StatusUnreadable

TIMEOUT = 30  # seconds without a byte from the node
#: What helper/status.py calls JSON_FORMAT.
FORMAT = 1

_PAGE = "streaming?t=json"
_HEADINGS = ("UPLOAD", "STATE", "SIZE", "RECEIVED", "DURABLE", "PUSHED", "PUBLISHED", "IDLE", "WAITS FOR")


def run_status(node_directory: Path, *, verbose: bool, as_json: bool, out: TextIO, err: TextIO) -> int:
    """Print the status of the helper node in `node_directory`. Returns the exit status."""
    directory = node_directory.expanduser()
    try:
        text = fetch(directory)
        status = parse(text, directory)
    except StatusError as e:
        line = json.dumps({"event": "failed", "code": e.code, "text": e.text(), **e.fields()})
        print(line if as_json else f"tahoe-stream: {e}", file=err)
        return 1
    for line in [text.rstrip("\n")] if as_json else table(status, verbose):
        print(line, file=out)
    out.flush()
    return 0


def fetch(directory: Path) -> str:
    """The helper's page, which should be JSON. Raises StatusError. Blocks."""
    where = str(directory)
    url = urljoin(_node_url(directory), _PAGE)
    # without a proxy: the node is on this machine, whatever the environment says
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT) as response:
            text: str = response.read().decode("utf-8")
            return text
    except urllib.error.HTTPError as e:
        if e.code == http.client.NOT_FOUND:
            raise NoStreamingHelper(where) from e
        raise StatusUnreadable(where, "status 200", f"status {e.code}") from e
    except UnicodeDecodeError as e:
        raise StatusUnreadable(where, "JSON", "bytes that are not UTF-8") from e
    except urllib.error.URLError as e:
        if isinstance(e.reason, ConnectionRefusedError):
            raise NodeNotRunning(where, "nothing listens at its node.url") from e
        raise StatusUnreadable(where, "an answer", type(e.reason).__name__) from e
    except (OSError, http.client.HTTPException) as e:
        raise StatusUnreadable(where, "an answer", type(e).__name__) from e


def _node_url(directory: Path) -> str:
    if not directory.is_dir():
        raise NoNodeDirectory(str(directory), "there is no such directory")
    if not (directory / "tahoe.cfg").exists():
        raise NoNodeDirectory(str(directory), "there is no tahoe.cfg in it")
    try:
        url = (directory / "node.url").read_text(encoding="ascii").strip()
    except FileNotFoundError as e:
        raise NodeNotRunning(str(directory), "there is no node.url in it") from e
    except (OSError, UnicodeDecodeError) as e:
        raise NoNodeDirectory(str(directory), f"its node.url cannot be read ({type(e).__name__})") from e
    if not url.startswith(("http://", "https://")):
        raise NoNodeDirectory(str(directory), "its node.url is no URL of a web port")
    return url.rstrip("/") + "/"


def parse(text: str, directory: Path) -> dict[str, Any]:
    """The page's JSON. Raises StatusUnreadable if it is not that, or of another format."""
    try:
        status = json.loads(text)
    except ValueError as e:
        raise StatusUnreadable(str(directory), "JSON", "something else") from e
    came = status.get("format") if isinstance(status, dict) else None
    if came != FORMAT:
        raise StatusUnreadable(str(directory), f"format {FORMAT}",
                               f"format {came}" if isinstance(came, int) else "none")
    found: dict[str, Any] = status
    return found


def table(status: dict[str, Any], verbose: bool) -> Iterator[str]:
    """The lines for people: of the helper, a heading, and one an upload; if `verbose`, of its shares below."""
    yield from _summary(status)
    rows = [_row(upload) for upload in status["uploads"]]
    if not rows:
        return
    yield ""
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    yield _aligned(_HEADINGS, widths)
    for upload, row in zip(status["uploads"], rows, strict=True):
        yield _aligned(row, widths)
        if verbose:
            yield from map(_share, upload["shares"])
    if status["uploads-not-listed"]:
        yield f"and {status['uploads-not-listed']} more"


def _summary(status: dict[str, Any]) -> Iterator[str]:
    spool, servers = status["spool"], status["servers"]
    states = [f"{count} {state}" for state, count in status["states"].items() if count]
    waiting = [f"{count} {what.replace('-', ' ')}" if what == "not-read-yet" else f"{count} for {what}"
               for what, count in status["waiting"].items() if count]
    quota = "no quota" if spool["quota"] is None else f"quota {abbreviate_space(spool['quota'])}"
    if status.get("not-recording"):  # a helper of before says nothing
        yield f"records: none can be written now ({_plain(status['not-recording'])}): new uploads are refused"
    yield f"uploads: {', '.join(states) or 'none'}"
    if waiting:
        yield f"waiting: {', '.join(waiting)}"
    yield (f"spool:   {abbreviate_space(spool['stored'])} stored, {abbreviate_space(spool['reserved'])} reserved, "
           f"{quota}; its disk has {abbreviate_space(spool['disk-free'])} free, of which "
           f"{abbreviate_space(spool['disk-left-free'])} are to be left free")
    yield f"servers: {servers['connected']} connected, {servers['staging']} of them staging"


def _row(upload: dict[str, Any]) -> tuple[str, ...]:
    shares = upload["shares"]
    closed = sum(share["state"] == "closed" for share in shares)
    state = upload["state"] if upload["error"] is None else f"{upload['state']}: {upload['error']}"
    cells = (upload["upload"], state,
             *(abbreviate_space(upload[size]) for size in ("size", "received", "durable", "pushed")),
             f"{closed} of {len(shares)}" if shares else "-", abbreviate_time(upload["idle"]),
             upload["waits-for"] or "-")
    return tuple(map(_plain, cells))


def _share(share: dict[str, Any]) -> str:
    return _plain(f"    share {share['number']} on {share['server']}: {share['state']}, "
                  f"{abbreviate_space(share['position'])}")


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _plain(text: str) -> str:
    """Without what a terminal would obey: storage servers choose their names."""
    return "".join(c if c.isprintable() else "?" for c in text)
