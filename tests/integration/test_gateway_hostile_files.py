"""Files of the grid that are opened in a browser, through the gateway: HTML of strangers, and the node's own pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import pytest
from browser import chromium, needs_chromium, wait_for
from gateway_tools import children, curl, gateway_running, in_directory, new_directory
from grid_tools import SharedGrid, answer_of
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from client_shim.local_node import NodeProcess

pytestmark = needs_chromium

TUS = ("-H", "Tus-Resumable: 1.0.0")

#: What somebody may try who knows where the gateway is, and even the URL of an upload. Each attempt says what it got.
ATTACK = """
async function attack(handle) {
  const form = new FormData();
  form.append("file", new File(["x".repeat(100)], "planted"));
  const tus = {"Tus-Resumable": "1.0.0"};
  const attempts = {
    "list": async () => (await (await fetch("/uploads/?t=json")).json()).uploads.length,
    "abort": async () => (await fetch(handle, {method: "DELETE", headers: tus})).status,
    "begin": async () => (await fetch("/uploads/", {method: "POST", headers: {...tus, "Upload-Length": "1"}})).status,
    "upload": async () => (await fetch("/uri", {method: "POST", body: form})).status,
    "remembered": async () => localStorage.length,
  };
  const got = {};
  for (const [name, attempt] of Object.entries(attempts)) {
    try { got[name] = await attempt(); } catch (e) { got[name] = e.name; }
  }
  // without asking first, and without an answer
  for (const target of ["/uri", "/uri?t=mkdir", "/uploads/"]) {
    try { await fetch(target, {method: "POST", mode: "no-cors", body: form}); } catch (e) { }
  }
  return got;
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def gateway(shared: SharedGrid) -> Iterator[NodeProcess]:
    with gateway_running(shared.grid.client.directory) as gateway:
        yield gateway


def new_handle(gateway: NodeProcess) -> str:
    """The path of an upload in progress."""
    answer = curl(gateway, "uploads/", "-X", "POST", *TUS, "-H", "Upload-Length: 1000")
    assert answer.status == 201
    return urlsplit(answer.headers["location"]).path


def writes_since(gateway: NodeProcess, line: int) -> list[str]:
    """Methods, routes and statuses of what was no reading, as the log has them."""
    logged = [text.partition("] ")[2].partition(" received ")[0] for text in gateway.log_path.read_text().splitlines()]
    return [text for text in logged[line:] if text.startswith(("POST ", "PUT ", "PATCH ", "DELETE ", "OPTIONS "))]


def lines_of_log(gateway: NodeProcess) -> int:
    return len(gateway.log_path.read_text().splitlines())


def got(driver: Chrome) -> dict[str, object]:
    """What the attack in the page that is open got."""
    text = wait_for("the attack to end", lambda: driver.find_element(By.TAG_NAME, "body").get_attribute("data-got"))
    told: dict[str, object] = json.loads(text)
    return told


@pytest.mark.parametrize("kind", ["html", "svg"])
def test_a_hostile_file_cannot_reach_uploads(shared: SharedGrid, gateway: NodeProcess, driver: Chrome,
                                             kind: str) -> None:
    handle = new_handle(gateway)
    script = (f"<script>{ATTACK}\nattack({json.dumps(handle)}).then((got) => "
              "{ document.querySelector('body').setAttribute('data-got', JSON.stringify(got)); });</script>")
    if kind == "svg":
        script = script.replace("<script>", "<script><![CDATA[").replace("</script>", "]]></script>")
        page = ('<svg xmlns="http://www.w3.org/2000/svg"><foreignObject><body xmlns="http://www.w3.org/1999/xhtml"/>'
                f"</foreignObject>{script}</svg>")
    else:
        page = f"<!DOCTYPE html><body>{script}"
    directory = new_directory(shared.grid.client)
    path = in_directory(directory, f"hostile.{kind}")
    assert curl(gateway, path, "-T", "-", stdin=page.encode()).status == 201
    before = lines_of_log(gateway)

    driver.get(gateway.web_url + path)

    assert got(driver) == {"list": "TypeError", "abort": "TypeError", "begin": "TypeError", "upload": "TypeError",
                           "remembered": "SecurityError"}
    refused = wait_for("all of it in the log", lambda: (seen := writes_since(gateway, before))[5:] and seen)
    assert all(line.endswith(" 403") for line in refused), refused
    assert curl(gateway, handle[1:], "--head", *TUS).status == 200
    assert children(shared.plain_client, directory).keys() == {f"hostile.{kind}"}


def test_the_attack_is_one(gateway: NodeProcess, driver: Chrome) -> None:
    """In a page of the gateway's own origin all of it succeeds: what the test above sees fail is not a mistake of its
    own."""
    handle = new_handle(gateway)
    driver.get(gateway.web_url + "status")
    told = driver.execute_async_script(
        ATTACK + "attack(arguments[0]).then(arguments[arguments.length - 1]);", handle)
    assert told.pop("list") >= 1
    assert told == {"abort": 204, "begin": 201, "upload": 200, "remembered": 0}
    assert curl(gateway, handle[1:], "--head", *TUS).status in (404, 410)


def test_the_forms_of_the_node_work(shared: SharedGrid, gateway: NodeProcess, driver: Chrome) -> None:
    """A directory made on the welcome page, and another one in it."""
    driver.get(gateway.web_url)
    driver.find_element(By.CSS_SELECTOR, "form[action=uri] input[value^='Create a directory']").click()
    wait_for("the directory", lambda: "/uri/" in unquote(driver.current_url))
    assert driver.current_url.startswith(gateway.web_url)
    directory = unquote(driver.current_url).partition("/uri/")[2].rstrip("/")
    assert directory.startswith("URI:DIR2:")
    name = wait_for("its forms", lambda: driver.find_elements(
        By.XPATH, "//form[.//input[@name='t' and @value='mkdir']]//input[@name='name']"))[0]
    name.send_keys("inside")
    name.submit()
    wait_for("what is in it", lambda: "inside" in children(shared.plain_client, directory))
    status, _text = answer_of(gateway, "GET", f"/{in_directory(directory, 'inside')}/")
    assert status == 200
