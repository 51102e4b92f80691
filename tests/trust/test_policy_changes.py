"""Each value of a policy made otherwise, and what is said of it: somebody can do more by it, or less."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.model.keyline import named
from kedge.model.policy import Policy
from kedge.plan.policies import explained
from kedge.plan.policy_advice import advice
from kedge.plan.policy_changes import Difference, differences
from tests.trust import world

TOKENS = {name: world.HardwareKey(curve=False).line for name in ("ann", "bea", "cas", "dov")}
WORKER, OTHER = world.public("a worker"), world.public("another worker")
BUILDER = {"id": "https://ci.example/builder", "keys": [world.public("builder")]}


def person(name: str, *roles: str, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"name": name, "roles": list(roles), "keys": list(keys or (TOKENS[name],))}


BASE: dict[str, Any] = {
    "name": "prod",
    "environment": "prod",
    "people": [
        person("ann", "sre", "operator"),
        person("bea", "sre", "on-call", "security"),
        person("cas", "sre", "security"),
        person("dov", "on-call"),
    ],
    "may": {
        "start": ["operator"],
        "approve": ["sre"],
        "reject": ["sre"],
        "pause": ["sre"],
        "resume": ["sre"],
        "abort": ["sre"],
        "decide": ["sre"],
        "rollback": ["on-call"],
    },
    "approval_max_lifetime": "1d",
    "gates": {"every": {"threshold": 1}, "point_of_no_return": {"threshold": 2, "each_of": ["sre"]}},
    "risk": {
        "irreversible": {
            "may": {"start": ["sre"]},
            "gates": {"every": {"threshold": 2}},
            "max_lifetime": "10m",
        }
    },
    "revoked": {"people": ["gus"]},
    "hardware": {"pin": True, "only_for": {"start": "required"}},
    "ticket": {"pattern": "CHG-[0-9]+", "verbs": ["start", "rollback"]},
    "break_glass": {
        "roles": ["on-call"],
        "verbs": ["rollback", "pause"],
        "reason_min": 20,
        "review": {"threshold": 2, "roles": ["sre", "security"]},
    },
    "change": {"threshold": 2, "roles": ["sre"], "each_of": ["security"]},
    "releases": {
        "root": "a" * 64,
        "provenance": {
            "builders": [BUILDER],
            "sources": ["https://git.example/db"],
            "build_types": ["https://ci.example/type"],
            "builders_agree": 1,
        },
    },
    "evidence": {"signers": [WORKER], "named": "required"},
    "codec": {"readers": ["security"]},
}  # fmt: skip


def policy(*path: str, to: Any = None, document: dict[str, Any] | None = None) -> Policy:
    """The policy with one value otherwise; None takes it out."""
    return Policy.model_validate(
        otherwise(BASE if document is None else document, path, to), strict=False, context={"document": True}
    )  # fmt: skip


def otherwise(document: Any, path: tuple[str, ...], to: Any) -> Any:
    if not path:
        return document
    changed = dict(document)
    if len(path) > 1:
        changed[path[0]] = otherwise(document.get(path[0], {}), path[1:], to)
    elif to is None:
        changed.pop(path[0], None)
    else:
        changed[path[0]] = to
    return changed


def people(*instead: dict[str, Any]) -> list[dict[str, Any]]:
    by_name = {one["name"]: one for one in instead}
    return [by_name.pop(one["name"], one) for one in BASE["people"]] + list(by_name.values())


Row = tuple[str, tuple[str, ...], Any, str]
WIDER: list[Row] = [
    ("a verb for another role", ("may", "start"), ["operator", "sre"], "may.start"),
    ("a class that asks for no role any more", ("risk", "irreversible", "may"), {}, "risk.irreversible.may.start"),
    ("a class that asks for fewer people no more", ("risk", "irreversible", "gates"), {}, "risk.irreversible.gates.every.threshold"),
    ("a class whose orders live as long as all", ("risk", "irreversible", "max_lifetime"), None, "risk.irreversible.max_lifetime"),
    ("a class without rules of its own", ("risk",), None, "risk.irreversible.max_lifetime"),
    ("a gate for fewer people", ("gates", "point_of_no_return", "threshold"), 1, "gates.point_of_no_return.threshold"),
    ("a gate without the role that must be among them", ("gates", "point_of_no_return", "each_of"), None, "gates.point_of_no_return.each_of"),
    ("longer lives", ("max_lifetime",), "2h", "max_lifetime"),
    ("longer lives of approvals", ("approval_max_lifetime",), "2d", "approval_max_lifetime"),
    ("clocks that differ more", ("clock_skew",), "5m", "clock_skew"),
    ("who asked signs", ("requester_may_approve",), True, "requester_may_approve"),
    ("who made it signs", ("separation",), {"author_may_approve": True}, "separation.author_may_approve"),
    ("nobody revoked any more", ("revoked",), None, "revoked.people.gus"),
    ("hardware that nobody touches", ("hardware", "touch"), False, "hardware.touch"),
    ("hardware without its PIN", ("hardware", "pin"), False, "hardware.pin"),
    ("a key in a file starts", ("hardware", "only_for"), {}, "hardware.only_for.start"),
    ("no ticket", ("ticket",), None, "ticket.pattern"),
    ("no ticket for one verb", ("ticket", "verbs"), ["start"], "ticket.verbs"),
    ("another ticket", ("ticket", "pattern"), ".+", "ticket.pattern"),
    ("another role breaks the glass", ("break_glass", "roles"), ["on-call", "security"], "break_glass.roles"),
    ("the glass is broken for another verb", ("break_glass", "verbs"), ["rollback", "pause", "decide"], "break_glass.verbs"),
    ("a shorter reason", ("break_glass", "reason_min"), 3, "break_glass.reason_min"),
    ("fewer reviews", ("break_glass", "review", "threshold"), 1, "break_glass.review.threshold"),
    ("more reviewers", ("break_glass", "review", "roles"), ["sre", "security", "operator"], "break_glass.review.roles"),
    ("a review that holds up nothing", ("break_glass", "review", "blocks_start"), False, "break_glass.review.blocks_start"),
    ("fewer sign a change", ("change", "threshold"), 1, "change.threshold"),
    ("more may sign a change", ("change", "roles"), ["sre", "on-call"], "change.roles"),
    ("no role must be among those", ("change", "each_of"), None, "change.each_of"),
    ("another repository", ("releases", "root"), "b" * 64, "releases.root"),
    ("any release", ("releases",), None, "releases.root"),
    ("any build", ("releases", "provenance"), None, "releases.provenance.builders_agree"),
    ("another source", ("releases", "provenance", "sources"), ["https://git.example/db", "https://git.example/fork"], "releases.provenance.sources"),
    ("orders that name no evidence", ("evidence", "named"), "optional", "evidence.named"),
    ("another worker that seals", ("evidence", "signers"), [WORKER, OTHER], "evidence.signers"),
    ("no evidence asked for", ("evidence",), None, "evidence.signers"),
    ("more who read payloads", ("codec", "readers"), ["security", "sre"], "codec.readers"),
    ("another key of somebody", ("people",), people(person("ann", "sre", "operator", keys=(TOKENS["ann"], OTHER))), "people.ann.keys"),
    ("another role of somebody", ("people",), people(person("dov", "on-call", "security")), "people.dov.roles"),
]  # fmt: skip


def effects(found: tuple[Difference, ...], where: str) -> set[str]:
    return {one.effect for one in found if one.where == where}


@pytest.mark.parametrize(
    ("path", "to", "where"), [row[1:] for row in WIDER], ids=[row[0] for row in WIDER]
)
def test_what_is_wider_is_told_as_wider_and_the_way_back_as_narrower(
    path: tuple[str, ...], to: Any, where: str
) -> None:
    old, new = policy(), policy(*path, to=to)
    assert effects(differences(old, new), where) == {"wider"}
    back = {"wider"} if path[-1] in {"pattern", "root"} else {"narrower"}
    assert effects(differences(new, old), where) == back


@pytest.mark.parametrize("section", ["break_glass", "change", "codec"])
def test_a_section_that_gives_something_is_wider_in_all_of_its_parts(section: str) -> None:
    old, new = policy(section), policy()
    found = [one for one in differences(old, new) if one.where.startswith(f"{section}.")]
    assert found
    assert {one.effect for one in found} == {"wider"}
    back = [one for one in differences(new, old) if one.where.startswith(f"{section}.")]
    assert {one.effect for one in back} == {"narrower"}


def test_a_list_that_grows_and_shrinks_is_told_as_both() -> None:
    found = differences(policy(), policy("may", "start", to=["sre"]))
    said = {(one.said, one.effect) for one in found if one.where == "may.start"}
    assert said == {("has sre too", "wider"), ("has operator no more", "narrower")}


def test_a_key_is_told_by_its_fingerprint_and_its_comment_is_no_difference() -> None:
    old = policy()
    swapped = policy("people", to=people(person("ann", "sre", "operator", keys=(OTHER,))))
    said = [one.said for one in differences(old, swapped) if one.where == "people.ann.keys"]
    assert said == [f"has {named(OTHER)} too", f"has {named(TOKENS['ann'])} no more"]
    line = f"{' '.join(TOKENS['ann'].split()[:2])} another comment"
    commented = policy("people", to=people(person("ann", "sre", "operator", keys=(line,))))
    assert differences(old, commented) == ()


def test_what_only_identifies_a_policy_is_neither() -> None:
    found = differences(policy(), policy("name", to="other"))
    assert [(one.where, one.effect) for one in found] == [("name", "other")]


ADVICE: list[tuple[str, tuple[str, ...], Any, str]] = [
    ("a role at every gate that only who starts has", ("gates", "every", "each_of"), ["operator"], "only bea, cas can approve it, and up to 2, operator and sre among them must"),
    ("a role at every gate that approvers lack", ("gates", "data_loss", "each_of"), ["on-call", "operator"], "where ann starts a run"),
    ("a role of people who may not approve", ("may", "approve"), ["operator"], "only ann can approve"),
    ("a class that only one may approve", ("risk", "irreversible", "may"), {"approve": ["operator"]}, "risk.irreversible.gates: up to 2 must sign, and only ann can approve"),
    ("a class that nobody may start", ("risk", "irreversible", "may"), {"start": ["security"]}, "nobody can start a plan that is irreversible"),
    ("nobody to let a paused run go on", ("may", "resume"), ["gone"], "may.resume: nobody can resume"),
    ("one holder of a role that changes need", ("people",), people(person("cas", "sre")), "change: without bea nobody can change this policy"),
    ("as many as there are sign changes", ("change", "threshold"), 3, "change: without ann nobody can change this policy"),
    ("reviewers without the hardware keys they need", ("people",), people(person("cas", "sre", "security", keys=(WORKER + " cas",)), person("bea", "sre", "security", keys=(OTHER,))), "once dov broke the glass, only ann can review it, and 2 must"),
    ("all who may review break the glass for one run", ("break_glass", "roles"), ["sre", "on-call"], "once all of ann, bea, cas, dov broke it for one run, only nobody can review it"),
    ("all who break the glass are revoked", ("revoked",), {"people": ["bea", "dov"]}, "nobody can break the glass to rollback"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "to", "said"), [row[1:] for row in ADVICE], ids=[row[0] for row in ADVICE]
)
def test_people_are_told_where_they_would_lock_themselves_out(
    path: tuple[str, ...], to: Any, said: str
) -> None:
    document = {**BASE, "evidence": None, "hardware": {"only_for": {"review": "required"}}}
    if to == ["gone"]:
        to = None
    before = advice(policy(document=document))
    assert not [one for one in before if "nobody" in one or "without" in one]
    found = advice(policy(*path, to=to, document=document))
    assert any(said in one for one in found), found


WORDLESS = {"kind", "name", "environment", "version", "previous"}


def test_an_explanation_leaves_no_value_out() -> None:
    """Whatever is made otherwise, the explanation is another one."""
    known = explained(policy())
    for title, path, to, _ in WIDER:
        assert explained(policy(*path, to=to)) != known, title
    assert set(Policy.model_fields) - WORDLESS <= {path[0] for _, path, *_ in WIDER} | {
        "break_glass"
    }
