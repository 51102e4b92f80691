"""What is said of a policy against what is judged by it: who can, what another policy would let through."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any, get_args

from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kedge.model.order import Envelope
from kedge.model.plan import Risk, Verb
from kedge.model.policy import Person, Policy
from kedge.plan.policies import who_can
from kedge.plan.policy_changes import differences
from kedge.trust.orders import bytes_to_sign, judge, seal
from kedge.trust.warrant import plan_obeys
from tests.trust import world

VERBS: tuple[Verb, ...] = get_args(Verb)
RISKS: tuple[Risk, ...] = get_args(Risk)
ROLES = ("all", "sre", "db", "oncall")
NAMES = ("ann", "bea", "cas", "dov")
TOKENS = {name: world.HardwareKey(curve=name in {"ann", "bea"}) for name in NAMES}
WHY = "the fleet loses writes and nobody else answers"
FLEET_VERBS = ("start", "rollback", "review")


def lines(name: str) -> dict[str, str]:
    """The keys a person may have: one in a file, one in a token."""
    return {"file": world.public(name), "token": TOKENS[name].line}


some_roles = st.lists(st.sampled_from(ROLES), min_size=1, max_size=3, unique=True).map(tuple)
verb_roles = st.dictionaries(st.sampled_from(VERBS[:-1]), some_roles, min_size=1)
minimum = st.fixed_dictionaries(
    {},
    optional={
        "threshold": st.integers(1, 3),
        "each_of": st.lists(st.sampled_from(ROLES), max_size=1),
    },
)
minimums = st.fixed_dictionaries(
    {},
    optional={
        "every": minimum,
        "point_of_no_return": minimum,
        "data_loss": minimum,
        "start": st.sampled_from(("required", "optional")),
    },
)
required = st.dictionaries(st.sampled_from(VERBS), st.just("required"), max_size=3)
SECTIONS: dict[str, st.SearchStrategy[Any]] = {
    "may": verb_roles,
    "requester_may_approve": st.booleans(),
    "separation": st.fixed_dictionaries(
        {}, optional={"author_may_approve": st.booleans(), "author_may_start": st.booleans()}
    ),
    "max_lifetime": st.sampled_from((60.0, 600.0, 3600.0)),
    "approval_max_lifetime": st.none() | st.sampled_from((60.0, 3600.0, 86400.0)),
    "clock_skew": st.sampled_from((0.0, 300.0)),
    "gates": minimums,
    "risk": st.dictionaries(
        st.sampled_from(RISKS),
        st.fixed_dictionaries(
            {},
            optional={
                "may": verb_roles,
                "gates": minimums,
                "max_lifetime": st.sampled_from((30.0, 1800.0)),
            },
        ),
        max_size=2,
    ),
    "revoked": st.fixed_dictionaries(
        {}, optional={"people": st.lists(st.sampled_from(NAMES), max_size=1)}
    ),
    "hardware": st.fixed_dictionaries(
        {}, optional={"touch": st.booleans(), "pin": st.booleans(), "only_for": required}
    ),
    "ticket": st.none()
    | st.fixed_dictionaries(
        {
            "pattern": st.sampled_from(("CHG-[0-9]+", "[A-Z]+-[0-9]+")),
            "verbs": st.lists(st.sampled_from(VERBS), min_size=1, max_size=4, unique=True),
        }
    ),
    "break_glass": st.none()
    | st.fixed_dictionaries(
        {
            "roles": some_roles,
            "verbs": st.lists(
                st.sampled_from(("rollback", "pause", "abort", "decide")), min_size=1, unique=True
            ),
            "reason_min": st.sampled_from((5, 30)),
            "review": st.fixed_dictionaries({"roles": some_roles}),
        }
    ),
    "people": st.fixed_dictionaries(
        {
            name: st.fixed_dictionaries(
                {
                    "roles": some_roles,
                    "keys": st.lists(
                        st.sampled_from(("file", "token")), min_size=1, max_size=2, unique=True
                    ),
                }
            )
            for name in NAMES
        }
    ).map(
        lambda given: [
            {"name": name, "roles": one["roles"], "keys": [lines(name)[k] for k in one["keys"]]}
            for name, one in given.items()
        ]
    ),
}
ALWAYS = {name: SECTIONS.pop(name) for name in ("people", "may")}
documents = st.fixed_dictionaries(ALWAYS, optional=SECTIONS)


def policy_of(document: dict[str, Any]) -> Policy:
    """The policy, where the document is one."""
    try:
        return Policy.model_validate({"name": "p", "environment": "e", **document}, strict=False)
    except ValidationError:
        assume(False)  # noqa: FBT003 - hypothesis' own signature
        raise


@lru_cache(maxsize=4096)
def envelope(
    person: str, key: str, verb: Verb, *, flags: int = 0x05, life: int = 30, **changes: Any
) -> Envelope:
    """A well-made order of a verb, by one of a person's keys."""
    fields: dict[str, Any] = {
        "verb": verb,
        "person": person,
        "target": "fleet/db" if verb in FLEET_VERBS else world.RUN,
        "issued": "2025-01-31T12:00:00Z",
        "expires": f"2025-01-31T12:{life // 60:02}:{life % 60:02}Z",
        "ticket": "",
        "comment": WHY,
        **changes,
    }
    subject = {"approve": "ship-it", "reject": "ship-it", "decide": "n1", "review": world.RUN}
    fields["subject"] = subject.get(verb, "")
    fields["shown"] = world.SHOWN if fields["subject"] else world.PLAN
    fields["choice"] = "retry" if verb == "decide" else None
    given = bytes_to_sign(world.order(**fields))
    if key == "token":
        return seal(given, TOKENS[person].sign(given, flags=flags))
    return seal(given, world.sign(given, world.private(person)))


