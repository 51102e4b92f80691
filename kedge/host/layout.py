"""Where things are in a node's root, and which names may become part of a path there.

The tree is described in `docs/host-protocol.md` (The node's root).
"""

from __future__ import annotations

import os
import re
from typing import Tuple

from kedge.host import places
from kedge.host.errors import BadRequest
from kedge.host.files import Kept
from kedge.host.places import Directory, Place

Token = Tuple[int, int, int]

DIGEST = re.compile(r"[0-9a-f]{64}\Z")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}\Z")
# What a snapshot may not be called: `replaced-<n>` is what a restore moved away.
REPLACED = "replaced-"


class Node:
    """The places of one node. Nothing is read or made until it is needed.

    `root` is the text of the root's path, `top` the open directory that all places are below.
    """

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.name = name
        self.top = top = Directory(root)
        self.data = top / "data"
        self.releases = top / "releases"
        self.current = top / "current"
        self.configs = top / "config"
        self.config_current = top / "config/current"
        self.snapshots = top / "snapshots"
        self.logs = top / "logs"
        self.log = top / "logs/service.log"
        self.own = own = top / ".kedge"
        self.fence = own / "fence"
        self.fence_lock = own / "fence.lock"
        self.op_lock = own / "op.lock"
        self.journal = own / "journal"
        self.begun = own / "begun.json"
        self.manifests = own / "manifests"
        self.service = own / "service.json"
        self.identity = own / "identity.json"
        self.own_user = own / "user.json"
        self.owner = own / "owner.json"
        self.stopping = own / "stopping.json"
        self.should_run = own / "should-run"
        self.initial = own / "init.json"
        self.runs = own / "runs"
        self.secrets = own / "secrets"
        self.captured = own / "captured.json"
        self.shown_secrets = own / "shown-secrets.json"
        self.baseline = own / "baseline.json"
        self.written_texts = own / "written"
        self.edited = own / "edited.json"
        self.edits = own / "edits"
        self.restoring = own / "restoring.json"
        self.restoring_elsewhere = own / "restoring-elsewhere.json"
        self.restore_new = own / "restore.new"
        self._real_releases = ""
        # Both are looked at a dozen times in a session, and replaced once or twice.
        self.kept_fence = Kept(self.fence)
        self.kept_service = Kept(self.service)

    def close(self) -> None:
        """Let go of what was kept open."""
        self.kept_fence.close()
        self.kept_service.close()
        self.top.close()

    def real_releases(self) -> str:
        """`releases` as the kernel names it in `/proc/<pid>/exe`, where links are resolved."""
        if not self._real_releases:
            self._real_releases = os.path.realpath(str(self.releases))
        return self._real_releases

    def make(self) -> None:
        """Make the directories of a node that has none yet. The daemon's own is among them."""
        if not os.path.isdir(self.root):
            os.makedirs(self.root, 0o755, exist_ok=True)
        if places.is_directory(self.runs):
            return
        for place in (self.releases, self.configs, self.logs):
            places.make(place, 0o755, there=True)
        if not places.exists(self.data):
            places.make(self.data, 0o755)
        # Copies of data and kedge's own records are nobody else's to read. `runs` comes last:
        # its being there says that all of them are.
        for place in (self.snapshots, self.own, self.manifests, self.runs):
            places.make(place, 0o700, there=True)

    def release(self, digest: str) -> Place:
        """The directory of one unpacked release."""
        return self.releases / digest

    def manifest(self, digest: str) -> Place:
        """The list of a release's files."""
        return self.manifests / f"{digest}.json"

    def config(self, generation: str) -> Place:
        """The directory of one generation of configuration."""
        return self.configs / generation

    def written(self, generation: str) -> Place:
        """What kedge wrote as one generation of configuration: to find edits by hand, and to write it again."""
        return self.written_texts / f"{generation}.json"

    def snapshot(self, name: str) -> Place:
        """The directory of one snapshot."""
        return self.snapshots / name


def below(path: str) -> str:
    """A relative path that stays below where it starts, in its plain form.

    Raises BadRequest for absolute and empty paths, `..`, control characters and names over 255 bytes.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or not parts:
        raise BadRequest(f"{path[:200]!r} is not a path below the node's root")
    for part in parts:
        if part == ".." or len(part.encode()) > 255 or any(ord(sign) < 32 for sign in part):
            raise BadRequest(f"{path[:200]!r} leaves the node's root or has a name no file has")
    return "/".join(parts)
