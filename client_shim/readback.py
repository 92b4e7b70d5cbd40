"""`put --verify`: reads segments back through the client node's web API and compares them."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence

from client_shim.cipher import PlaintextDigests
from client_shim.errors import VerifyFailed

TIMEOUT = 60  # seconds without a byte from the node


def verify_segments(node_url: str, cap: bytes, digests: PlaintextDigests, numbers: Sequence[int], size: int) -> None:
    """Download the pieces `numbers` of the file (`size` bytes) and compare each with its digest.

    Blocks. Raises VerifyFailed if the node does not answer or the bytes are not those that were sent.
    """
    url = _url_of(node_url, cap)
    for number in numbers:
        start = number * digests.piece_size
        end = min(start + digests.piece_size, size)
        piece = _read_range(url, start, end, TIMEOUT)
        if not digests.matches(number, piece):
            raise VerifyFailed(f"bytes {start} to {end} are not those that were sent")


def read_range(node_url: str, cap: bytes, start: int, end: int, timeout: float) -> bytes:
    """The bytes from `start` to `end` of the file. Blocks; `timeout` is for each byte (seconds). Raises VerifyFailed
    if the node does not answer."""
    return _read_range(_url_of(node_url, cap), start, end, timeout)


def _url_of(node_url: str, cap: bytes) -> str:
    return urllib.parse.urljoin(node_url, "uri/" + urllib.parse.quote(cap.decode("ascii"), safe=""))


def _opener() -> urllib.request.OpenerDirector:
    """Without a proxy, whatever the environment says: the address has the cap in it."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _read_range(url: str, start: int, end: int, timeout: float) -> bytes:
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-{end - 1}"})
    try:
        with _opener().open(request, timeout=timeout) as response:
            body: bytes = response.read(end - start + 1)
            return body
    except urllib.error.HTTPError as e:
        # the node's error pages quote the cap: only the status may be shown
        raise VerifyFailed(f"the client node answered {e.code} for bytes {start} to {end}") from e
    except (OSError, http.client.HTTPException) as e:
        raise VerifyFailed(f"the client node did not answer ({type(e).__name__})") from e
