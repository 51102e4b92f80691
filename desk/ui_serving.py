"""Running Temporal's web UI for a home (``kedge ui``): the UI on a socket of this user's, a sign-in in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from desk.listening import impatient, listen, myself, quiet
from desk.ui_state import UiState, state_file
from kedge.drivers.files import open_private
from kedge.drivers.owners import make_folder
from kedge.model.errors import EngineError
from worker import processes
from worker.certificates import SERVER_NAME, Certificates
from worker.engine import Engine, EngineState
from worker.engine_files import HOST, EngineFiles
from worker.provision import UI, ProvisionError, provide
from worker.settings import EMBEDDED_NAMESPACE, Settings
from worker.ui_server import SignIns, UiRules, client_of_socket, ui_application

START_SECONDS = 20.0
_PASSED_ON = ("PATH", "HOME", "LANG", "TZ", "TMPDIR")


async def serve(settings: Settings, port: int, say: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT. Raises ``EngineError``: no engine here, no UI to be had, a port that is taken."""
    import uvicorn  # noqa: PLC0415 - for who serves

    engine = _engine(settings)
    try:
        program = await asyncio.to_thread(provide, UI, say=say)
    except ProvisionError as error:
        raise EngineError(str(error), next_step="install Go, and try again") from error
    listener = listen(HOST, port, "the web UI")
    chosen = listener.getsockname()[1]
    # A word of its own in every address: see worker.ui_server.
    base = f"/{secrets.token_urlsafe(18)}"
    rules = UiRules(frozenset({f"{HOST}:{chosen}", f"localhost:{chosen}"}), base)
    url = f"http://{HOST}:{chosen}{base}/"
    with contextlib.closing(listener), _running(program.path, engine, settings, base) as socket:
        say(f"Temporal's web UI: {url}")
        sign_ins = SignIns(time.monotonic, lambda code: say(f"one-time code: {code}"))
        async with client_of_socket(str(socket)) as ui:
            config = uvicorn.Config(
                ui_application(rules, sign_ins, ui),
                log_config=None, access_log=False, server_header=False, date_header=False,
                lifespan="off", ws="none", http=impatient(), limit_concurrency=64, timeout_keep_alive=30,
                # A page that waits for news would keep it from ending.
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=32_768, proxy_headers=False,
            )  # fmt: skip
            server = quiet(uvicorn.Server)(config)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(number, server.handle_exit, number, None)
            processes.write_state(state_file(settings), UiState(process=myself(), url=url))
            try:
                await server.serve(sockets=[listener])
            finally:
                state_file(settings).unlink(missing_ok=True)


def _engine(settings: Settings) -> EngineState:
    if not settings.embedded:
        raise EngineError(
            "a cluster elsewhere is used, and it has a web UI of its own",
            next_step="ask whoever runs it for its address",
        )
    state = Engine(settings).state()
    if state is None:
        raise EngineError(
            f"the embedded engine of {settings.home} is not running", next_step="`kedge up`"
        )
    return state


@contextlib.contextmanager
def _running(program: Path, engine: EngineState, settings: Settings, base: str) -> Iterator[Path]:
    """The UI, while the block runs; the socket it listens on. It ends with this process, however that ends."""
    log = settings.log_dir / "ui.log"
    make_folder(log.parent)
    # Made with mode 0700, and short: the name of a socket has room for 100 letters.
    with (
        tempfile.TemporaryDirectory(prefix="kedge-ui-") as folder,
        open_private(log, os.O_APPEND) as output,
    ):
        file, socket = Path(folder) / "ui.json", Path(folder) / "socket"
        file.write_text(json.dumps(_configuration(engine, settings, base)), encoding="utf-8")
        child = subprocess.Popen(
            [str(program), str(file), str(socket)],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START_SECONDS
            while not socket.exists():
                if child.poll() is not None or time.monotonic() > deadline:
                    raise EngineError(
                        f"Temporal's web UI did not start; the end of {log}:\n{processes.tail(log)}",
                        next_step="mend what it says there",
                    )
                time.sleep(0.02)
            yield socket
        finally:
            child.kill()
            child.wait()


def _configuration(engine: EngineState, settings: Settings, base: str) -> dict[str, object]:
    held = Certificates(EngineFiles(settings.engine_dir).certificates)
    return {
        "temporalGrpcAddress": engine.address,
        "publicPath": base,
        "enableUi": True,
        "defaultNamespace": EMBEDDED_NAMESPACE,
        "disableNewsFetch": True,
        "disableWriteActions": True,
        "hideLogs": True,
        "tls": {
            "caFile": str(held.authority),
            "certFile": str(held.client),
            "keyFile": str(held.client),
            "serverName": SERVER_NAME,
            "enableHostVerification": True,
        },
    }
