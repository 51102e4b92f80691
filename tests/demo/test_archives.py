"""Archives: the same bytes everywhere, and such that a host takes them."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from demo.archives import PROGRAMS, pack
from demo.documents import hardening
from demo.wheels import sha256_of

GOLDEN = "341c1fa4ddf6ae583c109e3dcb6b92616b2d078e9d9a6586a5cd5d609af25a1c"
"""Of etcd 3.5.0, wherever and whenever it is packed."""


def test_the_archive_of_a_version_has_one_digest(wheel: Path, tmp_path: Path) -> None:
    first = pack(wheel, tmp_path / "first.tar")
    os.utime(wheel)  # when the wheel was fetched is no part of it
    second = pack(wheel, tmp_path / "deeper" / "second.tar")
    assert first.digest == second.digest == GOLDEN
    assert first.length == first.path.stat().st_size
    assert first.digest == sha256_of(first.path)


def test_it_holds_the_programs_and_nothing_of_the_packer(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(pack(wheel, tmp_path / "a.tar").path) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(PROGRAMS)
    assert {member.mode for member in members} == {0o755}
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {
        (0, 0, 0, "")
    }


def test_what_is_added_makes_it_another_release(wheel: Path, tmp_path: Path) -> None:
    hardened = pack(wheel, tmp_path / "b.tar", hardening())
    assert hardened.digest != GOLDEN
    with tarfile.open(hardened.path) as tar:
        assert set(tar.getnames()) == {*PROGRAMS, *hardening()}
        assert tar.getmember("HARDENING.txt").mode == 0o644


def test_a_pack_that_breaks_off_leaves_what_was_there(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    target.write_bytes(b"the one before")
    broken = tmp_path / "broken.whl"
    broken.write_bytes(wheel.read_bytes()[:1000])
    with pytest.raises(Exception, match="zip"):
        pack(broken, target)
    assert target.read_bytes() == b"the one before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "broken.whl"]
