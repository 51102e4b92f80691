"""Company: may the releases of every mixed state that a plan passes through live together?

Two releases share a protocol when each speaks a version of it that the other accepts. A protocol that the old release
declares and the new one does not is taken as lost (fail-closed); a new one of the new release is nobody's loss.
"""

from __future__ import annotations

from nodesemver import satisfies

from kedge.model.notation import Path
from kedge.model.plan import MixedState, Wave
from kedge.model.release import Release

Where = tuple[str, Path, str]
"""Document (``before``, ``after``, …), path in it, sentence."""


def in_range(version: str, wanted: str) -> bool:
    """Whether a version is in a range; a version that is no semantic version is in none but ``*``."""
    if wanted.strip() in {"*", ""}:
        return True
    try:
        return bool(satisfies(version, wanted, loose=True, include_prerelease=False))
    except ValueError:
        return version == wanted.strip().lstrip("=")


def suffix_hint(version: str, wanted: str) -> str:
    """Why a version is in none of a range's versions although its numbers are: a suffix behind ``-`` is a pre-release.

    Empty where the suffix is not the reason. The rule is that of Semantic Versioning (clause 9) and of npm's ranges.
    """
    try:
        plain, _, suffix = version.partition("-")
        fits = bool(suffix) and satisfies(version, wanted, loose=True, include_prerelease=True)
    except ValueError:
        return ""
    if not fits:
        return ""
    return (
        f' ("-{suffix}" makes it a pre-release of {plain}, which a range leaves out unless it names one: '
        f'write "{wanted} || {version}")'
    )


def protocol_problems(before: Release, after: Release) -> list[tuple[Path, str]]:
    """Why nodes of the two releases could not talk to each other; paths are in the new release."""
    problems: list[tuple[Path, str]] = []
    for name, old in before.protocols.items():
        new = after.protocols.get(name)
        path: Path = ("protocols", name)
        if new is None:
            said = f"{before.version} speaks {name} and {after.version} declares nothing about it"
            problems.append((("protocols",), said))
            continue
        for speaker, hearer, spoken, accepted in (
            (after, before, new.speaks, old.accepted),
            (before, after, old.speaks, new.accepted),
        ):
            if not set(spoken) & set(accepted):
                said = (
                    f"{speaker.version} speaks {name} {', '.join(spoken)}, and {hearer.version} "
                    f"accepts only {', '.join(accepted)}; go through a release that speaks both"
                )
                problems.append((path, said))
    return problems


def version_problems(before: Release, after: Release, *, back: bool) -> list[Where]:
    """Whether the versions allow the way forward and, where the plan needs it, ``back``."""
    problems: list[Where] = []
    if before.component != after.component:
        said = f"is of {after.component}, and the fleet runs {before.component}"
        problems.append(("after", ("component",), said))
    if not in_range(before.version, after.upgrade_from):
        hint = suffix_hint(before.version, after.upgrade_from)
        said = f"{after.version} may come from {after.upgrade_from}, and the fleet runs {before.version}{hint}; go through a release that may come from it"
        problems.append(("after", ("upgrade_from",), said))
    if back and (after.downgrade_to is None or not in_range(before.version, after.downgrade_to)):
        allowed = (
            f"may go back to {after.downgrade_to}"
            if after.downgrade_to
            else "says nothing of a way back"
        )
        said = (
            f"{after.version} {allowed}, and the runbook switches back to {before.version}"
            f"{suffix_hint(before.version, after.downgrade_to or '')}; "
            "widen downgrade_to if that is known to work, or write rollback: {before_commit: forbidden}"
        )
        problems.append(("after", ("downgrade_to",), said))
    return problems


def format_problems(before: Release, after: Release) -> list[Where]:
    """Whether the new release can start on what the old one wrote, as far as both say."""
    old, new = before.data_format, after.data_format
    if old is None and new is None:
        return []
    if old is None or new is None:
        silent, other, document = (
            (before, after, "before") if old is None else (after, before, "after")
        )
        said = (
            f"{silent.version} says nothing of its data format and {other.version} does, so nobody knows "
            "whether there is a way back; write data_format in both"
        )
        return [(document, ("data_format",), said)]
    if old.writes not in new.reads:
        said = f"{after.version} reads {', '.join(new.reads)}, and {before.version} has written {old.writes}"
        return [("after", ("data_format", "reads"), said)]
    return []


def mixed_states(
    before: Release, after: Release, waves: tuple[Wave, ...], total: int
) -> tuple[MixedState, ...]:
    """Every state in which both releases are live, with how it was judged."""
    problems = [said for _, said in protocol_problems(before, after)]
    shared = sorted(set(before.protocols) & set(after.protocols))
    why = "; ".join(problems) or (
        f"they share {', '.join(shared)}" if shared else "neither declares a protocol between nodes"
    )
    states: list[MixedState] = []
    moved = 0
    for wave in waves:
        size = len(wave.nodes)
        low, high = moved + (0 if moved else 1), min(moved + size, total - 1)
        moved += size
        if total < 2 or low > high:
            continue
        span = f"{low}" if low == high else f"{low} to {high}"
        said = f"{wave.name}: {span} of {total} nodes on {after.version}, the others on {before.version}"
        states.append(MixedState(said=said, ok=not problems, why=why))
    return tuple(states)
