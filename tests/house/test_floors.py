"""What the import contracts cannot say: that a list of forbidden names is complete."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import kedge

ROOT = Path(__file__).parents[2]
# The package's own first file travels with it, for the version.
HOST = [ROOT / "kedge" / "__init__.py", *sorted((ROOT / "kedge" / "host").rglob("*.py"))]


def imported(source: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("source", HOST, ids=[str(path.relative_to(ROOT)) for path in HOST])
def test_what_runs_on_a_host_imports_the_standard_library_and_itself(source: Path) -> None:
    foreign = {
        name
        for name in imported(source)
        if name != "kedge.__version__"
        and not name.startswith("kedge.host.")
        and name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert not foreign


@pytest.mark.parametrize("source", HOST, ids=[str(path.relative_to(ROOT)) for path in HOST])
def test_what_runs_on_a_host_is_python_3_9(source: Path) -> None:
    ast.parse(source.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_there_is_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == kedge.__version__
