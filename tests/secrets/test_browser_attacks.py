"""A real browser opens a page of an attacker's. It tries what a page can: requests of another site, and DNS rebinding."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.secrets.browser import MISSING, PROGRAMS, Browser, browsing
from tests.secrets.ui import serving
from tests.stock import stock_temporal
from worker.client import connect
from worker.engine import Engine
from worker.engine_files import HOST
from worker.settings import Settings

pytestmark = [
    pytest.mark.temporal,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason=MISSING),
]

EVIL = "evil.example"
START = json.dumps({"workflowType": {"name": "Planted"}, "taskQueue": {"name": "q"}})
CROSS_SITE = """
const [ports, body] = arguments;
const done = JSON.parse(ports).flatMap(port => ["http", "https"].map(scheme => fetch(
    `${scheme}://127.0.0.1:${port}/api/v1/namespaces/default/workflows/planted-${port}`,
    {method: "POST", mode: "no-cors", credentials: "include", headers: {"Content-Type": "text/plain"}, body,
     // The membership ports take a request and say nothing.
     signal: AbortSignal.timeout(5000)}
).then(() => "answered", () => "nothing")));
window.told = null;
Promise.all(done).then(told => { window.told = told; });
"""
READ = """
window.told = null;
fetch(arguments[0]).then(answer => answer.text().then(text => { window.told = `${answer.status} ${text}`; }),
                         () => { window.told = "nothing"; });
"""


class Evil(BaseHTTPRequestHandler):
    """The attacker's site: an empty page, and a note of every cookie it is sent."""

    cookies: list[str] = []

    def do_GET(self) -> None:
        type(self).cookies.append(self.headers.get("Cookie", ""))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>kittens</title><p>kittens</p>")

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def site() -> Iterator[int]:
    server = ThreadingHTTPServer((HOST, 0), Evil)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Every name of the attacker's leads to this machine, as his name server would say the second time."""
    with browsing(tmp_path, f"--host-resolver-rules=MAP {EVIL} {HOST}") as window:
        yield window


def told(browser: Browser) -> Any:
    deadline = time.monotonic() + 60
    while (found := browser.run("return window.told")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def posted(browser: Browser, site: int, ports: list[int]) -> Any:
    """What a page of the attacker's gets that posts to each of these ports."""
    browser.shows(f"http://{EVIL}:{site}/", "kittens")
    browser.run(CROSS_SITE, json.dumps(ports), START)
    return told(browser)


def rebound(browser: Browser, port: int, path: str) -> str:
    """What the attacker's page reads of a port that his name leads to by now."""
    browser.load("about:blank")
    try:
        browser.load(f"http://{EVIL}:{port}{path}")
    except urllib.error.HTTPError:
        return "nothing"
    browser.run(READ, path)
    return str(told(browser))


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def test_both_attacks_reach_a_dev_server(browser: Browser, site: int, tmp_path: Path) -> None:
    """The control: what was the engine once is started from a page, and read through a name that was pointed at it."""
    grpc, http = free_port(), free_port()
    argv = [
        stock_temporal(),
        "server",
        "start-dev",
        "--headless",
        "--ip",
        HOST,
        "--port",
        str(grpc),
    ]
    argv += [
        "--http-port",
        str(http),
        "--log-level",
        "never",
        "--db-filename",
        str(tmp_path / "db"),
    ]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        workflow = f"http://{HOST}:{http}/api/v1/namespaces/default/workflows/planted-{http}"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(workflow, timeout=5)
            except urllib.error.HTTPError:
                break  # it is up, and there is no such workflow yet
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert "answered" in posted(browser, site, [http])
        with urllib.request.urlopen(workflow, timeout=5) as answer:
            assert b"Planted" in answer.read()
        assert "default" in rebound(browser, http, "/api/v1/namespaces")
    finally:
        server.kill()
        server.wait()


async def test_no_page_reaches_the_engine_or_its_ui(
    browser: Browser, site: int, engine: Engine, engine_settings: Settings, tmp_path: Path
) -> None:
    state = engine.start()
    with serving(engine_settings.home, tmp_path) as ui:
        # The user is signed in to the UI, in the very browser that opens the attacker's page.
        browser.shows(f"{ui.url}/", "Nobody is signed in here")
        browser.enter("input[name=code]", ui.code)
        browser.click("button")
        browser.shows(f"{ui.url}/namespaces/default/workflows", "Workflows")
        posted(browser, site, [*state.ports.values(), ui.port])
        browser.give_up_after(3)
        for port in state.ports.values():
            assert rebound(browser, port, "/api/v1/namespaces") == "nothing"
        browser.give_up_after(60)
        # Even who knows the word of its path.
        word = ui.url.rpartition("/")[2]
        assert rebound(browser, ui.port, f"/{word}/api/v1/namespaces").startswith("421 ")
        # Browsers send cookies to every port of a name: another user's server on this machine is no less "127.0.0.1".
        Evil.cookies.clear()
        browser.shows(f"http://{HOST}:{site}/", "kittens")
        assert Evil.cookies
        assert not any("kedge_ui" in cookie for cookie in Evil.cookies)
        # And it is signed in still: what was refused was refused for where it came from.
        browser.shows(f"{ui.url}/namespaces/default/workflows", "Workflows")
    client = await connect(engine_settings)
    found = [one.id async for one in client.list_workflows("WorkflowType = 'Planted'")]
    assert found == []
