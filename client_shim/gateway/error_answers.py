"""Errors as HTTP answers: one table from codes to statuses.

Texts are those of the errors, which hold no cap, key, furl or upload ID.
"""

from __future__ import annotations

import json

import attrs

from client_shim.errors import HelperRefused
from client_shim.gateway.handle_errors import HelperAway, JournalFailed
from helper.errors import StreamingError

#: Status of every code that a client may see. A code of the helper's that is not here is 502, any other 500.
STATUS = {
    # the request
    "bad-body": 400,
    "bad-form": 400,
    "bad-host": 403,
    "bad-query": 400,
    "body-too-slow": 408,
    "child-exists": 409,
    "content-encoding": 415,
    "cross-site": 403,
    "declared-size": 400,
    # the node
    "node-away": 502,
    # uploads that are resumed
    "already-complete": 403,
    "bad-field": 400,
    "bad-handle-id": 404,
    "bad-link": 400,
    "bad-metadata": 413,
    "bad-size": 413,
    "cancelled": 410,
    "checksum-body-too-large": 413,
    "checksum-memory-full": 503,
    "checksum-mismatch": 460,  # as tus calls it
    "gateway-stopping": 503,
    "handle-expired": 410,
    "handle-failed": 410,
    "helper-away": 503,
    "inconsistent-upload-length": 400,
    "journal-failed": 503,
    "link-failed": 424,  # not to be tried again: the file is stored
    "mismatching-upload-offset": 409,
    "missing-field": 400,
    "no-concatenation": 400,
    "not-complete": 400,
    "size-conflict": 400,
    "too-many-handles": 503,
    "unknown-checksum-algorithm": 400,
    "unknown-handle": 404,
    "wrong-media-type": 415,
    "wrong-method": 405,
    "wrong-tus-version": 412,
    # the helper, and the way to it
    "bad-furl": 500,
    "helper-lost": 503,
    "helper-misbehaved": 502,
    "helper-stopping": 503,
    "memory-short": 503,
    "helper-unreachable": 503,
    "no-helper-configured": 500,
    "upload-interrupted": 500,
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
    return ErrorAnswer(status, [("Content-Type", "text/plain;charset=utf-8"), *_retry(status, error)],
                       f"{error.text()}\n".encode())


def as_problem(error: StreamingError) -> ErrorAnswer:
    """As RFC 9457 has it: `title` is for people, `code` for programs."""
    status = status_of(error)
    problem = {"type": "about:blank", "title": error.text(), "status": status, "code": error.code}
    return ErrorAnswer(status, [("Content-Type", "application/problem+json"), *_retry(status, error)],
                       json.dumps(problem).encode("ascii") + b"\n")


def _retry(status: int, error: StreamingError) -> list[tuple[str, str]]:
    seconds = error.seconds if isinstance(error, HelperAway | JournalFailed) else RETRY_AFTER
    return [("Retry-After", str(seconds))] if status == 503 else []
