"""Writers that can be killed by the hundred: each is a worker's own legs, run without an engine, in a process of its own.

``python -m tests.chaos.writers`` has everything loaded and forks a writer for each line it reads: a fork takes
milliseconds, a start of Python a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.legs import LegActivities
from kedge.model.run import LegRequest, Run
from worker.settings import Settings
from worker.wiring import drivers_of, ground_of


async def write(asked: dict[str, Any]) -> None:
    """Runs the legs it is given, in order; says each that is done and written down in a file of its own."""
    settings = Settings.load(**asked["settings"])
    drivers = drivers_of(settings)
    legs = LegActivities(ground_of(drivers, await Client.connect("127.0.0.1:1", lazy=True)))
    run = Run.model_validate(asked["run"])
    told = os.open(asked["told"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for node, attempt in asked["legs"]:
        request = LegRequest(
            run=run, node=node, program="forward", leg=0, serial=1, round=0, wave=0
        )
        for again in range(10):
            environment = ActivityEnvironment()
            environment.info = replace(
                environment.info, attempt=attempt + again, workflow_id=run.id
            )
            try:
                await environment.run(legs.run_leg, request)
            except ApplicationError as error:
                # The host may still be busy with the session of the writer that was killed.
                if again == 9:
                    raise
                os.write(2, f"{node}: {error.type}: {error.message}\n".encode())
                await asyncio.sleep(0.05)
            else:
                break
        os.write(told, f"{node}\n".encode())
    await drivers.aclose()


def main() -> int:
    """Forks a writer for each line, and says its process id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = 1
            try:
                os.setpgid(0, 0)
                log = os.open(asked["told"] + ".log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(log, 1)
                os.dup2(log, 2)
                asyncio.run(write(asked))
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
    return 0


def told(path: Path) -> set[int]:
    """The nodes whose legs a writer said are done; a line that was cut off by a kill tells nothing."""
    if not path.exists():
        return set()
    lines = path.read_text().splitlines(keepends=True)
    return {int(line) for line in lines if line.endswith("\n")}


if __name__ == "__main__":
    sys.exit(main())
