"""Long tables run in slices: ``--slice 4`` takes every fourth row of a parametrized test, another quarter at each commit.

Which quarter is chosen by the hash of the commit (``git rev-parse HEAD``; ``--slice-seed`` takes another number), so a
run can be repeated, and all rows are run in the course of a few commits. A test with fewer rows than the slice's number
keeps one of them; a test without rows is always run. ``make chaos`` runs every row.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--slice`` and ``--slice-seed``."""
    group = parser.getgroup("slices of long tables")
    group.addoption("--slice", type=int, default=1, help="run every Nth row of each table")
    group.addoption(
        "--slice-seed", type=int, default=None, help="which rows: the commit's hash by default"
    )


def kept_rows(rows: int, parts: int, seed: int) -> range:
    """The rows of a table of so many that a slice takes: one at least, and every row for some seed below ``parts``."""
    parts = max(1, min(parts, rows))
    return range(seed % parts, rows, parts)


def seed_of(commit: str) -> int:
    """The number that a commit's hash chooses."""
    return int(commit[:8], 16)


def _commit(root: Path) -> str:
    shown = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or "0"


def _seed(config: pytest.Config) -> int:
    given: int | None = config.getoption("--slice-seed")
    return seed_of(_commit(config.rootpath)) if given is None else given


def pytest_report_header(config: pytest.Config) -> str | None:
    """Says which slice is run, and how it is run again."""
    parts: int = config.getoption("--slice")
    if parts <= 1:
        return None
    return f"tables: every {parts}th row, from --slice {parts} --slice-seed {_seed(config)}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the rows that are not in the slice."""
    parts: int = config.getoption("--slice")
    if parts <= 1:
        return
    tables: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        tables[item.nodeid.partition("[")[0]].append(item)
    seed = _seed(config)
    kept = {
        id(table[row]) for table in tables.values() for row in kept_rows(len(table), parts, seed)
    }
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]
