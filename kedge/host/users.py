"""As which user a daemon runs, and what of the node that user owns.

A host program that is root never starts a daemon as root unless the configuration says so: without a user there
it takes one that is this node's alone, a number without an account. A host program that is not root starts
daemons as itself and as nobody else. Rule 12 of `docs/host-protocol.md`.
"""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
import stat
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, NoReturn, Optional, Set, Tuple

from kedge.host import files, places
from kedge.host.errors import Conflict
from kedge.host.layout import Node
from kedge.host.places import Place

if TYPE_CHECKING:
    from kedge.host.context import Context

# Numbers that nobody gives to accounts, containers or services (UIDS-GIDS of systemd: unused).
FIRST, COUNT = 1_880_000_000, 1 << 26
# Where the system has no such numbers, as in most containers: those of services that come and go.
SMALL_FIRST, SMALL_COUNT = 61_184, 4_096
NO_NEW_PRIVS = 38  # PR_SET_NO_NEW_PRIVS of linux/prctl.h


class User(NamedTuple):
    """Who a daemon runs as. `drops` says that the host program has to become that user first."""

    name: str
    uid: int
    gid: int
    groups: Tuple[int, ...]
    home: Optional[str]
    drops: bool


def of(node: Node, wanted: Optional[Dict[str, Any]]) -> User:
    """The user that a configuration asks for; Conflict when there is none, or when we may not be that user."""
    mine = os.geteuid()
    if wanted is None:
        return _own(node) if mine == 0 else _myself()
    asked = _account(wanted)
    if mine == 0:
        return asked._replace(drops=asked.uid != 0)
    if asked.uid == mine:
        return _myself()
    raise Conflict(
        f"kedge runs as {_name_of(mine)} here and cannot start a daemon as {asked.name}: run the worker of"
        f" this host as root, or leave `run.user` out"
    )


def of_spec(node: Node, spec: Optional[Dict[str, Any]]) -> User:
    """The user of a service as it is kept in a generation; None is a node without a configuration."""
    return of(node, spec.get("user") if spec else None)


def _myself() -> User:
    uid = os.geteuid()
    return User(_name_of(uid), uid, os.getegid(), (), os.environ.get("HOME"), drops=False)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _account(wanted: Dict[str, Any]) -> User:
    name, _, group = str(wanted["name"]).partition(":")
    try:
        found = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        if not name.isdigit():
            raise Conflict(
                f"this host has no user {name!r}: make the account, or name another"
            ) from None
        found = None
    uid = found.pw_uid if found else int(name)
    gid = _group(group) if group else (found.pw_gid if found else uid)
    if uid > 0xFFFFFFFE or gid > 0xFFFFFFFE:
        raise Conflict(f"{wanted['name']!r} is no user or group that a system can have")
    if wanted.get("groups") is not None:
        groups = tuple(_group(one) for one in wanted["groups"])
    else:
        groups = tuple(os.getgrouplist(found.pw_name, gid)) if found and uid else ()
    home = found.pw_dir if found else None
    return User(found.pw_name if found else f"uid {uid}", uid, gid, groups, home, drops=True)


