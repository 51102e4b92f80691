"""Folders and files outside the root that a snapshot's links lead to: restored there, through the same links.

Each is built beside the one it replaces, in the directory that one lies in, and swapped by renames as all others
are. Where a link leads is looked at when the restore begins: the data lie where it leads now.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Any, Dict, Iterable, List, Optional, Tuple

from kedge.host import files, places, survey
from kedge.host.errors import Conflict, HostError
from kedge.host.layout import Node
from kedge.host.places import Directory, Place

Known = Dict[str, str]
"""An anchor as an intent keeps it: `path` from the root, the real `parent`, the `name` in it, the `tag` of its new one."""


class Anchors:
    """Anchors with the directories they lie in held open, so that nothing swaps these meanwhile."""

    def __init__(self, known: Iterable[Known]) -> None:
        self.known: List[Known] = []
        self._held: Dict[str, Directory] = {}
        for one in known:
            self._hold(one)

    def _hold(self, one: Known) -> None:
        parent = survey.parent_of(f"{one['parent'].rstrip('/')}/{one['name']}")
        self.known.append(one)
        self._held[one["path"]] = parent

    def __enter__(self) -> Anchors:  # noqa: PYI034 -- `Self` is newer than Python 3.9
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the directories go."""
        for directory in self._held.values():
            directory.close()

    def live(self, node: Node, path: str, *, outer: bool = False) -> Place:
        """Where a path of the snapshot lies now; `outer`: where its link does."""
        one, rest = self._nearest(path, outer=outer)
        if one is None:
            return node.top / path
        place = self._held[one["path"]] / one["name"]
        return place / rest if rest else place

    def new(self, top: Directory, path: str, *, outer: bool = False) -> Place:
        """Where the same is built; `top` for what lies below the root."""
        one, rest = self._nearest(path, outer=outer)
        if one is None:
            return top / path
        place = self._held[one["path"]] / _new(one)
        return place / rest if rest else place

    def _nearest(self, path: str, *, outer: bool) -> Tuple[Optional[Known], str]:
        found: Optional[Known] = None
        for one in self.known:
            inside = path.startswith(f"{one['path']}/") or (path == one["path"] and not outer)
            if inside and (found is None or len(one["path"]) > len(found["path"])):
                found = one
        return found, path[len(found["path"]) + 1 :] if found is not None else ""

    def units(self, replaced: str) -> List[Tuple[Place, Place, Place]]:
        """For each anchor what is new, what it replaces, and where that goes."""
        return [
            (held / _new(one), held / one["name"], held / _old(one, replaced))
            for one, held in ((one, self._held[one["path"]]) for one in self.known)
        ]

    def forget_new(self) -> None:
        """Remove what was built and not put in place."""
        for one in self.known:
            places.remove_tree(self._held[one["path"]] / _new(one))

    def replaced(self, replaced: str) -> List[Known]:
        """Where what was replaced lies."""
        return [{"parent": one["parent"], "name": _old(one, replaced)} for one in self.known]


def _new(one: Known) -> str:
    return f".kedge-{one['tag']}.new"


def _old(one: Known, replaced: str) -> str:
    return f".kedge-{one['tag']}.{replaced}"


def resolve(node: Node, entries: List[Dict[str, Any]]) -> Anchors:
    """The anchors of a snapshot, where its links lead now; Conflict when one leads nowhere, or cannot be put back."""
    anchors = Anchors(())
    try:
        for entry in entries:
            if "followed" in entry:
                anchors._hold(_anchor(node, anchors, entry))  # noqa: SLF001 -- its own making
        for one in anchors.known:
            _check(anchors.live(node, one["path"]), one["path"])
    except BaseException:
        anchors.close()
        raise
    return anchors


def _anchor(node: Node, anchors: Anchors, entry: Dict[str, Any]) -> Known:
    path = entry["path"]
    led = survey.leads_to(anchors.live(node, path, outer=True))
    if led is None:
        raise Conflict(
            f"{path} was a link to data when the snapshot was taken, and is none now or leads nowhere:"
            " is its disk mounted?",
            {"link": path[:512]},
        )
    real, status = led
    if status.st_uid != entry.get("uid", status.st_uid):
        raise Conflict(
            f"{path} leads to {real}, which belongs to another user than what the snapshot was taken of",
            {"link": path[:512], "to": real[:512]},
        )
    tag = hashlib.sha256(f"{node.root}\0{path}".encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return {
        "path": path,
        "parent": os.path.dirname(real),
        "name": os.path.basename(real),
        "tag": tag,
    }


def _check(place: Place, path: str) -> None:
    """Conflict for what no rename can replace: the top of a mounted disk, or one in a folder that is not ours."""
    found, parent = places.status(place), os.fstat(place.top.fd)
    if found is None:
        raise HostError(f"{place} is not there any more")
    if found.st_dev != parent.st_dev:
        raise Conflict(
            f"{path} leads to {place}, the top of a mounted disk, which no restore can replace: put the"
            " data into a folder of that disk, and let the link lead there",
            {"link": path[:512], "to": str(place)[:512]},
        )
    if not os.access(place.top.path, os.W_OK | os.X_OK):
        raise Conflict(
            f"{path} leads to {place}: a restore builds beside it, and may not write in"
            f" {place.top.path}",
            {"link": path[:512], "to": str(place)[:512]},
        )


def check_below_root(node: Node, paths: List[str]) -> None:
    """Conflict for a path of the root that is the top of a mounted disk: no restore can replace it by a rename."""
    root = os.fstat(node.top.fd).st_dev
    for path in paths:
        status = places.status(node.top / path)
        if status is not None and stat.S_ISDIR(status.st_mode) and status.st_dev != root:
            raise Conflict(
                f"{path} is the top of a mounted disk, which no restore can replace: mount the disk"
                f" elsewhere, make {path} a link to a folder of it, and say `follow: [{path}]` in the"
                " runbook's snapshot step",
                {"path": path},
            )


ELSEWHERE = ".elsewhere.json"


def note_replaced(away: Place, known: List[Known]) -> None:
    """Write down, in `snapshots/replaced-<n>`, which folders elsewhere belong to it."""
    places.make_above(away / ELSEWHERE, 0o700)
    files.write_atomic(away / ELSEWHERE, files.to_json(known))


def remove_replaced(away: Place) -> None:
    """Remove what a restore moved aside elsewhere: only names that kedge gave."""
    known = files.read_json(away / ELSEWHERE)
    for one in known if isinstance(known, list) else []:
        name = str(one["name"])
        if not name.startswith(".kedge-"):
            continue
        try:
            with survey.parent_of(f"{str(one['parent']).rstrip('/')}/{name}") as parent:
                places.remove_tree(parent / name)
        except FileNotFoundError:
            continue
