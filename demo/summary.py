"""The end: measured figures, and whether they are what they have to be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from demo import hosts
from demo.cluster import Gateway
from demo.documents import FLEET, NEW
from demo.hosts import Host
from demo.ledger import NOTICED, ReadBack
from demo.show import Show
from kedge.model.run import RunStatus
from worker.desk import Desk


def summarise(show: Show, begun: float) -> bool:
    """Prints the figures. False when one of them is not what it has to be."""
    screen = show.screen
    screen.act("What was measured")
    read = [show.writer.read_back(member) for member in show.members]
    found = [hosts.look_at(show.paths.root(member.name), member.name) for member in show.members]
    statuses = asyncio.run(_statuses(show))
    checks = [
        _written(show, read),
        _members(show, found),
        _steps(show, found, statuses),
        _fence(show, found),
    ]
    _downtime(show)
    _phases(show, statuses)
    for kill in show.kills:
        screen.seen(
            f"worker (pid {kill.worker}) and Temporal server (pid {kill.engine}) killed with SIGKILL, "
            f"{kill.where}; both back after {kill.seconds:.1f} s, and the run went on"
        )
    screen.seen(f"the whole show took {time.monotonic() - begun:.0f} s")
    return all(checks)


async def _statuses(show: Show) -> list[RunStatus]:
    desk = Desk.open(show.paths.home)
    found = []
    for run in show.runs:
        status = await desk.status_of(run)
        found.append(status)
        if status.successor is not None and status.successor not in show.runs:
            found.append(await desk.status_of(status.successor))
    return found


def _tell(show: Show, *, ok: bool) -> Callable[[str], None]:
    return show.screen.seen if ok else show.screen.wrong


def _written(show: Show, read: list[ReadBack]) -> bool:
    total = show.writer.acknowledged
    ok = all(one.whole for one in read)
    if ok:
        said = f"all {total:,} acknowledged writes are there with their values, read back through each member"
    else:
        bad = "; ".join(
            f"{one.member}: {len(one.lost)} lost, {len(one.changed)} changed"
            for one in read
            if not one.whole
        )
        said = f"of {total:,} acknowledged writes some are not there: {bad}"
    _tell(show, ok=ok)(f"{said}; {show.writer.retried} puts were tried again elsewhere")
    return ok


def _members(show: Show, found: list[Host]) -> bool:
    rows, ok = [], True
    for member, host in zip(show.members, found, strict=True):
        gateway = Gateway(member.client_port)
        server, cluster = gateway.versions()
        leads = gateway.leads()
        gateway.close()
        right = server == NEW and host.program == show.programs[NEW]
        ok = ok and right
        row = [member.name, server, cluster, "leader" if leads else ""]
        row += [host.release[:12], f"{host.program[:12]} {'✓' if right else '✗'}"]
        rows.append([*row, str(host.starts), str(host.stops), str(host.steps)])
    heads = ["member", "runs", "cluster", "", "release", "sha256 of the running program"]
    show.screen.table([*heads, "starts", "stops", "steps"], rows)
    said = f"each member's running program is the etcd {NEW} of the wheel, byte for byte"
    _tell(show, ok=ok)(said if ok else f"not every member runs the etcd {NEW} of the wheel")
    return ok


def _steps(show: Show, found: list[Host], statuses: list[RunStatus]) -> bool:
    repeated = [key for host in found for key in host.repeated]
    replayed = sum(status.replayed for status in statuses)
    steps = sum(host.steps for host in found)
    _tell(show, ok=not repeated)(
        f"{steps} steps in the journals, {len(repeated)} of them done twice; {replayed} were asked for "
        "again after the kill and answered from the journal"
    )
    return not repeated


def _fence(show: Show, found: list[Host]) -> bool:
    last = list(show.runs)[-1]
    ok = all(host.holder == last for host in found)
    said = f"the fence on every host is that of {last}: no older run can act there any more"
    _tell(show, ok=ok)(said if ok else f"the fence is not that of {last} everywhere")
    return ok


def _downtime(show: Show) -> None:
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
    heads = ["the writer", "time", "acknowledged", "longest gap", f"gaps over {NOTICED} s, in all"]
    show.screen.table(heads, rows)
    total = show.stretches["the whole"]
    show.screen.seen(
        f"downtime of the writer: {total.longest:.2f} s at the longest, {total.without:.2f} s in all, of "
        f"{total.seconds:.0f} s in which every member of {FLEET} was replaced more than once"
    )


def _phases(show: Show, statuses: list[RunStatus]) -> None:
    rows = []
    for status in statuses:
        spent = "  ".join(
            f"{phase} {seconds:.1f}" for phase, seconds in status.seconds.items() if seconds >= 0.05
        )
        rows.append([status.run, f"{status.before} → {status.after}", status.phase, spent])
    show.screen.table(["run", "", "ended", "seconds per phase"], rows)
