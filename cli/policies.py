"""``kedge policy lint|explain|who-can|diff|show|signers|people``: policies in words."""

from __future__ import annotations

import json as json_format
import os
import sys
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from cli.exits import Exit
from cli.naming import is_fleet, shown
from cli.session import Session
from desk import policies as desk_policies
from desk.desk import Desk
from kedge.model.errors import DocumentError, DriverError, OrderError
from kedge.model.plan import Risk, Verb
from kedge.model.policy import Policy
from kedge.model.signed_policy import KeptPolicy, SignedPolicy
from kedge.plan.policies import RISKS, VERBS, explained, who_can
from kedge.plan.policy_advice import advice
from kedge.plan.policy_changes import Difference, differences
from kedge.trust.policies import judge_change, read_policy, text_digest
from kedge.trust.signers_file import export_signers, import_signers

EFFECTS = {"wider": ("▲", "bold red"), "narrower": ("▼", "green"), "other": ("·", "yellow")}
BY = {
    "first": "pinned first, on trust",
    "signed": "signed",
    "owner": "pinned by who has this machine, against no signature",
}
MAX_SIGNERS = 1 << 20


def policy_of(session: Session, source: str) -> Policy:
    """A policy by its file, by a fleet's name, or as ``FLEET@NUMBER``."""
    return read_policy(document_of(session, source).policy)


def document_of(session: Session, source: str) -> SignedPolicy:
    """The same with its signatures. Raises what reading it raises."""
    path = Path(source)
    # A name that no file can have is a fleet's, or nobody's.
    if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for a name that is too long
        return desk_policies.read_document(path)
    fleet, at, number = source.partition("@")
    # A fleet could be called policy.yaml; who says that means the file.
    if not is_fleet(fleet) or path.suffix in {".yaml", ".yml", ".json"}:
        raise DriverError(
            "NotFound",
            f"{shown(source)} is neither a file nor a fleet's name nor FLEET@NUMBER",
            retryable=False,
            next_step="name the policy's file, or a fleet whose policy is pinned here",
        )
    pins = session.desk().pins
    if not at:
        return session.run(pins.pinned(fleet)).document
    return _numbered(session.run(pins.kept(fleet)), number, fleet).document


def _numbered(kept: tuple[KeptPolicy, ...], number: str, fleet: str) -> KeptPolicy:
    for one in kept:
        if str(one.seq) == number:
            return one
    raise DriverError(
        "NotFound",
        f"no policy {number} was pinned for fleet {fleet}; there are {len(kept)}",
        retryable=False,
        next_step=f"`kedge policy show {fleet}` lists them",
    )


def lint_files(session: Session, files: tuple[Path, ...]) -> None:
    """Mistakes end with 2; what is only worth a thought does not."""
    problems: list[str] = []
    thoughts: list[dict[str, str]] = []
    for file in files:
        try:
            policy = read_policy(desk_policies.read_document(file).policy)
        except DocumentError as error:
            problems += error.problems
            continue
        thoughts += [{"file": str(file), "said": said} for said in advice(policy)]
    for one in thoughts:
        session.say(Text(f"{one['file']}: {one['said']}", style="yellow"))
    if problems:
        raise DocumentError(tuple(problems))
    if not thoughts:
        session.say(Text("nothing to say against it", style="green"))
    session.document({"problems": [], "advice": thoughts})


def explain_policy(session: Session, source: str) -> None:
    """A policy, paragraph by paragraph."""
    document = document_of(session, source)
    policy = read_policy(document.policy)
    session.say(*_head(policy, text_digest(document.policy)))
    parts = explained(policy)
    for title, said in parts:
        session.say(Text(), Text(title, style="bold underline"))
        session.say(*(Text(f"   {line}") for line in said))
    session.document(
        {
            "name": policy.name,
            "environment": policy.environment,
            "version": policy.version,
            "digest": text_digest(document.policy),
            "explanation": [{"title": title, "said": list(said)} for title, said in parts],
        }
    )


def _head(policy: Policy, digest: str) -> list[Text]:
    head = Text(f"policy {policy.name}", style="bold")
    head.append(f"  version {policy.version}", style="bold magenta")
    head.append(f"  for {policy.environment}")
    return [head, Text(f"digest {digest}", style="cyan")]


def verb_of(text: str) -> Verb:
    """A verb by its name. Raises ``OrderError`` for any other word."""
    if text not in VERBS:
        raise OrderError(f"{text!r} is no verb", next_step=f"one of: {', '.join(VERBS)}")
    return text


def risk_of(text: str) -> Risk | None:
    """A class by its name; None for none. Raises ``OrderError``."""
    if not text:
        return None
    if text not in RISKS:
        raise OrderError(f"{text!r} is no class of risk", next_step=f"one of: {', '.join(RISKS)}")
    return text


def tell_who_can(session: Session, verb: str, source: str, risk: str) -> None:
    """Everybody who can, one line each."""
    asked, of_class = verb_of(verb), risk_of(risk)
    found = who_can(policy_of(session, source), asked, of_class)
    for one in found:
        line = Text(f"{one.person:<12} ", style="bold red" if one.glass else "bold")
        line.append(f"({', '.join(one.roles)})", style="dim")
        line.append(" by breaking the glass" if one.glass else "", style="red")
        line.append(f"  {'; '.join(one.conditions)}")
        session.say(line)
    if not found:
        session.say(f"nobody can {asked}")
    session.document(
        {"verb": asked, "risk": of_class, "who": [one.model_dump(mode="json") for one in found]}
    )


