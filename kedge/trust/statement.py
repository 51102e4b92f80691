"""What a builder says of a build: in-toto Statement v1 with SLSA provenance v1, read from others and written by kedge.

Sources: in-toto attestation spec/v1/statement.md and resource_descriptor.md, SLSA v1.0 provenance ("Schema"). Both ask
readers to ignore fields that they do not know; what is known is read strictly. What of it is believed is not decided here
(:mod:`kedge.trust.provenance`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from kedge.model.base import Digest, Frozen, Json, canonical
from kedge.model.order import Instant
from kedge.model.provenance import Uri

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"


class _Read(BaseModel):
    """Part of a document of another's: unknown fields are left out, known ones are strict."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Subject(_Read):
    """What was built (in-toto ResourceDescriptor): ``digest`` by algorithm, hexadecimal."""

    name: Annotated[str, Field(max_length=1024)] = ""
    digest: Annotated[dict[str, str], Field(min_length=1, max_length=16)]


class Dependency(_Read):
    """What the build fetched; read for display only."""

    uri: str = ""
    digest: dict[str, str] = {}


class BuildDefinition(_Read):
    """What was asked of the builder; ``externalParameters`` is what came from outside it."""

    build_type: Annotated[str, Field(alias="buildType", max_length=600)]
    external_parameters: Annotated[dict[str, Json], Field(alias="externalParameters")]
    resolved_dependencies: Annotated[
        tuple[Dependency, ...], Field(alias="resolvedDependencies", max_length=10_000)
    ] = ()


class BuilderRef(_Read):
    """Who says that it built."""

    id: Annotated[str, Field(max_length=600)]


class BuildMetadata(_Read):
    """When it was built, RFC 3339."""

    started: Annotated[str | None, Field(alias="startedOn")] = None
    finished: Annotated[str | None, Field(alias="finishedOn")] = None


class RunDetails(_Read):
    """This one run of the builder."""

    builder: BuilderRef
    metadata: BuildMetadata | None = None


class SlsaProvenance(_Read):
    """The predicate ``https://slsa.dev/provenance/v1``."""

    build: Annotated[BuildDefinition, Field(alias="buildDefinition")]
    run: Annotated[RunDetails, Field(alias="runDetails")]


class Statement(_Read):
    """An in-toto statement; the predicate is read once its type is known."""

    kind: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[tuple[Subject, ...], Field(min_length=1, max_length=4096)]
    predicate_type: Annotated[str, Field(alias="predicateType", max_length=600)]
    predicate: dict[str, Json] | None = None


def sources_of(parameters: Mapping[str, Json]) -> tuple[str, ...]:
    """The sources that the external parameters of a build name, with their refs, in the order below.

    ``source`` (a URI, or ``{uri}``: slsa-github-generator, kedge's own), ``configSource`` (``{uri}``),
    ``workflow``, ``sourceToBuild`` and ``buildConfigSource`` (``{repository, ref}``: GitHub Actions and Google Cloud
    Build types), and ``repository`` with ``ref`` beside it. A repository and its ref become ``repository@ref``.
    """
    found: list[str] = []
    for key in ("source", "configSource", "workflow", "sourceToBuild", "buildConfigSource"):
        value = parameters.get(key)
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            found += _source_in(value)
        elif value is not None:
            found.append("")
    if "repository" in parameters:
        found += _source_in(parameters)
    return tuple(found)


def _source_in(value: Mapping[str, Json]) -> list[str]:
    """One source; an empty text, which no rule accepts, where there is none."""
    uri, repository, ref = value.get("uri"), value.get("repository"), value.get("ref")
    if isinstance(uri, str) and repository is None:
        return [uri]
    if isinstance(repository, str) and uri is None and (ref is None or isinstance(ref, str)):
        return [repository if not ref else f"{repository}@{ref}"]
    return [""]


class Build(Frozen):
    """One build as its builder says it, for :func:`statement_of`. Times are RFC 3339; empty: not said."""

    builder: Uri
    build_type: Uri
    source: Uri
    subjects: Annotated[dict[str, Digest], Field(min_length=1, max_length=4096)]
    """sha256 by file name."""
    started: Instant | Literal[""] = ""
    finished: Instant | Literal[""] = ""


def statement_of(build: Build) -> bytes:
    """The payload that a builder signs: an in-toto Statement v1 with SLSA provenance v1, in canonical form."""
    metadata: dict[str, Json] = {}
    if build.started:
        metadata["startedOn"] = build.started
    if build.finished:
        metadata["finishedOn"] = build.finished
    return canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"name": name, "digest": {"sha256": digest}}
                for name, digest in sorted(build.subjects.items())
            ],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": {
                    "buildType": build.build_type,
                    "externalParameters": {"source": {"uri": build.source}},
                    "resolvedDependencies": [{"uri": build.source}],
                },
                "runDetails": {"builder": {"id": build.builder}, "metadata": metadata},
            },
        }
    )
