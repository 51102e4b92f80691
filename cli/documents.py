"""``kedge runbook lint|schema``, and the four documents that plan and start take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from cli import words
from cli.exits import Exit
from cli.session import Session
from desk.desk import PlanFiles
from kedge.model.errors import OrderError
from kedge.plan.parse import KINDS
from kedge.plan.schema import schema, schema_text


@dataclass(frozen=True, slots=True)
class Documents:
    """The files of a plan as they were named, or not."""

    fleet: Path | None
    release: Path | None
    runbook: Path | None
    policy: Path | None
    before: Path | None = None

    @property
    def given(self) -> bool:
        """Whether any of the four was named."""
        return any((self.fleet, self.release, self.runbook, self.policy))

    def files(self) -> PlanFiles:
        """All four. Raises ``OrderError`` when one is missing."""
        if not (self.fleet and self.release and self.runbook and self.policy):
            missing = [
                f"--{name}"
                for name in ("fleet", "release", "runbook", "policy")
                if getattr(self, name) is None
            ]
            raise OrderError(
                f"a plan needs four documents; missing: {', '.join(missing)}",
                next_step=f"add {', '.join(f'{name} FILE' for name in missing)}",
            )
        return PlanFiles(
            fleet=self.fleet,
            release=self.release,
            runbook=self.runbook,
            policy=self.policy,
            before=self.before,
        )


def lint_files(session: Session, files: tuple[Path, ...]) -> None:
    """Every problem of every file, or that there is none."""
    from desk.documents import lint  # noqa: PLC0415 - heavy, and only for this

    problems = lint(files)
    for problem in problems:
        session.note(problem)
    session.document({"files": [str(file) for file in files], "problems": list(problems)})
    if problems:
        session.note(f"next: fix {words.count(len(problems), 'problem')}, then lint again")
        raise typer.Exit(Exit.BAD_INPUT)
    session.say(f"{words.count(len(files), 'document')}, no problem found")


def write_schemas(session: Session, kind: str, output: Path | None) -> None:
    """One schema to standard output, or all of them as files."""
    found = {name: schema(name) for name in KINDS}
    if kind and kind not in found:
        raise OrderError(f"there is no document {kind!r}", next_step=f"one of: {', '.join(found)}")
    wanted = {kind: found[kind]} if kind else found
    if output is None:
        session.document(wanted[kind] if kind else wanted)
        return
    output.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        path = output / f"{name.lower()}.schema.json"
        path.write_text(schema_text(name), encoding="utf-8")
        session.note(f"written: {path}")
