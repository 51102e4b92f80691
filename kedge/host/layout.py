"""Where things are in a node's root, and which names may become part of a path there.

The tree is described in `docs/host-protocol.md` (The node's root).
"""

from __future__ import annotations

import os
import re
from typing import Tuple

from kedge.host.errors import BadRequest
from kedge.host.files import Kept

Token = Tuple[int, int, int]

DIGEST = re.compile(r"[0-9a-f]{64}\Z")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}\Z")
# What a snapshot may not be called: `replaced-<n>` is what a restore moved away.
REPLACED = "replaced-"


class Node:
    """The paths of one node. Nothing is read or made until it is needed."""

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.name = name
        self.releases = f"{root}/releases"
        self.current = f"{root}/current"
        self.configs = f"{root}/config"
        self.config_current = f"{root}/config/current"
        self.snapshots = f"{root}/snapshots"
        self.logs = f"{root}/logs"
        self.log = f"{root}/logs/service.log"
        self.own = f"{root}/.kedge"
        self.fence = f"{root}/.kedge/fence"
        self.fence_lock = f"{root}/.kedge/fence.lock"
        self.op_lock = f"{root}/.kedge/op.lock"
        self.journal = f"{root}/.kedge/journal"
        self.begun = f"{root}/.kedge/begun.json"
        self.manifests = f"{root}/.kedge/manifests"
        self.service = f"{root}/.kedge/service.json"
        self.stopping = f"{root}/.kedge/stopping.json"
        self.should_run = f"{root}/.kedge/should-run"
        self.runs = f"{root}/.kedge/runs"
        self.secrets = f"{root}/.kedge/secrets"
        self.captured = f"{root}/.kedge/captured.json"
        self.restoring = f"{root}/.kedge/restoring.json"
        self.restore_new = f"{root}/.kedge/restore.new"
        self._real_releases = ""
        # Both are looked at a dozen times in a session, and replaced once or twice.
        self.kept_fence = Kept(self.fence)
        self.kept_service = Kept(self.service)

    def close(self) -> None:
        """Let go of what was kept open."""
        self.kept_fence.close()
        self.kept_service.close()

    def real_releases(self) -> str:
        """`releases` as the kernel names it in `/proc/<pid>/exe`, where links are resolved."""
        if not self._real_releases:
            self._real_releases = os.path.realpath(self.releases)
        return self._real_releases

    def make(self) -> None:
        """Make the directories of a node that has none yet. The daemon's own is among them."""
        if os.path.isdir(self.runs):
            return
        for path in (self.root, self.releases, self.configs, f"{self.root}/data", self.logs):
            os.makedirs(path, 0o755, exist_ok=True)
        # Copies of data and kedge's own records are nobody else's to read. `runs` comes last:
        # its being there says that all of them are.
        for path in (self.snapshots, self.own, self.manifests, self.runs):
            os.makedirs(path, 0o700, exist_ok=True)

    def release(self, digest: str) -> str:
        """The directory of one unpacked release."""
        return f"{self.releases}/{digest}"

    def manifest(self, digest: str) -> str:
        """The list of a release's files."""
        return f"{self.manifests}/{digest}.json"

    def config(self, generation: str) -> str:
        """The directory of one generation of configuration."""
        return f"{self.configs}/{generation}"

    def snapshot(self, name: str) -> str:
        """The directory of one snapshot."""
        return f"{self.snapshots}/{name}"


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
