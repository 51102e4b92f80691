"""Releases judged again from the metadata that a record names: what a worker wrote that no keys signed is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Key, Metadata

from desk.release_roles import KeyChange
from kedge.model.evidence import Document
from kedge.model.trusted import TrustedRelease
from kedge.trust.custody import judge_custody
from kedge.trust.docket import Papers
from kedge.trust.retrial import Court
from kedge.trust.tufkeys import content_digest
from tests.releases.world import World


class Case:
    """A record as a worker writes it of a real release, and the documents beside it."""

    def __init__(self, found: TrustedRelease) -> None:
        assert found.custody is not None
        self.record: dict[str, Any] = {
            "what": "release", "run": "", "ok": True, "root": found.root,
            "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "release": found.name.model_dump(), "document": found.digest, "target": found.target,
            "authors": list(found.authors), "versions": found.versions.model_dump(),
            "expires": found.expires, "attestations": [one.digest for one in found.attestations],
            "artifacts": [one.model_dump() for one in found.artifacts],
            "custody": found.custody.model_dump(mode="json"),
        }  # fmt: skip
        self.documents: dict[str, Document] = {}
        for paper in found.papers:
            self.paper(paper)

    def paper(self, content: bytes) -> str:
        digest = content_digest(content)
        self.documents[digest] = Document(digest=digest, what="metadata", content=content.decode())
        return digest

    def changed(self, role: str, change: Callable[[Any], None]) -> None:
        """Another file in the place of a role's, with a digest of its own that the record names."""
        held = self.record["custody"]
        value = json.loads(self.documents[held[role]].content)
        change(value)
        held[role] = self.paper(json.dumps(value).encode())

    def verdict(self) -> str | None:
        return judge_custody(self.record, self.documents, {})

    def found(self) -> list[str]:
        court = Court("db", Papers(self.documents, {}), {}, 1)
        court.acts.released(7, self.record)
        return [f"{one.kind} {one.seq} {one.said}" for one in court.findings]


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """Two releases, and a root that changed once."""
    made = World(tmp_path)
    await made.init()
    await made.add("1.0.0")
    made.person("tina")
    change = KeyChange(role="timestamp", add=(made.key_file("tina.pub"),))
    await made.rotate(change, "root", "rita", "robot")
    await made.add("1.1.0")
    return made


def case_of(world: World, version: str = "1.1.0") -> Case:
    name = world.release(version).name
    return Case(world.reader().read(name))


async def test_what_the_client_verified_is_verified_again_from_the_record_through_a_rotation(
    world: World,
) -> None:
    case = case_of(world)
    assert len(case.record["custody"]["roots"]) == 2
    assert case.verdict() is None
    assert case.found() == []
    # A second run adds nothing but its record.
    assert set(case_of(world).documents) == set(case.documents)


def broken(value: Any) -> None:
    value["signatures"][0]["sig"] = "00" * 64


def newer(value: Any) -> None:
    value["signed"]["version"] += 1


def other_archive(value: Any) -> None:
    for path, target in value["signed"]["targets"].items():
        if path.endswith(".tar.gz"):
            target["hashes"]["sha256"] = "9" * 64


def other_keys(value: Any) -> None:
    keys = value["signed"]["delegations"]["keys"]
    for key in keys.values():
        key["keyval"]["public"] = "11" * 32


BYTES: list[tuple[str, str, Callable[[Any], None], str]] = [
    ("a signature of the timestamp", "timestamp", broken, "signature of timestamp does not hold"),
    ("the version of the timestamp", "timestamp", newer, "signature of timestamp does not hold"),
    ("the snapshot", "snapshot", newer, "length"),
    ("the keys of the delegation", "targets", other_keys, "length"),
    ("the digest of an archive", "component", other_archive, "length"),
]


@pytest.mark.parametrize(
    ("role", "change", "said"), [row[1:] for row in BYTES], ids=[row[0] for row in BYTES]
)
async def test_changed_metadata_are_found(
    world: World, role: str, change: Callable[[Any], None], said: str
) -> None:
    case = case_of(world)
    case.changed(role, change)
    (finding,) = case.found()
    assert finding.startswith("release 7 the release was not signed as the record says")
    why = case.verdict() or ""
    # By its length or by its hash, whichever differs first.
    assert said in why or (said == "length" and "hash" in why), why


async def test_a_root_of_strangers_is_found_by_its_place_in_the_chain(world: World) -> None:
    case = case_of(world)
    roots = case.record["custody"]["roots"]
    value = json.loads(case.documents[roots[1]].content)
    broken(value)
    for one in value["signatures"]:
        one["sig"] = "00" * 64
    roots[1] = case.paper(json.dumps(value).encode())
    assert "too few signatures" in (case.verdict() or "")
    case = case_of(world)
    case.record["custody"]["roots"] = case.record["custody"]["roots"][1:]
    assert "pinned is" in (case.verdict() or "")


async def test_one_key_under_two_ids_meets_no_threshold(world: World) -> None:
    case = case_of(world)
    roots = case.record["custody"]["roots"]
    metadata = Metadata[Any].from_bytes(case.documents[roots[-1]].content.encode())
    role = metadata.signed.roles["timestamp"]
    key = metadata.signed.keys[role.keyids[0]]
    metadata.signed.keys["f" * 64] = Key.from_dict("f" * 64, key.to_dict())
    role.keyids.append("f" * 64)
    roots[-1] = case.paper(metadata.to_bytes())
    assert "two ids" in (case.verdict() or "")


OTHER: list[tuple[str, dict[str, Any], str]] = [
    ("authors", {"authors": ["mallory"]}, "its authors are others"),
    ("document", {"document": "1" * 64}, "the document is another"),
    ("versions", {"versions": {}}, "of other versions"),
    ("archives", {"artifacts": []}, "the archives are others"),
    ("attestations", {"attestations": ["2" * 64]}, "the attestations are others"),
    ("root", {"root": "3" * 64}, "pinned is 333333333333"),
    ("no time", {"at": None}, "nobody says when"),
    ("no metadata", {"custody": {"roots": []}}, "is no metadata of a release"),
]


@pytest.mark.parametrize(("given", "said"), [row[1:] for row in OTHER], ids=[r[0] for r in OTHER])
async def test_a_record_that_says_otherwise_than_its_metadata_is_found(
    world: World, given: dict[str, Any], said: str
) -> None:
    case = case_of(world)
    case.record |= given
    assert said in (case.verdict() or ""), case.verdict()


async def test_metadata_that_had_run_out_by_then_are_found(world: World) -> None:
    case = case_of(world)
    later = datetime.now(UTC) + timedelta(days=4000)
    case.record["at"] = f"{later:%Y-%m-%dT%H:%M:%SZ}"
    assert "had run out" in (case.verdict() or "")


async def test_metadata_of_another_release_and_metadata_that_are_missing_are_found(
    world: World,
) -> None:
    case, other = case_of(world), case_of(world, "1.0.0")
    case.documents |= other.documents
    case.record["custody"]["document"] = other.record["custody"]["document"]
    assert case.verdict() is not None
    case = case_of(world)
    del case.documents[case.record["custody"]["snapshot"]]
    assert "are not in the file" in (case.verdict() or "")
