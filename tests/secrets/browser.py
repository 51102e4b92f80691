"""A headless browser, driven by plain WebDriver over HTTP: Debian's chromium and chromium-driver, nothing else."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromedriver")
MISSING = "there is no chromium with its driver here (Debian: chromium, chromium-driver)"
_ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1500,1600",
)  # fmt: skip
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_LISTENS = re.compile(r"started successfully on port (\d+)\.")
RELOAD = 20.0
"""Seconds after which a page that does not show what is waited for is loaded anew: a browser gives up what it loads
when a network interface comes or goes on the machine, as they do where containers are started."""


class Browser:
    """One browser window."""

    def __init__(self, driver: str, profile: Path, *more: str) -> None:
        self._url = driver
        options = {
            "binary": str(shutil.which("chromium")),
            "args": [*_ARGUMENTS, *more, f"--user-data-dir={profile}"],
        }
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        session = self._call("POST", "/session", {"capabilities": wanted})
        self._url = f"{driver}/session/{session['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        content = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(f"{self._url}{path}", content, {"Content-Type": "application/json"}, method=method)  # fmt: skip
        with _DIRECT.open(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def give_up_after(self, seconds: float) -> None:
        """How long a page may take to load."""
        self._call("POST", "/timeouts", {"pageLoad": int(seconds * 1000)})

    def load(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *words: str) -> Any:
        return self._call("POST", "/execute/sync", {"script": script, "args": list(words)})

    def text(self) -> str:
        return str(self.run("return document.body ? document.body.innerText : ''"))

    def enter(self, selector: str, text: str) -> None:
        self._call("POST", f"/element/{self._element(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._element(selector)}/click")

    def _element(self, selector: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return str(next(iter(found.values())))

    def shows(self, url: str, *words: str) -> str:
        """Loads a page until it shows all these words; its whole text then."""
        while True:
            with contextlib.suppress(urllib.error.HTTPError):
                self.load(url)
            until = time.monotonic() + RELOAD
            while time.monotonic() < until:
                with contextlib.suppress(urllib.error.HTTPError):
                    text = self.text()
                    if all(word in text for word in words):
                        return text
                time.sleep(0.2)

    def close(self) -> None:
        self._call("DELETE", "")


@contextlib.contextmanager
def browsing(folder: Path, *more: str) -> Iterator[Browser]:
    """A browser with a new profile, and its driver; ``more`` are arguments of the browser's."""
    log = folder / "chromedriver.log"
    with log.open("w") as out:
        driver = subprocess.Popen(
            [str(shutil.which("chromedriver")), "--port=0"], stdout=out, stderr=out
        )
    try:
        # Its first line says that it starts "on port 0".
        while (listens := _LISTENS.search(log.read_text())) is None:
            assert driver.poll() is None, log.read_text()
            time.sleep(0.05)
        browser = Browser(f"http://127.0.0.1:{listens[1]}", folder / "profile", *more)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(20)
