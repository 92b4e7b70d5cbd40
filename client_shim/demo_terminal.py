"""The demo and its user: signals in, a story out."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

PLAIN_LINE_INTERVAL = 1.0  # seconds between progress lines when standard error is not a terminal


class Interrupted(BaseException):
    """A signal asked us to stop; the text is its name."""


class Signals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP raises Interrupted in the main thread; none does after `hold`,
    so that nothing interrupts the cleaning up."""

    def __init__(self) -> None:
        self._held = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._old[number] = signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """From now on ignore the signals."""
        self._held = True

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if not self._held:
            self._held = True
            raise Interrupted(signal.Signals(number).name)


class Story:
    """Prints lines, and between them progress: a bar on a terminal, else a line each second.

    `say` may be called from any thread, the rest from one only.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._bar: tqdm[Any] | None = None
        self._last_plain = 0.0

    def say(self, text: str = "") -> None:
        """Print a line or several."""
        with self._lock:
            if self._bar is not None:
                self._bar.clear()
            print(text, file=self._stream, flush=True)

    def progress(self, total: int | None, unit: str = "B") -> None:
        """Begin to show progress towards `total`."""
        self._last_plain = time.monotonic()
        if self._stream.isatty():
            self._bar = tqdm(
                total=total,
                unit=unit,
                unit_scale=unit == "B",
                unit_divisor=1024,
                file=self._stream,
                dynamic_ncols=True,
                leave=False,
                bar_format=None if total is None else "  {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def advance(self, done: int, note: str, plain: str) -> None:
        """`done` more; `note` stands beside the bar, `plain` is the line to print without one."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done)
        elif plain and time.monotonic() - self._last_plain >= PLAIN_LINE_INTERVAL and not self._stream.isatty():
            self._last_plain = time.monotonic()
            self.say(f"  {plain}")

    def end_progress(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
