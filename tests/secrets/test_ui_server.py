"""The web UI's front: no other name, no other site, no one who is not signed in, nothing that changes anything."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.secrets.ui import KEDGE, Ui, serving
from worker import processes
from worker.engine import Engine
from worker.engine_files import HOST
from worker.settings import Settings

pytestmark = pytest.mark.temporal


@pytest.fixture(scope="module")
def ui(
    engine: Engine, engine_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ui]:
    engine.start()
    with serving(engine_settings.home, tmp_path_factory.mktemp("ui")) as running:
        yield running


def ask(
    ui: Ui, path: str, method: str = "GET", body: str = "", /, **headers: str
) -> tuple[int, dict[str, str], str]:
    """One request as anybody on this machine can send it; ``path`` is below the UI's own word."""
    connection = http.client.HTTPConnection(HOST, ui.port, timeout=30)
    base = ui.url.removeprefix(f"http://{HOST}:{ui.port}")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, base + path, body or None, {"Host": f"{HOST}:{ui.port}", **named})
    answer = connection.getresponse()
    return (
        answer.status,
        {name.lower(): value for name, value in answer.getheaders()},
        answer.read().decode(),
    )


def signed_in(ui: Ui) -> str:
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    status, headers, _ = ask(ui, "/sign-in", "POST", f"code={ui.code}", **form)
    assert status == 303
    assert all(word in headers["set-cookie"] for word in ("HttpOnly", "SameSite=strict", "Path=/"))
    return headers["set-cookie"].partition(";")[0]


NAMESPACES = "/api/v1/namespaces"


def test_who_signed_in_reads_and_a_code_is_good_once(ui: Ui) -> None:
    used = ui.code
    cookie = signed_in(ui)
    status, headers, body = ask(ui, NAMESPACES, Cookie=cookie)
    assert status == 200
    assert "default" in {one["namespaceInfo"]["name"] for one in json.loads(body)["namespaces"]}
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert "kit.start" in ask(ui, "/namespaces/default/workflows", Cookie=cookie)[2]
    deadline = time.monotonic() + 10
    while ui.code == used:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert ask(ui, "/sign-in", "POST", f"code={used}", **form)[0] == 403


def test_nobody_else_gets_anything(ui: Ui) -> None:
    assert ask(ui, NAMESPACES)[0] == 401
    assert ask(ui, NAMESPACES, Cookie="kedge_ui=guessed")[0] == 401
    status, _, body = ask(ui, "/")
    assert status == 401
    assert "Nobody is signed in here" in body
    for code in ("", "AAAAA-AAAAA-AAAAA-AAAAA"):
        assert ask(ui, "/sign-in", "POST", f"code={code}")[0] == 403


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{80}", "127.0.0.1", "127.0.0.1:1", "localhost.", ""]
)
def test_a_name_that_was_pointed_here_gets_nothing_even_with_the_cookie(ui: Ui, host: str) -> None:
    cookie = signed_in(ui)
    assert ask(ui, NAMESPACES, Cookie=cookie, Host=host)[0] in (400, 421)
    # The port of the server does not make another name its own.
    assert ask(ui, NAMESPACES, Cookie=cookie, Host=f"evil.example:{ui.port}")[0] == 421


@pytest.mark.parametrize("headers", [
    {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Origin": "https://evil.example"},
    {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "http://localhost"},
])  # fmt: skip
def test_a_page_of_another_site_gets_nothing_even_with_the_cookie(
    ui: Ui, headers: dict[str, str]
) -> None:
    cookie = signed_in(ui)
    assert ask(ui, NAMESPACES, Cookie=cookie, **headers)[0] == 403
    assert ask(ui, NAMESPACES, Cookie=cookie, Sec_Fetch_Site="same-origin")[0] == 200


def test_without_the_word_of_its_path_there_is_nothing(ui: Ui) -> None:
    cookie = signed_in(ui)
    base = ui.url.rpartition("/")[2]
    for path in (
        "/",
        "/api/v1/namespaces",
        f"/{base[:-1]}/api/v1/namespaces",
        f"/{base}x/",
        "//",
        f"/%2e/{base}/",
    ):
        connection = http.client.HTTPConnection(HOST, ui.port, timeout=30)
        connection.request("GET", path, headers={"Host": f"{HOST}:{ui.port}", "Cookie": cookie})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (404, b"nothing is here"), path


WORKFLOW = "/api/v1/namespaces/default/workflows/planted"


@pytest.mark.parametrize(("method", "path"), [
    ("POST", WORKFLOW), ("POST", f"{WORKFLOW}/terminate"), ("POST", f"{WORKFLOW}/signal/order"), ("PUT", WORKFLOW),
    ("DELETE", WORKFLOW), ("POST", f"{WORKFLOW}/query/status/../../terminate"), ("POST", "/api/v1/namespaces"),
    ("POST", f"{WORKFLOW}/query/status%2F..%2Fterminate"), ("POST", "/render"),
])  # fmt: skip
def test_who_is_signed_in_changes_nothing(ui: Ui, method: str, path: str) -> None:
    cookie = signed_in(ui)
    body = json.dumps({"workflowType": {"name": "Planted"}, "taskQueue": {"name": "q"}})
    assert ask(ui, path, method, body, Cookie=cookie)[0] in (400, 404, 405)
    listed = ask(
        ui,
        "/api/v1/namespaces/default/workflow-count?query=WorkflowType%3D%22Planted%22",
        Cookie=cookie,
    )
    assert json.loads(listed[2]).get("count", "0") in ("0", 0)


ATTACK = """
import glob, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path in glob.glob("/tmp/kedge-ui-*") + sys.argv[1:]:
    try:
        os.listdir(path)
        print("entered", path)
    except OSError:
        pass
    try:
        there = socket.socket(socket.AF_UNIX)
        there.connect(path if path.endswith("socket") else path + "/socket")
        print("connected to", path)
    except OSError:
        pass
print("tried")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
def test_another_user_reaches_neither_the_socket_nor_a_port_of_the_stock_ui(ui: Ui) -> None:
    argv = Path(f"/proc/{ui.child}/cmdline").read_bytes().split(b"\0")
    socket = Path(argv[2].decode())
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, str(socket)], capture_output=True, text=True, timeout=60, check=True, cwd="/"
    )  # fmt: skip
    assert done.stdout == "tried\n"
    inodes = {entry.readlink().name for entry in Path(f"/proc/{ui.child}/fd").iterdir()}
    tables = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    held = [line.split() for line in tables.splitlines()]
    assert not [line for line in held if line[3] == "0A" and f"socket:[{line[9]}]" in inodes]


def test_it_ends_with_whoever_started_it_even_by_a_kill(
    engine: Engine, engine_settings: Settings, tmp_path: Path
) -> None:
    engine.start()
    said = tmp_path / "said"
    with said.open("w") as log:
        process = subprocess.Popen(
            [KEDGE, "--home", str(engine_settings.home), "ui"], stderr=log, text=True
        )
    running = Ui(process, said)
    while "one-time code: " not in said.read_text():
        assert process.poll() is None, said.read_text()
        time.sleep(0.05)
    child = processes.identify(running.child)
    assert child is not None
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert processes.wait_gone(child, 10)


def test_without_an_engine_it_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run([KEDGE, "--home", str(tmp_path), "ui"], capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 5
    assert re.search(r"is not running\s+next: `kedge up`", done.stderr)
