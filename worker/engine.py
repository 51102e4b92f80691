"""The embedded engine: a Temporal dev server of kedge's own, on a file database.

It runs detached from whoever started it, on 127.0.0.1 only, and is found again through
``<home>/run/engine.json``. Restarted, it takes the same ports and the same database, so workers
reconnect by themselves and every run goes on where it was.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from worker import processes
from worker.processes import ProcessIdentity
from worker.provision import ProvisionError, TemporalBinary, provide_temporal
from worker.settings import EMBEDDED_NAMESPACE, Settings

SEARCH_ATTRIBUTES = ("KedgeFleet", "KedgePhase", "KedgeRelease", "KedgeWaitingFor")
"""What runs are found by in Temporal's own UI; all are keywords."""

READY_SECONDS = 30.0
STOP_SECONDS = 15.0

_HOST = "127.0.0.1"
# Below the range that the kernel gives to outgoing connections: a port there could be taken by
# anyone while the engine is down, and it must come back on the same one.
_PORT_RANGE = (20_000, 32_000)
# The dev server's defaults are for trying things out: one history shard with one writer at a
# time, and limits that a wave of a few hundred nodes reaches. Eager: a worker that ends a workflow
# task gets activities it has just asked for with the answer, which saves a poll and a transaction.
_DYNAMIC_CONFIG = {
    "history.shardIOConcurrency": 8,
    "history.rps": 50_000,
    "frontend.rps": 50_000,
    "frontend.namespaceRPS": 50_000,
    "frontend.namespaceCount": 10_000,
    "matching.rps": 50_000,
    "system.enableActivityEagerExecution": True,
}
# WAL with NORMAL survives every kill of a process; a loss of power may cost the last commits, but
# never the database.
_SQLITE_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000")
# What the server sees of this process's environment, and what begins with LC_. The keys of payloads, the secrets of
# daemons, passwords and API keys are often in variables, and none of them is for the one who is to see ciphertext only.
_PASSED_ON = (
    *(
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "TZ",
        "TMPDIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ),
    *("GOMAXPROCS", "GOMEMLIMIT", "GOGC", "GODEBUG", "GOTRACEBACK"),
)


class EngineError(Exception):
    """The engine cannot do what was asked; the message ends in what to do next."""


class EngineState(BaseModel):
    """Where the engine is. Written once it answers; it outlives the engine, for its ports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessIdentity
    port: int
    http_port: int
    ui_port: int | None
    binary: Path
    version: str
    database: Path
    log: Path

    @property
    def address(self) -> str:
        """Where clients connect: ``host:port``."""
        return f"{_HOST}:{self.port}"

    @property
    def ui_url(self) -> str | None:
        """Where the Temporal web UI is, if it runs."""
        return None if self.ui_port is None else f"http://{_HOST}:{self.ui_port}"


class _Ports(BaseModel):
    model_config = ConfigDict(frozen=True)

    grpc: int
    http: int
    ui: int | None


class Engine:
    """The one embedded engine of a home. Any number of these may look at the same one."""

    def __init__(self, settings: Settings, say: Callable[[str], None] = lambda _: None) -> None:
        """``say`` is told, in sentences, what takes time."""
        self._settings = settings
        self._say = say
        self._state_file = settings.run_dir / "engine.json"
        self._lock_file = settings.run_dir / "engine.lock"
        self._log = settings.log_dir / "engine.log"
        self._database = settings.engine_dir / "temporal.db"

    def last_state(self) -> EngineState | None:
        """What the state file says, whether or not that engine still runs."""
        return processes.read_state(self._state_file, EngineState)

    def state(self) -> EngineState | None:
        """The engine that runs now; None when none does (a stale state file counts as none)."""
        state = self.last_state()
        return state if state is not None and processes.is_alive(state.process) else None

    def answers(self) -> bool:
        """Whether the engine runs and serves its namespace with kedge's search attributes."""
        state = self.state()
        return state is not None and _serves(state.http_port)

    def start(self) -> EngineState:
        """Starts the engine, or finds it running; returns once it answers.

        Raises ``EngineError`` when there is no Temporal server to start, a configured port is
        taken, or the server does not answer within ``READY_SECONDS`` (with the tail of its log).
        """
        try:
            with processes.exclusive(self._lock_file, seconds=60, what="starting the engine"):
                running = self.state()
                if running is None:
                    return self._start()
                self._await(running)
                return running
        except (processes.ProcessError, ProvisionError) as error:
            raise EngineError(str(error)) from error
        except OSError as error:
            raise EngineError(
                f"{self._settings.home} cannot be used: {error}; next: make room or give the right "
                "to write there, or name another folder with KEDGE_HOME"
            ) from error

    def stop(self, *, grace: float = STOP_SECONDS) -> processes.Stopped:
        """Stops the engine; runs stay in the database and go on after the next start.

        SIGTERM, then SIGKILL after ``grace`` seconds: its state is in the database, not in memory.
        The state file stays, since it keeps the ports.
        """
        state = self.state()
        if state is None:
            return "already gone"
        return processes.stop(state.process, grace=grace, kill=True)

    def kill(self) -> bool:
        """SIGKILL at once, for drills; False when no engine runs."""
        state = self.state()
        if state is None or not processes.send(state.process, signal.SIGKILL):
            return False
        return processes.wait_gone(state.process, 10)

    def _start(self) -> EngineState:
        binary = provide_temporal(self._settings.temporal_binary, say=self._say)
        self._database.parent.mkdir(parents=True, exist_ok=True)
        processes.trim_log(self._log)
        failure: EngineError | None = None
        # A free port may be taken between the look and the start; that is worth another try.
        for _ in range(3):
            ports = self._choose_ports()
            before = self._log.stat().st_size if self._log.exists() else 0
            try:
                return self._launch(binary, ports)
            except EngineError as error:
                failure = error
                if "address already in use" not in _since(self._log, before):
                    raise
        assert failure is not None  # noqa: S101 - the loop ran
        raise failure

    def _launch(self, binary: TemporalBinary, ports: _Ports) -> EngineState:
        passed = {
            name: value
            for name, value in os.environ.items()
            if name in _PASSED_ON or name.startswith("LC_")
        }
        identity = processes.start_detached(
            _argv(binary.path, self._database, ports), log=self._log, environment=passed
        )
        state = EngineState(
            process=identity,
            port=ports.grpc,
            http_port=ports.http,
            ui_port=ports.ui,
            binary=binary.path,
            version=binary.version,
            database=self._database,
            log=self._log,
        )
        # Before it answers: whoever dies while waiting must not leave an engine nobody finds.
        processes.write_state(self._state_file, state)
        self._await(state)
        return state

    def _await(self, state: EngineState) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not _serves(state.http_port):
            if not processes.is_alive(state.process):
                raise EngineError(
                    f"the Temporal server ended at its start; the end of {state.log}:\n"
                    f"{processes.tail(state.log)}\n"
                    "next: mend what it says there, then `kedge up`"
                )
            if time.monotonic() >= deadline:
                raise EngineError(
                    f"the Temporal server (pid {state.process.pid}) did not answer on "
                    f"{state.address} within {READY_SECONDS:.0f} s; the end of {state.log}:\n"
                    f"{processes.tail(state.log)}\n"
                    "next: `kedge down`, then `kedge up`"
                )
            time.sleep(0.05)

    def _choose_ports(self) -> _Ports:
        """The ports of the last time where nothing else was set, free ones where there was none."""
        last = self.last_state()
        settings = self._settings
        taken: set[int] = set()

        def choose(configured: int | None, name: str, before: int | None) -> int:
            if configured is not None:
                if not _is_free(configured):
                    raise EngineError(
                        f"port {configured}, which setting {name} names, is taken by another "
                        f"program; next: end that program, or set KEDGE_{name.upper()} to a free port"
                    )
                port = configured
            elif before is not None and before not in taken and _is_free(before):
                port = before
            else:
                if before is not None:
                    self._say(f"port {before}, which the engine had before, is taken; moving")
                port = _free_port(taken)
            taken.add(port)
            return port

        grpc = choose(settings.engine_port, "engine_port", last.port if last else None)
        http = choose(None, "", last.http_port if last else None)
        ui = None
        if settings.engine_ui:
            ui = choose(settings.engine_ui_port, "engine_ui_port", last.ui_port if last else None)
        return _Ports(grpc=grpc, http=http, ui=ui)


def _argv(binary: Path, database: Path, ports: _Ports) -> Sequence[str]:
    argv = [str(binary), "server", "start-dev", "--ip", _HOST, "--port", str(ports.grpc)]
    argv += ["--http-port", str(ports.http), "--db-filename", str(database)]
    argv += ["--namespace", EMBEDDED_NAMESPACE, "--log-format", "json", "--log-level", "warn"]
    argv += ["--headless"] if ports.ui is None else ["--ui-port", str(ports.ui)]
    for pragma in _SQLITE_PRAGMAS:
        argv += ["--sqlite-pragma", pragma]
    for attribute in SEARCH_ATTRIBUTES:
        argv += ["--search-attribute", f"{attribute}=Keyword"]
    for key, value in _DYNAMIC_CONFIG.items():
        argv += ["--dynamic-config-value", f"{key}={json.dumps(value)}"]
    return argv


def _serves(http_port: int) -> bool:
    """Asks the server's HTTP side: no SDK needs to be loaded to know that it is up."""
    url = f"http://{_HOST}:{http_port}/cluster/namespaces/{EMBEDDED_NAMESPACE}/search-attributes"
    try:
        with _DIRECT.open(url, timeout=2) as reply:
            known = json.load(reply)
    except (OSError, ValueError, urllib.error.URLError):
        return False
    attributes = known.get("customAttributes", {}) if isinstance(known, dict) else {}
    return all(name in attributes for name in SEARCH_ATTRIBUTES)


# A proxy set in the environment has no business between two programs of this machine.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the server does: a connection of the last engine that lingers is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _free_port(taken: set[int]) -> int:
    low, high = _PORT_RANGE
    for _ in range(200):
        port = low + secrets.randbelow(high - low)
        if port not in taken and _is_free(port):
            return port
    raise EngineError(
        f"no free port found between {low} and {high}; next: name one with KEDGE_ENGINE_PORT"
    )


def _since(log: Path, offset: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(offset)
            return file.read(200_000).decode("utf-8", errors="replace")
    except OSError:
        return ""