def accepted(policy: Policy, sent: Envelope, verb: Verb, risk: Risk | None, **about: Any) -> bool:
    """Whether it is, where everything that does not hang on the policy is as it has to be."""
    subject = {"approve": "ship-it", "reject": "ship-it", "decide": "n1", "review": world.RUN}.get(
        verb
    )
    expected = world.expected(
        verbs=(verb,),
        target="fleet/db" if verb in FLEET_VERBS else world.RUN,
        subjects={subject: world.SHOWN} if subject else {},
        choices={"n1": ("retry",)} if verb == "decide" else {},
        reviews={world.RUN: ("somebody",)} if verb == "review" else {},
        risk=risk,
        **{"requester": "somebody", **about},
    )
    gate = world.gate(roles=ROLES, requester_counts=True)
    return judge(sent, expected, policy, gate=gate).accepted


def can(policy: Policy, person: Person, verb: Verb, risk: Risk | None, **changes: Any) -> bool:
    """Whether any of a person's keys gets an order through."""
    kinds = ["token" if line.startswith("sk-") else "file" for line in person.keys]
    return any(
        accepted(policy, envelope(person.name, kind, verb, **changes), verb, risk) for kind in kinds
    )


# Shrinking a whole policy takes minutes and says little more.
SWEEP = settings(
    max_examples=150, deadline=None, phases=(Phase.explicit, Phase.generate), derandomize=True
)


@SWEEP
@given(document=documents, verb=st.sampled_from(VERBS), risk=st.none() | st.sampled_from(RISKS))
def test_who_can_names_whom_the_judge_accepts_and_nobody_else(
    document: dict[str, Any], verb: Verb, risk: Risk | None
) -> None:
    policy = policy_of(document)
    said = {(one.person, one.glass): one.conditions for one in who_can(policy, verb, risk)}
    for person in policy.people:
        bare = can(policy, person, verb, risk)
        ticketed = can(policy, person, verb, risk, ticket="CHG-1")
        glass = can(policy, person, verb, risk, break_glass=True)
        assert ((person.name, False) in said) is ticketed
        # The glass is named where it lets somebody do what he could not do without.
        assert ((person.name, True) in said) is (glass and not bare)
        if ticketed:
            conditions = said[person.name, False]
            assert any("ticket" in one for one in conditions) is (not bare)
        if ticketed and any(one.startswith("with a hardware key") for one in conditions):
            assert not accepted(
                policy, envelope(person.name, "file", verb, ticket="CHG-1"), verb, risk
            )


WORDED: tuple[dict[str, Any], ...] = (
    {},
    {"ticket": "CHG-1"},
    {"ticket": "INC-1"},
    {"break_glass": True},
    {"break_glass": True, "comment": "at once"},
    {"ticket": "CHG-1", "life": 900},
    {"ticket": "CHG-1", "flags": 0x00},
    {"ticket": "CHG-1", "flags": 0x01},
)
ABOUT: tuple[dict[str, Any], ...] = ({}, {"requester": ""}, {"authors": ()})
Probe = tuple[str, str, Verb, Risk, int, int]
PROBES: tuple[Probe, ...] = tuple(
    (name, key, verb, risk, worded, about)
    for name in NAMES
    for key in ("file", "token")
    for verb in VERBS
    for risk in ("routine", "irreversible")
    for worded in range(len(WORDED))
    for about in range(len(ABOUT) if verb in {"start", "approve"} and worded == 1 else 1)
)  # fmt: skip


def goes_through(policy: Policy, probe: Probe) -> bool:
    """Whether a policy lets through what somebody says about a run, which he may have asked for, or made."""
    name, key, verb, risk, worded, about = probe
    himself: dict[str, Any] = {
        field: name if field == "requester" else (name,) for field in ABOUT[about]
    }
    return accepted(policy, envelope(name, key, verb, **WORDED[worded]), verb, risk, **himself)


PLANS = tuple(
    world.plan(
        start_gate=start,
        environment="e",
        gates=tuple(
            world.gate(name=name, threshold=threshold, each_of=each)
            for name in ("ship-it", "no-return", "data-loss")
        ),
    )
    for threshold in (1, 2, 3)
    for each in ((), ("sre",))
    for start in (None, "ship-it")
)


def let_through(policy: Policy, probes: list[Probe]) -> set[object]:
    return {probe for probe in probes if goes_through(policy, probe)} | {
        at for at, plan in enumerate(PLANS) if not plan_obeys(plan, policy)
    }


@SWEEP
@given(document=documents, data=st.data())
def test_what_another_policy_lets_through_is_told_as_wider(
    document: dict[str, Any], data: st.DataObject
) -> None:
    sections = {**ALWAYS, **SECTIONS}
    section = data.draw(st.sampled_from(sorted(sections)))
    old, new = policy_of(document), policy_of({**document, section: data.draw(sections[section])})
    probes = random.Random(data.draw(st.integers(0, 1 << 32))).sample(PROBES, 50)
    before, after = let_through(old, probes), let_through(new, probes)
    effects = {one.effect for one in differences(old, new)}
    if after - before:
        assert "wider" in effects, sorted(after - before, key=str)[:3]
    if before - after:
        assert effects & {"narrower", "wider"}, sorted(before - after, key=str)[:3]
