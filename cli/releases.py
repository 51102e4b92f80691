"""``kedge release``: what is asked of the desk, and how it is told."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from cli import words
from cli.asking import agrees, passphrase_asker
from cli.exits import Exit
from cli.naming import shown
from cli.session import Session
from desk.desk import Desk
from desk.release_roles import (
    Changed,
    KeyChange,
    KeyHand,
    KeyHolder,
    RoleSpec,
    RoleView,
    fingerprint_of,
    signers_of,
)
from desk.releases import ReleaseDesk
from kedge.model.errors import OrderError
from kedge.model.trusted import MOST_REASON, ReleaseName, TrustedRelease, release_name

_SPEC = re.compile(r"([0-9]{1,3}):(.+)")


@dataclass(frozen=True, slots=True)
class Signing:
    """With which keys, and whether to publish at once."""

    keys: Sequence[Path] | None
    agents: Sequence[str] | None
    publish: bool = False

    async def signers(self) -> list[KeyHand]:
        """The keys, unlocked."""
        return await signers_of(self.keys or (), self.agents or (), passphrase_asker())


@dataclass(frozen=True, slots=True)
class Addition:
    """A release to add, as it was typed."""

    document: Path
    author: str
    beside: tuple[Path, ...]
    component: str


@dataclass(frozen=True, slots=True)
class Change:
    """A change of keys, as it was typed."""

    role: str
    add: tuple[Path, ...]
    remove: tuple[str, ...]
    threshold: int | None


def make(
    session: Session,
    repository: Path | None,
    signing: Signing,
    roles: tuple[str, ...],
    expires: tuple[str, ...],
) -> None:
    """``init``."""
    desk = session.desk()
    folder = repository or own_folder(desk, new=True)
    specs = [_named_spec(text) for text in roles]
    days = dict(_days(text) for text in expires)

    async def work() -> Changed:
        return await desk.release_desk().init(folder, specs, await signing.signers(), days=days)

    changed = session.run(work())
    session.say(Text(f"a release repository in {changed.folder}", style="bold green"))
    if changed.root is not None:
        session.say(
            f"   root     {changed.root}",
            "next: name it in the policy as `releases: {root: …}`, and the folder, or where it is served, "
            "in kedge.toml as release_repository",
        )
    _tell(session, changed)


def add_release(
    session: Session, repository: Path | None, signing: Signing, addition: Addition
) -> None:
    """``add``."""
    desk = session.desk()
    folder = repository or own_folder(desk)
    extra = {path.name: path.read_bytes() for path in addition.beside}
    there = None if addition.document.exists() else release_name(str(addition.document))
    if there is not None and not extra:
        raise OrderError(
            f"nothing is given to be put beside {there}",
            next_step="--with FILE, such as provenance-2.json; a new release comes from its document",
        )

    async def work(releases: ReleaseDesk, signers: list[KeyHand]) -> Changed:
        if there is not None:
            return await releases.attach(folder, there, extra, signers, publish=signing.publish)
        author = addition.author or (fingerprint_of(signers[0]) if signers else "")
        if not author:
            raise OrderError(
                "nobody is said to have made it", next_step="--author NAME, or a --key"
            )
        new = await releases.new_release(
            addition.document, desk.artifacts, author=author, extra=extra
        )
        component = _spec(new.name.component, addition.component) if addition.component else None
        session.note(f"adds {new.name} by {author}")
        return await releases.add(
            folder, new, signers, component=component, publish=signing.publish
        )

    _tell(session, _change(session, desk, signing, work))


def sign_drafts(
    session: Session,
    repository: Path | None,
    signing: Signing,
    roles: tuple[str, ...],
    copies: tuple[Path, ...],
    *,
    yes: bool,
) -> None:
    """``sign``: what the drafts change is shown first."""
    desk = session.desk()
    folder = repository or own_folder(desk)

    told = desk.release_desk().changes(folder, roles)
    for role, draft in told.items():
        session.aside(Text(f"draft of {role}:", style="bold"), *(f"   {one}" for one in draft.said))
    asked = bool(told) and bool(signing.keys or signing.agents) and not yes and sys.stdin.isatty()
    if asked and not agrees("sign this?"):
        session.note("nothing was signed")
        raise typer.Exit(Exit.INTERRUPTED)

    async def work(releases: ReleaseDesk, signers: list[KeyHand]) -> Changed:
        shown = {role: draft.content for role, draft in told.items()}
        return await releases.sign(folder, roles, signers, copies=copies, shown=shown)

    changed = _change(session, desk, signing, work)
    _tell(session, changed)
    if not changed.drafts:
        session.note("there is no draft to sign")
    elif not changed.waiting:
        session.note("next: kedge release publish")


def publish_drafts(
    session: Session, repository: Path | None, signing: Signing, renew: tuple[str, ...] | None
) -> None:
    """``publish``."""
    desk = session.desk()
    folder = repository or own_folder(desk)

    async def work(releases: ReleaseDesk, signers: list[KeyHand]) -> Changed:
        return await releases.publish(folder, signers, renew=renew)

    changed = _change(session, desk, signing, work)
    if not changed.published and not changed.drafts:
        session.note("nothing to publish: everything is, and nothing expires for now")
    _tell(session, changed)
    if "root" in changed.published and changed.root is not None:
        session.say(f"the first root, which policies name and homes pin, is {changed.root}")
    if changed.drafts:
        raise typer.Exit(Exit.WAITING)


def revoke_release(
    session: Session,
    repository: Path | None,
    signing: Signing,
    release: str,
    reason: str | None,
    *,
    by: str,
) -> None:
    """``revoke``; ``reason`` None takes a revocation back."""
    desk = session.desk()
    folder, name = repository or own_folder(desk), _name(release)
    if reason is not None and not 0 < len(reason.strip()) <= MOST_REASON:
        raise OrderError(
            f"a revocation needs a reason, of at most {MOST_REASON} characters",
            next_step="--reason TEXT",
        )

    async def work(releases: ReleaseDesk, signers: list[KeyHand]) -> Changed:
        if reason is None:
            return await releases.reinstate(folder, name, signers, publish=signing.publish)
        who = by or (fingerprint_of(signers[0]) if signers else "")
        return await releases.revoke(
            folder, name, signers, reason=reason, by=who, publish=signing.publish
        )

    _tell(session, _change(session, desk, signing, work))


def rotate_keys(
    session: Session, repository: Path | None, signing: Signing, change: Change
) -> None:
    """``rotate``."""
    desk = session.desk()
    folder = repository or own_folder(desk)
    if not change.add and not change.remove and change.threshold is None:
        raise OrderError(
            f"nothing is said to change about the keys of {change.role}",
            next_step="--add FILE, --remove KEY or --threshold N; a new expiry comes with publish --renew",
        )
    asked = KeyChange(
        role=change.role, add=change.add, remove=change.remove, threshold=change.threshold
    )

    async def work(releases: ReleaseDesk, signers: list[KeyHand]) -> Changed:
        return await releases.rotate(folder, asked, signers, publish=signing.publish)

    _tell(session, _change(session, desk, signing, work))


def list_roles(session: Session, repository: Path | None) -> None:
    """``list --drafts``."""
    desk = session.desk()
    views = desk.release_desk().drafts(repository or own_folder(desk))
    session.say(_roles_table(views))
    session.document({"roles": [one.model_dump(mode="json") for one in views]})


def list_releases(session: Session, repository: str | None) -> None:
    """``list``."""
    listed = _reader(session, repository).listed()
    for one in listed:
        state = Text("revoked", style="red") if one.revoked else Text("listed", style="green")
        line = Text(f"{one.name!s:<32} ")
        line.append(state)
        line.append(f"   {one.added}  {one.author}".rstrip())
        session.say(line)
    if not listed:
        session.say("no release yet: `kedge release add FILE` adds one")
    session.document({"releases": [one.model_dump(mode="json") for one in listed]})


def show_release(session: Session, repository: str | None, release: str) -> None:
    """``show``."""
    found = _reader(session, repository).show(_name(release))
    session.say(*_release_lines(found))
    session.document(found.model_dump(mode="json"))


def verify_all(session: Session, repository: str | None, release: str, root: str) -> None:
    """``verify``."""
    only = _name(release) if release else None
    desk = _reader(session, repository)
    with tempfile.TemporaryDirectory(prefix="kedge-verify-") as folder:
        found = desk.verify(Path(folder), only=only, root=root or None, say=session.note)
    revoked = sum(one.revoked for one in found.releases)
    session.say(
        Text(
            f"verified: {words.count(len(found.releases) - revoked, 'release')}, "
            f"{words.count(found.files, 'file')}, {found.bytes} bytes, from root {found.root[:12]}"
            + (f"; {revoked} more revoked" if revoked else ""),
            style="green",
        )
    )
    if found.expires:
        session.say(f"the metadata that expires first does so at {found.expires}")
    session.document(found.model_dump(mode="json"))


def trust_root(session: Session, repository: str | None, root: str) -> None:
    """``trust``."""
    digest = _reader(session, repository).trust(root)
    session.say(f"pinned here: the root {digest}")
    session.document({"root": digest})


# -- inside ---------------------------------------------------------------------------------------


def _change(
    session: Session,
    desk: Desk,
    signing: Signing,
    work: Callable[[ReleaseDesk, list[KeyHand]], Awaitable[Changed]],
) -> Changed:
    async def all_of_it() -> Changed:
        return await work(desk.release_desk(), await signing.signers())

    return session.run(all_of_it())


def _reader(session: Session, repository: str | None) -> ReleaseDesk:
    desk = session.desk()
    return desk.release_desk() if repository is None else desk.release_desk_at(repository)


def own_folder(desk: Desk, *, new: bool = False) -> Path:
    """The keepers' folder by the settings. Raises ``OrderError`` where they name none."""
    location = desk.settings.release_repository
    if location is not None and not location.startswith(("http://", "https://")):
        return Path(location)
    if new and location is None:
        return desk.settings.home / "releases"
    raise OrderError(
        "the keepers' folder of the repository is not named",
        next_step="--repository FOLDER, or release_repository in kedge.toml",
    )