def tell_differences(session: Session, old: str, new: str) -> None:
    """What changes, whether it follows properly, and what it means for runs under way."""
    before, after = document_of(session, old), document_of(session, new)
    found = differences(read_policy(before.policy), read_policy(after.policy))
    session.say(*difference_lines(found))
    verdict = judge_change(before, after)
    same = before.policy == after.policy
    if not same:
        session.say(
            Text(), Text(f"as a change: {verdict.said}", style="green" if verdict.ok else "yellow")
        )
    runs, reviews = _under_way(session, old)
    for run in runs:
        session.say(
            f"{run} is under way: what is narrower holds for it at once, what is wider never does"
        )
    able = ", ".join(one.person for one in who_can(read_policy(after.policy), "review"))
    for run in reviews:
        may = able or "nobody, so that no migration would be started any more"
        session.say(f"{run} owes a review, and by the other policy it is signed by {may}")
    session.document(
        {
            "differences": [one.model_dump(mode="json") for one in found],
            "change": verdict.model_dump(mode="json"),
            "runs": runs,
            "reviews": reviews,
        }
    )


def difference_lines(found: tuple[Difference, ...]) -> list[Text]:
    """Each difference with a mark: somebody can do more, less, or neither."""
    lines: list[Text] = []
    for one in found:
        mark, style = EFFECTS[one.effect]
        line = Text(f"{mark} ", style=style)
        line.append(f"{one.where}: ", style="bold")
        line.append(one.said)
        lines.append(line)
    return lines or [Text("nothing is otherwise")]


def _under_way(session: Session, source: str) -> tuple[list[str], list[str]]:
    """The run that has the fleet, and what it owes, where a fleet was named and its engine answers."""
    fleet = source.partition("@")[0]
    if Path(source).is_file() or not _engine_runs(session.desk()):
        return [], []
    try:
        status = session.run(session.desk().fleet_or_new(fleet))
    except DriverError:
        return [], []
    return [status.holder] if status.holder else [], [review.run for review in status.reviews]


def _engine_runs(desk: Desk) -> bool:
    from worker.engine import Engine  # noqa: PLC0415 - only to look

    return not desk.settings.embedded or Engine(desk.settings).state() is not None


def show_versions(session: Session, fleet: str, number: int | None, *, canonical: bool) -> None:
    """Every version, or the exact text of one."""
    pins = session.desk().pins
    kept = session.run(pins.kept(fleet))
    chosen = kept[-1] if number is None else _numbered(kept, str(number), fleet)
    if canonical:
        sys.stdout.write(chosen.document.policy)
        sys.stdout.flush()
        return
    found = session.run(desk_policies.versions(pins, fleet))
    shown = kept if number is None else (chosen,)
    rows = [_version(one, kept) for one in shown]
    for row in rows:
        session.say(
            Text(f"{row['number']:>3}  version {row['version']}  {row['digest']}", style="bold")
        )
        session.say(f"     {BY[row['by']]}{' at ' + row['at'] if row['at'] else ''}")
        session.say(*(f"     {said}" for said in row["signatures"]))
    good = "green" if found.chain.ok and not found.chain.owners else "yellow"
    session.say(Text(found.chain.said, style=good if found.chain.ok else "bold red"))
    session.document(
        {"fleet": fleet, "versions": rows, "chain": found.chain.model_dump(mode="json")}
    )
    if not found.chain.ok:
        raise typer.Exit(Exit.REFUSED)


def _version(one: KeptPolicy, kept: tuple[KeptPolicy, ...]) -> dict[str, Any]:
    policy = read_policy(one.document.policy)
    signatures: tuple[str, ...] = ()
    if one.by == "signed" and one.seq > 1:
        verdict = judge_change(kept[one.seq - 2].document, one.document)
        signatures = tuple(f"{found.said} ({found.key})" for found in verdict.signatures)
    return {
        "number": one.seq,
        "version": policy.version,
        "digest": text_digest(one.document.policy),
        "by": one.by,
        "at": one.at,
        "signatures": list(signatures),
    }


def export_people(session: Session, source: str) -> None:
    """The people who are not revoked, as OpenSSH knows them."""
    policy = policy_of(session, source)
    people = [one for one in policy.people if one.name not in policy.revoked.people]
    text = export_signers(people)
    if not session.json:
        sys.stdout.write(text)
        sys.stdout.flush()
    session.document({"allowed_signers": text})


def import_people(session: Session, file: Path, given: tuple[str, ...]) -> None:
    """People with the roles they are given, as YAML to put into a policy."""
    roles: dict[str, tuple[str, ...]] = {}
    for one in given:
        name, equals, named = one.partition("=")
        if not equals or not named:
            raise OrderError(
                f"{one!r} gives nobody a role", next_step="write it as --role ada=sre,operator"
            )
        roles[name] = (*roles.get(name, ()), *(role for role in named.split(",") if role))
    with file.open(encoding="utf-8", errors="replace") as opened:
        text = opened.read(MAX_SIGNERS + 1)
    found = import_signers(text, roles, file=str(file))
    session.document({"people": [person.model_dump(mode="json") for person in found]})
    if session.json:
        return
    lines = ["people:"]
    for person in found:
        lines += [
            # In quotes: no, on and 007 are names, and without them YAML reads something else.
            f"  - name: {json_format.dumps(person.name)}",
            f"    roles: {json_format.dumps(person.roles)}",
            "    keys:",
        ]
        lines += [f"      - {json_format.dumps(line)}" for line in person.keys]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
