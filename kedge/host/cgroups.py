"""A cgroup of its own for each daemon, where this host lets kedge make one.

Version 2 of cgroups alone, below the cgroup that kedge itself is in. A process that a daemon starts is in the
daemon's cgroup, whatever session, group or environment it gives itself. Where none can be made there is no harm:
a daemon's processes are known by other signs too (`kedge.host.family`).
"""

from __future__ import annotations

import os
from typing import Optional, Set

# For tests, and for hosts whose cgroups somebody else keeps.
OFF = "KEDGE_CGROUPS"


def place(mark: str) -> Optional[str]:
    """The directory of a daemon's cgroup, made if need be; None where that may not be done."""
    if os.environ.get(OFF) == "off":
        return None
    try:
        top = _mine()
        if top is None:
            return None
        path = f"{top}/kedge-{mark[:16]}"
        os.makedirs(path, 0o755, exist_ok=True)
    except OSError:
        return None
    return path if os.access(f"{path}/cgroup.procs", os.W_OK) else None


def _mine() -> Optional[str]:
    """The directory of the cgroup that this process is in."""
    own = ""
    with open("/proc/self/cgroup", encoding="utf-8") as told:
        for line in told:
            if line.startswith("0::"):
                own = line[3:].strip()
    if not own.startswith("/") or "/.." in own:
        return None
    with open("/proc/self/mountinfo", encoding="utf-8") as told:
        for line in told:
            before, _, after = line.partition(" - ")
            fields = before.split()
            if after.startswith("cgroup2 ") and fields[3] == "/" and "\\" not in fields[4]:
                return f"{fields[4]}{own}".rstrip("/")
    return None


def join(path: Optional[str]) -> Optional[str]:
    """Put this process into a cgroup; gives the path when that was done."""
    if path is None:
        return None
    try:
        fd = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)
    except OSError:
        return None
    return path


def members(path: str) -> Set[int]:
    """The processes of a cgroup and of all below it."""
    found: Set[int] = set()
    for top, _folders, _names in os.walk(path):
        found |= _listed(f"{top}/cgroup.procs")
    return found


def _listed(path: str) -> Set[int]:
    try:
        with open(path, encoding="ascii") as told:
            return {int(line) for line in told}
    except (OSError, ValueError):
        return set()


def drop(path: Optional[str]) -> None:
    """Remove a cgroup in which nothing is any more."""
    if path is None:
        return
    for top, folders, _names in os.walk(path, topdown=False):
        for name in folders:
            _remove(f"{top}/{name}")
    _remove(path)


def _remove(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        return
