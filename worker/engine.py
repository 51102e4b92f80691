"""The embedded engine: a Temporal server of kedge's own, on a file database, for holders of the home's certificate.

It runs detached from whoever started it, on 127.0.0.1 only, and is found again through ``<home>/run/engine.json``.
Every connection is TLS with a client certificate (:mod:`worker.certificates`), and there is no HTTP port, so neither
another user of the machine nor a web page can ask it for anything. Restarted, it takes the same ports and the same
database, so workers reconnect by themselves and every run goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kedge.drivers.owners import make_folder
from worker import certificates, engine_api, processes
from worker.certificates import CertificateError
from worker.engine_files import CONFIGURATION, HOST, PORTS, EngineFiles
from worker.processes import ProcessIdentity
from worker.provision import Program, ProvisionError, provide_server
from worker.settings import Settings

SEARCH_ATTRIBUTES = ("KedgeFleet", "KedgePhase", "KedgeRelease", "KedgeWaitingFor")
"""What runs are found by in Temporal's own UI; all are keywords."""

READY_SECONDS = 30.0
STOP_SECONDS = 15.0

# Below the range that the kernel gives to outgoing connections: a port there could be taken by
# anyone while the engine is down, and it must come back on the same one.
_PORT_RANGE = (20_000, 32_000)
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
    """Where the engine is. Written before it answers; it outlives the engine, for its ports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessIdentity
    ports: dict[str, int]
    """Every port, by what listens there (``PORTS``)."""
    profile: Path
    """Temporal's environment configuration for its clients: the address and the client certificate."""
    binary: Path
    version: str
    database: Path
    log: Path

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self.ports["frontend"]

    @property
    def address(self) -> str:
        """Where clients connect: ``host:port``."""
        return f"{HOST}:{self.port}"


