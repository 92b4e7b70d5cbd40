"""Which requests are uploads of immutable files, as the node would understand them.  (pure)

Where the node would do anything else, or refuse, the request is passed on to it: its answer is the right one.
allmydata/web/root.py, unlinked.py, directory.py, filenode.py and common.py are what is imitated.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

import attrs
from allmydata import uri

from client_shim.dedup import DedupMode
from client_shim.gateway.errors import BadQuery
from client_shim.gateway.exchange import RequestHead

_ROOTS = ("/uri", "/cap")  # two names of one thing in Tahoe
_TRUE = frozenset({"true", "1", "t", "on"})  # allmydata.web.common.boolean_of_arg
_FALSE = frozenset({"false", "0", "f", "off"})
#: Values of replace= that link a file: that of the request → what the node is asked for.
#: A directory is never replaced by a PUT of a file, but t=uri would do it: hence only-files.
_REPLACE = dict.fromkeys(_TRUE, "only-files") | dict.fromkeys(_FALSE, "false") | {"only-files": "only-files"}

_MULTIPART = re.compile(r"multipart/form-data *;.*\bboundary=", re.IGNORECASE | re.DOTALL)


def is_immutable(file_format: str | None, mutable: str | None) -> bool:
    """Whether these arguments format= and mutable= ask for an immutable file."""
    if file_format:
        return file_format.upper() == "CHK"
    return mutable is None or mutable.lower() in _FALSE


def is_put_unlinked(head: RequestHead) -> bool:
    """PUT /uri of an immutable file."""
    return head.method == "PUT" and head.path in _ROOTS and _is_plain_put(head)


def is_form(head: RequestHead) -> bool:
    """POST /uri of a form that may hold an immutable file; its fields say the rest."""
    return (head.method == "POST" and head.path in _ROOTS and ";" not in head.query
            and (head.argument("t") or "").strip() in ("", "upload")
            and is_immutable(head.argument("format"), head.argument("mutable"))
            and _MULTIPART.match(head.headers.get("content-type") or "") is not None)


def dedup_of(argument: str | None) -> DedupMode | None:
    """What the query argument dedup= asks for; None if there is none. Raises BadQuery."""
    if argument is None:
        return None
    try:
        return DedupMode(argument)
    except ValueError:
        raise BadQuery("dedup", " or ".join(mode.value for mode in DedupMode)) from None


@attrs.frozen
class Place:
    """Where a file is to be linked: `path` is that of the request, percent-encoded; `replace` as t=uri takes it."""

    path: str
    replace: str = "only-files"


def place_of_put(head: RequestHead) -> Place | None:
    """Where PUT /uri/DIRCAP/[dirs/]name links an immutable file; None for any other request."""
    if head.method != "PUT" or not _is_plain_put(head):
        return None
    replace = _REPLACE.get((head.argument("replace") or "true").lower())
    root, slash, rest = head.path[1:].partition("/")
    cap, *names = rest.split("/")
    if f"/{root}" not in _ROOTS or not slash or replace is None or not names or not all(names):
        return None
    if not _is_writable_directory(unquote_to_bytes(cap)):
        return None
    return Place(head.path, replace)


def place_in(directory_cap: str, name: str) -> Place | None:
    """A name in a directory; None if it is no directory's write cap, or no name."""
    if not name or "/" in name or not _is_writable_directory(directory_cap.encode("utf-8")):
        return None
    return Place(f"/uri/{quote(directory_cap, safe='')}/{quote(name, safe='')}")


def _is_plain_put(head: RequestHead) -> bool:
    # Twisted also takes a semicolon as a separator of arguments
    return (";" not in head.query and not (head.argument("t") or "").strip()
            and is_immutable(head.argument("format"), head.argument("mutable"))
            and head.argument("offset") is None and "content-range" not in head.headers)


def _is_writable_directory(cap: bytes) -> bool:
    # not DirectoryURI's relatives: their isinstance is wider than one would think
    return type(uri.from_string(cap)) in (uri.DirectoryURI, uri.MDMFDirectoryURI)
