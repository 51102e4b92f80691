"""The one place that reads document files for the faces: bounded, regular files only, references followed safely.

Every problem of every file is told at once, as ``file:line:column: path: what is wrong, what would be right``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeAlias

from pydantic import ValidationError

from kedge.drivers.artifacts import check_packing
from kedge.model.base import Digest
from kedge.model.errors import DocumentError, DriverError, OrderError
from kedge.model.fleet import Fleet
from kedge.model.notation import Path as Path_
from kedge.model.plan import Artifact, Plan
from kedge.model.policy import Policy
from kedge.model.release import Release, ReleaseArtifact
from kedge.model.runbook import Runbook
from kedge.model.signed_policy import SignedPolicy
from kedge.model.trusted import ReleaseName, release_name
from kedge.plan.boundary import restore_problems
from kedge.plan.check import capture_problems, cycles, install_problems, variable_problems
from kedge.plan.compile import ConflictsError, compile_plan
from kedge.plan.parse import D, Parsed, parse, parse_any
from kedge.plan.places import root_problems, shared_places
from kedge.plan.references import role_references, runbook_references
from kedge.plan.yamltree import MAX_BYTES, read
from kedge.trust.policies import policy_text
from kedge.trust.policies import read_policy as policy_of

Signed: TypeAlias = Callable[[ReleaseName], str]
"""Gives the text of a signed Release document. Raises ``DriverError`` as :class:`kedge.drivers.ports.Releases`."""


class Repository(Protocol):
    """The same, from the root of this digest; None: from the one pinned in this home."""

    def __call__(self, name: ReleaseName, root: Digest | None = None) -> str:
        """The text of the document."""
        ...


ARCHIVE_STEP = (
    "publish the archive in a form that hosts unpack (docs/documents.md, Release), then plan again"
)
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*:")


@dataclass(frozen=True, slots=True)
class Documents:
    """What a plan is made from. ``before`` is the release the fleet runs now.

    Artifact sources that are paths are absolute here, so that a worker elsewhere on this machine finds them.
    """

    fleet: Fleet
    before: Release
    after: Release
    runbook: Runbook
    policy: Policy
    parsed: dict[str, Parsed[Fleet] | Parsed[Release] | Parsed[Runbook] | Parsed[Policy]]
    """By the compiler's name of the document: fleet, before, after, runbook, policy."""


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of at most 8 MiB. Raises ``DocumentError`` with one problem."""
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DocumentError((f"{path}:1:1: cannot be read: {reason}",)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DocumentError((f"{path}:1:1: is not a regular file",))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DocumentError((f"{path}:1:1: cannot be read: {error.strerror}",)) from error
    finally:
        os.close(descriptor)


def read_fleet(path: Path) -> Parsed[Fleet]:
    """A Fleet document. Raises ``DocumentError`` with every problem."""
    return parse(read_bytes(path), str(path), Fleet)


def read_release(path: Path, signed: Signed | None = None) -> Parsed[Release]:
    """A Release document, its artifacts' paths made absolute. Raises ``DocumentError`` with every problem.

    Where ``path`` is the name of a signed release (``etcd@3.5.1``), it is the one that ``signed`` gives.
    """
    name = release_name(str(path))
    if name is not None and signed is not None:
        return parse(signed(name).encode(), f"tuf:{name}", Release)
    parsed = parse(read_bytes(path), str(path), Release)
    return Parsed(parsed.name, _anchored(parsed.value, path), parsed.root)


def read_runbook(path: Path) -> Parsed[Runbook]:
    """A Runbook document. Raises ``DocumentError`` with every problem."""
    return parse(read_bytes(path), str(path), Runbook)


def read_policy(path: Path) -> Parsed[Policy]:
    """A Policy document, or the policy in one with signatures. Raises ``DocumentError`` with every problem."""
    content = read_bytes(path)
    if not content.lstrip().startswith(b"{"):
        return parse(content, str(path), Policy)
    text = read_signed(path, content).policy
    return Parsed(str(path), policy_of(text), read(text.encode(), str(path)).root)


def read_signed(path: Path, content: bytes) -> SignedPolicy:
    """A policy's canonical text, or one with signatures (JSON). Raises ``DocumentError`` with one problem."""
    try:
        text = content.decode()
        if '"SignedPolicy"' not in text:
            return SignedPolicy(policy=_canonical(path, text))
        document = SignedPolicy.model_validate_json(content)
        policy_of(document.policy)
    except (ValidationError, UnicodeDecodeError, OrderError) as error:
        said = str(error)
        if isinstance(error, ValidationError):
            said = error.errors()[0]["msg"]
        step = "`kedge policy sign FILE --key KEY` writes a policy with signatures"
        problem = f"{path}:1:1: is no policy in JSON: {said}"
        raise DocumentError((problem,), next_step=step) from error
    return document


