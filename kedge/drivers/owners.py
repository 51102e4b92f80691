"""Who may change a file: its owner's, its mode's and every folder's on the way to it.

Whoever can write a folder can put another file in the place of one that he cannot write. So what is trusted is looked at up
the chain: the file, each folder above it, and each link on the way, up to the root. Each belongs to whoever runs kedge or to
the administrator, and nobody else may write it. A folder where everybody may write and nobody can replace what is another's
(``/tmp``, with the sticky bit) is no harm.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from kedge.model.errors import DriverError

PRIVATE = 0o700
PUBLIC = 0o755


def make_folder(path: Path, mode: int = PRIVATE) -> None:
    """Makes a folder and those above it that are missing, with this mode, whatever the umask. Raises ``OSError``."""
    missing: list[Path] = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for one in reversed(missing):
        try:
            one.mkdir(mode)
        except FileExistsError:
            if not one.is_dir():
                raise
    if not path.is_dir() and not missing:
        raise FileExistsError(17, "is no folder", str(path))


def check_owners(path: Path) -> None:
    """Raises ``DriverError`` kind ``StoreError`` when somebody else could have put what is at ``path`` there.

    What is not there yet is judged by the folders above it.
    """
    for one in _chain(path):
        try:
            status = one.lstat()
        except OSError:
            # Not there, or not to be looked at: reading it says so.
            continue
        said = _loose(status, one)
        if said:
            raise DriverError(
                "StoreError",
                f"{said}, so that what is at {path} may be another's",
                retryable=False,
                next_step=_step(status, one),
            )


def _chain(path: Path) -> Iterator[Path]:
    """The path as it is written and as it is, each with every folder above it, without repetition."""
    seen: dict[Path, None] = {}
    written = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    for start in (written, written.resolve()):
        for one in (start, *start.parents):
            seen.setdefault(one)
    yield from seen


def _loose(status: os.stat_result, path: Path) -> str:
    if status.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to {_user(status.st_uid)}"
    if stat.S_ISLNK(status.st_mode):
        return ""
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & stat.S_IWOTH and not sticky:
        return f"{path} can be written by everyone (mode {stat.S_IMODE(status.st_mode):04o})"
    if status.st_mode & stat.S_IWGRP and not sticky and not _alone(status):
        return f"{path} can be written by the group {_group(status.st_gid)} (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def _alone(status: os.stat_result) -> bool:
    """Whether the group is one user's own: his primary group, of his name, without other members."""
    if status.st_gid == 0:
        return True
    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return (
        group.gr_name == owner.pw_name
        and owner.pw_gid == status.st_gid
        and set(group.gr_mem) <= {owner.pw_name}
    )


def _step(status: os.stat_result, path: Path) -> str:
    if status.st_uid not in (os.geteuid(), 0):
        return (
            f"call kedge as {_user(status.st_uid)}, or chown {path} after looking at what is in it"
        )
    return f"chmod go-w {path}, after looking at what is in it"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
