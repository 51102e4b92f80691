"""Orders where they arrive: each field changed and each rule broken, by update and by plain signal, moves nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from kedge.drivers.signers import sign_with_key
from kedge.model.base import canonical
from kedge.model.governance import Revoked
from kedge.model.order import Envelope, Rule
from kedge.model.plan import Plan
from kedge.model.policy import Person
from kedge.model.status import RunStatus
from kedge.plan.digest import plan_digest
from kedge.trust.envelope import order_digest
from kedge.trust.sshsig import compose, signed_bytes
from tests.spine.conftest import Stage
from tests.spine.scene import Scene, eventually, make_keys
from tests.stock import reaching, stock_temporal
from tests.trust import world
from worker.engine import Engine

pytestmark = [pytest.mark.temporal, pytest.mark.timeout(300)]

Fields = dict[str, Any]
Break = Callable[["Desk"], Envelope]
"""Makes an order that breaks one rule."""

TOKEN = world.HardwareKey(curve=False)


@dataclass
class Desk:
    """Where orders about one run are written: what it shows now, and the people."""

    scene: Scene
    status: RunStatus
    weak: asyncssh.SSHKey

    def fields(self, **given: Any) -> Fields:
        """An approval of the open gate by bob, but for what is given."""
        now = datetime.now(UTC)
        waiting = self.status.waiting
        assert waiting is not None
        return {
            "kind": "KedgeOrder",
            "format": 1,
            "verb": "approve",
            "target": self.status.run,
            "plan": self.status.plan,
            "subject": waiting.subject,
            "choice": None,
            "shown": waiting.shown,
            "evidence": None,
            "person": "bob",
            "comment": "",
            "ticket": "",
            "break_glass": False,
            "issued": at(now),
            "expires": at(now + timedelta(minutes=5)),
            "nonce": self.scene.nonce(),
            **given,
        }

    def text(self, **given: Any) -> bytes:
        """The bytes to sign."""
        return canonical(self.fields(**given))

    def signed(self, by: str = "", **given: Any) -> Envelope:
        """Signed by its own person, or by another."""
        text = self.text(**given)
        signer = by or given.get("person", "bob")
        return Envelope(order=text.decode(), signature=sign_with_key(self.key(signer), text))

    def key(self, who: str) -> Path:
        return self.scene.keys[who]

    def loaded(self, who: str) -> asyncssh.SSHKey:
        return asyncssh.read_private_key(str(self.key(who)))

    def changed(self, **given: Any) -> Envelope:
        """A good order whose text was changed behind its signature."""
        good = self.fields()
        signature = sign_with_key(self.key("bob"), canonical(good))
        return Envelope(order=canonical({**good, **given}).decode(), signature=signature)


def at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def soon(**ahead: float) -> str:
    return at(datetime.now(UTC) + timedelta(**ahead))


OTHER = "f" * 64

CHANGED: list[tuple[Fields, Rule]] = [
    ({"kind": "Order"}, "unreadable"),
    ({"format": 2}, "unreadable"),
    ({"verb": "reject"}, "signature"),
    ({"verb": "abort", "subject": ""}, "signature"),
    ({"target": "upgrade/other/1"}, "signature"),
    ({"plan": OTHER}, "signature"),
    ({"subject": "other"}, "signature"),
    ({"choice": "retry"}, "signature"),
    ({"shown": OTHER}, "signature"),
    ({"person": "ada"}, "unknown-key"),
    ({"person": "zoe"}, "unknown-person"),
    ({"comment": "looks good"}, "signature"),
    ({"ticket": "CHG-1"}, "signature"),
    ({"break_glass": True}, "signature"),
    ({"issued": "2025-01-31T12:00:00Z"}, "signature"),
    ({"expires": "2035-01-31T12:00:00Z"}, "signature"),
    ({"nonce": "0" * 32}, "signature"),
    ({"extra": 1}, "unreadable"),
]
"""Each field changed after it was signed: whatever the text says then, nobody said it."""


def broken(sign: Callable[[Desk, bytes], str]) -> Break:
    """A good text with a signature that is made in some other way."""

    def make(desk: Desk) -> Envelope:
        text = desk.text()
        return Envelope(order=text.decode(), signature=sign(desk, text))

    return make


def reworded(change: Callable[[str], str]) -> Break:
    """Signed exactly as it stands, but it does not stand in its one form."""

    def make(desk: Desk) -> Envelope:
        text = change(desk.text().decode())
        signature = world.sign(text.encode(), desk.loaded("bob"))
        return Envelope(order=text, signature=signature)

    return make


def said(by: str = "", **given: Any) -> Break:
    """Signed as it should be, and about the wrong thing, at the wrong time, or by the wrong person."""
    return lambda desk: desk.signed(
        by, **{name: value() if callable(value) else value for name, value in given.items()}
    )


def with_sha384(desk: Desk, text: bytes) -> str:
    key = desk.loaded("bob")
    raw = key.sign(signed_bytes(text), key.algorithm)
    return compose(key.public_data, raw, hash_name="sha384")


def by_token(desk: Desk) -> Envelope:
    text = desk.text(person="fay")
    return Envelope(order=text.decode(), signature=TOKEN.sign(text, flags=0))


def weakly(desk: Desk) -> Envelope:
    text = desk.text()
    return Envelope(order=text.decode(), signature=world.sign(text, desk.weak))


def with_the_glass_broken(desk: Desk) -> Envelope:
    why = "nobody answers, and writes are lost"
    shown = desk.status.plan
    return desk.signed(
        "olga", person="olga", verb="pause", subject="", shown=shown, break_glass=True, comment=why
    )


def aborted_by_ada(desk: Desk) -> Envelope:
    return desk.signed("ada", person="ada", verb="abort", subject="", shown=desk.status.plan)


RULES: list[tuple[str, Rule, Break]] = [
    ("it is not JSON", "unreadable", reworded(lambda text: text[:-1])),
    ("it lacks a field", "unreadable", reworded(lambda text: text.replace(',"verb":"approve"', ""))),
    ("an impossible day", "unreadable", said(issued="2025-02-31T12:00:00Z")),
    ("a newline at its end", "not-canonical", reworded(lambda text: text + "\n")),
    ("spaces in it", "not-canonical", reworded(lambda text: text.replace('":"', '": "'))),
    ("nobody of that name", "unknown-person", said("bob", person="zoe")),
    ("signed by another", "unknown-key", said("ada")),
    ("signed by nobody known", "unknown-key", said("stranger")),
    ("signed for git", "namespace", broken(lambda d, t: world.sign(t, d.loaded("bob"), namespace="git"))),
    ("a hash nobody takes", "algorithm", broken(with_sha384)),
    ("a short RSA key, which stands in no policy", "unknown-key", weakly),
    ("somebody who was revoked", "revoked", said("gus", person="gus")),
    ("the glass broken where nobody may", "break-glass", with_the_glass_broken),
    ("another text's signature", "signature", broken(lambda d, _: world.sign(d.text(), d.loaded("bob")))),
    ("no signature", "signature", broken(lambda _, __: "trust me")),
    ("a key nobody touched", "touch", by_token),
    ("a word for fleets", "verb", said("olga", person="olga", verb="start", subject="")),
    ("another run", "target", said(target="upgrade/other/1")),
    ("another plan", "plan", said(plan=OTHER)),
    ("nothing is parked", "not-open", said("olga", person="olga", verb="decide", choice="retry")),
    ("another gate", "subject", said(subject="commit")),
    ("a gate for the whole run", "subject", said("olga", person="olga", verb="pause")),
    ("a choice where none is", "choice", said(choice="skip")),
    ("what was shown before", "shown", said(shown=OTHER)),
    ("from tomorrow", "not-yet-valid", said(issued=lambda: soon(days=1), expires=lambda: soon(days=1, minutes=5))),
    ("from a clock a minute ahead", "not-yet-valid", said(issued=lambda: soon(seconds=90))),
    ("from yesterday", "expired", said(issued=lambda: soon(days=-1), expires=lambda: soon(seconds=-1))),
    ("good for a week", "too-long-lived", said(expires=lambda: soon(days=7))),
    ("an operator approves", "role", said("olga", person="olga")),
    ("an approver aborts", "role", aborted_by_ada),
    ("who asked approves", "requester", said("ira", person="ira")),
    ("once more by the same", "duplicate-person", said("ada", person="ada")),
]  # fmt: skip


def public_line(key: Path) -> str:
    return Path(f"{key}.pub").read_text().strip()


def stands(status: RunStatus) -> dict[str, Any]:
    """What must not change, whoever says what in vain: everything but the verdicts and the clock."""
    return status.model_dump(exclude={"orders", "seconds"})


async def asked(stage: Stage) -> tuple[Scene, Plan]:
    """A scene with more people: one who starts and might approve, one with a hardware key, one who was revoked."""
    scene = await stage()
    more = make_keys(scene.home / "more")
    scene.keys["stranger"], scene.keys["ira"] = more["eve"], more["olga"]
    scene.keys["gus"] = more["ada"]
    weak = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    weak.write_private_key(str(scene.home / "weak"))
    lines = {
        "ira": public_line(more["olga"]),
        "fay": TOKEN.line,
        "gus": public_line(more["ada"]),
    }
    roles = {"ira": ("operator", "sre"), "fay": ("sre",), "gus": ("sre",)}
    people = [Person(name=name, roles=roles[name], keys=(line,)) for name, line in lines.items()]
    scene.policy = scene.policy.model_copy(
        update={"people": (*scene.policy.people, *people), "revoked": Revoked(people=("gus",))}
    )
    await scene.drivers.pins.pin(scene.name, scene.policy)
    return scene, scene.plan()


async def refused(scene: Scene, run: str, envelope: Envelope, rule: Rule, *, signal: bool) -> None:
    """Send it one way: it is refused by that rule, the run stays as it is, and the evidence has it."""
    before = stands(await scene.status(run))
    digest = order_digest(envelope)
    if signal:
        await scene.signal(run, envelope)
        await eventually(lambda: heard(scene, run, digest))
    else:
        answer = (await scene.submit(run, envelope)).verdict
        assert (answer.rule, answer.digest) == (rule, digest), answer
    status = await scene.status(run)
    assert stands(status) == before
    verdict = next(one for one in status.orders if one.digest == digest)
    assert (verdict.accepted, verdict.rule) == (False, rule), verdict
    assert verdict.said
    kept = [one for one in await scene.records("order") if one["digest"] == digest]
    assert [(one["accepted"], one["rule"]) for one in kept] == [(False, rule)]


async def heard(scene: Scene, run: str, digest: str) -> bool:
    """Whether the run has a verdict about it."""
    return any(one.digest == digest for one in (await scene.status(run)).orders)


async def test_no_order_that_breaks_a_rule_moves_a_run(stage: Stage) -> None:
    scene, plan = await asked(stage)
    async with scene.playing():
        run = await scene.start(plan, "ira")
        await scene.waits_for(run, "ship")
        first = scene.envelope("approve", run, plan_digest(plan), "ada", **await shown(scene, run))
        assert (await scene.submit(run, first)).verdict.accepted
        weak = asyncssh.read_private_key(str(scene.home / "weak"))
        desk = Desk(scene, await scene.status(run), weak)
        happened = len(scene.happened())
        for signal in (False, True):
            for given, rule in CHANGED:
                await refused(scene, run, desk.changed(**given), rule, signal=signal)
            for _, rule, make in RULES:
                await refused(scene, run, make(desk), rule, signal=signal)
        assert (await scene.submit(run, first)).verdict.rule == "nonce-spent"
        await scene.signal(run, first)
        assert len(scene.happened()) == happened
        await scene.approve(run, "bob")
        assert (await scene.end_of(run)).phase == "done"


async def shown(scene: Scene, run: str) -> dict[str, Any]:
    """What an order about the open gate must name."""
    waiting = (await scene.status(run)).waiting
    assert waiting is not None
    return {"subject": waiting.subject, "shown": waiting.shown}


async def test_a_key_that_approved_under_another_name_does_not_approve_again(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        await scene.approve(run, "ada")
        renamed = tuple(
            person.model_copy(update={"name": "adam"}) if person.name == "ada" else person
            for person in scene.policy.people
        )
        await scene.drivers.pins.pin(
            scene.name, scene.policy.model_copy(update={"people": renamed})
        )
        scene.keys["adam"] = scene.keys["ada"]
        verdict = await scene.order("approve", run, "adam")
    assert verdict.rule == "duplicate-key"


async def test_orders_to_a_fleet_are_refused_by_their_rules(stage: Stage) -> None:
    scene, other = await stage(), await stage()
    target = f"fleet/{scene.name}"
    plan = await scene.drivers.blobs.put(canonical(scene.plan()))
    foreign = await scene.drivers.blobs.put(canonical(other.plan()))
    nonsense = await scene.drivers.blobs.put(b'{"no": "plan"}')
    before = datetime.now(UTC) - timedelta(days=1)
    rows: list[tuple[Rule, Envelope]] = [
        ("role", scene.envelope("start", target, plan, "ada")),
        ("target", scene.envelope("start", f"fleet/{other.name}", plan, "olga")),
        ("plan", scene.envelope("start", target, OTHER, "olga")),
        ("plan", scene.envelope("start", target, foreign, "olga")),
        ("plan", scene.envelope("start", target, nonsense, "olga")),
        ("verb", scene.envelope("abort", target, plan, "olga")),
        ("shown", scene.envelope("start", target, plan, "olga", shown=OTHER)),
        ("unknown-key", other.envelope("start", target, plan, "olga")),
        ("not-open", scene.envelope("rollback", target, plan, "eve")),
    ]
    good = scene.envelope("start", target, plan, "olga")
    spaced = good.order + " "
    rows.append(
        (
            "not-canonical",
            Envelope(order=spaced, signature=sign_with_key(scene.keys["olga"], spaced.encode())),
        )
    )
    old = json.loads(good.order) | {
        "issued": at(before),
        "expires": at(before + timedelta(minutes=5)),
    }
    text = canonical(old)
    rows.append(
        (
            "expired",
            Envelope(order=text.decode(), signature=sign_with_key(scene.keys["olga"], text)),
        )
    )
    async with scene.playing():
        await scene.open_fleet()
        for rule, envelope in rows:
            answer = await scene.submit(target, envelope)
            assert (answer.verdict.rule, answer.run) == (rule, None), answer.verdict
            status = await scene.fleet_status()
            assert (status.holder, status.last, status.epoch) == (None, None, 0)
            kept = [
                one
                for one in await scene.records("order")
                if one["digest"] == answer.verdict.digest
            ]
            assert [(one["accepted"], one["rule"]) for one in kept] == [(False, rule)]
        answer = await scene.submit(target, good)
        assert answer.run is not None
        assert (await scene.submit(target, good)).verdict.rule == "nonce-spent"
        await scene.signal(target, good)
        await scene.waits_for(answer.run, "ship")
        assert (await scene.fleet_status()).runs == (answer.run,)


async def test_stock_tools_alone_are_enough_to_sign_and_to_send(
    stage: Stage, engine: Engine, tmp_path: Path
) -> None:
    scene = await stage()
    state = engine.state()
    assert state is not None
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        for who in ("ada", "bob"):
            order = tmp_path / f"{who}.json"
            asked_for = scene.envelope(
                "approve", run, (await scene.status(run)).plan, who, **await shown(scene, run)
            )
            order.write_text(asked_for.order)
            await quietly(
                "ssh-keygen",
                "-Y",
                "sign",
                "-n",
                "kedge-order",
                "-f",
                str(scene.keys[who]),
                str(order),
            )
            signature = order.with_name(f"{order.name}.sig").read_text()
            envelope = tmp_path / f"{who}-envelope.json"
            envelope.write_text(json.dumps({"order": order.read_text(), "signature": signature}))
            await quietly(
                stock_temporal(), "workflow", "signal",
                "--workflow-id", run, "--name", "order", "--input-file", str(envelope),
                env=reaching(state),
            )  # fmt: skip
        end = await scene.end_of(run)
        status = await scene.status(run)
    assert end.phase == "done"
    assert [(one.person, one.rule) for one in status.orders] == [
        ("ada", "accepted"),
        ("bob", "accepted"),
    ]


async def quietly(*argv: str, env: Mapping[str, str] | None = None) -> None:
    """Run a program that must succeed."""
    done = await asyncio.to_thread(
        subprocess.run, argv, check=False, capture_output=True, text=True, timeout=60, env=env
    )
    assert done.returncode == 0, done.stderr
