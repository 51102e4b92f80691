"""The end: measured figures, and whether they are what they have to be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from demo import hosts
from demo.cluster import Gateway
from demo.documents import NEW
from demo.hosts import Host
from demo.ledger import NOTICED, ReadBack
from demo.show import Show
from desk.desk import Desk
from kedge.model.status import RunStatus


def summarise(show: Show, begun: float) -> None:
    """Prints the figures; each is judged."""
    screen = show.screen
    screen.act("What was measured")
    read = [show.writer.read_back(member) for member in show.members]
    found = [hosts.look_at(show.paths.root(member.name), member.name) for member in show.members]
    statuses = asyncio.run(_statuses(show))
    _written(show, read)
    _downtime(show, found)
    _members(show, found)
    _steps(show, found, statuses)
    _fence(show, found)
    _sealed(show)
    for kill in show.kills:
        screen.seen(
            f"worker (pid {kill.worker}) and Temporal server (pid {kill.engine}) killed with SIGKILL, "
            f"{kill.where}; both back after {kill.seconds:.1f} s, and the run went on"
        )
    _phases(show, statuses)
    screen.seen(f"the whole show took {time.monotonic() - begun:.0f} s")


async def _statuses(show: Show) -> list[RunStatus]:
    desk = Desk.open(show.paths.home)
    found = []
    for run in show.runs:
        status = await desk.status_of(run)
        found.append(status)
        if status.successor is not None and status.successor not in show.runs:
            found.append(await desk.status_of(status.successor))
    return found


def _written(show: Show, read: list[ReadBack]) -> None:
    total = show.writer.acknowledged
    if all(one.whole for one in read):
        said = f"all {total:,} acknowledged writes are there with their values, read back through each member"
        show.judge(said, ok=True)
        return
    bad = "; ".join(
        f"{one.member}: {len(one.lost)} lost, {len(one.changed)} changed"
        for one in read
        if not one.whole
    )
    show.judge(f"of {total:,} acknowledged writes some are not there: {bad}", ok=False)


def _downtime(show: Show, found: list[Host]) -> None:
    rows = [
        [
            act,
            f"{figures.seconds:.0f} s",
            f"{figures.acknowledged:,}",
            f"{figures.longest:.2f} s",
            f"{figures.without:.2f} s",
        ]
        for act, figures in show.stretches.items()
    ]
    heads = ["the writer", "time", "acknowledged", "longest gap", f"gaps over {NOTICED} s"]
    show.screen.table(heads, rows)
    total = show.stretches["in all"]
    stops = sum(host.stops for host in found)
    show.screen.seen(
        f"downtime of the writer: {total.longest:.2f} s at the longest, {total.without:.2f} s of "
        f"{total.seconds:.0f} s in all, while members were stopped and started {stops} times; "
        f"{show.writer.retried} tries of a put failed and were made again through another member"
    )


def _members(show: Show, found: list[Host]) -> None:
    rows, ok = [], True
    for member, host in zip(show.members, found, strict=True):
        gateway = Gateway(member.client_port)
        server, cluster = gateway.versions()
        leads = gateway.leads()
        gateway.close()
        right = server == NEW and host.program == show.programs[NEW]
        ok = ok and right
        row = [f"{member.name}{' (leader)' if leads else ''}", server, cluster, host.release[:12]]
        row += [f"{host.program[:12]} {'✓' if right else '✗'}", str(host.starts), str(host.stops)]
        rows.append([*row, str(host.steps), str(len(host.repeated))])
    heads = ["member", "/version", "cluster", "release", "running program", "starts", "stops"]
    show.screen.table([*heads, "steps", "twice"], rows)
    whole = f"every member runs the program of the etcd {NEW} wheel, byte for byte (sha256 of /proc/PID/exe)"
    show.judge(whole if ok else f"not every member runs the etcd {NEW} of the wheel", ok=ok)


def _steps(show: Show, found: list[Host], statuses: list[RunStatus]) -> None:
    repeated = sum(len(host.repeated) for host in found)
    replayed = sum(status.replayed for status in statuses)
    steps = sum(host.steps for host in found)
    show.judge(
        f"{steps} steps in the journals of the hosts, {repeated} of them done twice; {replayed} were asked "
        "for again after the kill and answered from the journal",
        ok=repeated == 0,
    )


def _fence(show: Show, found: list[Host]) -> None:
    last = list(show.runs)[-1]
    ok = all(host.holder == last for host in found)
    said = f"the fence on every host is that of {last}: no older run can act there any more"
    show.judge(said if ok else f"the fence is not that of {last} everywhere", ok=ok)


def _sealed(show: Show) -> None:
    """Looks for the nodes, and for what is known to be there, in every file of Temporal's database."""
    home, run = show.paths.home, next(iter(show.runs))
    names = [member.name for member in show.members]
    found, size = occurrences(home / "engine", [*names, run])
    words = sum(found[name] for name in names)
    sought = f"{names[0]} … {names[-1]}"
    show.judge(
        f"Temporal's database, {size / 1e6:.1f} MB: {sought} stand there {words} times; {run}, the id by which Temporal "
        f"itself knows the run, {found[run]:,} times",
        ok=words == 0 and found[run] > 0,
    )


def occurrences(folder: Path, words: Sequence[str]) -> tuple[dict[str, int], int]:
    """How often each word stands in the files of a folder, and how many bytes these have in all."""
    found, size = dict.fromkeys(words, 0), 0
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            size += len(content)
            for word in words:
                found[word] += content.count(word.encode())
    return found, size


def _phases(show: Show, statuses: list[RunStatus]) -> None:
    show.screen.say("Seconds per phase, as each run itself counted them:")
    rows = []
    for status in statuses:
        spent = ", ".join(
            f"{phase} {seconds:.1f}"
            for phase, seconds in status.seconds.items()
            if phase != status.phase
        )
        rows.append([status.run, status.phase, spent])
    show.screen.table(["run", "ended", "seconds"], rows, left=3)
