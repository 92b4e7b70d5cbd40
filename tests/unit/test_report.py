"""What `put` tells while the helper is away: to people, to programs, and beside a progress bar."""

from __future__ import annotations

import io
import json

import pytest

from client_shim.errors import HelperLost, HelperRefused
from client_shim.report import Report, spelt
from client_shim.upload import Progress

STOPPING = HelperRefused("helper-stopping", "the helper is shutting down", {})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_to_people() -> None:
    stream = io.StringIO()
    report = Report(stream, as_json=False)
    report.start(1000)
    report.paused(HelperLost(), 3600.0)
    report.resumed(12.4)
    report.paused(STOPPING, 1.0)
    assert stream.getvalue() == (
        "tahoe-stream: the helper is away (helper-lost); looking for it for up to 1 hour\n"
        "tahoe-stream: the helper is back after 12 seconds; the upload goes on\n"
        "tahoe-stream: the helper is away (helper-stopping); looking for it for up to 1 second\n")


def test_to_programs() -> None:
    stream = io.StringIO()
    report = Report(stream, as_json=True)
    report.paused(STOPPING, 3599.7)
    report.resumed(12.345)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"event": "paused", "code": "helper-stopping", "patience": 3600}, {"event": "resumed", "seconds": 12.35}]


def test_on_a_terminal_the_bar_says_it_too() -> None:
    stream = Terminal()
    report = Report(stream, as_json=False)
    report.start(1000)
    report.progress(Progress(500, 500, 500, 1000))
    report.paused(HelperLost(), 600.0)
    paused = stream.getvalue()
    assert "\rtahoe-stream: the helper is away (helper-lost); looking for it for up to 10 minutes\n" in paused
    assert "helper is away: " in paused.rsplit("\r", 1)[1]
    report.resumed(30.0)
    back = stream.getvalue()[len(paused):]
    assert "tahoe-stream: the helper is back after 30 seconds; the upload goes on\n" in back
    assert "helper is away" not in back.rsplit("\r", 1)[1]
    report.cap_known()


@pytest.mark.parametrize(("seconds", "text"), [
    (0.3, "1 second"), (1, "1 second"), (59.6, "1 minute"), (90, "90 seconds"), (600, "10 minutes"), (3600, "1 hour"),
    (5400, "90 minutes"), (7 * 86400, "7 days")])
def test_durations(seconds: float, text: str) -> None:
    assert spelt(seconds) == text
