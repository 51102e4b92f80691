"""From a word to a verdict: draft, show, ask, sign, send, tell."""

from __future__ import annotations

import re
import sys
from typing import Any, TypedDict, Unpack, get_args

import typer
from rich.text import Text

from cli import asking, words
from cli.exits import Exit
from cli.session import Session
from cli.signing import Signing
from cli.tree import showing_lines, tally_words
from desk.desk import Desk
from desk.orders import FLEET_VERBS, Asked, Draft, Signer, fleet_target
from kedge.model.errors import DriverError, EngineError, OrderError
from kedge.model.order import Order, OrderVerdict, Rule, Tally
from kedge.model.plan import Choice, Verb
from kedge.model.policy import Policy
from kedge.model.run import Submitted
from kedge.model.status import RunStatus

VERBS: tuple[Verb, ...] = get_args(Verb)
CHOICES: tuple[Choice, ...] = get_args(Choice)
ASKS: dict[Verb, str] = {
    "start": "start this migration",
    "approve": "sign for this",
    "reject": "refuse this",
    "pause": "pause the run",
    "resume": "let the run go on",
    "abort": "end the run as it stands",
    "decide": "decide this",
    "rollback": "take the fleet back",
    "review": "sign that you looked at this",
}


class Words(TypedDict, total=False):
    """What only some verbs have."""

    subject: str
    choice: str
    break_glass: bool


def give(
    session: Session, verb: Verb, target: str, signing: Signing, **more: Unpack[Words]
) -> None:
    """One order about a run (or about a fleet), from drafting to the verdict."""
    if verb in FLEET_VERBS:
        target = fleet_target(target)
    asked = Asked(
        verb=verb,
        target=target,
        subject=more.get("subject", ""),
        choice=choice_of(more.get("choice", "")),
        comment=signing.comment,
        ticket=signing.ticket,
        break_glass=more.get("break_glass", False),
        life=life_of(signing.valid),
    )
    session.run(_give(session, asked, signing))


async def _give(session: Session, asked: Asked, signing: Signing) -> None:
    from desk.signing import person_of  # noqa: PLC0415 - heavy, and only for who signs

    desk = session.desk()
    signer = signer_of(signing)
    policy = await _policy_for(desk, asked.verb, asked.target)
    person = signing.person or person_of(policy, signer)
    asked = asked.model_copy(update={"person": person})
    draft = await drafted(desk, asked)
    show_draft(session, draft)
    submitted = await sign_and_send(session, desk, draft, signer, yes=signing.yes)
    await tell(session, desk, draft.order, submitted)


async def drafted(desk: Desk, asked: Asked, *, carried: bool = False) -> Draft:
    """The order for what was asked of a run, or of a fleet that has runs."""
    if asked.verb == "rollback":
        return await desk.draft_rollback(asked, carried=carried)
    if asked.verb == "review":
        return await desk.draft_review(asked, carried=carried)
    return await desk.draft_for_run(asked, carried=carried)


async def _policy_for(desk: Desk, verb: Verb, target: str) -> Policy | None:
    """The policy pinned here for the fleet that the order is about; names the key's owner."""
    if verb in FLEET_VERBS:
        return await desk.policy(target.removeprefix("fleet/"))
    parts = target.split("/")
    return await desk.policy(parts[1]) if len(parts) == 3 else None


def signer_of(signing: Signing) -> Signer:
    """The key file or agent key to sign with, before anything is shown that it is to sign.

    Raises ``OrderError`` unless exactly one was named, ``DriverError`` for a file that is no private key of one's own.
    """
    if (signing.key is None) == (signing.agent is None):
        raise OrderError(
            "an order is signed with exactly one key",
            next_step="name a private key with --key FILE, or a key of the ssh-agent with --agent KEY; "
            "`kedge order request` writes an order for signing elsewhere",
        )
    if signing.key is not None:
        from desk.signing import look_at  # noqa: PLC0415 - heavy, and only for who signs

        look_at(signing.key)
    return Signer(key=signing.key, agent=signing.agent)


