"""Releases on the host: stage (check, unpack, list), verify (every file), switch (one rename).

A release is a directory named by the sha256 of its archive, and a manifest of every file in it. Rules 7 and 8 of
`docs/host-protocol.md`.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional

from kedge.host import archive, files, filetypes, needs, observe, places, points, secret, streams
from kedge.host.errors import (
    ArchiveRefused,
    Conflict,
    DigestMismatch,
    Fault,
    HostError,
    NoRelease,
    ReaderGone,
)
from kedge.host.layout import Node
from kedge.host.places import Place
from kedge.host.unpacked import Limits, Unpacked

if TYPE_CHECKING:
    from kedge.host.context import Context

NEW = ".new-"


def stage(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Unpack an archive under its digest, unless it is there and whole."""
    node, digest = ctx.node, op["digest"]
    # What the new configuration will need: missing now, nothing was stopped yet.
    secret.resolve(ctx, op["secrets"])
    needs.fits(ctx, op["daemon"])
    if places.is_directory(node.release(digest)):
        try:
            return _there(node, digest, ctx.pulse.tick)
        except (NoRelease, DigestMismatch):
            if op["source"] is None:
                raise
            # Broken by somebody: made anew, unless it is what the node stands on.
            if observe.current_release(node) == digest:
                raise
            with ctx.fence.act():
                _take_away(node, digest)
    if op["source"] is None:
        raise NoRelease(
            f"release {digest[:12]} is not on this host, and its archive was not brought",
            {"release": digest},
        )
    clean(node)
    fd = os.open(op["source"], os.O_RDONLY | os.O_CLOEXEC)
    try:
        check_archive(fd, digest, op["length"], ctx.pulse.tick)
        ctx.acting()
        return _unpack(ctx, op, fd)
    finally:
        os.close(fd)


def _there(node: Node, digest: str, tick: Callable[[], None]) -> Dict[str, Any]:
    listed = verify(node, digest, tick)
    return {"files": len(listed["files"]), "bytes": sum(one["size"] for one in listed["files"])}


def check_archive(fd: int, digest: str, length: int, tick: Callable[[], None]) -> None:
    """Check length and sha256 of the whole archive, before anything of it is believed."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise HostError("the archive is not a regular file")
    detail = {"promised": digest, "length": length, "found_length": status.st_size}
    if status.st_size != length:
        raise DigestMismatch(
            f"the archive has {status.st_size} bytes, {length} were promised", detail
        )
    found, _ = files.hash_fd(fd, tick)
    if found != digest:
        detail["found"] = found
        raise DigestMismatch(f"the archive's sha256 is {found}, {digest} was promised", detail)
    os.lseek(fd, 0, os.SEEK_SET)


def _unpack(ctx: Context, op: Dict[str, Any], fd: int) -> Dict[str, Any]:
    node, digest = ctx.node, op["digest"]
    sibling = node.releases / f"{NEW}{digest}"
    out = Unpacked(sibling, Limits(op["max_bytes"], op["max_members"], op["strip"]))
    try:
        places.make(sibling, 0o755)
        points.reach("stage.unpacking")
        fill(fd, digest, out, op["program"], ctx.pulse.tick)
        listed = {
            "digest": digest,
            "length": op["length"],
            "files": sorted(out.files, key=lambda one: str(one["path"])),
            "directories": sorted(out.directories),
            "links": out.links,
        }
        files.write_atomic(node.manifest(digest), files.to_json(listed))
        points.reach("stage.before-rename")
        with ctx.fence.act():
            # The daemon may be another user.
            places.change_mode(sibling, 0o555)
            places.rename(sibling, node.release(digest))
        points.reach("stage.after-rename")
        files.sync_dir(node.releases)
    except (Fault, OSError, ReaderGone):
        places.remove_tree(sibling)
        raise
    return {"files": len(out.files), "bytes": out.bytes}


def fill(
    fd: int, digest: str, out: Unpacked, program: Optional[str], tick: Callable[[], None]
) -> None:
    """Take an archive's members, or with `program` the file itself under that name. ArchiveRefused says what is wrong.

    The bytes that were taken, not only those read before, have to be the promised ones.
    """
    start = os.pread(fd, filetypes.HEAD, 0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")) and program is None:
        _zip(fd, digest, out, tick)
    else:
        raw = streams.Raw(fd)
        if program is not None:
            _single(raw, os.fstat(fd).st_size, program, out, tick)
        else:
            if filetypes.is_program(start) or filetypes.is_text(start):
                raise ArchiveRefused(
                    f"it is {filetypes.describe(start)}, not an archive; "
                    "a program that is one file is released with `program: NAME`"
                )
            archive.unpack_tar(raw, start, out, tick)
        if raw.digest.hexdigest() != digest:
            raise DigestMismatch("the archive changed while it was read", {"promised": digest})
    out.close()


def _single(
    raw: streams.Raw, size: int, program: str, out: Unpacked, tick: Callable[[], None]
) -> None:
    """A release of one file: it may be executed, that is what it is for."""
    reader = streams.Reader(streams.Plain(raw), size, tick)
    out.write(out.admit(program, directory=False), size, 0o555, reader.some)
    if reader.some(1):
        raise ArchiveRefused("the file grew while it was read")


def _zip(fd: int, digest: str, out: Unpacked, tick: Callable[[], None]) -> None:
    """A zip is read from its end: from a copy without a name, which nobody can change meanwhile."""
    from kedge.host import wheels  # noqa: PLC0415 -- large, and most archives are tar

    if out.top is None:
        # Only judged: what counts is unpacked from a copy.
        wheels.unpack_zip(fd, out, tick)
        return
    own = files.opened(out.top / ".archive", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        files.drop(out.top / ".archive")
        raw = streams.Raw(fd)
        for part in iter(raw.read, b""):
            files.write_all(own, part)
            tick()
        if raw.digest.hexdigest() != digest:
            raise DigestMismatch("the archive changed while it was read", {"promised": digest})
        os.lseek(own, 0, os.SEEK_SET)
        wheels.unpack_zip(own, out, tick)
    finally:
        os.close(own)


def clean(node: Node) -> None:
    """Remove what an unpacking or a removal that was killed left behind. Callers hold `op.lock`."""
    for name in places.listed(node.releases):
        if name.startswith(NEW):
            places.remove_tree(node.releases / name)


def _take_away(node: Node, digest: str) -> None:
    """Give a release a name that is no release's, in one rename; `clean` removes it."""
    gone = node.releases / f"{NEW}gone-{digest}"
    places.remove_tree(gone)
    # A directory must be writable to be given another parent entry on some systems.
    places.change_mode(node.release(digest), 0o700)
    places.rename(node.release(digest), gone)


