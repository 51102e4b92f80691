"""A fleet of simulated nodes with its documents and people's keys, in one folder.

``python -m tests.cli.scene FOLDER`` writes one to play with.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

PEOPLE = {
    "olga": ("operator",),
    "alice": ("sre",),
    "bob": ("sre",),
    "dave": ("on-call",),
}
RUNBOOK = """kind: Runbook
name: sim-patch
component: sim
node:
  - stage
  - stop: {signal: TERM, grace: 5s, then: park}
  - switch
  - configure
  - start
  - healthy: {http: "http://{node.address}:80/health", expect: {health: "true"}, for: 1s, within: 4s}
waves:
  canary: {nodes: 1, bake: BAKE, gate: ship-it}
  widen: [100%]
  max_unavailable: 2
gates:
  ship-it:
    approvals: {threshold: 2, roles: [sre]}
    expires: 1h
    reason: The canary runs the new release; go on?
failure_budget: 0
on_failure: ON_FAILURE
rollback: {before_commit: switch-back, after_commit: forbidden}
retry: {attempts: 1, backoff: 0s}
"""


@dataclass(frozen=True)
class Scene:
    """Where everything is. ``faults`` is the simulator's list of faults, read anew whenever it changes."""

    name: str
    folder: Path
    fleet: Path
    old: Path
    new: Path
    runbook: Path
    policy: Path
    faults: Path

    def key(self, person: str) -> Path:
        return self.folder / "keys" / person

    @property
    def documents(self) -> list[str]:
        """The options that plan and start take."""
        return [
            "--fleet",
            str(self.fleet),
            "--release",
            str(self.new),
            "--runbook",
            str(self.runbook),
            "--policy",
            str(self.policy),
        ]

    def fault(self, **rule: object) -> None:
        """Makes this the one fault of the simulator; without arguments there is none."""
        self.faults.write_text(json.dumps([rule] if rule else []), encoding="utf-8")


def build(
    folder: Path,
    *,
    name: str = "sim",
    nodes: int = 5,
    pace: float = 0.02,
    step_seconds: float = 0.5,
    bake: str = "1s",
    on_failure: str = "park",
) -> Scene:
    """Writes everything into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    scene = Scene(
        name=name,
        folder=folder,
        fleet=folder / "fleet.yaml",
        old=folder / "sim-1.0.0.yaml",
        new=folder / "sim-1.0.1.yaml",
        runbook=folder / "runbook.yaml",
        policy=folder / "policy.yaml",
        faults=folder / "faults.json",
    )
    keys = {name: _key(scene.key(name)) for name in PEOPLE}
    _release(scene.old, "1.0.0")
    _release(scene.new, "1.0.1")
    text = RUNBOOK.replace("BAKE", bake).replace("ON_FAILURE", on_failure)
    scene.runbook.write_text(text, encoding="utf-8")
    people = "\n".join(
        f'  - {{name: {name}, roles: [{", ".join(roles)}], keys: ["{keys[name]}"]}}'
        for name, roles in PEOPLE.items()
    )
    scene.policy.write_text(
        f"kind: Policy\nname: house\nenvironment: test\npeople:\n{people}\nmay:\n"
        "  start: [operator]\n  approve: [sre]\n  reject: [sre]\n  pause: [operator, on-call]\n"
        "  resume: [operator, on-call]\n  abort: [operator, on-call]\n  decide: [operator, on-call]\n"
        "  rollback: [on-call]\n",
        encoding="utf-8",
    )
    scene.fault()
    options = {
        "faults_file": str(scene.faults),
        "pace": pace,
        "seconds": {"stop": step_seconds, "start": step_seconds, "stage": step_seconds},
    }
    listed = "\n".join(f"  - {{name: sim-{number}}}" for number in range(1, nodes + 1))
    scene.fleet.write_text(
        f"kind: Fleet\nname: {name}\nenvironment: test\nrelease: sim-1.0.0.yaml\ntransport: sim\n"
        f"root: /srv/{name}/{{node.name}}\noptions: {json.dumps(options)}\n"
        'run: {argv: ["{node.current}/bin/sim"]}\n'
        f"nodes:\n{listed}\n",
        encoding="utf-8",
    )
    return scene


def _key(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)],
            check=True,
        )
    return path.with_name(path.name + ".pub").read_text(encoding="utf-8").strip()


def _release(path: Path, version: str) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        content = f"#!/bin/sh\necho {version}\n".encode()
        member = tarfile.TarInfo("bin/sim")
        member.size, member.mode = len(content), 0o755
        archive.addfile(member, io.BytesIO(content))
    content = stream.getvalue()
    path.with_suffix(".tar.gz").write_bytes(content)
    path.write_text(
        f'kind: Release\ncomponent: sim\nversion: "{version}"\nartifacts:\n'
        f"  linux/amd64: {{digest: {hashlib.sha256(content).hexdigest()}, length: {len(content)}, "
        f"source: {path.with_suffix('.tar.gz').name}}}\n"
        'protocols:\n  peer: {speaks: ["1"], accepts: ["1"]}\n'
        'data_format: {reads: ["1"], writes: "1", begins: start}\n'
        'upgrade_from: ">=1.0.0 <2.0.0"\ndowngrade_to: ">=1.0.0 <2.0.0"\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), pace=1.0, step_seconds=1.0, bake="10s"))
