"""``kedge evidence``: the words around the record."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.text import Text

from cli import words
from cli.exits import Exit
from cli.session import Session
from desk import evidence as desk_evidence
from desk.evidence import Exported, Held
from kedge.model.errors import DriverError, OrderError
from kedge.model.evidence import EvidenceReport, Happening
from kedge.model.order import EvidenceSeen
from kedge.model.outside import line
from kedge.model.policy import Policy
from kedge.trust.evidence import verify_parts

_HEAD = re.compile(r"([0-9]{1,15}):([0-9a-f]{64})")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Trusted:
    """What a file is held against, as text."""

    policies: tuple[Path, ...] = ()
    roots: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    journals: tuple[str, ...] = ()

    def held(self) -> Held:
        """The same, read. Raises ``OrderError`` for what cannot be read."""
        for root in self.roots:
            if not _DIGEST.fullmatch(root):
                raise OrderError(f"{root!r} is no digest", next_step="--root with 64 hex digits")
        heads: list[EvidenceSeen] = []
        for head in self.heads:
            found = _HEAD.fullmatch(head)
            if found is None:
                raise OrderError(
                    f"{head!r} is no end of a record",
                    next_step="--head SEQ:HASH, as an order or `kedge evidence check` says it",
                )
            seen = EvidenceSeen(seq=int(found[1]), hash=found[2])
            if any(one.seq == seen.seq and one.hash != seen.hash for one in heads):
                raise OrderError(
                    f"two ends are named for record {seen.seq}: no record has both",
                    next_step="find out which of them was yours: the other is of a fork",
                )
            heads.append(seen)
        journals = []
        for one in self.journals:
            name, equals, path = one.partition("=")
            if not name or not equals or not path:
                raise OrderError(f"{one!r} names no journal", next_step="--journal NODE=FILE")
            journals.append((name, Path(path)))
        return Held(
            policies=self.policies, roots=self.roots, journals=tuple(journals), heads=tuple(heads)
        )


def show_record(session: Session, name: str) -> None:
    """What happened, line by line."""
    desk = session.desk()
    story = session.run(desk_evidence.told(desk.evidence, name))
    session.say(*_story(story))
    session.document({"records": [one.model_dump(mode="json") for one in story]})


def export_run(session: Session, run: str, output: Path | None, *, whole: bool) -> None:
    """One file with the evidence of a run."""
    desk = session.desk()
    target = output or Path(run.replace("/", "-") + ".evidence")
    exported = session.run(
        desk_evidence.export(desk.evidence, desk.blobs, run, target, whole=whole)
    )
    session.say(*_exported(exported))
    session.document(exported)


def _exported(exported: Exported) -> list[Text]:
    size = f"{exported.bytes / 1e6:.1f} MB" if exported.bytes >= 1e5 else f"{exported.bytes} bytes"
    lines = [
        Text(
            f"{exported.file}: records {exported.first} to {exported.last} of fleet {exported.fleet}, "
            f"{words.count(exported.documents, 'document')}, "
            f"{words.count(exported.checkpoints, 'checkpoint')}, {size}"
        )
    ]
    if not exported.ended:
        lines.append(Text(f"{exported.run} has not ended: export it again later", style="yellow"))
    verify = words.command("kedge", "evidence", "verify", str(exported.file))
    lines.append(Text(f"anyone with the policy verifies it: {verify} --policy FILE"))
    return lines


def verify_export(session: Session, file: Path, trusted: Trusted, *, quiet: bool) -> None:
    """A file, held against the policy that is trusted."""
    held = trusted.held()
    parts = desk_evidence.read_file(file)
    pinned: tuple[Policy, ...] = ()
    if not held.policies and not held.roots and parts.header is not None:
        pinned = session.run(desk_evidence.pinned_here(session.desk().pins, parts.header.fleet))
    report = verify_parts(parts, desk_evidence.asked_of(held, pinned))
    if not quiet:
        session.say(*_story(report.story))
    session.say(*_verdict(report))
    session.document(report)
    _leave(report)


def check_fleets(session: Session, fleets: tuple[str, ...]) -> None:
    """The live records of fleets."""
    reports = session.run(_check(session, fleets))
    for report in reports:
        session.say(*_verdict(report))
    session.document(
        {"fleets": [one.model_dump(mode="json", exclude={"story"}) for one in reports]}
    )
    if any(report.findings for report in reports):
        raise typer.Exit(Exit.REFUSED)


async def _check(session: Session, fleets: tuple[str, ...]) -> list[EvidenceReport]:
    desk = session.desk()
    names = [desk_evidence.fleet_of(name) for name in fleets]
    if not names:
        names = [record.fleet for record in await desk.fleets.every()]
    if not names:
        raise DriverError("NotFound", "no fleet is known here", retryable=False)
    reports = []
    for name in names:
        pinned = await desk_evidence.pinned_here(desk.pins, name)
        reports.append(await desk_evidence.check(desk.evidence, desk.blobs, name, pinned))
    return reports


def _leave(report: EvidenceReport) -> None:
    if not report.ok:
        raise typer.Exit(Exit.REFUSED)
    if report.run and not report.ended:
        raise typer.Exit(Exit.WAITING)


def _story(story: tuple[Happening, ...]) -> list[Text]:
    lines: list[Text] = []
    for one in story:
        head = Text(f"{one.seq:>6}  {line(one.at, 40) or ' ' * 20}  ", style="dim")
        head.append(line(one.said, 2000), style="bold" if one.what == "order" else "")
        lines.append(head)
        lines += [Text(f"{'':30}{line(detail, 2000)}", style="dim") for detail in one.details]
    return lines


def _verdict(report: EvidenceReport) -> list[Text]:
    """What holds, what does not, what is not proven."""
    what = line(report.run or f"fleet {report.fleet}")
    head = f"evidence of {what}: records {report.first} to {report.last}"
    if not report.fleet:
        head = "this is no evidence, or its beginning is gone: no header says which fleet it is of"
    lines = [Text(head, style="bold")]
    if report.ok:
        lines += [Text(f" ✓ {said}", style="green") for said in _holds(report)]
    else:
        lines += [
            Text(
                f" ✗ {_place(one.seq, one.line)}{one.kind}: {line(one.said)}",
                style="bold red",
            )
            for one in report.findings[:20]
        ]
        if len(report.findings) > 20:
            lines.append(Text(f" ✗ and {len(report.findings) - 20} more", style="bold red"))
    lines += [Text(f" ? not proven: {line(said)}", style="yellow") for said in report.unproven]
    if report.last:
        lines.append(Text(f"   the record ends in {report.last}:{report.head}", style="dim"))
    return lines


def _place(seq: int | None, at: int | None) -> str:
    said = f"record {seq}" if seq is not None else ""
    if at:
        said += f"{', ' if said else ''}line {at}"
    return f"{said}: " if said else ""


def _holds(report: EvidenceReport) -> list[str]:
    count = words.count
    policies = count(len(report.policies), "policy", "policies")
    steps = f"{count(report.steps, 'step')} on {count(report.nodes, 'node')}"
    said = [
        f"{count(report.records, 'record')}, none changed, taken out, put in or moved",
        f"{count(report.orders, 'order')} judged again by {policies}, {report.refused} refused",
        f"{steps}, each done once, each behind the signatures it needs",
    ]
    if report.witnesses:
        said.insert(1, f"signed up to record {report.signed} by {', '.join(report.witnesses[:3])}")
    return said