def choice_of(text: str) -> Choice | None:
    """A choice by its name. Raises ``OrderError`` for any other word."""
    if not text:
        return None
    if text not in CHOICES:
        raise OrderError(
            f"{text!r} is no choice", next_step=f"--choice with one of: {' | '.join(CHOICES)}"
        )
    return text


def verb_of(text: str) -> Verb:
    """A verb by its name. Raises ``OrderError`` for any other word."""
    if text not in VERBS:
        raise OrderError(f"{text!r} is no verb", next_step=f"one of: {', '.join(VERBS)}")
    return text


def life_of(text: str) -> float | None:
    """Seconds in ``90s``, ``15m``, ``2h`` or ``1d``; None for nothing. Raises ``OrderError``."""
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None or int(match[1]) == 0:
        raise OrderError(
            f"{text!r} is not a length of time", next_step="write it as 90s, 15m, 2h or 1d"
        )
    return float(int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]])


def show_draft(session: Session, draft: Draft) -> None:
    """What is about to be signed, in words.

    Beside an order that starts a run these go to standard error: the run's id is then all that is on standard
    output, and a script can take it from there.
    """
    order = draft.order
    say = session.aside if order.verb in FLEET_VERBS else session.say
    head = Text(f"{order.verb} ", style="bold")
    head.append(order.target, style="bold magenta")
    if order.subject:
        head.append(f"  {order.subject}", style="bold")
    if order.choice:
        head.append(f": {order.choice}", style="bold")
    say(head)
    if order.break_glass:
        say(
            Text(
                "   breaks the glass: somebody else has to review this afterwards", style="bold red"
            )
        )
    if draft.showing is not None:
        say(*showing_lines(draft.showing))
    say(*(Text(f"   {line}") for line in draft.about if line))
    say(Text(f"   plan {order.plan}", style="dim"))
    if order.shown != order.plan:
        say(Text(f"   what you see here has the digest {order.shown}", style="dim"))
    if order.ticket:
        say(Text(f"   ticket {order.ticket}", style="dim"))
    if order.evidence is not None:
        seen = f"{order.evidence.seq}:{order.evidence.hash}"
        say(Text(f"   the record of what happened so far ends in {seen}", style="dim"))
    by = order.person or "the owner of the key"
    life = words.duration(words.between(order.issued, order.expires))
    say(Text(f"   signed as {by}, valid for {life}", style="dim"))


async def sign_and_send(
    session: Session, desk: Desk, draft: Draft, signer: Signer, *, yes: bool
) -> Submitted:
    """Asks (on a terminal), signs exactly what was shown, sends it, waits for the verdict."""
    from desk.signing import sign  # noqa: PLC0415 - heavy, and only for who signs

    asked = not yes and sys.stdin.isatty() and sys.stdout.isatty()
    if asked and not asking.agrees(f"{ASKS[draft.order.verb]}?"):
        session.note("nothing was signed and nothing was sent")
        raise typer.Exit(Exit.INTERRUPTED)
    envelope = await sign(draft, signer, asking.passphrase_asker())
    return await desk.submit(draft.order.target, envelope)


def refuse_if_refused(session: Session, verdict: OrderVerdict) -> None:
    """Ends the command when the order was refused: the rule's name, the sentence, exit code 3."""
    if verdict.accepted:
        return
    step = next_step(verdict)
    session.note(f"refused, rule {verdict.rule}: {verdict.said}")
    session.note(f"next: {step}")
    error = {
        "type": "Refused",
        "rule": verdict.rule,
        "message": verdict.said,
        "next": step,
        "exit": int(Exit.REFUSED),
    }
    session.document({"error": error, "verdict": verdict.model_dump(mode="json")})
    raise typer.Exit(Exit.REFUSED)


