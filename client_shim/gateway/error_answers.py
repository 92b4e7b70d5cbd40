"""Errors as HTTP answers: one table from codes to statuses.

Texts are those of the errors, which hold no cap, key, furl or upload ID.
"""

from __future__ import annotations

import json

import attrs

from client_shim.errors import HelperRefused
from helper.errors import StreamingError

#: Status of every code that a client may see. A code of the helper's that is not here is 502, any other 500.
STATUS = {
    # the request
    "bad-body": 400,
    "bad-form": 400,
    "bad-host": 403,
    "body-too-slow": 408,
    "child-exists": 409,
    "content-encoding": 415,
    "cross-site": 403,
    "declared-size": 400,
    # the node
    "node-away": 502,
    # the helper, and the way to it
    "bad-furl": 500,
    "helper-lost": 503,
    "helper-misbehaved": 502,
    "helper-stopping": 503,
    "helper-unreachable": 503,
    "no-helper-configured": 500,
    "stock-helper": 500,
    "upload-closed": 503,
    "waiting-too-long": 503,
    "wrong-ueb": 502,
    # what the helper refuses
    "quota-exceeded": 413,
    "size-exceeded": 413,
    "spool-failed": 502,
    "spool-full": 507,
    "too-few-servers": 503,
    "too-few-shares": 503,
    "too-many-uploads": 503,
    "expired": 410,
    "unknown-upload": 410,
}

#: Seconds after which a client may try again what was answered with 503.
RETRY_AFTER = 30


@attrs.frozen
class ErrorAnswer:
    """An answer to be given by Exchange.respond."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def status_of(error: StreamingError) -> int:
    """The status of the answer that tells of `error`."""
    return STATUS.get(error.code, 502 if isinstance(error, HelperRefused) else 500)


def as_text(error: StreamingError) -> ErrorAnswer:
    """As Tahoe tells errors."""
    status = status_of(error)
    return ErrorAnswer(status, [("Content-Type", "text/plain;charset=utf-8"), *_retry(status)],
                       f"{error.text()}\n".encode())


def as_problem(error: StreamingError) -> ErrorAnswer:
    """As RFC 9457 has it: `title` is for people, `code` for programs."""
    status = status_of(error)
    problem = {"type": "about:blank", "title": error.text(), "status": status, "code": error.code}
    return ErrorAnswer(status, [("Content-Type", "application/problem+json"), *_retry(status)],
                       json.dumps(problem).encode("ascii") + b"\n")


def _retry(status: int) -> list[tuple[str, str]]:
    return [("Retry-After", str(RETRY_AFTER))] if status == 503 else []
