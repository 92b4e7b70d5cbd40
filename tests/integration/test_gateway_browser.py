"""The page at /uploads/ in a real browser, over a gateway on a real grid."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
from browser import Page, Row, chromium, needs_chromium, wait_for
from gateway_tools import children, gateway_running, new_directory
from grid_tools import (
    MiB,
    SharedGrid,
    answer_of,
    assert_stored,
    client_directory,
    download,
    further_helper,
    helper_furl,
)
from selenium.webdriver import Chrome
from slow_link import SlowLink, location, through

from client_shim.local_node import NodeProcess

pytestmark = needs_chromium

#: Bytes a second between gateway and helper: 50 MiB take some seconds, in which one can see the bar move.
RATE = 6 * MiB
#: Several times what a gateway takes that is not at the helper yet.
LARGE = 30 * MiB


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@attrs.frozen
class SlowGateway:
    """A gateway with a slow link to its helper. It has no node: who only uploads needs none."""

    gateway: NodeProcess
    link: SlowLink
    page: Page

    def uploads(self) -> list[dict[str, object]]:
        """What it tells everybody; it may be a second old."""
        told: list[dict[str, object]] = self.gateway.read_json("uploads/?t=json")["uploads"]
        return told

    def states(self) -> list[object]:
        return [upload["state"] for upload in self.uploads()]

    def log(self) -> list[str]:
        return self.gateway.log_path.read_text().splitlines()

    def received_by_patches(self) -> list[int]:
        """Bytes of the body of each PATCH that has ended."""
        return [int(line.partition(" received ")[2].split()[0]) for line in self.log() if " PATCH uploads-tus " in line]


@contextmanager
def slow_gateway(helper: NodeProcess, driver: Chrome, directory: Path) -> Iterator[SlowGateway]:
    """In a client directory that is made; the page is open."""
    furl = helper_furl(helper)
    with SlowLink(*location(furl), RATE, 0.005) as link:
        client_directory(directory, through(furl, link))
        (directory / "streaming.cfg").write_text("[gateway]\nhelper-wait = 2 seconds\n")
        with gateway_running(directory) as gateway:
            page = Page(driver, gateway.web_url + "uploads/")
            page.open()
            page.complaints()
            yield SlowGateway(gateway, link, page)
            assert page.complaints() == []
            driver.get("about:blank")


@pytest.fixture
def slow(shared: SharedGrid, driver: Chrome, tmp_path: Path) -> Iterator[SlowGateway]:
    with slow_gateway(shared.grid.helper, driver, tmp_path / "client") as slow:
        yield slow


@pytest.fixture
def artefacts(pytestconfig: pytest.Config, tmp_path: Path) -> Path:
    """Where screenshots go."""
    directory = Path(pytestconfig.getoption("--artefacts") or tmp_path / "artefacts")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def random_file(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def until_under_way(row: Row, beyond: int = 0) -> int:
    """Wait until more than `beyond` bytes are safe, but not all. Returns how many."""
    # A page whose upload was just taken over, or is being taken up, may be away for a moment.
    row.until(f"more than {beyond} bytes, and sending", lambda row: row.offset > beyond and row.state == "sending")
    return row.offset


def check_secrets(page: Page, *secrets: str) -> None:
    stored = json.dumps(page.remembered())
    for secret in secrets:
        assert secret not in stored


def test_drop_watch_reload_resume(shared: SharedGrid, slow: SlowGateway, tmp_path: Path, artefacts: Path) -> None:
    """The whole story, with a file of 50 MiB."""
    file = random_file(tmp_path / "Holiday \u2013 film.mkv", 50 * MiB)
    slow.page.drop(file)
    row = slow.page.row()
    seen = [0.0]
    while len(seen) < 4:
        row.until("the bar to move", lambda row: row.bar > seen[-1])
        seen.append(row.bar)
    assert seen[-1] < 1
    assert row.text("name") == file.name
    row.until("rate and time left", lambda row: row.text("rate").endswith("/s") and row.text("left").endswith(" left"))
    wait_for("it in the list of all", lambda: [line for line in slow.page.all_uploads() if line[1] == "in progress"])
    slow.page.screenshot(artefacts / "uploads-in-progress.png")

    slow.page.open()
    row = slow.page.row()
    assert row.state == "interrupted"
    row.until("what is safe", lambda row: row.offset > 0)
    assert row.offset < 50 * MiB
    wait_for("the gateway to see that nobody writes", lambda: not slow.uploads()[0]["writing"])
    slow.page.screenshot(artefacts / "uploads-interrupted.png")

    slow.page.drop(file)
    row.until_state("finished")
    assert_stored(shared, row.cap, file.read_bytes())
    assert row.copied_cap() == row.cap
    first, second = slow.received_by_patches()
    assert 0 <= first + second - 50 * MiB < MiB, "nothing that was safe is sent again"
    wait_for("what all are told", lambda: slow.states() == ["finished"])
    wait_for("the list of all", lambda: [line[1] for line in slow.page.all_uploads()] == ["stored"])
    slow.page.screenshot(artefacts / "uploads-finished.png")
    check_secrets(slow.page, row.cap)
    cap = row.cap

    slow.page.open()
    row = slow.page.row()
    row.until("the cap after another reload", lambda row: row.cap == cap)
    row.press("remove")
    wait_for("it to be gone", lambda: not slow.page.rows() and not slow.uploads())
    assert slow.page.remembered() == {}


def test_pause_resume_cancel(shared: SharedGrid, slow: SlowGateway, tmp_path: Path) -> None:
    file = random_file(tmp_path / "file", LARGE)
    slow.page.choose(file)
    row = slow.page.row()
    until_under_way(row)
    row.press("pause")
    row.until_state("paused")
    assert row.offers("resume")
    wait_for("the writer's end", lambda: not slow.uploads()[0]["writing"])
    row.press("resume")
    row.until_state("finished")
    assert download(shared.plain_client, row.cap) == file.read_bytes()
    assert all(0 < received < LARGE for received in slow.received_by_patches())

    slow.page.choose(random_file(tmp_path / "other", LARGE))
    other = wait_for("both", lambda: slow.page.rows() if len(slow.page.rows()) == 2 else None)[0]
    until_under_way(other)
    other.press("cancel")
    wait_for("its end", lambda: len(slow.page.rows()) == 1)
    wait_for("its end at the gateway", lambda: slow.states() == ["finished"])
    assert len(slow.page.remembered()) == 1
    assert row.state == "finished"


@pytest.mark.long
def test_another_file_of_the_same_name_is_another_upload(shared: SharedGrid, slow: SlowGateway,
                                                         tmp_path: Path) -> None:
    """It has the same size, and another time of change."""
    slow.link.slow()
    file = random_file(tmp_path / "file", 20 * MiB)
    slow.page.drop(file)
    until_under_way(slow.page.row())
    slow.page.open()
    wait_for("the old page's end", lambda: not slow.uploads()[0]["writing"])
    random_file(file, 20 * MiB)
    os.utime(file, (1_000_000_000, 1_000_000_000))
    slow.page.drop(file)
    newer, older = wait_for("both", lambda: slow.page.rows() if len(slow.page.rows()) == 2 else None)
    until_under_way(newer)
    assert older.state == "interrupted"
    wait_for("two uploads", lambda: len({upload["upload"] for upload in slow.uploads()}) == 2)
    for row in (newer, older):
        row.press("cancel")
    wait_for("their end", lambda: slow.uploads() == [] and slow.page.remembered() == {})


@pytest.mark.long
def test_file_that_changes_while_it_is_sent(slow: SlowGateway, tmp_path: Path) -> None:
    """What was begun is not gone on with: the browser does not read a file that is another now."""
    slow.link.slow()
    file = random_file(tmp_path / "file", 20 * MiB)
    slow.page.drop(file)
    row = slow.page.row()
    until_under_way(row)
    row.press("pause")
    row.until_state("paused")
    random_file(file, 20 * MiB)
    os.utime(file, (1_000_000_000, 1_000_000_000))
    row.press("resume")
    row.until("why", lambda row: row.state == "interrupted" and "cannot be read" in row.text("text"))
    assert row.cap == ""


@pytest.mark.long
def test_two_pages(shared: SharedGrid, slow: SlowGateway, tmp_path: Path) -> None:
    """The one that took an upload up last has it; the other keeps quiet until it is asked to go on."""
    slow.link.slow()
    file = random_file(tmp_path / "file", 20 * MiB)
    driver, page = slow.page.driver, slow.page
    first = driver.current_window_handle
    page.drop(file)
    until_under_way(page.row())
    driver.switch_to.new_window("tab")
    try:
        second = driver.current_window_handle
        page.open()
        page.row().until("that it is under way", lambda row: "in another page" in row.text("text"))
        page.drop(file)
        safe = until_under_way(page.row(), page.row().offset)
        driver.switch_to.window(first)
        page.row().until_state("elsewhere")
        page.row().press("resume")
        until_under_way(page.row(), safe)
        driver.switch_to.window(second)
        page.row().until_state("elsewhere")
        driver.switch_to.window(first)
        page.row().press("cancel")
        wait_for("its end", lambda: slow.uploads() == [] and page.rows() == [])
        driver.switch_to.window(second)
        page.row().until_state("failed")
        driver.close()
    finally:
        driver.switch_to.window(first)


@pytest.mark.long
def test_upload_that_is_gone(shared: SharedGrid, slow: SlowGateway, tmp_path: Path) -> None:
    """Cancelled by another program while it was paused, as if it had expired: the file can be sent anew."""
    slow.link.slow()
    file = random_file(tmp_path / "file", 3 * MiB)
    slow.page.drop(file)
    row = slow.page.row()
    until_under_way(row)
    row.press("pause")
    row.until_state("paused")
    (key,) = slow.page.remembered()
    assert answer_of(slow.gateway, "DELETE", key.removeprefix("tahoe-upload:"))[0] == 204
    row.press("resume")
    row.until_state("failed")
    assert "does not have this upload any more" in row.text("text")
    row.press("again")
    row.until_state("finished")
    assert download(shared.plain_client, row.cap) == file.read_bytes()


def test_gateway_is_away(shared: SharedGrid, slow: SlowGateway, tmp_path: Path, artefacts: Path) -> None:
    """Killed in mid-upload: the page waits, says so, and goes on by itself."""
    file = random_file(tmp_path / "file", LARGE)
    port = urlsplit(slow.gateway.web_url).port
    slow.page.drop(file)
    row = slow.page.row()
    safe = until_under_way(row)
    slow.gateway.kill()
    row.until("what it waits for", lambda row: row.state == "away" and "gateway does not answer" in row.text("text"))
    wait_for("the notice", slow.page.gateway_is_away)
    slow.page.screenshot(artefacts / "uploads-gateway-away.png")
    slow.gateway.command = tuple(
        f"tcp:{port}:interface=127.0.0.1" if word.startswith("tcp:") else word for word in slow.gateway.command)
    slow.gateway.start()
    slow.gateway.wait_ready()
    row.until_state("finished")
    assert 0 < slow.received_by_patches()[-1] <= LARGE - safe
    assert not slow.page.gateway_is_away()
    assert download(shared.plain_client, row.cap) == file.read_bytes()


@pytest.mark.long
def test_helper_is_away(shared: SharedGrid, driver: Chrome, tmp_path: Path, artefacts: Path) -> None:
    """The same; what was begun while it is away waits, too."""
    file = random_file(tmp_path / "file", 2 * MiB)
    with (further_helper(shared.grid, "helper-of-the-page") as helper,
          slow_gateway(helper, driver, tmp_path / "client") as slow):
        slow.link.slow()
        slow.page.drop(file)
        row = slow.page.row()
        until_under_way(row)
        helper.kill()
        row.until("that the helper is away", lambda row: "The helper does not answer" in row.text("text"))
        row.press("pause")
        row.press("resume")
        row.until("what a new request is told",
                  lambda row: row.state == "away" and "The helper does not take" in row.text("text"))
        slow.page.screenshot(artefacts / "uploads-helper-away.png")
        helper.start()
        helper.wait_ready()
        shared.grid.wait_connected(helper)
        row.until_state("finished")
        assert download(shared.plain_client, row.cap) == file.read_bytes()


def test_files_are_linked(shared: SharedGrid, driver: Chrome, tmp_path: Path) -> None:
    """Into a directory whose cap stays in memory; an empty file, a literal, and some bytes more."""
    directory = new_directory(shared.grid.client)
    files = [random_file(tmp_path / f"n\u00e4me {size}", size) for size in (0, 55, 56, MiB)]
    with gateway_running(shared.grid.client.directory) as gateway:
        page = Page(driver, gateway.web_url + "uploads/")
        page.open()
        page.complaints()
        page.driver.find_element("css selector", "#drop summary").click()
        page.driver.find_element("id", "directory").send_keys(directory)
        page.drop(*files)
        wait_for("all", lambda: [row.state for row in page.rows()] == ["finished"] * len(files))
        caps = {row.text("name"): row.cap for row in page.rows()}
        assert children(shared.plain_client, directory) == caps
        for file in files:
            assert download(shared.plain_client, caps[file.name]) == file.read_bytes()
        check_secrets(page, directory, *caps.values())
        assert all(directory not in line and "URI" not in line for line in gateway.log_path.read_text().splitlines())
        assert [row.text("text") for row in page.rows()] == [""] * len(files)
        page.drop(files[-1])
        again = wait_for("it once more", lambda: page.rows()[0] if len(page.rows()) > len(files) else None)
        again.until_state("finished")
        assert again.text("text") == "The grid has this file already, from an earlier upload; this is its cap."
        assert again.cap == caps[files[-1].name]
        page.driver.find_element("id", "directory").send_keys("nonsense")
        page.drop(files[1])
        wait_for("the refusal", lambda: page.rows()[0].state == "failed")
        assert "write cap of a directory" in page.rows()[0].text("text")
        assert page.complaints() == []


@pytest.mark.long
def test_large_file_costs_the_browser_no_memory(shared: SharedGrid, driver: Chrome, tmp_path: Path) -> None:
    """It is read from the disk as the gateway takes it."""
    size = 512 * MiB
    file = tmp_path / "file"
    with file.open("wb") as f:
        f.truncate(size)
    with gateway_running(client_directory(tmp_path / "client", helper_furl(shared.grid.helper))) as gateway:
        page = Page(driver, gateway.web_url + "uploads/")
        page.open()
        before = page.memory()
        assert before > 20 * MiB
        page.drop(file)
        row = page.row()
        held = []

        def finished() -> bool:
            held.append(page.memory() - before)
            return row.state == "finished"

        wait_for("the cap", finished, 280)
        row.press("remove")
        assert len(held) > 5
        assert max(held) < 128 * MiB, [each // MiB for each in held]