def remove(node: Node, digest: str) -> None:
    """Remove a release and its manifest: at no instant does half of it have its name."""
    _take_away(node, digest)
    files.drop(node.manifest(digest))
    places.remove_tree(node.releases / f"{NEW}gone-{digest}")


def verify(node: Node, digest: str, tick: Callable[[], None] = files.nothing) -> Dict[str, Any]:
    """Check every file of a release against its manifest, and that there is nothing else.

    Gives the manifest. NoRelease when the release or its manifest is not there; DigestMismatch names the
    first file that is not what was unpacked.
    """
    top = node.release(digest)
    listed = files.read_json(node.manifest(digest))
    if not places.is_directory(top):
        raise NoRelease(f"release {digest[:12]} is not on this host: stage it first")
    if not isinstance(listed, dict) or listed.get("digest") != digest:
        raise NoRelease(f"release {digest[:12]} has no manifest: stage it again")
    wanted = {one["path"]: one for one in listed["files"]}
    directories = set(listed["directories"])
    links = {one["path"]: one["to"] for one in listed.get("links", ())}
    found = 0
    for path, status, place in places.walk(top):
        tick()
        if stat.S_ISDIR(status.st_mode) and path in directories:
            continue
        if path in links:
            if not stat.S_ISLNK(status.st_mode) or files.link_target(place) != links[path]:
                raise _broken(digest, path, f"is not the link to {links[path]} any more")
            found += 1
            continue
        one = wanted.get(path)
        if one is None:
            raise _broken(digest, path, "is not part of the release")
        _check_file(place, one, digest, tick)
        found += 1
    if found != len(wanted) + len(links):
        missing = next(path for path in (*wanted, *links) if not places.exists(top / path))
        raise _broken(digest, missing, "is missing")
    return listed


def _check_file(place: Place, one: Dict[str, Any], digest: str, tick: Callable[[], None]) -> None:
    try:
        sha256, status = files.hash_file(place, tick)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
            raise _broken(digest, one["path"], "is not a regular file any more") from error
        raise
    if status.st_size != one["size"] or sha256 != one["sha256"]:
        raise _broken(digest, one["path"], "has other content")
    if stat.S_IMODE(status.st_mode) != one["mode"]:
        raise _broken(digest, one["path"], f"has mode {stat.S_IMODE(status.st_mode):o}")


def _broken(digest: str, path: str, what: str) -> DigestMismatch:
    return DigestMismatch(
        f"release {digest[:12]}: {path} {what}", {"release": digest, "path": path}
    )


def switch(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Point `current` at a release by one rename; verified before and after."""
    node, digest = ctx.node, op["digest"]
    verify(node, digest, ctx.pulse.tick)
    before: Optional[str] = ctx.before["release"]
    if observe.current_release(node) == digest:
        return {"from": before, "to": digest}
    there = places.status(node.current)
    if there is not None and not stat.S_ISLNK(there.st_mode):
        raise Conflict("`current` is not a symbolic link: somebody put something else there")
    ctx.acting()
    with ctx.fence.act():
        points.reach("switch.before-rename")
        files.relink(node.current, f"releases/{digest}")
        points.reach("switch.after-rename")
    verify(node, digest, ctx.pulse.tick)
    return {"from": before, "to": digest}
