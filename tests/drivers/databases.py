"""A PostgreSQL server for tests: from the system's packages, by an unprivileged user, or in a container."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

INSTALLED = Path("/usr/lib/postgresql")
"""Where Debian's packages put each version's programs."""


def program(name: str) -> str | None:
    """A program of PostgreSQL, the newest that is installed; None when there is none."""
    found = sorted(INSTALLED.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(found[-1]) if found else shutil.which(name)


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, and its superuser's password in a file of PostgreSQL's own form."""

    host: str
    port: int
    user: str
    passfile: Path

    def url(self, database: str) -> str:
        """The address of a database, as ``KEDGE_EVIDENCE_URL`` takes it: without a password."""
        return f"postgresql://{self.user}@{quote(self.host, safe='')}:{self.port}/{database}"

    def fresh(self) -> str:
        """The address of a new, empty database."""
        name = f"kedge_{secrets.token_hex(6)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as database:
            database.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def crash(self, address: str) -> bool:
        """Kills one backend of a database's users on this machine; whether there was one to kill."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with suppress(psycopg.OperationalError), psycopg.connect(address) as database:
                row = database.execute(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'kedge'"
                    " AND datname = current_database()"
                ).fetchone()
                if row is not None:
                    os.kill(row[0], signal.SIGKILL)
                    return True
            time.sleep(0.02)
        return False


@contextmanager
def from_packages() -> Iterator[Server]:
    """A server of the installed packages on a free port of 127.0.0.1, with a password; it ends with the block."""
    # Not in pytest's folder: that one is closed to others, and the server is another user where this one is root.
    with tempfile.TemporaryDirectory(prefix="kedge-postgres-") as made:
        folder = Path(made)
        as_whom: list[str] = []
        password = secrets.token_hex(16)
        secret = folder / "password"
        secret.write_text(password)
        if os.geteuid() == 0:
            whom = pwd.getpwnam("nobody")
            os.chown(folder, whom.pw_uid, whom.pw_gid)
            os.chown(secret, whom.pw_uid, whom.pw_gid)
            ids = (f"--reuid={whom.pw_uid}", f"--regid={whom.pw_gid}", "--clear-groups")
            as_whom = ["setpriv", *ids]
        passfile = folder / "pgpass"
        passfile.touch(mode=0o600)
        passfile.write_text(f"*:*:*:*:{password}\n")
        with _running(folder, as_whom, secret) as port:
            yield Server("127.0.0.1", port, "kedge", passfile)


@contextmanager
def _running(folder: Path, as_whom: list[str], secret: Path) -> Iterator[int]:
    cluster, port = folder / "cluster", _free_port()
    made = subprocess.run(
        [*as_whom, program("initdb") or "initdb", "--pgdata", str(cluster), "--username", "kedge",
         "--pwfile", str(secret), "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"],
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*as_whom, program("postgres") or "postgres", "-D", str(cluster), "-h", "127.0.0.1", "-p", str(port), "-k", ""],
            stdout=log, stderr=log, cwd="/",
        )  # fmt: skip
    try:
        wait_for("127.0.0.1", port)
        yield port
    finally:
        server.send_signal(signal.SIGINT)  # the fast shutdown: it waits for no client
        server.wait(30)


def wait_for(host: str, port: int, seconds: float = 30) -> None:
    """Waits until a server answers: any word of it will do, a refusal too."""
    until = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(
                host=host, port=port, user="nobody", connect_timeout=3, password="-"
            ).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                return
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port
