"""The simulator: hosts in memory behind the transport's port, with the host program's rules.

It keeps fence, journal and observation exactly as docs/host-protocol.md says, fails when told to
(:mod:`kedge.drivers.sim_faults`), and costs so little that one worker carries ten thousand nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from kedge.drivers.ports import HostEvent, SessionEnd, SessionRequest
from kedge.drivers.sim_faults import NO_OPTIONS, Fault, FaultsFile, NodeOptions, parse_options
from kedge.drivers.sim_host import Counts, SimHost
from kedge.drivers.sim_log import SimLog, facts
from kedge.drivers.sim_session import SimSession
from kedge.model.base import Digest, Json
from kedge.model.plan import PlannedNode

_ALONE = nullcontext()
"""Hosts in memory are one worker's own, and an act on one does not await."""


class SimTransport:
    """:class:`kedge.drivers.ports.Transport` to simulated hosts.

    ``pace`` is how many real seconds a simulated second takes: 0 answers at once, 1 waits as a
    host would. ``state`` is a file that several workers may share; without it the hosts are gone
    with this object. Nodes are told apart by root and name.
    """

    def __init__(self, *, pace: float = 0.0, state: Path | None = None) -> None:
        self.pace = pace
        self._hosts: dict[str, SimHost] = {}
        self._options: dict[str, tuple[Mapping[str, Json], NodeOptions]] = {}
        self._files: dict[str, FaultsFile] = {}
        self._faults: tuple[Fault, ...] = ()
        self._log = SimLog(state, self._host) if state is not None else None

    def program(self, *faults: Fault) -> None:
        """Adds faults; the first that speaks of an occasion is the one that happens."""
        self._faults = (*self._faults, *faults)

    def clear(self) -> None:
        """Takes all faults back that :meth:`program` added."""
        self._faults = ()

    def host(self, node: PlannedNode) -> SimHost:
        """The simulated host of ``node``, up to date: ground truth for tests."""
        with self.turn():
            return self._host(_key_of(node))

    def counts(self) -> Counts:
        """What really happened on all hosts together."""
        with self.turn():
            counts = [host.counts for host in self._hosts.values()]
        return Counts(*(sum(column) for column in zip(*counts, strict=True)))

    async def session(
        self,
        node: PlannedNode,
        request: SessionRequest,
        on_event: Callable[[HostEvent], None],
    ) -> SessionEnd:
        """See :meth:`kedge.drivers.ports.Transport.session`."""
        # A session without waits is one turn of the loop: others, and a cancellation, come first.
        await asyncio.sleep(0)
        return await SimSession(self, node, request, on_event).run()

    async def put(self, node: PlannedNode, artifact: Path, digest: Digest, length: int) -> str:  # noqa: ARG002 - the port's signature
        """See :meth:`kedge.drivers.ports.Transport.put`; the simulator reads no archive."""
        return str(artifact)

    async def aclose(self) -> None:
        """See :meth:`kedge.drivers.ports.Transport.aclose`; simulated daemons end with it too."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def turn(self) -> AbstractContextManager[None]:
        """One act on a host: alone among all workers that share the state file."""
        return _ALONE if self._log is None else self._log

    def facts(self, host: SimHost) -> tuple[Any, ...]:
        """What :meth:`keep` compares with; nothing when nothing is kept."""
        return facts(host) if self._log is not None else ()

    def keep(self, host: SimHost, before: tuple[Any, ...], key: str = "") -> None:
        """Keeps what an act changed, and the record of ``key``; within the act's :meth:`turn`."""
        if self._log is not None:
            self._log.write(host, before, key)

    def options(self, node: PlannedNode) -> NodeOptions:
        """The node's options, parsed when they are new."""
        if not node.options:
            return NO_OPTIONS
        known = self._options.get(node.name)
        if known is None or (known[0] is not node.options and known[0] != node.options):
            known = (node.options, parse_options(node.name, node.options))
            self._options[node.name] = known
        return known[1]

    def faults(self, options: NodeOptions) -> tuple[Fault, ...]:
        """All faults that may concern a node with these options, as they are now."""
        found = self._faults
        if options.faults:
            found += options.faults
        if options.faults_file is not None:
            file = self._files.get(options.faults_file)
            if file is None:
                file = self._files[options.faults_file] = FaultsFile(Path(options.faults_file))
            found += file.faults()
        return found

    def found(self, node: PlannedNode) -> SimHost:
        """The host of ``node`` without taking in what others wrote."""
        return self._host(_key_of(node))

    def _host(self, key: str) -> SimHost:
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = SimHost(key)
        return host


def _key_of(node: PlannedNode) -> str:
    return f"{node.root}#{node.name}"