def _canonical(path: Path, text: str) -> str:
    """A policy's canonical text as it is; of a document that somebody wrote as JSON, its canonical text.

    Raises ``DocumentError`` with every problem of what is neither.
    """
    try:
        policy_of(text)
    except OrderError:
        return policy_text(parse(text.encode(), str(path), Policy).value)
    return text


def _anchored(release: Release, path: Path) -> Release:
    here = Path(os.path.abspath(path)).parent  # noqa: PTH100 - resolve() would follow links, and name another place
    artifacts = {
        platform: artifact if _SCHEME.match(artifact.source) else _absolute(artifact, here)
        for platform, artifact in release.artifacts.items()
    }
    return release.model_copy(update={"artifacts": artifacts})


def _absolute(artifact: ReleaseArtifact, here: Path) -> ReleaseArtifact:
    return artifact.model_copy(update={"source": os.path.normpath(here / artifact.source)})


def baseline_path(fleet: Parsed[Fleet]) -> Path:
    """Where a fleet's ``release:`` lies, or its name in the repository. Raises ``DocumentError`` for any other address."""
    reference = fleet.value.release
    if release_name(reference) is not None:
        return Path(reference)
    if PurePosixPath(reference).is_absolute() or _SCHEME.match(reference):
        said = "must be a path relative to this document, or a signed release: etcd@3.5.1"
        raise DocumentError((fleet.problem(("release",), said),))
    return Path(os.path.normpath(Path(fleet.name).parent / reference))


def read_baseline(fleet: Parsed[Fleet], signed: Signed | None = None) -> Parsed[Release]:
    """The release a fleet runs now, by its document. Raises ``DocumentError`` with every problem."""
    path = baseline_path(fleet)
    if signed is not None and release_name(str(path)) is not None:
        return read_release(path, signed)
    if not path.exists():
        raise DocumentError(
            (
                fleet.problem(
                    ("release",), f"there is no file {path}; the path is relative to this document"
                ),
            )
        )
    return read_release(path)


def read_documents(
    fleet_path: Path,
    release_path: Path,
    runbook_path: Path,
    policy_path: Path,
    *,
    before_path: Path | None = None,
    repository: Repository | None = None,
) -> Documents:
    """Everything a plan is made from. Raises ``DocumentError`` with every problem of every file at once.

    ``before_path`` is the release that runs now, where that is not what the fleet's document says. Releases that are
    named, not files, are got from ``repository``, from the root that the policy names; what it raises goes through.
    """
    problems: list[str] = []
    fleet = _tried(read_fleet, fleet_path, problems)
    runbook = _tried(read_runbook, runbook_path, problems)
    policy = _tried(read_policy, policy_path, problems)
    rules = policy.value.releases if policy is not None else None
    signed: Signed | None = None
    if repository is not None:
        signed = partial(repository, root=rules.root if rules is not None else None)
    get = partial(read_release, signed=signed)
    after = _tried(get, release_path, problems)
    before: Parsed[Release] | None = None
    if before_path is not None:
        before = _tried(get, before_path, problems)
    elif fleet is not None:
        try:
            before = read_baseline(fleet, signed)
        except DocumentError as error:
            problems += error.problems
    if fleet is None or before is None or after is None or runbook is None or policy is None:
        raise DocumentError(
            tuple(dict.fromkeys(problems)), next_step="kedge runbook lint FILE… looks again"
        )
    return Documents(
        fleet=fleet.value,
        before=before.value,
        after=after.value,
        runbook=runbook.value,
        policy=policy.value,
        parsed={
            "fleet": fleet,
            "before": before,
            "after": after,
            "runbook": runbook,
            "policy": policy,
        },
    )


def _tried(read: Callable[[Path], Parsed[D]], path: Path, problems: list[str]) -> Parsed[D] | None:
    try:
        return read(path)
    except DocumentError as error:
        problems += error.problems
        return None


def compiled(documents: Documents) -> Plan:
    """The plan of documents that were read. Raises ``DocumentError``: conflicts with their places in the files, and
    archives that no host would unpack.
    """
    after = documents.parsed["after"]
    if isinstance(after.value, Release):
        refused = archive_problems(Parsed(after.name, after.value, after.root), documents.after)
        if refused:
            raise DocumentError(tuple(refused), next_step=ARCHIVE_STEP)
    try:
        return compile_plan(
            documents.fleet, documents.before, documents.after, documents.runbook, documents.policy
        )
    except ConflictsError as error:
        problems = tuple(
            documents.parsed[name].problem(path, said) for name, path, said in error.conflicts
        )
        raise DocumentError(problems, next_step=error.next_step) from error


def archive_problems(release: Parsed[Release], placed: Release) -> list[str]:
    """What no host would unpack, of the archives that lie in files here; ``placed`` has their absolute paths.

    Archives at addresses are judged when they are fetched, before an order is signed.
    """
    problems: list[str] = []
    for platform, one in placed.artifacts.items():
        path = Path(one.source.removeprefix("file:"))
        if not path.is_absolute() or not path.is_file():
            continue
        try:
            check_packing(path, Artifact.of(platform, one))
        except DriverError as error:
            place = ("artifacts", platform, "source")
            problems.append(release.problem(place, error.message))
    return problems