def next_step(verdict: OrderVerdict) -> str:
    """What somebody whose order was refused can do."""
    found = next((step for rules, step in _STEPS if verdict.rule in rules), None)
    if found is not None:
        return found
    if verdict.rule in {"not-open", "subject", "shown", "choice", "verb"} and verdict.target:
        return (
            f"`{words.command('kedge', 'status', verdict.target)}` says what is open now; sign that"
        )
    return "make the order anew with `kedge order request`, and sign its bytes as they are"


_SOMEBODY_ELSE: frozenset[Rule] = frozenset(
    {
        "unknown-person", "revoked", "unknown-key", "role", "requester", "author", "duplicate-person",
        "duplicate-key",
    }
)  # fmt: skip
_STEPS: tuple[tuple[frozenset[Rule], str], ...] = (
    (
        frozenset({"expired", "not-yet-valid", "too-long-lived", "nonce-spent"}),
        "make a new order; `kedge doctor` looks at this machine's clock",
    ),
    (_SOMEBODY_ELSE, "somebody else has to sign: the policy says who may, with which key"),
    (
        frozenset({"touch", "pin"}),
        "sign again with a hardware key, touch it when it blinks, and give its PIN where it is asked for",
    ),
    (
        frozenset({"evidence"}),
        "look again and sign what is shown then; if it stays so, `kedge evidence check` looks at the record",
    ),
    (frozenset({"ticket"}), "name the change ticket with --ticket"),
    (
        frozenset({"break-glass"}),
        "`kedge policy who-can VERB` says who may say what, `kedge review FLEET` what is owed",
    ),
    (
        frozenset({"hardware"}),
        "sign with a hardware key: load it into an ssh-agent and name it with --agent",
    ),
    (
        frozenset({"policy", "plan"}),
        "pin the policy with `kedge up --fleet F --policy P`, make the plan again, then sign that",
    ),
    (
        frozenset({"release"}),
        "`kedge release list` shows the signed releases; name one as `--release etcd@3.5.1`",
    ),
    (
        frozenset({"lease"}),
        "`kedge list` shows the run that has the fleet; wait for it, or `kedge rollback` it",
    ),
)


async def tell(session: Session, desk: Desk, order: Order, submitted: Submitted) -> None:
    """The verdict in words; ends the command when it is a refusal.

    A run that the order started is named last. After an approval the gate's tally is told too.
    """
    verdict = submitted.verdict
    refuse_if_refused(session, verdict)
    if submitted.run is not None:
        session.note(f"accepted: {verdict.said}")
        tell_run(session, submitted.run)
        return
    document: dict[str, Any] = {"run": order.target, "verdict": verdict.model_dump(mode="json")}
    session.say(Text(f"accepted: {verdict.said}", style="green"))
    if order.verb == "review":
        owed = "nothing more is owed" if verdict.closes else "somebody else has to sign, too"
        session.say(f"for {order.subject} {owed}")
    if order.verb == "approve":
        status = await _status_after(desk, order.target)
        tally = _tally(status, order.subject)
        document["tally"] = tally.model_dump(mode="json") if tally else None
        document["open"] = tally is not None
        if tally is not None:
            session.say(f"gate {order.subject}: {tally_words(tally)}")
        elif status is not None:
            session.say(f"gate {order.subject} has its signatures")
    session.document(document)


async def _status_after(desk: Desk, run: str) -> RunStatus | None:
    """The run after the verdict. The order stands whether or not this can be answered."""
    try:
        return await desk.status_of(run)
    except (DriverError, EngineError):
        return None


def _tally(status: RunStatus | None, gate: str) -> Tally | None:
    waiting = status.waiting if status is not None else None
    return waiting.tally if waiting is not None and waiting.subject == gate else None


def tell_run(session: Session, run: str) -> None:
    """A run that an order started: its id is the last line of standard output, and nothing but it."""
    session.note(f"watch it with: {words.command(*session.program, 'watch', run)}")
    if session.json:
        session.document({"run": run})
    else:
        sys.stdout.write(f"{run}\n")
        sys.stdout.flush()
