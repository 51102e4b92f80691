"""``kedge policy sign|pin``: the next version of a policy, from its first signature to the pin."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.text import Text

from cli import words
from cli.asking import agrees, passphrase_asker
from cli.exits import Exit
from cli.ordering import signer_of
from cli.policies import difference_lines
from cli.session import Session
from cli.signing import Signing
from desk import policies as desk_policies
from kedge.model.errors import OrderError
from kedge.model.signed_policy import POLICY_NAMESPACE, KeptPolicy, SignedPolicy
from kedge.plan.policy_changes import differences
from kedge.trust.policies import ChangeVerdict, judge_change, policy_text, read_policy, text_digest


@dataclass(frozen=True, slots=True)
class SignAsked:
    """What ``kedge policy sign`` was asked for."""

    file: Path
    fleet: str
    key: Path | None
    agent: str | None
    signatures: tuple[Path, ...]
    output: Path | None
    yes: bool


def sign_policy(session: Session, asked: SignAsked) -> None:
    """Shows what changes, signs it, writes it with all its signatures, and says what is still missing."""
    document = desk_policies.read_document(asked.file)
    pinned = _pinned(session, asked.fleet)
    if pinned is not None and not document.signatures and document.policy != pinned.document.policy:
        policy = desk_policies.successor(pinned, read_policy(document.policy))
        document = SignedPolicy(policy=policy_text(policy))
    document = desk_policies.with_signatures(document, read_signatures(asked.signatures))
    _show(session, document, pinned)
    if asked.key is not None or asked.agent is not None:
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        if terminal and not asked.yes and not agrees("sign this policy?"):
            session.note("nothing was signed")
            raise typer.Exit(Exit.INTERRUPTED)
        signer = signer_of(Signing(key=asked.key, agent=asked.agent))
        document = session.run(desk_policies.signed(document, signer, passphrase_asker()))
    elif not asked.signatures:
        _write_text(session, asked, document)
        return
    output = asked.output or _own_name(asked.file)
    desk_policies.write_document(output, document)
    session.say(f"written to {output}; plans are made with it, too: --policy {output}")
    verdict = None if pinned is None else judge_change(pinned.document, document)
    _say_verdict(session, verdict, asked.fleet, output)
    session.document(
        {
            "file": str(output),
            "version": read_policy(document.policy).version,
            "digest": text_digest(document.policy),
            "signatures": len(document.signatures),
            "verdict": None if verdict is None else verdict.model_dump(mode="json"),
        }
    )


def pin_policy(
    session: Session, fleet: str, file: Path, signatures: tuple[Path, ...], *, as_owner: bool
) -> None:
    """Pins a policy and says how it came to be allowed."""
    document = desk_policies.with_signatures(
        desk_policies.read_document(file), read_signatures(signatures)
    )
    pins = session.desk().pins
    done = session.run(desk_policies.pin(pins, fleet, document, as_owner=as_owner))
    session.say(Text(f"fleet {fleet}: version {done.version} {done.how}", style="green"))
    session.say(
        "a run under way goes by the policy it began under and by this one: what is narrower holds at once, what is "
        "wider never does for it"
    )
    session.document(done)


def read_signatures(files: tuple[Path, ...]) -> tuple[str, ...]:
    """Armored signatures from files. Raises ``OrderError``, ``OSError``."""
    found: list[str] = []
    for file in files:
        with file.open("rb") as opened:
            content = opened.read(16_385)
        try:
            found.append(content.decode("ascii"))
        except UnicodeDecodeError as error:
            raise OrderError(
                f"{file} is not an armored SSH signature",
                next_step=f"make it with: ssh-keygen -Y sign -n {POLICY_NAMESPACE} -f KEY TEXT",
            ) from error
    return tuple(found)


def _pinned(session: Session, fleet: str) -> KeptPolicy | None:
    if not fleet:
        return None
    return session.run(session.desk().pins.pinned(fleet))


def _show(session: Session, document: SignedPolicy, pinned: KeptPolicy | None) -> None:
    policy = read_policy(document.policy)
    session.say(Text(f"policy {policy.name}, version {policy.version}", style="bold"))
    if pinned is not None:
        found = differences(read_policy(pinned.document.policy), policy)
        session.say(*difference_lines(found))
    session.say(Text(f"digest {text_digest(document.policy)}", style="dim"))


def _say_verdict(session: Session, verdict: ChangeVerdict | None, fleet: str, output: Path) -> None:
    if verdict is None:
        return
    session.say(Text(verdict.said, style="green" if verdict.ok else "yellow"))
    if verdict.ok:
        command = words.command(*session.program, "policy", "pin", fleet, str(output))
        session.say(f"next: {command}")


def _write_text(session: Session, asked: SignAsked, document: SignedPolicy) -> None:
    """The exact text, for signing elsewhere."""
    output = asked.output or asked.file.with_suffix(".canonical.json")
    output.write_text(document.policy, encoding="utf-8", newline="")
    signing = words.command("ssh-keygen", "-Y", "sign", "-n", POLICY_NAMESPACE, "-f", "<your key>", str(output))  # fmt: skip
    session.say(f"written to {output}; sign it with:", f"   {signing}")
    session.document({"file": str(output), "digest": text_digest(document.policy), "sign": signing})


def _own_name(file: Path) -> Path:
    return file if file.name.endswith(".signed.json") else file.with_suffix(".signed.json")
