"""What the pages point at is there: files, headings, commands and their options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "runbooks").rglob("*.md")),
]
_FENCED = re.compile(r"^(?:```|~~~)(\w*)\n(.*?)^(?:```|~~~)$", re.MULTILINE | re.DOTALL)
_ENDS = frozenset({"|", "||", "&&", ";", "&", ">", ">>", "2>&1", "·"})
"""Words behind which there is no kedge command any more."""


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> str:
    return _FENCED.sub("", text)


@lru_cache
def anchors(page: Path) -> frozenset[str]:
    """The headings of a page, by the names that links call them."""
    found: list[str] = []
    for title in re.findall(r"^#{1,6} +(.*?)\s*$", prose(page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        again = sum(1 for one in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one))
        found.append(f"{slug}-{again}" if again else slug)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def commands(text: str) -> Iterator[str]:
    """Every command line of kedge's on a page: typed in its blocks, or named in a sentence."""
    for kind, block in _FENCED.findall(text):
        if kind not in {"sh", "console", "bash"}:
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            # In `console`, what was typed stands behind a prompt; all else is what was printed.
            if kind == "console" and (line := re.sub(r"^ ?\w*\$ ", "\0", line))[:1] != "\0":
                continue
            # What stands behind a # is for who reads it.
            typed = re.sub(r"\s#\s.*", "", line)
            yield from re.findall(r"(?:^|[\0\s(])(kedge(?: [^)\n]*)?)", typed)
    for code in re.findall(r"`([^`]+)`", prose(text)):
        if code.startswith("kedge "):
            yield " ".join(code.split())


@lru_cache
def root() -> Any:
    """The whole command line."""
    return typer.main.get_command(app)


def misnamed(line: str) -> str | None:
    """The first word of a command line that names nothing that the command line has."""
    command = root()
    context = typer.Context(command, info_name="kedge")
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words = list(lexer)[1:]
    value = False
    for word in words:
        if word in _ENDS or (word == "…" and hasattr(command, "get_command")):
            return None
        if value:
            value = False
        elif word.startswith("-") and len(word) > 1:
            name = word.partition("=")[0]
            known = {
                opt: one
                for one in command.get_params(context)
                for opt in (*one.opts, *one.secondary_opts)
            }
            if name not in known:
                return word
            value = not known[name].is_flag and "=" not in word if name != "--help" else False
        elif hasattr(command, "get_command"):
            command = command.get_command(context, word)
            if command is None:
                return word
            context = typer.Context(command, info_name=word, parent=context)
    return None


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_every_command_on_a_page_is_one_that_kedge_has(page: Path) -> None:
    told = [(line, misnamed(line)) for line in commands(page.read_text())]
    assert [(line, word) for line, word in told if word is not None] == []


def test_every_command_that_a_message_names_is_one_that_kedge_has() -> None:
    wrong, seen = [], 0
    for floor in ("cli", "worker", "activities", "workflows", "kedge", "demo"):
        for source in (ROOT / floor).rglob("*.py"):
            for line in re.findall(r"`(kedge [^`\n]*)`", source.read_text()):
                seen += 1
                if misnamed(re.sub(r"\{[^{}]*\}", "X", line)) is not None:
                    wrong.append((source.name, line))
    assert wrong == []
    assert seen > 100


ASKS = re.compile(
    r"kedge (approve|reject|pause|resume|abort|decide|review|start|rollback|(policy|release) sign)\b"
)


@pytest.mark.parametrize("name", ["first-migration", "one-person", "postgresql"])
def test_a_block_that_is_pasted_ends_with_the_command_that_asks(name: str) -> None:
    # On a terminal the question would take the lines behind it for its answer.
    for kind, block in _FENCED.findall((ROOT / "docs" / f"{name}.md").read_text()):
        if kind == "sh":
            *before, _ = [line for line in block.splitlines() if line]
            assert [line for line in before if ASKS.match(line) and "--yes" not in line] == []


def test_commands_are_found_where_they_stand_and_mistakes_in_them_are_seen() -> None:
    text = (
        "Say `kedge burn` or `kedge plan --flet x`.\n```console\n$ kedge --home x statsu r # kedge\n"
        'kedge: printed\n```\n```sh\nrun=$(kedge start --dry "$x" | tail)\nkedge up\n```\n'
    )
    found = list(commands(text))
    assert [misnamed(line) for line in found] == ["statsu", "--dry", None, "burn", "--flet"]
    pages = [line for page in PAGES for line in commands(page.read_text())]
    assert len(pages) > 150
