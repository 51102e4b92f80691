"""Release: one immutable version of a component, and what has to be known to bring it among others."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from nodesemver import valid_range
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from kedge.model.base import Digest, Frozen, Name
from kedge.model.notation import Key, Problem, Range, Text, Version, refuse
from kedge.model.packing import Packing


def _range(text: str) -> str:
    try:
        sound = valid_range(text, loose=False) is not None
    except (ValueError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise PydanticCustomError(
            "kedge_range",
            'is no range of versions; write it as npm does: ">=3.4.0 <3.6.0", "3.5.x", "*"',
        )
    return text


def _without_password(source: str) -> str:
    if "://" in source and "@" in source.partition("://")[2]:
        raise PydanticCustomError(
            "kedge_source",
            "must be a path or an address without a name or password: releases are shown to everybody",
        )
    return source


SOURCES = ("file", "http", "https", "tuf")
"""Schemes of an archive's address, each a driver of its own; a plain path is of the scheme ``file``."""


def _of_known_scheme(source: str) -> str:
    scheme, colon, _ = source.partition(":")
    if colon and "/" not in scheme and scheme.lower() not in SOURCES:
        raise PydanticCustomError(
            "kedge_source",
            "is an address that no driver fetches; write a path, or an address of https, http, file or tuf",
        )
    return source


def _on_the_web(address: str) -> str:
    if not address.lower().startswith(("https://", "http://")):
        raise PydanticCustomError("kedge_source", "must be an https or http address")
    return address


VersionRange = Annotated[Range, AfterValidator(_range)]
Platform = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?$", description="linux/amd64, linux/arm64, …"
    ),
]


class ReleaseArtifact(Packing):
    """One archive: sha256 and length in bytes; ``source`` is a path relative to this document, or an address.

    ``mirrors`` are further web addresses of the same bytes, asked in this order when ``source`` does not give them.
    """

    digest: Digest
    length: Annotated[int, Field(ge=1, le=64 * 1024**3)]
    source: Annotated[
        Text,
        Field(min_length=1),
        AfterValidator(_without_password),
        AfterValidator(_of_known_scheme),
    ]
    mirrors: Annotated[
        tuple[Annotated[Text, AfterValidator(_without_password), AfterValidator(_on_the_web)], ...],
        Field(max_length=16),
    ] = ()


class Protocol(Frozen):
    """Versions of one protocol. ``accepts`` empty: accepts what it speaks."""

    speaks: Annotated[tuple[Text, ...], Field(min_length=1)]
    accepts: tuple[Text, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """What peers may speak to it."""
        return self.accepts or self.speaks


class StoredFormat(Frozen):
    """The format of what is on disk.

    ``writes`` is what the release leaves behind, ``reads`` what it can start on. ``begins`` says when the new
    format is written: at each node's ``start``, when the ``last-node`` runs the release, or at ``finalize``.
    """

    reads: Annotated[tuple[Text, ...], Field(min_length=1)]
    writes: Text
    begins: Literal["start", "last-node", "finalize"] = "start"


class ConfigurationChanges(Frozen):
    """What becomes of a fleet's settings: ``renamed`` old to new, ``removed`` ones are left out, ``defaults`` are
    written where the fleet says nothing.
    """

    renamed: dict[Key, Key] = {}
    removed: tuple[Key, ...] = ()
    defaults: dict[Key, Text] = {}


class Release(Frozen):
    """One version of a component.

    ``reports`` is what the running software says its version is, where that is not ``version``.
    ``upgrade_from`` and ``downgrade_to`` are ranges of versions; no ``downgrade_to`` means no way back by
    switching binaries. ``flags`` are feature flags it is started with; a fleet's setting of the same name wins.
    """

    kind: Literal["Release"] = "Release"
    component: Name
    version: Version
    reports: Text | None = None
    artifacts: Annotated[dict[Platform, ReleaseArtifact], Field(min_length=1)]
    protocols: dict[Key, Protocol] = {}
    data_format: StoredFormat | None = None
    configuration: ConfigurationChanges = ConfigurationChanges()
    flags: dict[Key, Text] = {}
    upgrade_from: VersionRange
    downgrade_to: VersionRange | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        problems: list[Problem] = []
        if self.data_format and self.data_format.writes not in self.data_format.reads:
            problems.append(
                (
                    ("data_format", "writes"),
                    f"{self.data_format.writes!r} is not among what it reads: it could not restart",
                )
            )
        changes = self.configuration
        targets: dict[str, str] = {}
        for old, new in changes.renamed.items():
            if new in changes.renamed:
                problems.append(
                    (
                        ("configuration", "renamed", old),
                        f"{new} is renamed itself; give the last name",
                    )
                )
            if new in targets:
                problems.append(
                    (
                        ("configuration", "renamed", old),
                        f"{targets[new]} is renamed to {new} already",
                    )
                )
            targets.setdefault(new, old)
        for place, key in enumerate(changes.removed):
            if key in changes.renamed:
                problems.append(
                    (
                        ("configuration", "removed", place),
                        f"{key} is renamed, so it cannot be removed too",
                    )
                )
        return problems

    @property
    def reported(self) -> str:
        """What the running software says its version is."""
        return self.version if self.reports is None else self.reports