def compile_files(
    fleet_path: Path,
    release_path: Path,
    runbook_path: Path,
    policy_path: Path,
    *,
    before_path: Path | None = None,
) -> Plan:
    """The plan of files. Raises ``DocumentError`` with every problem at once."""
    return compiled(
        read_documents(fleet_path, release_path, runbook_path, policy_path, before_path=before_path)
    )


def lint(paths: Iterable[Path]) -> tuple[str, ...]:
    """Every problem of documents of any kind. Of documents that are looked at together also what they refer to in each
    other: rings of dependencies, roots and ports of two fleets, labels and variables of the fleet that a runbook is for,
    roles of the policy.
    """
    problems: list[str] = []
    kinds = _Kinds()
    for path in paths:
        try:
            parsed = parse_any(read_bytes(path), str(path))
        except DocumentError as error:
            problems += error.problems
            continue
        match parsed.value:
            case Release():
                release = Parsed(parsed.name, parsed.value, parsed.root)
                problems += archive_problems(release, _anchored(parsed.value, path))
            case Runbook():
                kinds.runbooks.append(Parsed(parsed.name, parsed.value, parsed.root))
            case Policy():
                kinds.policies.append(Parsed(parsed.name, parsed.value, parsed.root))
            case Fleet():
                problems += _fleet_problems(
                    Parsed(parsed.name, parsed.value, parsed.root), kinds.fleets
                )
    for runbook in kinds.runbooks:
        problems += kinds.of_runbook(runbook)
    fleets = [fleet for fleet, _ in kinds.fleets.values()]
    problems += [*_rings(fleets), *_shared_places(fleets)]
    return tuple(dict.fromkeys(problems))


@dataclass
class _Kinds:
    """Sound documents that are looked at together. ``fleets`` by name, with the component they run where it is known."""

    fleets: dict[str, tuple[Parsed[Fleet], str | None]] = field(default_factory=dict)
    runbooks: list[Parsed[Runbook]] = field(default_factory=list)
    policies: list[Parsed[Policy]] = field(default_factory=list)

    def of_runbook(self, runbook: Parsed[Runbook]) -> list[str]:
        """What a runbook refers to and what is not there."""
        book = runbook.value
        fleets = self._fleets_of(book)
        found: list[tuple[Path_, str]] = [
            *((path, said) for _, path, said in variable_problems(None, book)),
            *((path, said) for _, path, said in capture_problems(book)),
            *((path, said) for _, path, said in restore_problems(book)),
            *runbook_references(book, fleets),
        ]
        environments = {fleet.environment for fleet in fleets}
        for policy in self.policies:
            if len(self.policies) == 1 or policy.value.environment in environments:
                found += role_references(book, policy.value)
        return [runbook.problem(path, said) for path, said in found]

    def _fleets_of(self, book: Runbook) -> list[Fleet]:
        """The fleets that a runbook is for: of its component; the only one there is, where it names none."""
        if book.component is None:
            every = [fleet.value for fleet, _ in self.fleets.values()]
            return every if len(every) == 1 else []
        return [fleet.value for fleet, runs in self.fleets.values() if runs == book.component]


def _fleet_problems(
    fleet: Parsed[Fleet], known: dict[str, tuple[Parsed[Fleet], str | None]]
) -> Sequence[str]:
    """What is wrong with a fleet under the release it names. What the runbook's vars give is not known here, nor is a
    signed release, which only its repository has.
    """
    name = fleet.value.name
    baseline: Parsed[Release] | None = None
    problems: list[str] = []
    if name in known:
        said = f"{known[name][0].name} is a fleet of this name already"
        problems.append(fleet.problem(("name",), said))
    if release_name(fleet.value.release) is None:
        try:
            baseline = read_baseline(fleet)
        except DocumentError as error:
            problems += error.problems
    known.setdefault(name, (fleet, baseline.value.component if baseline is not None else None))
    found = install_problems(fleet.value, baseline.value if baseline is not None else None)
    problems += [fleet.problem(path, said) for _, path, said in root_problems(fleet.value)]
    return problems + [
        (baseline if document == "release" and baseline is not None else fleet).problem(path, said)
        for document, path, said in found
    ]


def _shared_places(fleets: Sequence[Parsed[Fleet]]) -> list[str]:
    return [
        fleet.problem(path, said)
        for at, fleet in enumerate(fleets)
        for path, said in shared_places(fleet.value, [one.value for one in fleets[:at]])
    ]


def _rings(fleets: Sequence[Parsed[Fleet]]) -> list[str]:
    by_name = {fleet.value.name: fleet for fleet in fleets}
    return [
        by_name[name].problem(("dependencies",), said)
        for name, said in cycles([fleet.value for fleet in fleets])
    ]
