"""What is measured: histories as the engine has them, memory as the kernel counts it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from kedge.model.base import Frozen

_SCHEDULED = EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED


class Histories(Frozen):
    """All histories of one run: the largest in events and in bytes, and how many activities they have."""

    workflows: int
    activities: dict[str, int]
    events: int
    """Of all of them together."""
    largest_events: int
    largest: str
    """The workflow with that many events."""
    largest_bytes: int

    @property
    def scheduled(self) -> int:
        """Activities of every kind together."""
        return sum(self.activities.values())


async def histories_of(client: Client, run: str) -> Histories:
    """The histories of a run, of everything below it, and of its fleet.

    Every execution of a workflow counts by itself, those before a continue-as-new too.
    """
    _, fleet, _ = run.split("/")
    sizes: list[tuple[int, int, str]] = []
    kinds: Counter[str] = Counter()
    async for seen in client.list_workflows():
        if seen.id not in {f"fleet/{fleet}", run} and not seen.id.startswith(f"{run}/"):
            continue
        handle = client.get_workflow_handle(seen.id, run_id=seen.run_id)
        info = (await handle.describe()).raw_description.workflow_execution_info
        sizes.append((info.history_length, info.history_size_bytes, seen.id))
        async for event in handle.fetch_history_events():
            if event.event_type == _SCHEDULED:
                kinds[event.activity_task_scheduled_event_attributes.activity_type.name] += 1
    most = max(sizes)
    return Histories(
        workflows=len(sizes),
        activities=dict(kinds),
        events=sum(events for events, _, _ in sizes),
        largest_events=most[0],
        largest=most[2],
        largest_bytes=max(size for _, size, _ in sizes),
    )


class Memory(Frozen):
    """Resident memory of a process, in MiB."""

    now: float
    peak: float


def memory_of(pid: int) -> Memory:
    """What the kernel says of a process that runs."""
    fields: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in {"VmHWM", "VmRSS"}:
            fields[name] = round(int(value.split()[0]) / 1024, 1)
    return Memory(now=fields["VmRSS"], peak=fields["VmHWM"])


def processor_seconds(pid: int) -> float:
    """Processor time that a process and those it waited for have used."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in stat[11:15]) / 100


def tree_seconds(pid: int) -> float:
    """Processor time of a process and of everything below it that lives or was waited for."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[1])
    tree, more = {pid}, True
    while more:
        found = {child for child, parent in parents.items() if parent in tree} - tree
        tree |= found
        more = bool(found)
    total = 0.0
    for one in tree:
        try:
            total += processor_seconds(one)
        except OSError:
            continue
    return total
