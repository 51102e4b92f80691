"""The host program on every Python that it claims: hostile archives are refused, honest ones are unpacked, and health
endpoints are asked by TLS, HTTP/2 and gzip.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedge.host.bundle import bundle
from tests.host.certificates import Authority
from tests.host.conftest import Host, Served
from tests.host.test_archive import HOSTILE, linked, made_by_hand
from tests.host.test_grpc import answer
from tests.host.test_requests import packed

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


@pytest.mark.parametrize("version", CLAIMED)
def test_health_is_asked_alike(tmp_path: Path, answering: Callable[..., str], version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    authority = Authority(tmp_path, "house-ca")
    context = authority.server(authority.signed("server", "127.0.0.1"))
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b'{"ok": true}'
    secure = answering(ok, context=context).replace("http", "https")
    spoken = answering(answer()).replace("http", "grpc").removesuffix("/health")
    metrics = answering(packed(gzip.compress(b'lag{a="b"} 5\n')))
    tls = {"ca": str(authority.pair.certificate)}
    served = Served(tmp_path, python)
    try:
        host = Host(served, tmp_path)
        probes: list[dict[str, Any]] = [
            {"http": {"url": secure, "tls": tls}, "expect": {"ok": True}},
            {"grpc": {"url": spoken}},
            {"http": {"url": metrics, "metric": "lag"}, "expect": {"value": 5}},
        ]
        host.good(
            *({"key": f"p{at}", "op": "probe", "probe": one} for at, one in enumerate(probes))
        )
        stranger = {"http": {"url": secure}, "expect": {"ok": True}}
        said = host.call({"key": "s", "op": "probe", "probe": stranger})
        assert "this host does not trust its CA" in said.error["message"]
    finally:
        assert served.close() == 0
