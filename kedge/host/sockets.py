"""Who listens on a port of this host, from the system's own tables.

Looked at and not tried: a socket of ours on a daemon's port would be in that daemon's way.
"""

from __future__ import annotations

import os
import socket
from typing import Dict, Iterable, List, NamedTuple, Optional, Set

from kedge.host import processes
from kedge.host.errors import Conflict

TABLES = (("tcp", "0A"), ("tcp6", "0A"))


class Port(NamedTuple):
    """A port that a daemon listens on; without an address it is every one of this host."""

    address: Optional[bytes]
    number: int
    written: str


class Listener(NamedTuple):
    """One socket that listens."""

    address: bytes
    number: int
    inode: str
    user: int


def port_of(written: str) -> Port:
    """`PORT` or `ADDRESS:PORT`, an IPv6 address in brackets; ValueError for anything else."""
    address, _, number = written.rpartition(":")
    if not number.isascii() or not number.isdigit() or not 0 < int(number) < 65536:
        raise ValueError(f"{written[:80]!r} is no port, and no address with a port")
    plain = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    return Port(_packed(plain) if plain else None, int(number), written)


def _packed(address: str) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return _short(socket.inet_pton(family, address))
    except OSError:
        raise ValueError(f"{address[:80]!r} is no address: 10.0.0.1, or [::1]") from None


def _short(address: bytes) -> bytes:
    """An IPv4 address as such also where it is written as an IPv6 one."""
    return (
        address[12:] if len(address) == 16 and address[:12] == b"\0" * 10 + b"\xff\xff" else address
    )


def listeners(numbers: Set[int]) -> List[Listener]:
    """The sockets that listen on any of these ports."""
    found = []
    for table, listening in TABLES:
        try:
            with open(f"/proc/net/{table}", encoding="ascii") as told:
                next(told)
                lines = [line.split() for line in told]
        except (OSError, StopIteration):
            continue
        for fields in lines:
            if fields[3] == listening:
                address, _, port = fields[1].partition(":")
                if int(port, 16) in numbers:
                    found.append(
                        Listener(_address(address), int(port, 16), fields[9], int(fields[7]))
                    )
    return found


def _address(text: str) -> bytes:
    """Words of four bytes, each in the order of this machine."""
    raw = bytes.fromhex(text)
    words = [raw[at : at + 4] for at in range(0, len(raw), 4)]
    return _short(b"".join(word[::-1] for word in words) if _LITTLE else raw)


_LITTLE = socket.htons(1) != 1


def on(port: Port, every: Iterable[Listener]) -> List[Listener]:
    """Those that are in the way of a daemon that wants to listen there."""
    return [
        one
        for one in every
        if one.number == port.number
        and (_every(port.address) or _every(one.address) or one.address == port.address)
    ]


def _every(address: Optional[bytes]) -> bool:
    """Whether an address stands for all of this host's: none, 0.0.0.0, or [::]."""
    return address is None or not any(address)


def taken(ports: Iterable[str], ours: Iterable[int] = ()) -> List[str]:
    """A sentence for each port that somebody listens on who is none of `ours`."""
    wanted = [port_of(one) for one in ports]
    every = listeners({one.number for one in wanted}) if wanted else []
    if not every:
        return []
    holders = _holders({one.inode for one in every})
    mine = set(ours)
    found = []
    for port in wanted:
        for one in on(port, every):
            pids = holders.get(one.inode, [])
            if pids and set(pids) <= mine:
                continue
            others = [pid for pid in pids if pid not in mine]
            who = (
                f"pid {others[0]} ({processes.program_name(others[0])})"
                if others
                else f"a process of uid {one.user} that cannot be seen from here"
            )
            found.append(f"{who} listens on port {port.written}")
            break
    return found


def _holders(inodes: Set[str]) -> Dict[str, List[int]]:
    """The processes that have a socket open."""
    found: Dict[str, List[int]] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            for fd in os.listdir(f"/proc/{name}/fd"):
                inode = wanted.get(os.readlink(f"/proc/{name}/fd/{fd}"))
                if inode is not None:
                    found.setdefault(inode, []).append(int(name))
        except OSError:
            continue
    return found


def free(ports: Iterable[str], ours: Iterable[int] = ()) -> None:
    """Conflict when one of these ports is somebody else's."""
    found = taken(ports, ours)
    if found:
        raise Conflict(
            f"{found[0]}, and kedge did not start it as this node's daemon: end it, or give the node another port",
            {"ports": found[:16]},
        )
