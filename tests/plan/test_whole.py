"""A plan that contradicts itself is no plan, whoever made it: a view of it would show other gates than are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from activities.ground import Ground
from kedge.drivers.stores import FileBlobs
from kedge.model.base import canonical
from kedge.model.errors import DriverError
from kedge.model.plan import Plan, PointOfNoReturn, Wave, WayBack, contradictions
from kedge.plan.digest import plan_digest
from tests.trust import world

PLAN = world.plan()


def waves(*changes: dict[str, Any]) -> tuple[Wave, ...]:
    """The waves of the plan, with what each of them is changed in."""
    return tuple(
        wave.model_copy(update=change) for wave, change in zip(PLAN.waves, changes, strict=True)
    )


def twice(names: Iterable[Any]) -> tuple[Any, ...]:
    every = tuple(names)
    return (*every, every[0])


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("every wave says that it is the first", {"waves": waves({"index": 0}, {"index": 0}, {"index": 0})}, "wave half has the index 0 and stands at 1"),
    ("waves are exchanged", {"waves": tuple(reversed(PLAN.waves))}, "wave all has the index 2 and stands at 0"),
    ("a wave counts from below zero", {"waves": waves({"index": -1}, {}, {})}, "has the index -1"),
    ("a node is in two waves", {"waves": waves({"batches": ((0, 3),)}, {}, {})}, "node 3 is in 2 waves"),
    ("a node is twice in one wave", {"waves": waves({"batches": ((0,), (0,))}, {}, {})}, "node 0 is in 2 waves"),
    ("a node is in no wave", {"waves": waves({}, {}, {"batches": ((2,),)})}, "node 3 is in 0 waves"),
    ("a node counted from the end", {"waves": waves({}, {}, {"batches": ((2, 3, -1),)})}, "node -1 is not in the plan"),
    ("a node behind the last", {"waves": waves({}, {}, {"batches": ((2, 3, 4),)})}, "node 4 is not in the plan"),
    ("finalize steps on no node", {"finalize_node": -1}, "the node of the finalize steps, -1"),
    ("the start behind a gate that is not there", {"start_gate": "absent"}, "names a gate absent and does not have it"),
    ("a wave behind a gate that is not there", {"waves": waves({}, {"gate": "absent"}, {})}, "names a gate absent"),
    ("a point of no return behind a gate that is not there", {"commit": PointOfNoReturn(wave=2, gate="absent", lost="all")}, "names a gate absent"),
    ("a way back behind a gate that is not there", {"way_back": (WayBack(from_wave=0, kind="restore", gate="absent"),)}, "names a gate absent"),
    ("two gates of one name", {"gates": (*PLAN.gates, world.gate(threshold=1))}, "there are 2 of the name ship-it (gate)"),
    ("two waves of one name", {"waves": waves({}, {"name": "canary"}, {})}, "there are 2 of the name canary (wave)"),
    ("two nodes of one name", {"nodes": tuple(node.model_copy(update={"name": "n0"}) for node in PLAN.nodes)}, "there are 4 of the name n0 (node)"),
    ("a point of no return before a wave that is not there", {"commit": PointOfNoReturn(wave=3, gate="no-return", lost="all")}, "before wave 3: there is none"),
    ("a point of no return counted from the end", {"commit": PointOfNoReturn(wave=-1, gate="no-return", lost="all")}, "before wave -1: there is none"),
    ("data is restored without a gate", {"way_back": (WayBack(from_wave=0, kind="switch-back"), WayBack(from_wave=2, kind="restore"))}, "restores, and no gate stands before it"),
    ("ways back that go down", {"way_back": tuple(reversed(PLAN.way_back))}, "does not grow from 0 on"),
    ("two ways back from one place", {"way_back": twice(PLAN.way_back[:1])}, "does not grow from 0 on"),
    ("a way back from nowhere", {"way_back": PLAN.way_back[1:]}, "does not grow from 0 on"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_a_plan_that_contradicts_itself_is_not_read(change: dict[str, Any], said: str) -> None:
    written = canonical(PLAN.model_copy(update=change))
    with pytest.raises(ValidationError, match="Value error") as refused:
        Plan.model_validate_json(written)
    assert said in str(refused.value)


def test_a_plan_that_is_whole_is_read() -> None:
    assert contradictions(PLAN) == ()
    assert Plan.model_validate_json(canonical(PLAN)) == PLAN


async def test_a_worker_takes_no_plan_that_contradicts_itself(tmp_path: Path) -> None:
    made = PLAN.model_copy(update={"waves": waves({"index": 0}, {"index": 0}, {"index": 0})})
    blobs = FileBlobs(tmp_path)
    digest = await blobs.put(canonical(made))
    assert digest == plan_digest(made)
    ground = Ground(
        transport=None,  # type: ignore[arg-type]
        blobs=blobs,
        artifacts=None,  # type: ignore[arg-type]
        evidence=None,  # type: ignore[arg-type]
        pins=None,  # type: ignore[arg-type]
        fleets=None,  # type: ignore[arg-type]
        releases=None,  # type: ignore[arg-type]
        client=None,  # type: ignore[arg-type]
    )
    with pytest.raises(DriverError, match="wave half has the index 0") as refused:
        await ground.plan(digest)
    assert (refused.value.kind, refused.value.retryable) == ("NotAuthorised", False)
