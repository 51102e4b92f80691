"""The documents of the show, written as a person would write them: fleet, releases, runbook. The policy is in
:mod:`demo.policies`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.archives import PLATFORM, Archive
from demo.cluster import HOST, Member
from demo.keys import OTHER_KEEPER, PEOPLE, make_key

FLEET = "etcd"
COMPONENT = "etcd"
OLD, NEW, HARDENED = "3.5.0", "3.5.1", "3.5.1+hardened"
GATE = "widen"
RUNBOOK = Path(__file__).with_name("etcd-patch.yaml")

# Below the range that the kernel gives to outgoing connections: a member that is down for a while must find its
# ports free when it comes back.
_PORTS = (21_000, 31_000)

_HARDENING = """\
etcd 3.5.1 with stricter defaults: HTTP requests are answered for the host name etcd.internal only.
"""

# The show's folder may lie where no other user comes, below /root say.
_AS_ROOT = "  user: root # this show was begun by root; a fleet of your own has a user for its daemons, or leaves it out"


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things lie in the show's folder; commands are typed there, so documents have short names."""

    folder: Path

    @property
    def home(self) -> Path:
        """The home of kedge: the default one of who types commands in the folder."""
        return self.folder / ".kedge"

    @property
    def keys(self) -> Path:
        """The people's keys."""
        return self.folder / "keys"

    @property
    def archives(self) -> Path:
        """What was built: archives, and the documents that name them."""
        return self.folder / "built"

    def root(self, member: str) -> Path:
        """The directory of one node."""
        return self.folder / "nodes" / member

    @property
    def repository(self) -> Path:
        """The signed release repository, where ``kedge init`` makes it."""
        return self.folder / "releases"

    def release_file(self, version: str) -> str:
        """The name of a release document as it is typed."""
        return f"built/{version}.yaml"


def free_members(count: int) -> tuple[Member, ...]:
    """Members with ports that nobody listens on now. Raises ``OSError`` when too few are free."""
    low, high = _PORTS
    for _ in range(50):
        first = low + secrets.randbelow(high - low - 2 * count)
        ports = range(first, first + 2 * count)
        if all(_is_free(port) for port in ports):
            return tuple(
                Member(f"{FLEET}-{number + 1}", first + 2 * number, first + 2 * number + 1)
                for number in range(count)
            )
    raise OSError(f"no {2 * count} free ports in a row between {low} and {high}")


def release(version: str) -> str:
    """A release of the repository, as it is typed."""
    return f"{COMPONENT}@{version}"


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def write_documents(paths: Paths, members: Sequence[Member], archives: dict[str, Archive]) -> None:
    """Writes what the show's commands name, but for the policy, and a new key for each person."""
    paths.archives.mkdir(parents=True, exist_ok=True)
    (paths.folder / "fleet.yaml").write_text(fleet_text(paths, members), encoding="utf-8")
    for version, archive in archives.items():
        text = release_text(version, archive)
        (paths.folder / paths.release_file(version)).write_text(text, encoding="utf-8")
    (paths.folder / RUNBOOK.name).write_bytes(RUNBOOK.read_bytes())
    for person in (*PEOPLE, OTHER_KEEPER):
        make_key(paths.keys, person.name)


def hardening() -> dict[str, bytes]:
    """What the hardened release's archive has beside the programs of 3.5.1."""
    return {"HARDENING.txt": _HARDENING.encode()}


def fleet_text(paths: Paths, members: Sequence[Member]) -> str:
    """The Fleet document: members on this machine, each in a directory of its own."""
    nodes = "\n".join(
        f"  - name: {member.name}\n"
        f'    labels: {{client_port: "{member.client_port}", peer_port: "{member.peer_port}"}}'
        for member in members
    )
    return f"""\
# The members of one etcd cluster, as processes on this machine.
kind: Fleet
name: {FLEET}
environment: demo
release: "{release(OLD)}" # what the fleet is installed with; a migration moves it on
root: {json.dumps(_literal(str(paths.folder / "nodes")) + "/{node.name}", ensure_ascii=False)}

vars:
  cluster: {{join: "{{node.name}}=http://{{node.address}}:{{node.labels.peer_port}}", with: ","}}

run:
  argv: [./etcd, "{{settings.flags}}"]
  ports: ["{{node.address}}:{{node.labels.client_port}}", "{{node.address}}:{{node.labels.peer_port}}"]
{_AS_ROOT + chr(10) if os.geteuid() == 0 else ""}
settings:
  name: "{{node.name}}"
  data-dir: "{{node.data}}"
  listen-client-urls: "http://{{node.address}}:{{node.labels.client_port}}"
  advertise-client-urls: "http://{{node.address}}:{{node.labels.client_port}}"
  listen-peer-urls: "http://{{node.address}}:{{node.labels.peer_port}}"
  initial-advertise-peer-urls: "http://{{node.address}}:{{node.labels.peer_port}}"
  initial-cluster: "{{vars.cluster}}"
  log-level: warn

nodes:
{nodes}
"""


def _literal(text: str) -> str:
    """A text in a template, such that what looks like a placeholder in it is none."""
    return re.sub(r"\{([A-Za-z][\w-]*(?:\.[\w-]+)*)\}", r"{{\1}}", text)


def release_text(version: str, archive: Archive) -> str:
    """A Release document. The hardened one has a new default, which is what is wrong with it."""
    extra = ""
    if version == HARDENED:
        extra = f"""
reports: "{NEW}" # the programs are those of {NEW}
configuration:
  defaults:
    host-whitelist: etcd.internal # and nobody asks for it under that name
"""
    return f"""\
kind: Release
component: etcd
version: "{version}"
artifacts:
  {PLATFORM}:
    digest: "{archive.digest}"
    length: {archive.length}
    source: {json.dumps(archive.path.name)}
protocols:
  peer: {{speaks: ["3.5"]}}
data_format: {{reads: ["3.5"], writes: "3.5"}}
upgrade_from: ">=3.4.0 <3.6.0"
downgrade_to: ">=3.5.0 <3.6.0"
{extra}"""
