"""A headless Chromium, and files that are dropped on its page as a person drops them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from grid_tools import PATIENCE
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from client_shim.local_node import poll_until

T = TypeVar("T")

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None,
    reason="chromium and chromedriver are not installed: apt-get install chromium chromium-driver")

#: Nothing leaves this machine, and nothing is asked.
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
          "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
          "--no-proxy-server", "--window-size=1000,1000", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")


#: Seconds between two questions to the browser, which has work of its own.
_INTERVAL = 0.1


def wait_for(what: str, check: Callable[[], T | None], timeout: float = PATIENCE) -> T:
    """As grid_tools.wait_for, but less often."""
    return poll_until(lambda: check() or None, timeout, lambda: f"waited for {what}", _INTERVAL)


@contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """A browser with a new profile. Both paths are given: else selenium would look for them on the network."""
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(CHROMEDRIVER))
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page at /uploads/ of a gateway."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        self._url = url

    def open(self) -> None:
        self.driver.get(self._url)

    def drop(self, *files: Path) -> None:
        """Drag files from the desktop over the page, and let go: events of the browser's own, not of a script."""
        field = self.driver.find_element(By.ID, "drop")
        self.driver.execute_script("arguments[0].scrollIntoView()", field)
        place = self.driver.execute_script(
            "const r = arguments[0].getBoundingClientRect(); return [r.x + r.width / 2, r.y + 20]", field)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent",
                                        {"type": kind, "x": place[0], "y": place[1], "data": data})

    def choose(self, *files: Path) -> None:
        """In the browser's dialogue."""
        self.driver.find_element(By.ID, "choose").send_keys("\n".join(map(str, files)))

    def rows(self) -> list[Row]:
        """Uploads of this page, the newest first."""
        return [Row(self, element) for element in self.driver.find_elements(By.CSS_SELECTOR, "#uploads > li")]

    def row(self) -> Row:
        """The only one, when it is there."""
        rows = wait_for("an upload on the page", self.rows)
        assert len(rows) == 1
        return rows[0]

    def all_uploads(self) -> list[list[str]]:
        """Cells of the list of all uploads."""
        return [[cell.text for cell in line.find_elements(By.TAG_NAME, "td")]
                for line in self.driver.find_elements(By.CSS_SELECTOR, "#all tbody tr")]

    def gateway_is_away(self) -> bool:
        return self.driver.find_element(By.ID, "gateway-away").is_displayed()

    def remembered(self) -> dict[str, str]:
        """All of localStorage."""
        stored: dict[str, str] = self.driver.execute_script("return {...localStorage}")
        return stored

    def screenshot(self, file: Path) -> None:
        """Of the whole page."""
        self.driver.execute_script("scrollTo(0, 0)")
        assert self.driver.save_screenshot(str(file))

    def memory(self) -> int:
        """Bytes that all processes of the browser hold, what they share counted once."""
        return sum(_memory_of(pid) for pid in _children_of(self.driver.service.process.pid))

    def complaints(self) -> list[dict[str, Any]]:
        """Errors in the browser's console since the last time: those of scripts and of the page's policy, but not
        requests that failed, which are what the tests are about."""
        return [entry for entry in self.driver.get_log("browser")
                if entry["level"] == "SEVERE" and entry["source"] != "network"]


def _children_of(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            children += [child, *_children_of(child)]
    return children


def _memory_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class Row:
    """One upload of the page."""

    def __init__(self, page: Page, element: WebElement) -> None:
        self._page = page
        self._element = element

    def _part(self, name: str) -> WebElement:
        return self._element.find_element(By.CSS_SELECTOR, name)

    @property
    def state(self) -> str:
        return (self._element.get_attribute("class") or "").removeprefix("upload ")

    @property
    def offset(self) -> int:
        """Bytes that the page shows as safe."""
        return int(self._element.get_attribute("data-offset") or "")

    @property
    def bar(self) -> float:
        """How much of the bar is filled, from 0 to 1."""
        return float(self._page.driver.execute_script("return arguments[0].position", self._part("progress")))

    def text(self, name: str) -> str:
        return self._part(f".{name}").text

    @property
    def cap(self) -> str:
        return self.text("cap")

    def press(self, does: str) -> None:
        self._part(f"[data-does={does}]").click()

    def offers(self, does: str) -> bool:
        return self._part(f"[data-does={does}]").is_displayed()

    def copied_cap(self) -> str:
        """What the copy button puts into the clipboard."""
        self._page.driver.execute_cdp_cmd("Browser.grantPermissions", {
            "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
        self._part(".copy").click()
        wait_for("the button to say so", lambda: self.text("copy") == "Copied")
        text: str = self._page.driver.execute_async_script(
            "navigator.clipboard.readText().then(arguments[0], (e) => arguments[0](String(e)))")
        return text

    def until(self, what: str, check: Callable[[Row], Any], timeout: float = PATIENCE) -> None:
        """Wait until `check` is true of this row."""

        def checked() -> bool:
            try:
                return bool(check(self))
            except StaleElementReferenceException:
                return False

        wait_for(f"{what}; state {self.state}, offset {self.offset}, {self.text('text')!r}", checked, timeout)

    def until_state(self, *states: str, timeout: float = PATIENCE) -> None:
        self.until(f"{states}", lambda row: row.state in states, timeout)
