"""A stock ssh-agent that listens."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def ssh_agent(
    socket: Path, environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, str]]:
    """The environment in which it is reached. It prints its address once it listens; the socket is there a moment before."""
    inherited = os.environ if environment is None else environment
    process = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.PIPE, text=True, env=inherited
    )
    try:
        assert process.stdout is not None
        assert "SSH_AUTH_SOCK" in process.stdout.readline()
        yield {**inherited, "SSH_AUTH_SOCK": str(socket)}
    finally:
        process.terminate()
        process.wait(10)
