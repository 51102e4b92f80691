"""``docs/first-migration.md`` is typed as it stands, by somebody who reads nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo.documents import free_members

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "first-migration.md"


def typed(page: str) -> str:
    """Every shell block of the page, in order; where it says which exit code comes, that one has to come."""
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    return re.sub(
        r"^(kedge .*\S) +# exit code (\d).*$", r"\1 || test $? = \2", blocks, flags=re.MULTILINE
    )


@pytest.mark.temporal
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_first_migration_goes_as_it_is_written(own_home: Path) -> None:
    script = typed(PAGE.read_text())
    for number, member in enumerate(free_members(3), 1):
        script = script.replace(f"1808{number}", str(member.client_port))
    kedge = Path(sys.executable).parent
    # What the page does with the checkout's environment; there is one here, whatever its name.
    script = script.replace('export PATH="$PWD/.venv/bin:$PATH"', f'export PATH="{kedge}:$PATH"')
    said = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=CHECKOUT,
        env={**os.environ, "HOME": str(own_home), "XDG_CACHE_HOME": _cache()},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    whole = said.stdout + said.stderr
    assert said.returncode == 0, whole
    versions = re.findall(r'^\{"version": "(.*)"\}$', said.stdout, re.MULTILINE)
    assert versions == ["1.0.0", "1.1.0", "1.0.0"], whole
    assert "refused, rule" in said.stderr


def _cache() -> str:
    return os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