class _DevServer(BaseModel):
    """What a kedge that started a dev server wrote: the same database, without certificates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessIdentity
    port: int
    http_port: int
    ui_port: int | None
    binary: Path
    version: str
    database: Path
    log: Path


class Engine:
    """The one embedded engine of a home. Any number of these may look at the same one."""

    def __init__(self, settings: Settings, say: Callable[[str], None] = lambda _: None) -> None:
        """``say`` is told, in sentences, what takes time."""
        self._settings = settings
        self._say = say
        self._state_file = settings.run_dir / "engine.json"
        self._lock_file = settings.run_dir / "engine.lock"
        self._log = settings.log_dir / "engine.log"
        self._files = EngineFiles(settings.engine_dir)

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
        return state is not None and engine_api.answers(state.profile, SEARCH_ATTRIBUTES)

    def dev_server(self) -> ProcessIdentity | None:
        """The dev server that an earlier kedge started for this home, while it runs."""
        found = processes.read_state(self._state_file, _DevServer)
        return found.process if found is not None and processes.is_alive(found.process) else None

    def start(self) -> EngineState:
        """Starts the engine, or finds it running; returns once it answers.

        A dev server of an earlier kedge is stopped first: its database is taken over as it is, with every run in it.
        Raises ``EngineError`` when there is no Temporal server to start, a configured port is taken, the certificates
        cannot be used, or the server does not answer within ``READY_SECONDS`` (with the tail of its log).
        """
        try:
            with processes.exclusive(self._lock_file, seconds=60, what="starting the engine"):
                running = self.state()
                if running is None:
                    return self._start()
                self._await(running)
                return running
        except (processes.ProcessError, ProvisionError, CertificateError) as error:
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
        process = self.dev_server() if state is None else state.process
        if process is None:
            return "already gone"
        return processes.stop(process, grace=grace, kill=True)

    def kill(self) -> bool:
        """SIGKILL at once, for drills; False when no engine runs."""
        state = self.state()
        if state is None or not processes.send(state.process, signal.SIGKILL):
            return False
        return processes.wait_gone(state.process, 10)

    def _start(self) -> EngineState:
        program = provide_server(self._settings.temporal_binary, say=self._say)
        self._retire_dev_server()
        make_folder(self._files.folder)
        held = certificates.ensure(self._files.certificates)
        _drop_half_made(self._files.database)
        processes.trim_log(self._log)
        failure: EngineError | None = None
        # A free port may be taken between the look and the start; that is worth another try.
        for _ in range(3):
            ports = self._choose_ports()
            before = self._log.stat().st_size if self._log.exists() else 0
            self._files.write(ports, held)
            try:
                return self._launch(program, ports)
            except EngineError as error:
                failure = error
                if "address already in use" not in _since(self._log, before):
                    raise
        assert failure is not None  # noqa: S101 - the loop ran
        raise failure

    def _retire_dev_server(self) -> None:
        running = self.dev_server()
        if running is None:
            return
        self._say(
            f"stops the dev server of an earlier kedge (pid {running.pid}); its database is taken over, runs go on"
        )
        if processes.stop(running, grace=STOP_SECONDS, kill=True) == "still running":
            raise EngineError(
                f"the dev server of an earlier kedge (pid {running.pid}) does not end; next: end it, then `kedge up`"
            )

    def _launch(self, program: Program, ports: dict[str, int]) -> EngineState:
        passed = {
            name: value
            for name, value in os.environ.items()
            if name in _PASSED_ON or name.startswith("LC_")
        }
        # Who may call is decided by the certificate; whoever has it may do everything.
        argv = [str(program.path), "--config-file", CONFIGURATION, "--allow-no-auth", "start"]
        identity = processes.start_detached(
            argv, log=self._log, environment=passed, folder=self._files.folder
        )
        state = EngineState(
            process=identity,
            ports=ports,
            profile=self._files.profile,
            binary=program.path,
            version=program.version,
            database=self._files.database,
            log=self._log,
        )
        # Before it answers: whoever dies while waiting must not leave an engine nobody finds.
        processes.write_state(self._state_file, state)
        self._await(state)
        return state

    def _await(self, state: EngineState) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not engine_api.prepare(state.profile, SEARCH_ATTRIBUTES):
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
            time.sleep(0.02)

    def _choose_ports(self) -> dict[str, int]:
        """The ports of the last time where nothing else was set, free ones where there was none."""
        last = self._last_ports()
        taken: set[int] = set()
        return {name: self._choose_port(name, last.get(name), taken) for name in PORTS}

    def _last_ports(self) -> dict[str, int]:
        last = self.last_state()
        if last is not None:
            return last.ports
        before = processes.read_state(self._state_file, _DevServer)
        return {} if before is None else {"frontend": before.port}

    def _choose_port(self, name: str, before: int | None, taken: set[int]) -> int:
        configured = self._settings.engine_port if name == "frontend" else None
        if configured is not None:
            if not _is_free(configured):
                raise EngineError(
                    f"port {configured}, which setting engine_port names, is taken by another "
                    "program; next: end that program, or set KEDGE_ENGINE_PORT to a free port"
                )
            port = configured
        elif before is not None and before not in taken and _is_free(before):
            port = before
        else:
            if before is not None and name == "frontend":
                self._say(f"port {before}, which the engine had before, is taken; moving")
            port = _free_port(taken)
        taken.add(port)
        return port


def _drop_half_made(database: Path) -> None:
    """Removes a database whose first start was killed while it made its tables: there is no namespace in it, and so
    nothing else. The server would take it for whole.
    """
    if not database.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as held:
            (namespaces,) = held.execute("SELECT count(*) FROM namespaces").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            return
        namespaces = 0
    except sqlite3.DatabaseError:
        return
    if not namespaces:
        for name in (database.name, f"{database.name}-wal", f"{database.name}-shm"):
            database.with_name(name).unlink(missing_ok=True)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the server does: a connection of the last engine that lingers is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
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
