"""``kedge order request|send|show``: orders as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from cli import words
from cli.documents import Documents
from cli.ordering import (
    choice_of,
    drafted,
    life_of,
    show_draft,
    tell,
    verb_of,
)
from cli.session import Session
from desk.desk import Desk
from desk.orders import FLEET_VERBS, Asked, Draft, Sent, fleet_target, read_sent
from kedge.model.errors import OrderError
from kedge.model.order import NAMESPACE, Order


@dataclass(frozen=True, slots=True)
class Wanted:
    """What ``kedge order request`` was asked for, as text."""

    verb: str
    target: str
    subject: str
    choice: str
    plan: str
    person: str
    comment: str
    ticket: str
    break_glass: bool
    valid: str


def write_request(session: Session, wanted: Wanted, documents: Documents, output: Path) -> None:
    """Writes the exact bytes to sign to ``output`` and says how to sign them."""
    draft = session.run(_request(session, wanted, documents))
    output.write_bytes(draft.bytes_to_sign)
    show_draft(session, draft)
    signature = f"{output}.sig"
    signing = words.command(
        "ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", "<your key>", str(output)
    )
    sending = words.command(*session.program, "order", "send", str(output), signature)
    session.say(
        "", f"written to {output}; sign it and send it with:", f"   {signing}", f"   {sending}"
    )
    session.document(
        {
            "file": str(output),
            "order": draft.order.model_dump(mode="json"),
            "showing": None if draft.showing is None else draft.showing.model_dump(mode="json"),
            "sign": signing,
            "send": sending,
        }
    )


async def _request(session: Session, wanted: Wanted, documents: Documents) -> Draft:
    verb = verb_of(wanted.verb)
    desk = session.desk()
    target = wanted.target
    if verb in FLEET_VERBS:
        target = fleet_target(target)
    asked = Asked(
        verb=verb,
        target=target,
        subject=wanted.subject,
        choice=choice_of(wanted.choice),
        person=wanted.person,
        comment=wanted.comment,
        ticket=wanted.ticket,
        break_glass=wanted.break_glass,
        life=life_of(wanted.valid),
    )
    if verb == "start":
        return await _request_start(session, desk, asked, wanted.plan, documents)
    if verb == "review":
        asked = asked.model_copy(update={"subject": wanted.subject or wanted.target})
    return await drafted(desk, asked, carried=True)


async def _request_start(
    session: Session, desk: Desk, asked: Asked, plan: str, documents: Documents
) -> Draft:
    if plan and documents.given:
        raise OrderError(
            "--plan and documents say the same thing twice", next_step="leave one of them out"
        )
    if plan:
        return await desk.draft_start(asked, plan, carried=True)
    made = desk.make_plan(documents.files())
    if asked.target != f"fleet/{made.plan.fleet.name}":
        raise OrderError(
            f"the documents are for fleet {made.plan.fleet.name}, not for {asked.target}",
            next_step=f"`kedge order request start {made.plan.fleet.name} …`",
        )
    await desk.keep_plan(made)
    session.note(f"plan {made.digest} is stored")
    return await desk.draft_start(asked, made.digest, policy=made.policy, carried=True)


def send_files(session: Session, order: Path, signature: Path, *, signal: bool) -> None:
    """Sends a signed order: as an update, whose verdict is printed, or as a plain signal."""
    sent = read_sent(order, signature)
    desk = session.desk()
    if signal:
        session.run(desk.signal(sent.order.target, sent.envelope))
        session.say(
            "sent as a signal: it is judged like any other, but nobody waits for the verdict",
            f"   {words.command(*session.program, 'status', sent.order.target)} shows it",
        )
        session.document({"target": sent.order.target, "sent": "signal"})
        return
    session.run(_send(session, desk, sent))


async def _send(session: Session, desk: Desk, sent: Sent) -> None:
    submitted = await desk.submit(sent.order.target, sent.envelope)
    await tell(session, desk, sent.order, submitted)


def show_files(session: Session, order: Path, signature: Path | None) -> None:
    """Says what an order says, and who signed it. It is read, not judged."""
    sent = read_sent(order, signature)
    document: dict[str, Any] = {"order": sent.order.model_dump(mode="json")}
    session.say(*_lines(sent.order))
    if signature is not None:
        from desk.signing import signed_by  # noqa: PLC0415 - heavy, and only for this

        key = signed_by(sent)
        document["key"] = key
        session.say(f"   signed by  {key}; whether it counts, the policy decides when it is sent")
    session.document(document)


def _lines(order: Order) -> list[Text]:
    rows = {
        "target": order.target,
        "subject": order.subject,
        "choice": order.choice or "",
        "plan": order.plan,
        "shown": order.shown if order.shown != order.plan else "",
        "person": order.person or "the owner of the key that signs",
        "comment": order.comment,
        "ticket": order.ticket,
        "glass": "breaks it" if order.break_glass else "",
        "issued": order.issued,
        "expires": order.expires,
        "nonce": order.nonce,
    }
    lines = [Text(order.verb, style="bold")]
    lines += [Text(f"   {name:<10} {value}") for name, value in rows.items() if value]
    return lines
