"""What `put` tells on standard error: a progress bar for people, JSON lines for programs, and errors."""

from __future__ import annotations

import io
import json
import signal
import time
from typing import Any, TextIO

from tqdm import tqdm
from twisted.python.failure import Failure

from client_shim.dedup import Outcome
from client_shim.errors import UploadError
from client_shim.upload import Progress

JSON_INTERVAL = 0.25  # seconds between progress lines


class Report:
    """Shows an upload's progress on `stream`: as JSON lines, as a bar if it is a terminal, or not at all."""

    def __init__(self, stream: TextIO, as_json: bool) -> None:
        self._stream = stream
        self._json = as_json
        self._bar: tqdm[Any] | None = None
        self._last_line = float("-inf")
        self._last_byte = 0.0
        self._to_cap = 0.0  # seconds

    def start(self, size: int | None) -> None:
        """An upload of `size` bytes begins."""
        if not self._json and self._stream.isatty():
            self._bar = tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, file=self._stream,
                             dynamic_ncols=True, mininterval=0.2)
        self._event("started", size=size)

    def progress(self, progress: Progress) -> None:
        """Bytes were acknowledged."""
        if self._bar is not None:
            self._bar.update(progress.durable - self._bar.n)
        now = time.monotonic()
        if now - self._last_line >= JSON_INTERVAL:
            self._last_line = now
            self._event("progress", **_bytes(progress))

    def paused(self, why: UploadError, patience: float) -> None:
        """The helper is away; it is looked for for `patience` seconds."""
        self._event("paused", code=why.code, patience=round(patience))
        if self._bar is not None:
            self._bar.set_description_str("helper is away")
        self._line(f"the helper is away ({why.code}); looking for it for up to {spelt(patience)}")

    def resumed(self, seconds: float) -> None:
        """The helper is back, after so many seconds."""
        self._event("resumed", seconds=round(seconds, 2))
        if self._bar is not None:
            self._bar.set_description_str("")
        self._line(f"the helper is back after {spelt(seconds)}; the upload goes on")

    def last_byte(self, progress: Progress) -> None:
        """The source has ended; the upload is being completed."""
        self._last_byte = time.monotonic()
        self._event("last-byte", **_bytes(progress))

    def cap_known(self) -> None:
        """There is a cap; it may have to be verified before it is given out."""
        self._to_cap = time.monotonic() - self._last_byte
        self._end_bar()

    def finished(self, progress: Progress, outcome: Outcome) -> None:
        """All is done, and the cap about to be printed."""
        self._event("finished", **_bytes(progress), seconds_from_last_byte=round(self._to_cap, 4),
                    dedup=outcome.value)

    def verified(self) -> None:
        """Segments were read back and compared."""
        self._event("verified")

    def failed(self, error: UploadError | OSError) -> None:
        """There is no cap."""
        self._end_bar()
        if isinstance(error, UploadError):
            self._event("failed", code=error.code, text=error.text(), **error.fields())
            self._line(str(error))
        else:
            self._event("failed", code="os-error", text=str(error))
            self._line(f"reading the file or writing the cap failed: {error}")

    def interrupted(self, number: int) -> None:
        """A signal ended the upload, which was aborted."""
        self._end_bar()
        self._event("failed", code="interrupted", text=signal.Signals(number).name)
        self._line(f"interrupted by {signal.Signals(number).name}; the upload was aborted")

    def broken(self, failure: Failure) -> None:
        """A bug."""
        self._end_bar()
        self._event("failed", code="internal-error", text=type(failure.value).__name__)
        self._line(f"internal error, please report it:\n{failure.getTraceback()}")

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        if not self._json:
            self._print(f"tahoe-stream: {text}")
        if self._bar is not None:
            self._bar.refresh()

    def _event(self, event: str, **fields: object) -> None:
        if self._json:
            self._print(json.dumps({"event": event, **fields}))

    def _print(self, text: str) -> None:
        """Nobody may be reading any more; the upload goes on all the same."""
        try:
            print(text, file=self._stream, flush=True)
        except OSError:
            self._json, self._stream = False, io.StringIO()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def spelt(seconds: float) -> str:
    """A duration for people, as streaming.cfg spells it: in the largest unit in which it is whole."""
    whole = max(1, round(seconds))
    units = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}
    unit, length = next((unit, length) for unit, length in units.items() if whole % length == 0)
    count = whole // length
    return f"{count} {unit}" + ("s" if count != 1 else "")


def _bytes(progress: Progress) -> dict[str, int | None]:
    return {"bytes_accepted": progress.accepted, "bytes_sent": progress.sent, "bytes_durable": progress.durable,
            "size": progress.size}
