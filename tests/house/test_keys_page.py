"""The page about keys: its drawing and its table are about the same keys, which lie where it says."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from desk import init as desk_init
from desk.init import Wanted
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "keys.md"


def drawing() -> str:
    found = re.search(r"^```mermaid\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def table() -> dict[str, list[str]]:
    """By the key's name: the other cells."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[one.strip() for one in line.strip("|").split("|")] for line in lines[2:]]
    return {one[0]: one[1:] for one in cells}


def test_every_line_is_whole() -> None:
    assert all(len(cells) == 5 and all(cells) for cells in table().values())


def test_the_drawing_has_the_keys_of_the_table() -> None:
    drawn = dict(re.findall(r'^ {4}(\w+)\["(.*)"\]$', drawing(), re.MULTILINE))
    assert set(drawn.values()) == set(table()) - {"TLS and API keys"}


def test_every_arrow_of_the_drawing_leads_from_something_to_something() -> None:
    boxes = set(re.findall(r'(\w+)\[?\(?\(?\["?', drawing())) | set(
        re.findall(r"(\w+)\(\(", drawing())
    )
    arrows = re.findall(r'^ {2}(\w+) -- ".*" --> (\w+)', drawing(), re.MULTILINE)
    assert len(arrows) == drawing().count("-->")
    assert {end for arrow in arrows for end in arrow} <= boxes
    keys = set(re.findall(r"^ {4}(\w+)\[", drawing(), re.MULTILINE))
    assert keys <= {end for arrow in arrows for end in arrow}, "no key without a use"


def test_keys_are_where_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.delenv("KEDGE_CODEC_KEYS", raising=False)
    asyncio.run(
        desk_init.init(
            Settings.load(tmp_path / ".kedge"), Wanted(folder=tmp_path, person="NAME".lower())
        )
    )
    named = {
        path.replace("NAME", "name")
        for cells in table().values()
        for path in re.findall(r"`((?:\.kedge|keys)/[^`]+)`", cells[1])
        if "FLEET" not in path
    }
    assert len(named) >= 4
    assert sorted(path for path in named if not (tmp_path / path).is_file()) == []


def test_every_namespace_of_the_page_is_one_that_the_code_has() -> None:
    named = set(re.findall(r"`(kedge-[a-z-]+)`", PAGE.read_text()))
    sources = "".join(path.read_text() for path in ROOT.glob("kedge/**/*.py"))
    sources += "".join(path.read_text() for path in ROOT.glob("worker/*.py"))
    assert {one for one in named if f'"{one}"' not in sources} == set()
