"""Where a running ``kedge ui`` says that it is, for ``kedge up`` and the codec server."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from worker import processes
from worker.processes import ProcessIdentity
from worker.settings import Settings


class UiState(BaseModel):
    """The web UI that runs, and its address."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessIdentity
    url: str

    @property
    def origin(self) -> str:
        """What browsers call the origin of its pages."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


def state_file(settings: Settings) -> Path:
    """Where it is written."""
    return settings.run_dir / "ui.json"


def running(settings: Settings) -> UiState | None:
    """The UI that runs now; None when none does."""
    state = processes.read_state(state_file(settings), UiState)
    return state if state is not None and processes.is_alive(state.process) else None
