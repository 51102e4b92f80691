"""The host program on every Python that it claims: hostile archives are refused, honest ones are unpacked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kedge.host.bundle import bundle
from tests.host.test_archive import HOSTILE, linked, made_by_hand

CLAIMED = ("3.9", "3.10", "3.11", "3.12", "3.13")

JUDGE = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from kedge.host import places, releases
from kedge.host.errors import Fault
from kedge.host.unpacked import Limits, Unpacked

folder, top, told = sys.argv[2], sys.argv[3], {}
for name in sorted(os.listdir(folder)):
    where = os.path.join(top, name)
    os.makedirs(where)
    fd = os.open(os.path.join(folder, name), os.O_RDONLY)
    import hashlib
    digest = hashlib.sha256(open(fd, "rb", closefd=False).read()).hexdigest()
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        place = places.Directory(where) / "release"
        places.make(place, 0o755)
        releases.fill(fd, digest, Unpacked(place, Limits(16 << 20, 100)), None, lambda: None)
        told[name] = "taken"
    except Fault as fault:
        told[name] = fault.kind
    finally:
        os.close(fd)
print(json.dumps([sys.version_info[:2], told]))
"""


def interpreter(version: str) -> str | None:
    """A Python of that version: on the path, or one that pyenv keeps."""
    found = shutil.which(f"python{version}")
    kept = sorted(
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(
            f"versions/{version}.*/bin/python"
        )
    )
    for path in (*(str(one) for one in kept), *([found] if found else [])):
        if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    return None


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("archives")
    names = list(HOSTILE)
    for number, name in enumerate(names):
        content = HOSTILE[name][0] or (made_by_hand(name) if name != "nothing" else b"")
        (folder / f"{number:03}").write_bytes(content)
    (folder / "honest").write_bytes(linked())
    return folder, names


@pytest.mark.parametrize("version", CLAIMED)
def test_archives_are_judged_alike(
    archives: tuple[Path, list[str]], tmp_path: Path, version: str
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    (tmp_path / "host.pyz").write_bytes(bundle())
    (tmp_path / "top").mkdir()
    folder, names = archives
    ran = subprocess.run(
        [python, "-I", "-c", JUDGE, str(tmp_path / "host.pyz"), str(folder), str(tmp_path / "top")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found, told = json.loads(ran.stdout)
    assert found == [int(part) for part in version.split(".")]
    assert told.pop("honest") == "taken"
    wrong = {names[int(number)]: kind for number, kind in told.items() if kind != "ArchiveRefused"}
    assert wrong == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host.pyz", "top"]
