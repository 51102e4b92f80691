"""Ground truth from the hosts: what runs there, what the journals say was done, and how to stop it all.

Nothing here asks kedge's workflows: these are the nodes' own files and ``/proc``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.cluster import Gateway, GatewayError, Member
from demo.wheels import sha256_of
from kedge.host import journal, observe
from kedge.host.layout import Node

STOP_SECONDS = 2
"""Grace of a member at the end of the show. What it has is thrown away: nobody waits for a last hand-over of the lead."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a node's journal: something that was done there, once."""

    key: str
    op: str
    acted: bool
    """False where nothing had to be done: skipped by its condition, or a stop of what did not run."""
    pid: int | None
    """For a start: the process that it started."""


@dataclass(frozen=True, slots=True)
class Host:
    """What is true on one node. ``repeated`` are keys that the journal has more than once: there must be none."""

    member: str
    release: str
    """Digest of the release whose program the daemon executes."""
    program: str
    """sha256 of the very file that the daemon executes."""
    pid: int
    steps: int
    starts: int
    stops: int
    repeated: tuple[str, ...]
    epoch: int
    holder: str
    """The run that the fence belongs to."""


class HostsError(Exception):
    """A node is not as it should be, and no figure can be given for it."""


def steps_of(root: Path) -> tuple[Step, ...]:
    """The journal of a node, its chain of hashes checked. A node that has none yet has done nothing."""
    try:
        content = (root / ".kedge" / "journal").read_bytes()
    except FileNotFoundError:
        return ()
    content = journal.whole_lines(content)
    journal.check_chain(content)
    return tuple(_step(journal.parse(line)) for line in content.splitlines())


def _step(record: dict[str, Any]) -> Step:
    result = record.get("result") or {}
    return Step(
        key=str(record["key"]),
        op=str(record["op"]),
        acted=not record.get("skipped") and result.get("was_running", True) is True,
        pid=result.get("pid"),
    )


def done_in(steps: Iterable[Step], run: str, program: str) -> set[str]:
    """The names of the steps that a run has done on a node, in one direction."""
    found = set()
    for step in steps:
        head, _, name = step.key.rpartition("/")
        if step.key.startswith(f"{run}@") and head.endswith(f"/{program}"):
            found.add(name.partition("#")[0])
    return found


def look_at(root: Path, member: str) -> Host:
    """Everything about one node. Raises ``HostsError`` when its daemon does not run."""
    node = Node(str(root), member)
    try:
        seen = observe.full(node)
    finally:
        node.close()
    pid, release = seen["pid"], seen["running_release"]
    if not isinstance(pid, int) or not isinstance(release, str):
        raise HostsError(f"{member}: its daemon does not run")
    steps = steps_of(root)
    counts = Counter(step.key for step in steps)
    started = [step for step in steps if step.op == "start" and step.acted]
    if not started or started[-1].pid != pid:
        raise HostsError(
            f"{member}: process {pid} runs, and it is not the one that was started last"
        )
    token = seen["token"] or [0, 0, 0]
    return Host(
        member=member,
        release=release,
        program=sha256_of(Path(f"/proc/{pid}/exe")),
        pid=pid,
        steps=len(steps),
        # A start that found its daemon alive names the same process again.
        starts=len({step.pid for step in started}),
        stops=sum(step.op == "stop" and step.acted for step in steps),
        repeated=tuple(key for key, count in counts.items() if count > 1),
        epoch=int(token[0]),
        holder=str(seen["run"] or ""),
    )


def await_versions(members: Sequence[Member], version: str, seconds: float) -> None:
    """Waits until every member says that it runs ``version`` and has a leader. Raises ``HostsError``."""
    deadline = time.monotonic() + seconds
    missing = [member.name for member in members]
    while missing:
        if time.monotonic() > deadline:
            raise HostsError(
                f"{', '.join(missing)}: not on {version} and led within {seconds:.0f} s"
            )
        time.sleep(0.05)
        missing = [member.name for member in members if not _is_on(member, version)]


def _is_on(member: Member, version: str) -> bool:
    gateway = Gateway(member.client_port)
    try:
        # The cluster's version is agreed on by a leader: it is empty as long as there is none.
        server, cluster = gateway.versions()
    except GatewayError:
        return False
    finally:
        gateway.close()
    return server == version and cluster not in {"", "not_decided"}


def stop_all(roots: Iterable[Path]) -> list[str]:
    """Stops the daemons of these nodes for good, side by side; returns a sentence for each that still runs.

    The host program does it, as for any stop: it knows which process is really the one it started, and takes away
    the mark that says that it should run.
    """
    problems, calls = [], []
    for root in roots:
        if (root / ".kedge" / "fence").exists():
            try:
                calls.append((root, _begin_stop(root)))
            except (OSError, ValueError, KeyError) as error:
                problems.append(f"{root.name} could not be stopped: {error}")
    for root, call in calls:
        try:
            answer, _ = call.communicate(timeout=STOP_SECONDS + 20)
        except subprocess.TimeoutExpired:
            call.kill()
            answer, _ = call.communicate()
        if not _is_ok(answer):
            problems.append(f"{root.name} could not be stopped: {answer.strip()[-300:]}")
    return problems


def _is_ok(answer: str) -> bool:
    """Whether a session said at its end that everything was done."""
    try:
        return json.loads(answer.strip().rpartition("\n")[2]).get("ok") is True
    except (ValueError, AttributeError):
        return False


def _begin_stop(root: Path) -> subprocess.Popen[str]:
    fence = json.loads((root / ".kedge" / "fence").read_text(encoding="utf-8"))
    stop = {"op": "stop", "signal": "TERM", "grace": STOP_SECONDS, "kill": True}
    asked = {
        "kedge": 1,
        "root": str(root),
        "node": root.name,
        "run": fence["run"],
        # The token that stands: the show is over, and nobody newer is to be shut out by its end.
        "token": fence["token"],
        "lock_wait": 10,
        "ops": [{"key": f"demo/stop@{time.time():.6f}", **stop}],
    }
    call = subprocess.Popen(
        [sys.executable, "-P", "-m", "kedge.host", "session"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if call.stdin is not None:
        call.stdin.write(json.dumps(asked) + "\n")
        call.stdin.flush()
    return call
