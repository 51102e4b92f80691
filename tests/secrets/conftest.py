"""A Temporal server of its own whose files can be searched, homes with and without a ring, and scenes in them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from desk import codec as desk_codec
from tests.spine.scene import Scene, end_daemons, make_scene, settle
from worker.client import connect
from worker.engine import Engine
from worker.settings import Settings

Staged = Callable[..., Awaitable[Scene]]


def found(where: Iterable[Path], words: Iterable[str]) -> dict[str, list[str]]:
    """Which words stand in which files; folders are searched through. Words are also looked for as UTF-16 and base64."""
    held: dict[str, list[str]] = {}
    for path in every_file(where):
        content = path.read_bytes()
        for word in words:
            if any(form in content for form in forms(word)):
                held.setdefault(word, []).append(str(path))
    return held


def every_file(where: Iterable[Path]) -> Iterator[Path]:
    for top in where:
        if top.is_file():
            yield top
        else:
            yield from (path for path in top.rglob("*") if path.is_file() and not path.is_symlink())


def forms(word: str) -> Iterator[bytes]:
    """A word as it may stand somewhere: as it is, and inside base64 at each of its three offsets."""
    import base64

    raw = word.encode()
    yield raw
    yield word.encode("utf-16-le")
    for offset in range(3):
        text = base64.b64encode(b"\0" * offset + raw).decode().rstrip("=")
        # The characters at both ends also hold bits of the neighbours.
        yield text[4 if offset else 0 : len(text) - 1].encode()


@dataclass
class Place:
    """An engine and the home it runs in."""

    settings: Settings
    engine: Engine

    async def client(self, **given: Any) -> Client:
        """A client as every process of this home connects; ``given`` are other settings."""
        return await connect(self.settings.model_copy(update=given), patience=10)

    @property
    def profile(self) -> Path:
        """How clients of other homes reach its engine."""
        state = self.engine.state()
        assert state is not None
        return state.profile

    @property
    def database(self) -> Path:
        return self.settings.engine_dir


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A home with a ring, and a running engine of its own."""
    settings = Settings.load(home=tmp_path_factory.mktemp("place"))
    desk_codec.init(settings)
    engine = Engine(settings)
    engine.start()
    yield Place(settings, engine)
    engine.stop()


@pytest.fixture
async def staged(tmp_path: Path) -> AsyncIterator[Staged]:
    """Makes settled scenes on any client, and clears them away after the test."""
    made: list[Scene] = []

    async def make(client: Client, **given: Any) -> Scene:
        home = tmp_path / f"scene-{len(made)}"
        home.mkdir()
        scene = make_scene(client, home, **given)
        await settle(scene)
        made.append(scene)
        return scene

    yield make
    for scene in made:
        await scene.drivers.aclose()
        end_daemons(scene)
