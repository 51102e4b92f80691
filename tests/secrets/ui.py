"""``kedge ui`` as a process, as anybody starts it: its address, and the one-time codes it shows."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from worker.provision import UI, ProvisionError, provide

KEDGE = Path(sys.executable).with_name("kedge")


@dataclass(frozen=True)
class Ui:
    """A running web UI."""

    process: subprocess.Popen[str]
    said: Path

    @property
    def url(self) -> str:
        return self._last(r"Temporal's web UI: (\S+)/\n")

    @property
    def code(self) -> str:
        """The code that is good now."""
        return self._last(r"one-time code: (\S+)\n")

    @property
    def port(self) -> int:
        found = re.match(r"http://127\.0\.0\.1:(\d+)/", self.url)
        assert found is not None
        return int(found[1])

    @property
    def child(self) -> int:
        """The process of the stock UI behind it."""
        return int(
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            .read_text()
            .split()[0]
        )

    def _last(self, pattern: str) -> str:
        return str(re.findall(pattern, self.said.read_text())[-1])


@contextlib.contextmanager
def serving(home: Path, folder: Path) -> Iterator[Ui]:
    """The UI of a home whose engine runs, while the block does."""
    try:
        provide(UI)
    except ProvisionError as error:
        pytest.skip(str(error))
    said = folder / "ui.log"
    with said.open("w") as log:
        process = subprocess.Popen(
            [KEDGE, "--home", str(home), "ui"], stdout=log, stderr=log, text=True
        )
    try:
        while "one-time code: " not in said.read_text():
            assert process.poll() is None, said.read_text()
            time.sleep(0.05)
        yield Ui(process, said)
    finally:
        process.terminate()
        assert process.wait(20) == 0, said.read_text()
