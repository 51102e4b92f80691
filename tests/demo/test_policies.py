"""The policy of the show: two versions, and what each of them leaves to whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.keys import APPROVER, KEEPER, ON_CALL, OPERATOR, OTHER_APPROVER, PEOPLE, ROBBED, make_key
from demo.policies import NEXT_POLICY, POLICY, Change, policy_text, version
from desk import policies as desk_policies
from desk.documents import read_policy
from desk.orders import Signer
from kedge.model.base import digest_of
from kedge.model.policy import Policy
from kedge.trust.keys import parse_public_key
from kedge.trust.policies import judge_change

ROOT = "f" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Both versions, and everybody's keys."""
    keys = {person.name: make_key(tmp_path / "keys", person.name) for person in PEOPLE}
    witness = make_key(tmp_path, "witness")
    (tmp_path / POLICY).write_text(policy_text(keys, ROOT, witness))
    stolen = parse_public_key(keys[ROBBED.name]).fingerprint
    keys[ROBBED.name] = make_key(tmp_path / "keys", "new")
    change = Change(digest_of(read_policy(tmp_path / POLICY).value), stolen)
    (tmp_path / NEXT_POLICY).write_text(policy_text(keys, ROOT, witness, change))
    return tmp_path


@pytest.fixture(params=[POLICY, NEXT_POLICY])
def policy(folder: Path, request: pytest.FixtureRequest) -> Policy:
    """Either version."""
    return read_policy(folder / request.param).value


@pytest.mark.parametrize(
    ("verb", "who"),
    [
        ("start", {OPERATOR}),
        ("approve", {OPERATOR, APPROVER, OTHER_APPROVER, ROBBED}),
        ("rollback", {OTHER_APPROVER}),
        ("review", {OPERATOR, APPROVER, OTHER_APPROVER, ROBBED}),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_each_may_do_what_the_show_says(policy: Policy, verb: str, who: set[object]) -> None:
    may = {one.name for one in policy.people if policy.allows(one, verb)}  # type: ignore[arg-type]
    assert may == {one.name for one in PEOPLE if one in who}


def test_on_call_may_break_the_glass_and_who_asks_or_builds_may_not_approve(policy: Policy) -> None:
    assert policy.break_glass is not None
    assert set(policy.break_glass.roles) == set(ON_CALL.roles)
    assert "rollback" in policy.break_glass.verbs
    assert policy.gates.every.threshold == 2
    assert not policy.requester_may_approve
    assert not policy.separation.author_may_approve
    assert KEEPER.roles == ("maintainer",)


async def test_the_second_version_follows_once_two_people_signed_it(folder: Path) -> None:
    first = desk_policies.read_document(folder / POLICY)
    second = desk_policies.read_document(folder / NEXT_POLICY)
    for person, missing in ((APPROVER, 1), (OTHER_APPROVER, 0)):
        signer = Signer(key=folder / "keys" / person.name)
        second = await desk_policies.signed(second, signer, None)
        verdict = judge_change(first, second)
        assert (verdict.ok, verdict.missing) == (missing == 0, missing), verdict.said


async def test_the_stolen_key_signs_no_change_of_the_second_version(folder: Path) -> None:
    second = read_policy(folder / NEXT_POLICY).value
    stolen = (folder / "keys" / f"{ROBBED.name}.pub").read_text()
    assert second.revoked.has_line(stolen)
    robbed = second.person(ROBBED.name)
    assert robbed is not None
    assert robbed.keys[0].split()[1] not in stolen


def test_what_is_said_to_be_new_stands_in_the_second_version_alone(folder: Path) -> None:
    said = version(Change("0" * 64, "SHA256:x")).splitlines()
    keys = [line.partition(":")[0] for line in said]
    assert keys == ["version", "previous", "revoked"]
    assert "revoked" not in (folder / POLICY).read_text()