def _name(text: str) -> ReleaseName:
    found = release_name(text)
    if found is None:
        raise OrderError(
            f"{shown(text)} is no name of a release",
            next_step="component@version, such as etcd@3.5.1",
        )
    return found


def _named_spec(text: str) -> RoleSpec:
    role, equals, rest = text.partition("=")
    if not equals or role not in ("root", "targets", "snapshot", "timestamp"):
        raise OrderError(
            f"--role {text!r} names no role",
            next_step="root, targets, snapshot or timestamp, as root=2:ada.pub,bob.pub,eve.pub",
        )
    return _spec(role, rest)


def _spec(role: str, text: str) -> RoleSpec:
    found = _SPEC.fullmatch(text)
    if found is None:
        raise OrderError(
            f"{text!r} does not say how many of which keys",
            next_step="THRESHOLD:FILE,FILE… such as 2:ada.pub,bob.pub,eve.pub",
        )
    files = tuple(Path(one) for one in found[2].split(",") if one)
    return RoleSpec(role=role, threshold=int(found[1]), keys=files)


def _days(text: str) -> tuple[str, int]:
    role, _, days = text.partition("=")
    known = ("root", "targets", "components", "snapshot", "timestamp")
    if role not in known or not days.isdecimal() or not 1 <= int(days) <= 3650:
        raise OrderError(
            f"--expires {text!r} cannot be used",
            next_step=f"one of {', '.join(known)}, and 1 to 3650 days: timestamp=7",
        )
    return role, int(days)


