"""``plan`` and ``start``."""

from __future__ import annotations

from cli.documents import Documents
from cli.ordering import (
    life_of,
    refuse_if_refused,
    show_draft,
    sign_and_send,
    signer_of,
    tell_run,
)
from cli.plan_page import page
from cli.session import Session
from cli.signing import Signing
from desk.desk import Desk, MadePlan
from desk.orders import Asked, Signer
from kedge.model.errors import EngineError
from kedge.plan.explain import explain


def show_plan(session: Session, documents: Documents) -> None:
    """The plan as a person wants to read it; with ``--json`` all of it."""
    made = session.desk().make_plan(documents.files())
    told = explain(made.plan, made.policy)
    if not session.json:  # a plan of thousands of nodes is enough to print once
        session.say(*page(told))
    session.document(
        {
            "digest": made.digest,
            "plan": made.plan.model_dump(mode="json"),
            "explanation": told.model_dump(mode="json"),
        }
    )


def start_run(session: Session, documents: Documents, signing: Signing) -> None:
    """Plan, show, sign, send; the run's id is the last line."""
    desk = session.desk()
    signer = signer_of(signing)
    made = desk.make_plan(documents.files())
    session.run(_start(session, desk, made, signing, signer))


async def _start(
    session: Session, desk: Desk, made: MadePlan, signing: Signing, signer: Signer
) -> None:
    from desk.signing import person_of  # noqa: PLC0415 - heavy, and not for `kedge plan`

    fleet = made.plan.fleet.name
    await desk.check_startable(made)
    await desk.keep_plan(made)
    asked = Asked(
        verb="start",
        target=f"fleet/{fleet}",
        person=signing.person or person_of(made.policy, signer),
        comment=signing.comment,
        ticket=signing.ticket,
        life=life_of(signing.valid),
    )
    draft = await desk.draft_start(asked, made.digest, policy=made.policy)
    session.aside(*page(explain(made.plan, made.policy)))
    show_draft(session, draft)
    submitted = await sign_and_send(session, desk, draft, signer, yes=signing.yes)
    refuse_if_refused(session, submitted.verdict)
    if submitted.run is None:
        raise EngineError(
            "the order was accepted, but no run was named",
            next_step=f"`kedge status {fleet}` shows which run has the fleet",
        )
    tell_run(session, submitted.run)
