"""Each line of ``docs/threat-model.md`` is shown by tests that exist."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path
from typing import get_args

import pytest

from kedge.model.trusted import Attack

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "threat-model.md"
HEADER = ["who", "what they hold", "what stops them", "what is not stopped", "shown by"]
_NAMED = re.compile(r"`([a-z]+)/([a-z_]+)::([a-z0-9_]+)`")


def rows() -> list[list[str]]:
    """The lines of all tables, cell by cell."""
    found = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells != HEADER and not set(line) <= set("|- "):
                found.append(cells)
    return found


@lru_cache
def functions_of(file: Path) -> frozenset[str]:
    """The test functions of a module, those of its classes too."""
    every = ast.walk(ast.parse(file.read_text()))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(one.name for one in every if isinstance(one, functions))


def test_there_is_a_table_of_who_and_what_for_each_part_of_the_house() -> None:
    assert len(rows()) >= 30
    assert PAGE.read_text().count("| " + " | ".join(HEADER) + " |") == 5


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0])
def test_a_line_is_whole_and_every_test_it_names_is_there(cells: list[str]) -> None:
    assert len(cells) == len(HEADER)
    assert all(cells)
    named = _NAMED.findall(cells[-1])
    assert named
    assert _NAMED.sub("", cells[-1]).strip(" ,") == "", "nothing but names of tests"
    for folder, module, name in named:
        file = TESTS / folder / f"test_{module}.py"
        assert file.is_file(), file
        assert f"test_{name}" in functions_of(file), f"{file.name} has no test_{name}"


def test_every_attack_of_the_list_is_named() -> None:
    text = PAGE.read_text()
    assert [one for one in get_args(Attack) if f"`{one}`" not in text] == []