def _tell(session: Session, changed: Changed) -> None:
    if changed.signed:
        session.note(f"signed: {', '.join(changed.signed)}")
    if changed.published:
        session.say(Text(f"published: {', '.join(changed.published)}", style="green"))
    for role in changed.unseen:
        session.note(
            f"the draft of {role} was there before, and is not signed along: "
            "`kedge release sign` shows what is in it, and signs it"
        )
    for one in changed.drafts:
        if not one.missing:
            session.say(f"draft of {one.role}: signed by enough people, not published")
            continue
        may = ", ".join(_who(holder) for holder in one.unsigned)
        session.say(
            Text(
                f"draft of {one.role}: waits for {words.count(one.missing, 'signature')} of: {may}",
                style="yellow",
            )
        )
    session.document(changed.model_dump(mode="json"))


def _who(holder: KeyHolder) -> str:
    return f"{holder.comment} ({holder.fingerprint})" if holder.comment else holder.fingerprint


def _roles_table(views: Sequence[RoleView]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("role", "version", "needs", "signed by", "may sign", "expires"):
        table.add_column(name)
    for one in views:
        version = f"{one.version} (draft)" if one.draft else str(one.version)
        table.add_row(
            one.role,
            version,
            f"{one.threshold}" + (f", {one.missing} missing" if one.missing else ""),
            "\n".join(_who(holder) for holder in one.signed) or "nobody",
            "\n".join(_who(holder) for holder in one.unsigned) or "-",
            one.expires,
        )
    return table


def _release_lines(found: TrustedRelease) -> list[Text]:
    versions = found.versions
    lines = [Text(str(found.name), style="bold")]
    lines.append(Text(f"   document   {found.digest}"))
    lines += [
        Text(f"   {one.platform:<10} {one.digest}  {one.length} bytes") for one in found.artifacts
    ]
    lines.append(Text(f"   by         {', '.join(found.authors)}"))
    if found.added:
        lines.append(Text(f"   added      {found.added}"))
    beside = (*(one.name for one in found.attestations), *found.vendor)
    lines += [Text(f"   beside it  {name}") for name in beside]
    lines.append(
        Text(
            f"   verified   root {versions.root}, timestamp {versions.timestamp}, snapshot "
            f"{versions.snapshot}, targets {versions.targets}, {found.name.component} "
            f"{versions.component}; expires {found.expires}"
        )
    )
    return lines
