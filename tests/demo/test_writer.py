"""The writer against a real etcd: what it counted is what is there."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Protocol

import pytest

from demo.cluster import Gateway, GatewayError, Member, Page
from demo.writer import PREFIX, Writer, read_all


class Cluster(Protocol):
    """The fixture, as far as these tests use it."""

    member: Member

    @property
    def members(self) -> tuple[Member, ...]: ...

    def start(self) -> None: ...

    def signal(self, number: signal.Signals) -> None: ...


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_every_acknowledged_put_is_read_back(etcd: Cluster) -> None:
    writer = Writer(etcd.members)
    writer.start()
    until(lambda: writer.acknowledged >= 50)
    writer.stop()
    read = writer.read_back(etcd.member)
    assert read.whole
    assert read.there == writer.acknowledged == len(writer.ledger.values())


def test_a_lost_and_a_changed_write_are_found(etcd: Cluster) -> None:
    writer = Writer(etcd.members)
    writer.start()
    until(lambda: writer.acknowledged >= 10)
    writer.stop()
    first, second = sorted(writer.ledger.values())[:2]
    gateway = Gateway(etcd.member.client_port)
    gateway.put(first, "somebody else's")
    gateway._post("/v3/kv/deleterange", {"key": _base64(second)})
    gateway.close()
    read = writer.read_back(etcd.member)
    assert (read.changed, read.lost, read.whole) == ((first,), (second,), False)


def test_a_member_that_stands_still_is_a_gap_of_that_length(etcd: Cluster) -> None:
    writer = Writer(etcd.members)
    writer.start()
    until(lambda: writer.acknowledged >= 5)
    begin = time.monotonic()
    etcd.signal(signal.SIGSTOP)
    time.sleep(1.2)
    etcd.signal(signal.SIGCONT)
    continued = writer.acknowledged
    until(lambda: writer.acknowledged >= continued + 5)
    figures = writer.since(begin)
    writer.stop()
    assert figures.longest >= 1.0
    assert figures.without >= 1.0
    assert writer.retried >= 1
    assert writer.read_back(etcd.member).whole


def test_what_was_acknowledged_before_a_kill_is_there_after_it(etcd: Cluster) -> None:
    writer = Writer(etcd.members)
    writer.start()
    until(lambda: writer.acknowledged >= 20)
    etcd.signal(signal.SIGKILL)
    at_the_kill = writer.acknowledged
    etcd.start()
    until(lambda: writer.acknowledged >= at_the_kill + 10)
    writer.stop()
    read = writer.read_back(etcd.member)
    assert read.whole
    assert read.there == writer.acknowledged


def test_a_member_that_is_down_costs_a_turn_and_no_write(etcd: Cluster) -> None:
    nobody = Member("nobody", client_port=1, peer_port=1)
    writer = Writer((nobody, *etcd.members))
    writer.start()
    until(lambda: writer.acknowledged >= 10)
    writer.stop()
    assert writer.retried >= 5
    assert writer.read_back(etcd.member).whole


def test_many_keys_come_in_pages(etcd: Cluster) -> None:
    gateway = Gateway(etcd.member.client_port)
    wanted = {f"{PREFIX}{number:09d}": f"{number}" for number in range(25)}
    for key, value in wanted.items():
        gateway.put(key, value)
    gateway.put("demp/behind", "x")
    gateway.put("dema/before", "x")
    first = gateway.page(PREFIX, limit=10)
    assert (len(first.pairs), first.more) == (10, True)
    assert gateway.page(PREFIX, max(wanted)) == Page(pairs=(), more=False)
    assert read_all(etcd.member) == wanted
    gateway.close()


def test_stopping_a_writer_that_never_began_is_harmless() -> None:
    Writer(()).stop()


def test_nobody_there_is_an_error_of_the_gateway() -> None:
    with pytest.raises(GatewayError, match="refused"):
        Gateway(1).versions()


def _base64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()
