"""What becomes of a fleet's settings under a release: renamed, removed, defaults, flags."""

from __future__ import annotations

from collections.abc import Mapping

from kedge.model.release import Release


def renamed(
    settings: Mapping[str, str], release: Release, extra: Mapping[str, str]
) -> dict[str, str]:
    """The settings by the names a release knows them by; removed ones are gone.

    A setting that stands there under both names keeps the value of the new one.
    """
    names = {**release.configuration.renamed, **extra}
    gone = set(release.configuration.removed)
    moved = {names[key]: value for key, value in settings.items() if key in names}
    kept = {key: value for key, value in settings.items() if key not in names and key not in gone}
    return {**moved, **kept}


def effective(
    settings: Mapping[str, str], releases: tuple[Release, ...], extra: Mapping[str, str]
) -> dict[str, str]:
    """The settings under the last of ``releases``, through the renames of those before it.

    ``extra`` are the runbook's own renames, applied with the last release. Defaults and flags of the last release
    come in where nothing is said.
    """
    result = dict(settings)
    for release in releases:
        result = renamed(result, release, extra if release is releases[-1] else {})
    last = releases[-1]
    return {**last.configuration.defaults, **last.flags, **result}
