"""Archives that somebody made to do harm, or that broke on the way: refused, and nothing is written."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedge.host import streams
from kedge.host.errors import ArchiveRefused

Made = Callable[[tarfile.TarFile], None]


def member(name: str, content: bytes = b"x", **more: Any) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


def tarred(
    *members: tuple[tarfile.TarInfo, io.BytesIO | None], form: int = tarfile.GNU_FORMAT, **more: Any
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, **more) as archive:
        for info, content in members:
            archive.addfile(info, content)
    return out.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, None]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, None


def renamed(name: str, link: str, extended: str) -> tuple[tarfile.TarInfo, None]:
    """A link whose header says one thing and whose extended header another."""
    info, content = special(name, tarfile.SYMTYPE, link)
    info.pax_headers = {"linkpath": extended}
    return info, content


def pax(headers: dict[str, str]) -> bytes:
    return tarred(member("plain", pax_headers=headers), form=tarfile.PAX_FORMAT)


def block(name: bytes, size: bytes = b"00000000001\0", kind: bytes = b"0") -> bytes:
    """A header block made by hand, checksum included."""
    raw = bytearray(512)
    raw[: len(name)] = name
    raw[100:108] = b"0000644\0"
    raw[124:136] = size
    raw[156:157] = kind
    raw[257:265] = b"ustar\x0000"
    raw[148:156] = b" " * 8
    raw[148:156] = f"{sum(raw):06o}\0 ".encode()
    return bytes(raw)


END = b"\0" * 1024
BODY = b"x" + b"\0" * 511
GOOD = tarred(member("bin/good"))


def extended(body: bytes, kind: bytes = b"x") -> bytes:
    size = f"{len(body):011o}\0".encode()
    padded = body + b"\0" * (-len(body) % 512)
    return block(b"ext", size, kind) + padded + block(b"plain") + BODY + END


def record(key: bytes, value: bytes) -> bytes:
    text = b" " + key + b"=" + value + b"\n"
    length = len(text) + 2
    return str(length).encode() + text if length > 9 else b"0" + str(length).encode() + text


def zipped(*members: tuple[str, bytes, int]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, attributes in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = attributes << 16
            archive.writestr(info, content)
    return out.getvalue()


BOMB = gzip.compress(block(b"bomb", b"77777777777\0") + b"\0" * (64 << 20))
SPARSE = tarfile.GNUTYPE_SPARSE

HOSTILE: dict[str, tuple[bytes, str]] = {
    "an absolute name": (tarred(member("/etc/cron.d/evil")), "absolute"),
    "an absolute name after another": (tarred(member("a"), member("//evil")), "absolute"),
    "dots first": (tarred(member("../evil")), "`..`"),
    "dots in the middle": (tarred(member("a/../../evil")), "`..`"),
    "dots at the end": (tarred(special("a/..", tarfile.DIRTYPE)), "`..`"),
    "dots in a directory": (tarred(special("../evil/", tarfile.DIRTYPE)), "`..`"),
    "a link to an absolute name": (tarred(member("a"), special("l", tarfile.SYMTYPE, "/etc")), "absolute"),
    "a link out of the archive": (tarred(member("a"), special("d/l", tarfile.SYMTYPE, "../../evil")), "out of the archive"),
    "a link out by way of another": (tarred(member("d/e/a"), special("d/e/up", tarfile.SYMTYPE, "../.."), special("l", tarfile.SYMTYPE, "d/e/up/../evil")), "out of the archive"),
    "a link to the directory above the top": (tarred(member("a"), special("l", tarfile.SYMTYPE, "..")), "out of the archive"),
    "a file below a link": (tarred(member("d/a"), special("l", tarfile.SYMTYPE, "d"), member("l/evil")), "name of a file"),
    "a directory below a link": (tarred(member("d/a"), special("l", tarfile.SYMTYPE, "d"), special("l/evil", b"5")), "name of a file"),
    "a link below a link": (tarred(member("d/a"), special("l", tarfile.SYMTYPE, "d"), special("l/m", tarfile.SYMTYPE, "a")), "name of a file"),
    "a link where a directory was": (tarred(member("d/a"), special("d", tarfile.SYMTYPE, ".")), "name of a directory"),
    "a link, then a file in its place": (tarred(member("b"), special("a", tarfile.SYMTYPE, "b"), member("a", b"evil")), "twice"),
    "a file, then a link in its place": (tarred(member("b"), member("a"), special("a", tarfile.SYMTYPE, "b")), "twice"),
    "a link, then a directory in its place": (tarred(member("d/b"), special("a", tarfile.SYMTYPE, "d"), special("a", b"5")), "twice"),
    "a link to itself": (tarred(member("b"), special("a", tarfile.SYMTYPE, "a")), "leads through more"),
    "links in a ring": (tarred(member("b"), special("a", tarfile.SYMTYPE, "c"), special("c", tarfile.SYMTYPE, "a")), "leads through more"),
    "a ring through directories": (tarred(member("d/b"), special("d/x", tarfile.SYMTYPE, "../e"), special("e", tarfile.SYMTYPE, "d/x/y")), "leads through more"),
    "a long chain of links": (tarred(member("l0"), *(special(f"l{n}", tarfile.SYMTYPE, f"l{n - 1}") for n in range(1, 20))), "leads through more"),
    "a link to nothing": (tarred(member("b"), special("a", tarfile.SYMTYPE, "c")), "not in the archive"),
    "a link through a file": (tarred(member("b"), special("a", tarfile.SYMTYPE, "b/../c"), member("c")), "not in the archive"),
    "a link with a line break": (tarred(member("b"), special("a", tarfile.SYMTYPE, "b\nc")), "control characters"),
    "a link with an empty name": (tarred(member("b"), special("a", tarfile.SYMTYPE, "")), "a link that names nothing"),
    "a link with content": (block(b"a", kind=b"2") + BODY + END, "a link with content"),
    "a link named by an extended header": (tarred(member("b"), renamed("a", "b", "/etc"), form=tarfile.PAX_FORMAT), "absolute"),
    "a hard link to an absolute name": (tarred(member("a"), special("l", tarfile.LNKTYPE, "/etc/passwd")), "absolute"),
    "a hard link that climbs": (tarred(member("a"), special("l", tarfile.LNKTYPE, "../passwd")), "`..`"),
    "a hard link to what comes later": (tarred(special("l", tarfile.LNKTYPE, "a"), member("a")), "no file before it"),
    "a hard link to a symbolic one": (tarred(member("a"), special("s", tarfile.SYMTYPE, "a"), special("l", tarfile.LNKTYPE, "s")), "no file before it"),
    "a bomb of hard links": (tarred(member("a", b"x" * (1 << 20)), *(special(f"l{n}", tarfile.LNKTYPE, "a") for n in range(20))), "more than"),
    "a zip with a link out": (zipped(("a", b"x", 0o644), ("l", b"../../etc/passwd", 0o120777)), "out of the archive"),
    "a zip with a link to an absolute name": (zipped(("a", b"x", 0o644), ("l", b"/etc/passwd", 0o120777)), "absolute"),
    "a zip with a file below a link": (zipped(("d/a", b"x", 0o644), ("l", b"d", 0o120777), ("l/evil", b"x", 0o644)), "name of a file"),
    "a page instead of an archive": (b"<!DOCTYPE html><title>404</title>" + b" " * 2000, "an HTML page"),
    "a program instead of an archive": (b"\x7fELF" + bytes(2000), "an ELF program"),
    "a script instead of an archive": (b"#!/bin/sh\n" + b"true\n" * 200, "a script"),
    "a gzip of a single file": (gzip.compress(b"\x7fELF" + bytes(5000)), "a gzip of a single file"),
    "an xz of a single file": (lzma.compress(b"\x7fELF" + bytes(5000)), "packed with xz and holds no tar"),
    "a character device": (tarred(special("null", tarfile.CHRTYPE)), "device"),
    "a block device": (tarred(special("sda", tarfile.BLKTYPE)), "device"),
    "a fifo": (tarred(special("f", tarfile.FIFOTYPE)), "fifo"),
    "an unknown type": (block(b"odd", kind=b"Z") + BODY + END, "type 'Z'"),
    "a file twice": (tarred(member("a"), member("a", b"evil")), "twice"),
    "a file twice by another spelling": (tarred(member("d/a"), member("./d//a", b"evil")), "twice"),
    "a directory twice": (tarred(special("d", b"5"), special("d/", b"5"), member("a")), "twice"),
    "a directory, then a file": (tarred(special("a", b"5"), member("a")), "twice"),
    "an implied directory, then a file": (tarred(member("a/b"), member("a")), "name of a directory"),
    "a file, then below it": (tarred(member("a"), member("a/b")), "name of a file"),
    "a file, then a directory": (tarred(member("a"), special("a/b", b"5")), "name of a file"),
    "a huge declared size": (block(b"a", b"77777777777\0") + END, "more than"),
    "a huge binary size": (block(b"a", b"\x80" + b"\0" * 3 + b"\x7f" * 8) + END, "more than"),
    "a negative size": (block(b"a", b"\xff" * 12) + END, "number"),
    "a size that is no number": (block(b"a", b"99999999999\0") + BODY + END, "number"),
    "a bomb": (BOMB, "more than"),
    "a bomb in padding": (gzip.compress(GOOD + b"\0" * (128 << 20)), "more than"),
    "a bomb in a bomb's members": (gzip.compress(GOOD) + gzip.compress(b"\0" * (128 << 20)), "more than"),
    "cut in a member": (tarred(member("a", b"x" * 4096))[:2048], "middle"),
    "cut in a header": (GOOD[:300], "middle"),
    "no end": (tarred(member("a"))[:1024], "middle"),
    "a cut gzip": (gzip.compress(random.Random(1).randbytes(9000) + END)[:4000], ""),
    "a cut good gzip": (gzip.compress(GOOD)[:-9], "middle"),
    "a gzip with a wrong sum": (gzip.compress(GOOD)[:-8] + b"\0" * 8, "broken"),
    "garbage": (random.Random(2).randbytes(5000), "a file of an unknown format"),
    "garbage in gzip": (gzip.compress(random.Random(3).randbytes(5000)), "a gzip of a single file"),
    "nothing": (b"", "an empty file"),
    "zeros": (END, "no files"),
    "directories alone": (tarred(special("d", b"5")), "no files"),
    "something after the end": (GOOD + b"evil" * 200, "follows"),
    "a second archive after the end": (GOOD + GOOD, "follows"),
    "a long name": (tarred(member("a" * 256)), "too long"),
    "a long path": (tarred(member("/".join(["a" * 200] * 6))), "too long"),
    "a long path as pax": (pax({"path": "/".join(["b" * 200] * 6)}), "too long"),
    "a deep path": (tarred(member("/".join("d" * 40))), "deeper"),
    "a newline in a name": (tarred(member("a\nb")), "control"),
    "an escape in a name": (tarred(member("a\x1b[2Jb")), "control"),
    "a name that is not UTF-8": (block(b"a\xff\xfeb") + BODY + END, "UTF-8"),
    "no name": (block(b"") + BODY + END, "without a name"),
    "a dot as a file": (tarred(member(".")), "without a name"),
    "a file named like a directory": (block(b"a/") + BODY + END, "ends like"),
    "a directory with content": (block(b"d/", kind=b"5") + BODY + END, "content"),
    "a sparse file of GNU": (block(b"s", kind=SPARSE) + BODY + END, "sparse"),
    "a sparse file of pax": (extended(record(b"GNU.sparse.major", b"1")), "sparse"),
    "a pax path with dots": (pax({"path": "../../evil"}), "`..`"),
    "an absolute pax path": (pax({"path": "/evil"}), "absolute"),
    "a pax path with NUL": (extended(record(b"path", b"good\0/../evil")), "control"),
    "a pax path that is empty": (extended(record(b"path", b"")), "without a name"),
    "a pax size that is huge": (extended(record(b"size", b"99999999999999")), "more than"),
    "a pax size that is negative": (extended(record(b"size", b"-1000000")), "number"),
    "a pax record too long": (extended(b"99 path=a\n"), "broken"),
    "a pax record of length nought": (extended(b"0 path=a\n"), "broken"),
    "a pax record without an end": (extended(b"11 path=abc"), "broken"),
    "pax without numbers": (extended(b"path=a\n"), "broken"),
    "a global path": (extended(record(b"path", b"evil"), b"g"), "global"),
    "a huge extended header": (block(b"x", b"77777777777\0", b"x") + END, "too large"),
    "a long name header that is huge": (block(b"x", b"77777777777\0", b"L") + END, "too large"),
    "a long link name": (block(b"x", b"00000000004\0", b"K") + BODY + END, "without a member"),
    "an extended header alone": (extended(record(b"path", b"abcd"))[:1024] + END, "without a member"),
    "extended headers without end": (block(b"x", b"00000000000\0", b"x") * 9 + GOOD, "too large"),
    "a GNU long name with dots": (tarred(member("../" + "a" * 150)), "`..`"),
    "a prefix with dots": (b"", "`..`"),
    "a wrong checksum": (GOOD[:10] + b"!" + GOOD[11:], "no tar"),
    "too many members": (tarred(*[member(f"f{number}") for number in range(120)]), "members"),
    "a cut xz": (lzma.compress(GOOD)[:-20], "middle"),
    "a broken bzip2": (bz2.compress(GOOD)[:-6] + b"abcdef", "broken"),
    "a zip with dots": (zipped(("../evil", b"x", 0o100644)), "`..`"),
    "a zip with an absolute name": (zipped(("/evil", b"x", 0o100644)), "absolute"),
    "a zip with a device": (zipped(("d", b"", 0o020644)), "devices"),
    "a zip with a file twice": (b"", "twice"),
    "a zip bomb": (zipped(("b", b"\0" * (64 << 20), 0o100644)), "more than"),
    "a zip with a NUL in a name": (b"", "control"),
    "a cut zip": (zipped(("a", b"x" * 999, 0o100644))[:-30], "broken"),
    "a zip with a wrong sum": (b"", "broken"),
    "an empty zip": (zipped(), "no files"),
}  # fmt: skip


def made_by_hand(name: str) -> bytes:
    """Those that no library makes."""
    if name == "a prefix with dots":
        raw = bytearray(block(b"evil"))
        raw[345:347] = b".."
        raw[148:156] = b" " * 8
        raw[148:156] = f"{sum(raw):06o}\0 ".encode()
        return bytes(raw) + BODY + END
    if name == "a zip with a file twice":
        with pytest.warns(UserWarning, match="Duplicate"):
            return zipped(("a", b"x", 0o100644), ("a", b"evil", 0o100644))
    if name == "a zip with a NUL in a name":
        return zipped(("goodXevil", b"x", 0o100644)).replace(b"goodXevil", b"good\0evil")
    out = bytearray(zipped(("a", os.urandom(64), 0o100644)))
    at = out.index(b"PK\x03\x04")
    out[at + 14 : at + 18] = struct.pack("<I", 1)
    at = out.index(b"PK\x01\x02")
    out[at + 16 : at + 20] = struct.pack("<I", 1)
    return bytes(out)


def everything(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_and_nothing_written(host: Any, name: str) -> None:
    content, rule = HOSTILE[name]
    release = host.archive(content or (made_by_hand(name) if name != "nothing" else b""))
    host.good()
    before = everything(host.top)
    said = host.call(host.stage(release, max_bytes=16 << 20, max_members=100))
    assert said.error["type"] == "ArchiveRefused", said.error
    assert rule in said.error["message"]
    assert said.error["retryable"] is False
    after = [path for path in everything(host.top) if not path.startswith("node/.kedge/")]
    assert after == [path for path in before if not path.startswith("node/.kedge/")]
    assert os.listdir(host.root / "releases") == []
    assert os.listdir(host.root / ".kedge/manifests") == []


def test_setuid_and_writable_bits_never_reach_the_disk(host: Any) -> None:
    release = host.archive(tarred(member("bin/su", mode=0o6777), member("conf", mode=0o1666)))
    host.good(host.stage(release))
    top = host.root / "releases" / release.digest
    assert (top / "bin/su").stat().st_mode & 0o7777 == 0o555
    assert (top / "conf").stat().st_mode & 0o7777 == 0o444
    assert top.stat().st_mode & 0o7777 == 0o555


def test_names_that_differ_in_case_are_different_files(host: Any) -> None:
    release = host.archive(tarred(member("README", b"1"), member("readme", b"2")))
    assert host.good(host.stage(release)).result("stage") == {"files": 2, "bytes": 2}


@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_honest_archives_of_every_form_are_unpacked(host: Any, packed: Any, form: int) -> None:
    long = "d" * 60 + "/" + "f" * 60
    members = [
        special("bin/", b"5"),
        member("./bin/tool", os.urandom(1 << 20), mode=0o755),
        member(long, b"long"),
        member("empty", b""),
    ]
    more = {"pax_headers": {"comment": "made for a test"}} if form == tarfile.PAX_FORMAT else {}
    release = host.archive(packed(tarred(*members, form=form, **more)))
    assert host.good(host.stage(release)).result("stage")["files"] == 3
    top = host.root / "releases" / release.digest
    assert (top / long).read_bytes() == b"long"
    assert (top / "bin/tool").stat().st_size == 1 << 20


def test_pax_names_beyond_ascii_and_a_wheel_are_unpacked(host: Any) -> None:
    info, content = member("größe/naïve")
    host.good(host.stage(host.archive(tarred((info, content), form=tarfile.PAX_FORMAT)), "a"))
    wheel = zipped(("bin/etcd", b"#!", 0o100755), ("lib/", b"", 0o040755), ("lib/x", b"x", 0))
    release = host.archive(wheel)
    host.good(host.stage(release, "b"))
    assert os.access(host.root / "releases" / release.digest / "bin/etcd", os.X_OK)


def test_there_are_enough_kinds() -> None:
    assert len(HOSTILE) >= 90


def linked() -> bytes:
    return tarred(
        special("bin/", b"5"),
        member("lib/app/run.py", b"#!/usr/bin/env python3\n", mode=0o755),
        special("bin/run", tarfile.SYMTYPE, "../lib/app/run.py"),
        special("lib/current", tarfile.SYMTYPE, "app"),
        special("run", tarfile.SYMTYPE, "./lib/current/../current/run.py"),
        special("bin/again", tarfile.LNKTYPE, "lib/app/run.py"),
        special("early", tarfile.SYMTYPE, "late"),
        member("late", b"late"),
    )


def test_links_that_stay_inside_are_links_and_hard_links_are_copies(host: Any) -> None:
    release = host.archive(linked())
    assert host.good(host.stage(release)).result("stage")["files"] == 3
    top = host.root / "releases" / release.digest
    assert os.readlink(top / "bin/run") == "../lib/app/run.py"
    assert (top / "run").resolve() == top / "lib/app/run.py"
    assert (top / "early").read_bytes() == b"late"
    assert not (top / "bin/again").is_symlink()
    assert (top / "bin/again").stat().st_nlink == 1
    assert (top / "bin/again").read_bytes() == (top / "lib/app/run.py").read_bytes()
    assert os.access(top / "bin/again", os.X_OK)


@pytest.mark.parametrize(
    ("path", "to"), [("run", "/etc/passwd"), ("bin/run", "../late"), ("early", None)]
)
def test_a_link_that_was_replaced_after_the_fact_is_found(
    host: Any, path: str, to: str | None
) -> None:
    release = host.archive(linked())
    host.good(host.stage(release))
    host.good({"key": "switch", "op": "switch", "digest": release.digest})
    link = host.root / "releases" / release.digest / path
    link.parent.chmod(0o755)
    link.unlink()
    if to is not None:
        link.symlink_to(to)
    found = host.call({"key": "verify", "op": "verify", "digest": release.digest})
    assert found.error["type"] == "DigestMismatch"
    assert path in found.error["message"]


def test_a_long_link_name_is_followed(host: Any) -> None:
    long = "d" * 90 + "/" + "f" * 90
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        release = host.archive(
            tarred(member(long, b"x"), special("l", tarfile.SYMTYPE, long), form=form)
        )
        host.good(host.stage(release, f"stage{number}"))
        assert os.readlink(host.root / "releases" / release.digest / "l") == long


def test_a_zip_keeps_its_links_and_finds_its_programs_without_modes(host: Any) -> None:
    release = host.archive(
        zipped(("bin/app", b"\x7fELF program", 0), ("app", b"bin/app", 0o120777), ("conf", b"x", 0))
    )
    host.good(host.stage(release))
    top = host.root / "releases" / release.digest
    assert os.readlink(top / "app") == "bin/app"
    assert os.access(top / "bin/app", os.X_OK)
    assert (top / "conf").stat().st_mode & 0o7777 == 0o444


def test_a_link_of_a_zip_that_names_nothing_is_an_empty_file(host: Any) -> None:
    # As in a wheel of Node.js: what was a link has its mode and no content, and unzip makes an empty file of it.
    release = host.archive(zipped(("bin/node", b"\x7fELF", 0o100755), ("bin/npm", b"", 0o120777)))
    host.good(host.stage(release))
    empty = host.root / "releases" / release.digest / "bin" / "npm"
    assert not empty.is_symlink()
    assert empty.read_bytes() == b""


def test_a_program_without_an_execute_bit_may_be_executed(host: Any) -> None:
    release = host.archive(tarred(member("run", b"#!/bin/sh\ntrue\n"), member("conf", b"run")))
    host.good(host.stage(release))
    top = host.root / "releases" / release.digest
    assert os.access(top / "run", os.X_OK)
    assert (top / "conf").stat().st_mode & 0o7777 == 0o444


def test_a_top_folder_is_stripped(host: Any) -> None:
    release = host.archive(
        tarred(
            special("app-1.0/", b"5"),
            member("app-1.0/bin/app", b"app", mode=0o755),
            special("app-1.0/app", tarfile.SYMTYPE, "bin/app"),
            special("app-1.0/hard", tarfile.LNKTYPE, "app-1.0/bin/app"),
        )
    )
    host.good(host.stage(release, strip=1))
    top = host.root / "releases" / release.digest
    assert sorted(os.listdir(top)) == ["app", "bin", "hard"]
    assert (top / "app").read_bytes() == b"app"


STRIPPED = {
    "a file above the folder": tarred(member("a/b"), member("README")),
    "a link out of what is left": tarred(member("a/b"), special("a/l", tarfile.SYMTYPE, "../a/b")),
}


@pytest.mark.parametrize("name", STRIPPED)
def test_what_would_lie_above_a_stripped_folder_is_refused(host: Any, name: str) -> None:
    said = host.call(host.stage(host.archive(STRIPPED[name]), strip=1))
    assert said.error["type"] == "ArchiveRefused"


def test_one_file_is_a_release(host: Any) -> None:
    content = b"\x7fELF" + os.urandom(300_000)
    release = host.archive(content)
    assert host.good(host.stage(release, program="bin/geth")).result("stage")["files"] == 1
    path = host.root / "releases" / release.digest / "bin/geth"
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o7777 == 0o555


def test_zstd_is_unpacked_by_its_program_or_refused_with_what_to_do(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    zstd = shutil.which("zstd")
    if zstd is None:
        pytest.skip("there is no program zstd here")
    content = tarred(member("big", os.urandom(3 << 20)), member("x"))
    packed = subprocess.run([zstd, "-q", "-c"], input=content, stdout=subprocess.PIPE, check=True)
    host.good(host.stage(host.archive(packed.stdout)))
    for number, broken in enumerate((packed.stdout[:-9], packed.stdout[:9] + b"evil" * 99)):
        said = host.call(host.stage(host.archive(broken), f"broken{number}"))
        assert said.error["type"] == "ArchiveRefused"
        assert "zstd" in said.error["message"] or "middle" in said.error["message"]
    monkeypatch.setattr(streams.Unzstd, "ARGV", ("no-such-zstd",))
    with pytest.raises(ArchiveRefused, match="no program `zstd`: install it"):
        streams.Unzstd(streams.Raw(0))
    bomb = subprocess.run(
        [zstd, "-q", "-c"], input=bytes(64 << 20), stdout=subprocess.PIPE, check=True
    )
    said = host.call(host.stage(host.archive(bomb.stdout), "bomb", max_bytes=1 << 20))
    assert said.error["type"] == "ArchiveRefused"
