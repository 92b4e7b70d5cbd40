"""Which requests may be answered: a loopback service is within reach of every page that a browser shows.  (pure)

Programs (curl, tahoe) send neither Origin nor Sec-Fetch-Site and are believed; browsers send them, and pages cannot
make them send others. A name that somebody makes resolve to 127.0.0.1 (DNS rebinding) is found by the Host header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

import attrs

from client_shim.gateway.errors import BadHost, CrossSite, EncodedBody
from client_shim.gateway.exchange import RequestHead

#: Names of this machine that nobody else can have.
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")

#: What a page of an allowed origin may send, and read, of ours: tus 1.0.0, the IETF draft, caps.
_REQUEST_HEADERS = ("Content-Disposition, Content-Type, Range, Tahoe-Directory, Tus-Resumable, Upload-Complete, "
                    "Upload-Concat, Upload-Defer-Length, Upload-Draft-Interop-Version, Upload-Length, "
                    "Upload-Metadata, Upload-Offset, Upload-Checksum, X-HTTP-Method-Override, X-Requested-With")
_ANSWER_HEADERS = ("Location, Retry-After, Tahoe-Cap, Tahoe-Dedup, Tahoe-Link-Error, Tus-Checksum-Algorithm, "
                   "Tus-Extension, Tus-Max-Size, Tus-Resumable, Tus-Version, Upload-Complete, Upload-Defer-Length, "
                   "Upload-Expires, Upload-Length, Upload-Limit, Upload-Metadata, Upload-Offset")
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
#: Seconds for which a browser may remember the answer to a preflight.
_PREFLIGHT_AGE = 600


@attrs.frozen
class Protection:
    """The rules. `hosts`: names in Host headers that are ours (lower case; IPv6 in brackets), ports do not matter;
    `origins`: those whose pages may write here, and read what is answered, such as https://uploads.example."""

    hosts: frozenset[str] = LOCAL_HOSTS
    origins: frozenset[str] = frozenset()

    def check(self, head: RequestHead) -> None:
        """Raises BadHost, CrossSite or EncodedBody for a request that must not be answered."""
        host = head.headers.get("host") or ""
        match = _HOST.fullmatch(host)
        if match is None or match["name"].lower() not in self.hosts:
            raise BadHost()
        if head.method not in _SAFE and not self._may_write(head, host.lower()):
            raise CrossSite()
        if any(value.strip().lower() != "identity" for value in head.headers.get_all("content-encoding")):
            raise EncodedBody()

    def _may_write(self, head: RequestHead, host: str) -> bool:
        origins = {value.lower() for value in head.headers.get_all("origin")}
        if origins and origins <= self.origins:
            return True
        sites = {value.lower() for value in head.headers.get_all("sec-fetch-site")}
        if not sites <= {"same-origin", "none"}:
            return False
        if sites and origins == {"null"}:
            return True  # what forms send from pages with Referrer-Policy: no-referrer, which are ours and Tahoe's
        if origins:
            return all(_is_of(origin, host) for origin in origins)
        # browsers that are too old for both
        return all(_is_of(referer.lower(), host) for referer in head.headers.get_all("referer"))

    def allowed_origin(self, head: RequestHead) -> str | None:
        """The origin whose page may read the answer."""
        origin = head.headers.get("origin")
        return origin if origin is not None and origin.lower() in self.origins else None

    def headers(self, head: RequestHead) -> list[tuple[str, str]]:
        """What every answer to this request has, refusals included."""
        headers = [("Referrer-Policy", "no-referrer"), ("X-Content-Type-Options", "nosniff")]
        if self.origins:
            headers.append(("Vary", "Origin"))
        origin = self.allowed_origin(head)
        if origin is not None:
            headers += [("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", _ANSWER_HEADERS)]
        return headers

    def preflight(self, head: RequestHead) -> list[tuple[str, str]] | None:
        """What a browser's question whether a page may write is answered with; None if `head` is no such question.

        Raises CrossSite for pages of other origins than those allowed.
        """
        if head.method != "OPTIONS" or "access-control-request-method" not in head.headers:
            return None
        if self.allowed_origin(head) is None:
            raise CrossSite()
        return [("Access-Control-Allow-Methods", _METHODS), ("Access-Control-Allow-Headers", _REQUEST_HEADERS),
                ("Access-Control-Max-Age", str(_PREFLIGHT_AGE))]


def _is_of(url: str, host: str) -> bool:
    """Whether an origin or URL is of the host that the request is for. Ports count: another port is another program."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if parts.scheme not in ("http", "https"):
        return False
    return _with_port(parts.netloc, parts.scheme) == _with_port(host, parts.scheme)


def _with_port(host: str, scheme: str) -> str:
    match = _HOST.fullmatch(host)
    if match is None:
        return ""
    return host if host != match["name"] else f"{host}:{443 if scheme == 'https' else 80}"


def hosts_of(addresses: Iterable[str]) -> frozenset[str]:
    """Host names for Protection.hosts: those of this machine, and `addresses` (names, IPv4, IPv6)."""
    named = (address.strip().lower() for address in addresses)
    return LOCAL_HOSTS | {f"[{name}]" if ":" in name and not name.startswith("[") else name for name in named if name}
