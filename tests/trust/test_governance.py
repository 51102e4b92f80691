"""What a policy says beyond who may say what: revoked keys and people, hardware keys, tickets, authors, classes of risk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import asyncssh
import pytest
from pydantic import ValidationError

from kedge.model.governance import (
    BreakGlass,
    GateMinimums,
    Hardware,
    Minimum,
    ReviewRule,
    Revoked,
    RiskRule,
    Separation,
    TicketRule,
)
from kedge.model.keyline import fingerprints, key_material
from kedge.model.order import Envelope, Expected, OrderVerdict, Rule
from kedge.model.plan import Leg, Program, Risk, Step, WayBack
from kedge.model.policy import Person, Policy
from kedge.plan.lease import closing, standing
from kedge.plan.risk import risk_found, risk_of
from kedge.trust.keys import parse_public_key
from kedge.trust.orders import bytes_to_sign, judge, seal
from kedge.trust.warrant import plan_obeys
from tests.trust import world

TOKEN = world.HardwareKey(curve=False)
CAROLS = parse_public_key(world.public("carol"))
NEW = Person(name="carol", roles=("sre",), keys=(world.public("carol, again"),))


def people(*instead: Person) -> tuple[Person, ...]:
    """The people of the world, some of them as they are here."""
    named = {person.name: person for person in instead}
    return tuple(named.pop(person.name, person) for person in world.policy().people) + tuple(
        named.values()
    )


def with_token(**changes: Any) -> Policy:
    """A policy in which carol has a hardware key."""
    return world.policy(
        people=people(Person(name="carol", roles=("sre",), keys=(TOKEN.line,))), **changes
    )


def by_token(flags: int = 0x01, **changes: Any) -> Envelope:
    given = bytes_to_sign(world.order(**changes))
    return seal(given, TOKEN.sign(given, flags=flags))


def ordered(verb: str, person: str, **changes: Any) -> tuple[Envelope, Expected]:
    """An order to the whole run or fleet, and what it must say."""
    order = world.order(verb=verb, person=person, subject="", shown=world.PLAN, **changes)
    return world.envelope(order), world.expected(verbs=(verb,), subjects={})


def started(person: str = "alice", **changes: Any) -> tuple[Envelope, Expected]:
    return ordered("start", person, **changes)


Case = tuple[str, Callable[[], tuple[Envelope, Policy, Expected]], Rule]


def case(envelope: Envelope, policy: Policy, **expected: Any) -> tuple[Envelope, Policy, Expected]:
    return envelope, policy, world.expected(**expected)


def spoken(
    given: tuple[Envelope, Expected], policy: Policy, **about: Any
) -> tuple[Envelope, Policy, Expected]:
    return given[0], policy, given[1].model_copy(update=about)


WHY = "the fleet loses writes, nobody else answers"
TWO = Person(name="bob", roles=("db-owner", "sre"), keys=(world.public("bob"),))
BOBS = parse_public_key(world.public("bob"))
AGAIN = parse_public_key(world.public("carol, again"))
CAROLS_TWO = Person(
    name="carol", roles=("sre",), keys=(world.public("carol"), world.public("carol, again"))
)
TWO_KEYS = TWO.model_copy(update={"keys": (*TWO.keys, world.public("carol, again"))})
GLASS = BreakGlass(
    roles=("sre",), verbs=("rollback", "pause"), review=ReviewRule(roles=("db-owner", "operator"))
)
BREAKABLE = world.policy(break_glass=GLASS)


def glass(
    verb: str, person: str, *, policy: Policy = BREAKABLE, **changes: Any
) -> tuple[Envelope, Policy, Expected]:
    """An order to the whole run that breaks the glass."""
    return spoken(ordered(verb, person, **{"break_glass": True, "comment": WHY, **changes}), policy)


def review(
    person: str,
    *,
    policy: Policy = BREAKABLE,
    broke: tuple[str, ...] = ("carol",),
    broken_with: tuple[str, ...] = (),
    run: str = "",
    **changes: Any,
) -> tuple[Envelope, Policy, Expected]:
    """A review of a run that carol broke into."""
    order = world.order(
        verb="review", person=person, target="fleet/db", **{"subject": run or world.RUN, **changes}
    )
    expected = world.expected(
        verbs=("review",),
        target="fleet/db",
        subjects={world.RUN: world.SHOWN},
        reviews={world.RUN: broke},
        broken_with={world.RUN: broken_with},
    )
    return world.envelope(order), policy, expected


TICKET = TicketRule(pattern="CHG-[0-9]{4}", verbs=("start", "approve"))
CASES: list[Case] = [
    ("a person who was revoked", lambda: case(world.envelope(), world.policy(revoked=Revoked(people=("carol",)))), "revoked"),
    ("a person whom others' revocation does not touch", lambda: case(world.envelope(), world.policy(revoked=Revoked(people=("bob", "gone")))), "accepted"),
    ("a key that was revoked by its fingerprint", lambda: case(world.envelope(), world.policy(people=people(NEW), revoked=Revoked(keys=(CAROLS.fingerprint,)))), "revoked"),
    ("a key that was revoked by its line", lambda: case(world.envelope(), world.policy(people=people(NEW), revoked=Revoked(keys=(world.public("carol"),)))), "revoked"),
    ("a revoked key that names nobody", lambda: case(world.envelope(world.order(person=""), by="carol"), world.policy(people=people(NEW), revoked=Revoked(keys=(CAROLS.fingerprint,)))), "revoked"),
    ("the new key of a person whose old one was revoked", lambda: case(world.envelope(by="carol, again"), world.policy(people=people(NEW), revoked=Revoked(keys=(CAROLS.fingerprint,)))), "accepted"),
    ("a key that was taken out and not revoked", lambda: case(world.envelope(), world.policy(people=people(NEW))), "unknown-key"),
    ("a hardware key that was touched", lambda: case(by_token(), with_token()), "accepted"),
    ("a hardware key that was not touched", lambda: case(by_token(0), with_token()), "touch"),
    ("a hardware key that was not touched where that is not asked", lambda: case(by_token(0), with_token(hardware=Hardware(touch=False))), "accepted"),
    ("a hardware key without its PIN where that is asked", lambda: case(by_token(), with_token(hardware=Hardware(pin=True))), "pin"),
    ("a hardware key with its PIN", lambda: case(by_token(0x05), with_token(hardware=Hardware(pin=True))), "accepted"),
    ("a key in a file where a PIN is asked of hardware keys", lambda: case(world.envelope(), world.policy(hardware=Hardware(pin=True))), "accepted"),
    ("a key in a file where only hardware may approve", lambda: case(world.envelope(), world.policy(hardware=Hardware(only_for={"approve": "required"}))), "hardware"),
    ("a hardware key where only hardware may approve", lambda: case(by_token(), with_token(hardware=Hardware(only_for={"approve": "required"}))), "accepted"),
    ("a key in a file where only hardware may start", lambda: case(world.envelope(), world.policy(hardware=Hardware(only_for={"start": "required"}))), "accepted"),
    ("no ticket where one is wanted", lambda: case(world.envelope(), world.policy(ticket=TICKET)), "ticket"),
    ("a ticket that fits", lambda: case(world.envelope(world.order(ticket="CHG-4711")), world.policy(ticket=TICKET)), "accepted"),
    ("a ticket with something before it", lambda: case(world.envelope(world.order(ticket="no CHG-4711")), world.policy(ticket=TICKET)), "ticket"),
    ("a ticket with something behind it", lambda: case(world.envelope(world.order(ticket="CHG-47110")), world.policy(ticket=TICKET)), "ticket"),
    ("no ticket for a verb that needs none", lambda: spoken(ordered("pause", "dora"), world.policy(ticket=TICKET)), "accepted"),
    ("an approval by who made the release", lambda: case(world.envelope(), world.policy(), authors=("carol",)), "author"),
    ("an approval by who made the release, known by the key", lambda: case(world.envelope(), world.policy(), authors=(CAROLS.fingerprint,)), "author"),
    ("an approval by who made it where that is allowed", lambda: case(world.envelope(), world.policy(separation=Separation(author_may_approve=True)), authors=("carol",)), "accepted"),
    ("an approval of what somebody else made", lambda: case(world.envelope(), world.policy(), authors=("bob",)), "accepted"),
    ("a rejection by who made the release", lambda: case(world.envelope(world.order(verb="reject")), world.policy(), authors=("carol",)), "accepted"),
    ("a start by who made the release", lambda: spoken(started(), world.policy(), authors=("alice",)), "accepted"),
    ("a start by who made it where that is not allowed", lambda: spoken(started(), world.policy(separation=Separation(author_may_start=False)), authors=("alice",)), "author"),
    ("a start without the role that a class asks for", lambda: spoken(started(), world.policy(risk={"irreversible": RiskRule(may={"start": ("db-owner",)})}), risk="irreversible"), "role"),
    ("a start with the role that a class asks for", lambda: spoken(started(), world.policy(risk={"irreversible": RiskRule(may={"start": ("sre",)})}), risk="irreversible"), "accepted"),
    ("a start with the role of the class and not the general one", lambda: spoken(started("bob"), world.policy(risk={"irreversible": RiskRule(may={"start": ("db-owner",)})}), risk="irreversible"), "role"),
    ("a start of a plan of another class", lambda: spoken(started(), world.policy(risk={"irreversible": RiskRule(may={"start": ("db-owner",)})}), risk="elevated"), "accepted"),
    ("a start of a plan whose class nobody knows", lambda: spoken(started(), world.policy(risk={"irreversible": RiskRule(may={"start": ("db-owner",)})})), "role"),
    ("an approval that lives longer than its class allows", lambda: case(world.envelope(), world.policy(risk={"elevated": RiskRule(max_lifetime=600.0)}, approval_max_lifetime=7200.0), risk="elevated"), "too-long-lived"),
    ("an approval that lives as long as another class allows", lambda: case(world.envelope(), world.policy(risk={"elevated": RiskRule(max_lifetime=600.0)}), risk="routine"), "accepted"),
    ("a rollback by who breaks the glass and says why", lambda: glass("rollback", "carol"), "accepted"),
    ("a rollback by who may not, without breaking the glass", lambda: glass("rollback", "carol", break_glass=False), "role"),
    ("breaking the glass without a reason", lambda: glass("rollback", "carol", comment=""), "break-glass"),
    ("breaking the glass with a reason of spaces", lambda: glass("rollback", "carol", comment="  " * 30), "break-glass"),
    ("breaking the glass with a reason that nobody sees", lambda: glass("rollback", "carol", comment="\u3000\u2003\u0301" * 30), "break-glass"),
    ("breaking the glass with a reason of marks alone", lambda: glass("rollback", "carol", comment="\u0301" * 30), "break-glass"),
    ("breaking the glass with a reason in another script", lambda: glass("rollback", "carol", comment="書き込みが失われている、当番だけ"), "accepted"),
    ("breaking the glass for a verb that is not named", lambda: glass("abort", "carol"), "break-glass"),
    ("breaking the glass to start", lambda: glass("start", "carol"), "break-glass"),
    ("breaking the glass to approve", lambda: case(world.envelope(world.order(break_glass=True, comment=WHY)), BREAKABLE), "break-glass"),
    ("breaking the glass without the role for it", lambda: glass("rollback", "bob"), "break-glass"),
    ("breaking the glass by who was revoked", lambda: glass("rollback", "carol", policy=world.policy(break_glass=GLASS, people=people(TWO), revoked=Revoked(people=("carol",)))), "revoked"),
    ("breaking the glass without the ticket that others need", lambda: glass("rollback", "carol", policy=world.policy(break_glass=GLASS, ticket=TicketRule(pattern="CHG", verbs=("rollback",)))), "accepted"),
    ("the same without breaking the glass", lambda: glass("rollback", "dora", break_glass=False, policy=world.policy(break_glass=GLASS, ticket=TicketRule(pattern="CHG", verbs=("rollback",)))), "ticket"),
    ("breaking the glass with a key in a file where only hardware may", lambda: glass("rollback", "carol", policy=world.policy(break_glass=GLASS, hardware=Hardware(only_for={"rollback": "required"}))), "hardware"),
    ("a review by somebody else", lambda: review("bob"), "accepted"),
    ("a review by who broke the glass", lambda: review("alice", broke=("alice",)), "requester"),
    ("a review with the key that broke the glass, under another name then", lambda: review("bob", broken_with=(BOBS.fingerprint,)), "requester"),
    ("a review with the numbers of the key that broke the glass", lambda: review("bob", broken_with=(BOBS.material,)), "requester"),
    ("a review with another key by who broke the glass under another name", lambda: review("bob", policy=world.policy(break_glass=GLASS, people=people(TWO_KEYS)), broken_with=(AGAIN.fingerprint,)), "requester"),
    ("a review where a key of somebody else broke the glass", lambda: review("bob", broken_with=(CAROLS.fingerprint, CAROLS.material)), "accepted"),
    ("a review by who may not review", lambda: review("dora"), "role"),
    ("a review where nobody reviews", lambda: review("bob", policy=world.policy()), "role"),
    ("a review of what owes none", lambda: review("bob", run="upgrade/db/9"), "subject"),
    ("a review where none is owed", lambda: spoken(ordered("review", "bob"), BREAKABLE, reviews={}), "not-open"),
    ("a review of what is no more", lambda: review("bob", shown="f" * 64), "shown"),
    ("a review with a choice", lambda: review("bob", choice="retry"), "choice"),
    ("a review that breaks the glass", lambda: review("alice", break_glass=True, comment=WHY), "break-glass"),
    ("breaking the glass where nobody may", lambda: spoken(ordered("pause", "dora", break_glass=True), world.policy()), "break-glass"),
]  # fmt: skip


CAROL, BOB = (
    ("carol", CAROLS.fingerprint, CAROLS.material),
    ("bob", BOBS.fingerprint, BOBS.material),
)
CLOSING: list[tuple[str, tuple[tuple[str, str, str], ...], bool]] = [
    ("two people with two keys", (CAROL, BOB), True),
    ("one person", (CAROL,), False),
    ("one person with two keys", (("carol", AGAIN.fingerprint, AGAIN.material), CAROL), False),
    ("one key under two names", (("bob", CAROLS.fingerprint, CAROLS.material), CAROL), False),
    ("one key's numbers in two kinds", (("bob", BOBS.fingerprint, CAROLS.material), CAROL), False),
    ("somebody who may not review any more", (("gone", "SHA256:c", "c"), CAROL), False),
    ("somebody with a key that is not his any more", (("bob", AGAIN.fingerprint, AGAIN.material), CAROL), False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("signed", "closes"), [(s, c) for _, s, c in CLOSING], ids=[name for name, *_ in CLOSING]
)
def test_a_review_closes_with_distinct_people_who_have_distinct_keys(
    signed: tuple[tuple[str, str, str], ...],
    *,
    closes: bool,
) -> None:
    rule = ReviewRule(threshold=2, roles=("sre", "db-owner"))
    policy = world.policy(
        break_glass=BreakGlass(roles=("on-call",), verbs=("pause",), review=rule),
        people=people(CAROLS_TWO),
    )
    reviews = [
        OrderVerdict(
            accepted=True, rule="accepted", said="", digest="0" * 64, verb="review",
            subject=world.RUN, person=person, key=key, material=material,
        )
        for person, key, material in signed
    ]  # fmt: skip
    assert closing(reviews[-1], tuple(reviews[:-1]), policy).closes is closes


def test_a_review_by_a_key_that_was_revoked_since_counts_for_nothing_and_bars_nobody() -> None:
    rule = ReviewRule(threshold=2, roles=("sre", "db-owner"))
    glass_rule = BreakGlass(roles=("on-call",), verbs=("pause",), review=rule)
    before = world.policy(break_glass=glass_rule)
    envelope, _, expected = review("carol", broke=("dora",))
    stolen = judge(envelope, expected, before)
    assert stolen.accepted
    now = world.policy(
        break_glass=glass_rule, people=people(NEW), revoked=Revoked(keys=(CAROLS.fingerprint,))
    )
    by_bob = judge(
        review("bob", broke=("dora",))[0], expected, now, signed=standing((stolen,), now)
    )
    assert by_bob.accepted
    assert not closing(by_bob, (stolen,), now).closes
    order = world.order(verb="review", target="fleet/db", subject=world.RUN, nonce="c" * 32)
    again = judge(
        world.envelope(order, by="carol, again"), expected, now,
        signed=standing((stolen, by_bob), now),
    )  # fmt: skip
    assert again.accepted, again.said
    assert closing(again, (stolen, by_bob), now).closes


@pytest.mark.parametrize(
    ("made", "rule"), [(m, r) for _, m, r in CASES], ids=[name for name, *_ in CASES]
)
def test_an_order_is_refused_by_the_rule_it_breaks(
    made: Callable[[], tuple[Envelope, Policy, Expected]], rule: Rule
) -> None:
    envelope, policy, expected = made()
    found = verdict(envelope, policy, expected)
    assert found.rule == rule, found.said
    assert found.accepted is (rule == "accepted")
    # The sentence, and what to do next: who sent a signal has nothing but this.
    assert found.accepted or "; " in found.said


def verdict(envelope: Envelope, policy: Policy, expected: Expected) -> OrderVerdict:
    return judge(envelope, expected, policy, gate=world.gate())


# -- documents that are no policy ---------------------------------------------------------------------------------

RSA_2048 = (
    asyncssh.generate_private_key("ssh-rsa", key_size=2048).export_public_key().decode().strip()
)
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("a revoked key that stands under its person", {"revoked": {"keys": [CAROLS.fingerprint]}}, "was revoked"),
    ("a revoked key that stands under another", {"revoked": {"keys": [world.public("bob") + " stolen"]}}, "was revoked"),
    ("a revoked key that is none", {"revoked": {"keys": ["SHA256:abc"]}}, "neither a fingerprint"),
    ("a ticket that is no pattern", {"ticket": {"pattern": "CHG-[", "verbs": ["start"]}}, "regular expression"),
    ("a ticket that ends its own group", {"ticket": {"pattern": "a)|(b", "verbs": ["start"]}}, "regular expression"),
    ("a ticket with a look-around", {"ticket": {"pattern": "(?=x)x", "verbs": ["start"]}}, "regular expression"),
    ("a ticket that may be empty", {"ticket": {"pattern": "(CHG-[0-9]+)?", "verbs": ["start"]}}, "empty ticket"),
    ("a ticket for no verb", {"ticket": {"pattern": "CHG", "verbs": []}}, "verbs"),
    ("a class that is none", {"risk": {"harmless": {}}}, "harmless"),
    ("a class that asks for a role nobody has", {"risk": {"routine": {"may": {"start": ["pope"]}}}}, "nobody has the role pope"),
    ("a class whose gates ask for a role nobody has", {"risk": {"elevated": {"gates": {"every": {"each_of": ["pope"]}}}}}, "nobody has the role pope"),
    ("a review under may", {"may": {"start": ["operator"], "review": ["sre"]}}, "break_glass.review.roles"),
    ("a glass to break for a start", {"break_glass": {"roles": ["sre"], "verbs": ["start"], "review": {"roles": ["db-owner"]}}}, "verbs"),
    ("a review that nobody else could sign", {"break_glass": {"roles": ["on-call"], "verbs": ["pause"], "review": {"roles": ["on-call"]}}}, "once dora broke the glass only nobody may"),
    ("a review by more than there are", {"break_glass": {"roles": ["on-call"], "verbs": ["pause"], "review": {"roles": ["db-owner"], "threshold": 2}}}, "only bob may"),
    ("a review by a role nobody has", {"break_glass": {"roles": ["on-call"], "verbs": ["pause"], "review": {"roles": ["pope"]}}}, "nobody has the role pope"),
    ("hardware for a verb that is none", {"hardware": {"only_for": {"destroy": "required"}}}, "destroy"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"), [(c, s) for _, c, s in BAD], ids=[name for name, *_ in BAD]
)
def test_a_document_that_contradicts_itself_is_no_policy(
    changes: dict[str, Any], said: str
) -> None:
    document = {**world.policy().model_dump(mode="json"), **changes}
    with pytest.raises(ValidationError) as error:
        Policy.model_validate(document, strict=False)
    assert said in str(error.value)


def test_a_short_rsa_key_stands_in_no_policy() -> None:
    with pytest.raises(ValidationError, match="less than 3072 bits"):
        Person(name="carol", roles=("sre",), keys=(RSA_2048,))


def test_a_revoked_key_does_not_come_back_as_a_key_of_another_kind() -> None:
    """The same numbers, said to be a hardware key, or the other way round."""
    plain = CAROLS
    raw = key_material(plain.line)
    disguised = world.HardwareKey(curve=False)
    assert disguised.ed is not None
    blob_of = parse_public_key(disguised.line)
    as_plain = fingerprints(disguised.line)
    assert blob_of.fingerprint in as_plain
    line = _as_hardware(raw)
    with pytest.raises(ValidationError, match="was revoked"):
        world.policy(
            people=people(Person(name="carol", roles=("sre",), keys=(line,))),
            revoked=Revoked(keys=(plain.fingerprint,)),
        )


def _as_hardware(raw: bytes) -> str:
    import base64

    from kedge.trust.wire import string

    kind = "sk-ssh-ed25519@openssh.com"
    return (
        f"{kind} {base64.b64encode(string(kind.encode()) + string(raw) + string(b'ssh:')).decode()}"
    )


# -- classes of risk ----------------------------------------------------------------------------------------------


def program(effect: str, name: str = "forward") -> Program:
    step = Step(name="schema", op="run", timeout=1.0, effect=effect)  # type: ignore[arg-type]
    return Program(name=name, legs=(Leg(steps=(step,)),))  # type: ignore[arg-type]


BACK = (WayBack(from_wave=0, kind="none"), WayBack(from_wave=1, kind="switch-back"))
PLANS: list[tuple[str, dict[str, Any], Risk]] = [
    ("every node can be switched back", {"way_back": BACK, "programs": (program("reversible"),)}, "routine"),
    ("the way back restores", {}, "elevated"),
    ("a step is undone from a snapshot", {"way_back": BACK, "programs": (program("restorable"),)}, "elevated"),
    ("a step cannot be undone", {"way_back": BACK, "programs": (program("irreversible"),)}, "irreversible"),
    ("a finalize step cannot be undone", {"way_back": BACK, "programs": (program("irreversible", "finalize"),)}, "irreversible"),
    ("there is no way back behind the last wave", {"way_back": (*BACK, WayBack(from_wave=3, kind="forbidden"))}, "irreversible"),
    ("the runbook allows no way back", {"way_back": (BACK[0], WayBack(from_wave=1, kind="forbidden"))}, "irreversible"),
    ("the plan names no way back", {"way_back": ()}, "irreversible"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "risk"), [(c, r) for _, c, r in PLANS], ids=[name for name, *_ in PLANS]
)
def test_the_class_of_a_plan_is_the_worst_that_holds(changes: dict[str, Any], risk: Risk) -> None:
    found = risk_found(world.plan(**changes))
    assert found.risk == risk
    assert found.why


def test_the_table_has_every_class() -> None:
    assert {risk for *_, risk in PLANS} == set(get_args(Risk))


def test_a_class_asks_for_more_and_never_for_less() -> None:
    plan = world.plan()
    assert risk_of(plan) == "elevated"
    asked = GateMinimums(data_loss=Minimum(threshold=2))
    general = world.policy(gates=GateMinimums(every=Minimum(threshold=1)))
    assert plan_obeys(plan, general) == ()
    more = world.policy(risk={"elevated": RiskRule(gates=asked)})
    assert plan_obeys(plan, more) == ("the gate data-loss asks for 1 people, the policy for 2",)
    assert plan_obeys(plan, world.policy(risk={"irreversible": RiskRule(gates=asked)})) == ()
    less = world.policy(gates=asked, risk={"elevated": RiskRule(gates=GateMinimums())})
    assert plan_obeys(plan, less) == plan_obeys(plan, more)
