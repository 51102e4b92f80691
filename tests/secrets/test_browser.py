"""Temporal's own web UI in a real browser: ciphertext, then, once somebody signed in by SSH key, what stands in it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from desk import codec as desk_codec
from tests.secrets.browser import MISSING, PROGRAMS, browsing
from tests.secrets.conftest import Place, Staged
from tests.secrets.test_codec_server import KEDGE, know, readable
from tests.secrets.ui import Ui, serving
from worker.engine import Engine
from worker.settings import Settings

pytestmark = [
    pytest.mark.temporal,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason=MISSING),
]

ENDPOINT = """
localStorage.setItem('overrideRemoteCodecConfiguration', 'true');
localStorage.setItem('endpoint', JSON.stringify(arguments[0]));
localStorage.setItem('includeCredentials', 'true');
localStorage.setItem('passAccessToken', 'false');
"""
"""What the UI's dialog behind the glasses keeps: a browser setting with cross-origin credentials."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A home with a ring, and its engine."""
    settings = Settings.load(home=tmp_path_factory.mktemp("seen"))
    desk_codec.init(settings)
    engine = Engine(settings)
    engine.start()
    yield Place(settings, engine)
    engine.stop()


@pytest.fixture
def ui(place: Place, tmp_path: Path) -> Iterator[Ui]:
    with serving(place.settings.home, tmp_path) as running:
        yield running


@pytest.fixture
def server(place: Place, ui: Ui, tmp_path: Path) -> Iterator[str]:  # noqa: ARG001 - it finds the UI that runs
    """A codec server as anybody starts it: nobody names the UI to it."""
    with (tmp_path / "codec-server.log").open("w") as log:
        process = subprocess.Popen(
            [KEDGE, "--home", str(place.settings.home), "codec", "serve"],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        while "may call it" not in (said := (tmp_path / "codec-server.log").read_text()):
            assert process.poll() is None, said
        yield said.split("\n")[0].split()[-1]
        process.terminate()
        assert process.wait(20) == 0


async def test_the_web_ui_shows_a_history_to_who_signed_in_and_ciphertext_to_others(
    place: Place, staged: Staged, ui: Ui, server: str, tmp_path: Path
) -> None:
    scene = await staged(await place.client(), nodes=3)
    await know(place, scene, readable(scene.policy))
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook()))
        plan = (await scene.waits_for(run, "ship")).plan
    login = [str(KEDGE), "--home", str(place.settings.home), "codec", "login", "--code"]
    signed = await asyncio.to_thread(
        subprocess.run, [*login, "--key", str(scene.keys["ada"])],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    history = f"{ui.url}/namespaces/default/workflows/{quote(run, safe='')}"
    await asyncio.to_thread(
        look, ui, history, (run, plan), server, signed.stdout.split()[-1], tmp_path / "browser"
    )
    log = (tmp_path / "codec-server.log").read_text()
    assert "opened" in log
    assert plan not in log


def look(ui: Ui, history: str, words: tuple[str, str], server: str, code: str, folder: Path) -> None:  # fmt: skip
    """What the browser shows before, while and after somebody is signed in."""
    run, plan = words
    folder.mkdir()
    with browsing(folder) as browser:
        browser.shows(history, "Nobody is signed in here")
        browser.enter("input[name=code]", ui.code)
        browser.click("button")
        assert plan not in browser.shows(history, run, "Input", "Running")
        browser.shows(f"{server}/", "Nobody is signed in here")
        browser.enter("input[name=code]", code)
        browser.click("button")
        browser.shows(f"{server}/", "Signed in as ada")
        assert "kedge_codec" not in browser.run("return document.cookie")
        browser.shows(history, run)
        browser.run(ENDPOINT, server)
        shown = browser.shows(history, run, plan, "olga")
        assert "Unauthorized" not in shown
        browser.shows(f"{server}/", "Sign out")
        browser.click("button")
        browser.shows(f"{server}/", "Nobody is signed in here")
        assert plan not in browser.shows(history, run, "Input", "Unauthorized")
