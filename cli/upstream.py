"""What ``kedge release provenance | attest | import`` do and print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer
from rich.text import Text

from cli import words
from cli.asking import passphrase_asker
from cli.exits import Exit
from cli.naming import shown
from cli.releases import Signing, own_folder
from cli.session import Session
from desk.orders import Signer
from desk.provenance import Asked, Claim, Explained, Made, ProvenanceDesk
from desk.provenance import attest as made_by
from desk.upstream import Imported, ImportRequest, Keeper, import_upstream, utc_now
from kedge.model.errors import OrderError
from kedge.model.provenance import ProvenanceVerdict
from kedge.model.trusted import ReleaseName, release_name
from kedge.model.upstream import VendorImport

YES, NO = ("✓", "green"), ("✗", "bold red")


# -- provenance ------------------------------------------------------------------------------------


def explain(session: Session, release: str, asked: Asked) -> None:
    """The verdict on a release, envelope by envelope; exit code 3 when it is not proven."""
    found = ProvenanceDesk(session.desk().releases).explain(release, asked)
    session.say(*_explained(found))
    session.document({**found.model_dump(mode="json"), "ok": found.ok})
    if not found.ok:
        session.note(
            f"next: ask {words.listed(_missing(found)) or 'the vendor'} for what is missing, or have the policy changed"
        )
        raise typer.Exit(Exit.REFUSED)


def _explained(found: Explained) -> Iterator[Text]:
    where = f", of the repository that begins with {found.root[:12]}…" if found.root else ""
    yield Text(f"{found.component} {found.version} under the policy {found.policy}{where}", "bold")
    rules = found.rules
    builders = words.count(len(rules.builders), "builder")
    yield Text(
        f"   {rules.builders_agree} of {builders} must have arrived at the same bytes", "dim"
    )
    for platform, verdict in found.verdicts.items():
        yield _line(f"{platform}: {verdict.said}", ok=verdict.ok, indent=1)
        yield from _envelopes(verdict)
    if found.vendor is not None and found.vendor_again is not None:
        yield from _vendor(found.vendor, found.vendor_again)


def _envelopes(verdict: ProvenanceVerdict) -> Iterator[Text]:
    if not verdict.envelopes:
        yield Text("      there is no attestation", "dim")
    for one in verdict.envelopes:
        rule = "" if one.counted else f" [{one.rule}]"
        yield _line(f"{one.name}{rule}: {one.said}", ok=one.counted, indent=2)
        if one.keys:
            yield Text(f"         signed by {', '.join(one.keys)}", "dim")


def _vendor(recorded: VendorImport, again: VendorImport) -> Iterator[Text]:
    yield _line(
        f"imported on {recorded.at}; what is kept beside it says again: {again.said}",
        ok=again.ok,
        indent=1,
    )
    yield from _signatures(again)
    if recorded.in_spite:
        yield Text(f"      taken in spite of being a downgrade: {recorded.in_spite}", "yellow")


def _missing(found: Explained) -> list[str]:
    agreed = [set(verdict.agreed) for verdict in found.verdicts.values() if not verdict.ok]
    return [one.id for one in found.rules.builders if any(one.id not in ids for ids in agreed)]


def _line(said: str, *, ok: bool, indent: int) -> Text:
    mark, style = YES if ok else NO
    return Text("   " * indent).append(mark, style=style).append(f" {said}")


# -- attest ----------------------------------------------------------------------------------------


def sign_build(
    session: Session, files: tuple[Path, ...], claim: Claim, signer: Signer, output: Path
) -> None:
    """Writes an envelope about files, and says which line a policy needs to believe it."""
    if (signer.key is None) == (signer.agent is None):
        raise OrderError(
            "a builder signs with one key", next_step="--key FILE, or --agent with one of its keys"
        )
    said = claim if claim.finished else claim.model_copy(update={"finished": utc_now()})
    made: Made = session.run(made_by(files, said, signer, passphrase_asker()))
    output.write_text(made.envelope, encoding="utf-8")
    session.say(f"written to {output}: {claim.builder} built {words.listed(made.subjects)}")
    session.say(Text(f"   a policy believes it with the key {made.key}", "dim"))
    session.document({"file": str(output), "subjects": made.subjects, "key": made.key})


# -- import ----------------------------------------------------------------------------------------


def named(release: str) -> ReleaseName:
    """The release of a name such as ``etcd@3.5.1``. Raises ``OrderError``."""
    name = release_name(release)
    if name is None:
        raise OrderError(
            f"{shown(release)} is no name of a release", next_step="component@version: etcd@3.5.1"
        )
    return name


def by_platform(archives: tuple[str, ...]) -> dict[str, Path]:
    """``linux/amd64=FILE`` taken apart. Raises ``OrderError``."""
    found: dict[str, Path] = {}
    for text in archives:
        platform, mark, file = text.partition("=")
        if not mark or not file or platform in found:
            raise OrderError(
                f"{text!r} is no archive of a platform of its own",
                next_step="--archive linux/amd64=FILE, once for each platform",
            )
        found[platform] = Path(file)
    return found


def import_release(
    session: Session, request: ImportRequest, repository: Path | None, signing: Signing, author: str
) -> None:
    """Judges what a vendor published and adds it to the repository; exit code 3 when it is refused."""
    done = session.run(_import(session, request, repository, signing, author))
    verdict = done.verdict
    session.say(
        Text(f"{request.name} from its vendor", "bold"),
        _line(verdict.said if verdict.ok else f"{verdict.rule}: {verdict.said}", ok=verdict.ok, indent=1),
        *_signatures(verdict),
    )  # fmt: skip
    changed = done.changed
    session.document(
        {
            "verdict": verdict.model_dump(mode="json"),
            "changed": None if changed is None else changed.model_dump(mode="json"),
        }
    )
    if changed is None:
        session.note("next: nothing was added; get what the vendor published anew, from the vendor")
        raise typer.Exit(Exit.REFUSED)
    for role in changed.waiting:
        session.note(
            f"next: {role.role} lacks {words.count(role.missing, 'signature')}: kedge release sign {role.role} --key FILE"
        )
    if changed.published:
        session.say(f"   published: {words.listed(changed.published)}")


async def _import(
    session: Session, request: ImportRequest, repository: Path | None, signing: Signing, author: str
) -> Imported:
    desk = session.desk()
    keeper = Keeper(
        desk=desk.release_desk(),
        folder=repository or own_folder(desk),
        signers=await signing.signers(),
        author=author,
        publish=signing.publish,
    )
    return await import_upstream(request, keeper)


def _signatures(verdict: VendorImport) -> Iterator[Text]:
    for one in verdict.signatures:
        state = "" if one.state == "good" else f" [{one.state}]"
        yield _line(f"{one.file}{state}: {one.said}", ok=one.state == "good", indent=2)