def _group(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise Conflict(f"this host has no group {name!r}: make it, or name another") from None


# -- a user of the node's own ----------------------------------------------------------------------------------


def own_uid(node: Node) -> Optional[int]:
    """The number that was made for this node alone, or None when there was never need of one."""
    kept = files.read_json(node.own_user)
    uid = kept.get("uid") if isinstance(kept, dict) else None
    return uid if isinstance(uid, int) and uid > 0 else None


def _own(node: Node) -> User:
    uid = own_uid(node)
    if uid is None:
        uid = _free(node)
        files.write_atomic(node.own_user, files.to_json({"uid": uid}))
    return User(f"uid {uid}, this node's own", uid, uid, (), None, drops=True)


def _free(node: Node) -> int:
    first, count = (FIRST, COUNT) if _mapped(FIRST, COUNT) else (SMALL_FIRST, SMALL_COUNT)
    if not _mapped(first, count):
        raise Conflict(
            "a daemon is not run as root, and this container has no number left for a user of its own: name"
            " the user in the Fleet (`run: {user: NAME}`; `user: root` if it must be)"
        )
    place = int.from_bytes(hashlib.sha256(os.urandom(16) + node.root.encode()).digest()[:8], "big")
    taken = _taken()
    for step in range(count):
        uid = first + (place + step) % count
        if uid not in taken and not _has_account(uid):
            return uid
    raise Conflict("every number for a user of the node's own is taken on this host")


def _mapped(first: int, count: int) -> bool:
    """Whether this system has these numbers: a container may have few."""
    with open("/proc/self/uid_map", encoding="ascii") as told:
        ranges = [[int(part) for part in line.split()] for line in told]
    return any(inside <= first and first + count <= inside + length for inside, _, length in ranges)


def _taken() -> Set[int]:
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.add(os.stat(f"/proc/{name}").st_uid)
            except OSError:
                continue
    return found


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


# -- becoming that user ----------------------------------------------------------------------------------------


def become(user: User) -> None:
    """Be that user from here on, for good: nothing that this process executes gets anything back.

    Called in a forked child. Raises OSError when it cannot be done whole.
    """
    if not user.drops:
        return
    # First: behind the change of user this Python may not be readable any more.
    _no_new_privileges()
    os.setgroups(list(user.groups))
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (user.gid,) * 3:
        raise OSError(errno.EPERM, "the user could not be changed")


def _no_new_privileges() -> None:
    """No program of that user's gets another's rights: setuid bits and file capabilities do nothing."""
    import ctypes  # noqa: PLC0415 -- needed by root alone, and slow to load

    found = ctypes.CDLL(None, use_errno=True)
    if found.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs cannot be set")


def blocked(user: User, path: str) -> Optional[str]:
    """The first folder on the way to a path that the user cannot pass through, or None."""
    if not user.drops:
        return None
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.setgroups(list(user.groups))
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            os.write(writing, blocked_here(path).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        found = b"".join(iter(lambda: os.read(reading, 4096), b""))
    finally:
        os.close(reading)
        os.waitpid(pid, 0)
    return found.decode() or None


def blocked_here(path: str) -> str:
    """The same for the user that this process is; empty when nothing is in the way."""
    parts = path.split("/")[1:]
    for number in range(len(parts)):
        above = "/" + "/".join(parts[: number + 1])
        if os.path.isdir(above) and not os.access(above, os.X_OK):
            return above
        if not os.path.lexists(above):
            return ""
    return ""


def reaches(user: User, path: str) -> None:
    """Conflict when the user cannot get to a path: found before anything is stopped for it."""
    above = blocked(user, path)
    if above is not None:
        raise unreachable(user, path, above)


def unreachable(user: User, path: str, above: str) -> Conflict:
    """The sentence about a folder that is in a daemon's way."""
    return Conflict(
        f"the daemon's user ({user.name}) cannot reach {path}: {above} is closed to it. Move the node to a folder"
        f" that others can pass through, such as below /srv or /var/lib, or `chmod o+x {above}`, or name in the Fleet"
        " a user who can (`run: {user: NAME}`; `user: root` runs the daemon as root)",
        {"user": user.uid, "path": path, "folder": above},
    )


# -- what that user owns ---------------------------------------------------------------------------------------


def give(node: Node, generation: str, user: User) -> None:
    """Let the user read its configuration, and nobody else who is not root. Callers hold the fence."""
    if os.geteuid() != 0:
        return
    for top in (node.config(generation), node.secrets / generation):
        if places.is_directory(top):
            _give_folder(top, user)
            for _path, status, place in places.walk(top):
                if stat.S_ISDIR(status.st_mode):
                    _give_folder(place, user)
                elif stat.S_ISREG(status.st_mode):
                    _own_place(place, user.uid, user.gid)
    # Passed through on the way to files with secrets; what else is there stays root's alone.
    for place in (node.own, node.secrets):
        if places.is_directory(place):
            _own_place(place, 0, user.gid if user.drops else 0)
            places.change_mode(place, 0o710 if user.drops else 0o700)


def _give_folder(place: Place, user: User) -> None:
    """Folders stay root's, so that nothing in them can be exchanged."""
    _own_place(place, 0, user.gid if user.drops else 0)
    places.change_mode(place, 0o750 if user.drops else 0o700)


def _own_place(place: Place, uid: int, gid: int) -> None:
    with place.held() as (fd, name):
        os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)


def give_data(ctx: Context, user: User) -> None:
    """Make the data the user's, once for each change of the user. Callers hold the fence.

    What belongs to the user before, or to root while no user was known, changes hands; what somebody gave to
    another account stays that account's. A link is never followed, but for `data` itself: the root is kedge's own.
    """
    node = ctx.node
    if os.geteuid() != 0 or not places.exists(node.data):
        return
    kept = files.read_json(node.owner)
    kept = kept if isinstance(kept, dict) else {}
    with places.followed(node.data) as data:
        status = os.fstat(data.fd)
        now = {"uid": user.uid, "gid": user.gid, "place": [status.st_dev, status.st_ino]}
        if all(kept.get(name) == value for name, value in now.items()):
            return
        before: List[int] = [one for one in kept.get("users", ()) if isinstance(one, int)]
        if user.uid == 0 and not before:
            # Root needs nothing, and may have daemons that give up their rights themselves.
            return
        os.fchown(data.fd, user.uid, user.gid)
        os.fchmod(data.fd, 0o700)
        for name in sorted(os.listdir(data.fd)):
            _give_tree(ctx, data / name, set(before) if before else {0}, user)
    users = sorted({*before, user.uid} - {0})
    files.write_atomic(node.owner, files.to_json({**now, "users": users}))


def _give_tree(ctx: Context, top: Place, owners: Set[int], user: User) -> None:
    status = places.status(top)
    if status is None:
        return
    _give_one(top, status, owners, user)
    if stat.S_ISDIR(status.st_mode):
        for _path, found, place in places.walk(top):
            ctx.pulse.tick()
            _give_one(place, found, owners, user)


def _give_one(place: Place, status: os.stat_result, owners: Set[int], user: User) -> None:
    # A file with another name may be somebody else's file: by that name it would be taken from him.
    shared = not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1
    taken = status.st_uid in owners and status.st_uid != user.uid
    if taken and not (shared and status.st_uid == 0):
        _own_place(place, user.uid, user.gid)


def refuse(error: OSError, user: User) -> NoReturn:
    """The sentence for a system that does not let us become that user."""
    raise Conflict(
        f"the daemon cannot be run as {user.name}: {error.strerror or error}", {"user": user.uid}
    ) from error
