"""Who can write in the keepers' folder and has no key, or only one that was taken from him: nothing of his gets under the
keepers' signatures, and what they are shown is all of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import MetaFile, TargetFile

from desk.release_roles import KeyChange
from kedge.drivers import tuf_audit
from kedge.drivers.tuf_layout import AnyMetadata, Layout
from kedge.drivers.tuf_repository import Repository
from kedge.model.base import canonical
from kedge.model.errors import DriverError, PlanError
from kedge.model.release import Release
from kedge.model.trusted import ReleaseName
from tests.releases.hostile import Mirror
from tests.releases.world import World, archive, world_with_a_release

NAME = ReleaseName(component="daemon", version="1.0.0")
NEXT = ReleaseName(component="daemon", version="1.1.0")
EVIL = ReleaseName(component="daemon", version="6.6.6")
TEAM = ("ada", "bob", "robot")


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = await world_with_a_release(tmp_path)
    await made.add("1.1.0")
    return made


class Intruder(Mirror):
    """Somebody who writes in the keepers' folder itself."""

    def __init__(self, world: World) -> None:
        self.world, self.folder, self.layout = world, world.folder, Layout(world.folder)
        self.stolen = False

    async def component(self, *people: str) -> None:
        """The component's next metadata, with a release of his, signed by these people."""
        targets = {**self.read("daemon").signed.targets, **self.listing(EVIL)}
        await self.again("daemon", *people, targets=targets)

    def draft(self, role: str, change: Callable[[Any], None]) -> None:
        """A draft of the role's next metadata, changed and not signed."""
        draft = copy.deepcopy(self.read(role))
        draft.signatures.clear()
        draft.signed.version += 1
        change(draft.signed)
        self.layout.keep_draft(role, draft)


def instead_of_bob(world: World, role: str) -> KeyChange:
    """Carol signs for a role from now on, bob does not."""
    bob = f"{world.key_file('bob')}.pub"
    return KeyChange(role=role, add=(world.key_file("carol"),), remove=(bob,))


async def nothing_is_built_on_it(world: World, match: str) -> None:
    """Whoever adds a release is told, and signs nothing."""
    drafted = world.repository.layout.drafted()
    with pytest.raises(DriverError, match=match) as refused:
        await world.desk.add(
            world.folder, world.release("1.2.0"), world.signers(*TEAM, "carol"), publish=True
        )
    assert refused.value.kind == "RepositoryRefused"
    assert world.repository.layout.drafted() == drafted


# -- what is built on ----------------------------------------------------------------------------------------------


async def test_an_older_list_that_nobody_signed_gives_nobody_a_say(world: World) -> None:
    await world.publish(*TEAM, renew=["targets"])
    intruder = Intruder(world)
    old = intruder.layout.published("targets", intruder.read("targets").signed.version - 1)
    assert old is not None
    eve = world.keys["eve"].key
    old.signed.delegations.keys[eve.keyid] = eve
    old.signed.delegations.roles["daemon"].keyids = [eve.keyid]
    old.signed.delegations.roles["daemon"].threshold = 1
    old.signatures.clear()
    intruder.layout.publish("targets", old)
    await intruder.component("eve")
    await nothing_is_built_on_it(world, "daemon metadata is not signed")


async def test_keys_that_were_rotated_out_sign_no_component_any_more(world: World) -> None:
    await world.rotate(instead_of_bob(world, "daemon"), *TEAM, "carol")
    await Intruder(world).component("ada", "bob")
    await nothing_is_built_on_it(world, "daemon metadata is not signed")


async def test_keys_that_were_rotated_out_sign_no_targets_any_more(world: World) -> None:
    await world.rotate(instead_of_bob(world, "targets"), "root", "rita", *TEAM, "carol")
    await Intruder(world).again("targets", "ada", "bob")
    await nothing_is_built_on_it(world, "targets metadata is not signed")


async def test_without_a_timestamp_the_rest_is_verified_all_the_same(world: World) -> None:
    intruder = Intruder(world)
    await intruder.component("eve")
    (world.folder / "metadata" / "timestamp.json").unlink()
    await nothing_is_built_on_it(world, "daemon metadata is not signed")
    for file in (world.folder / "metadata").glob("*.root.json"):
        file.unlink()
    (world.folder / "drafts").mkdir(exist_ok=True)
    root = World(world.base / "own")
    await root.init()
    intruder.layout.keep_draft("root", Intruder(root).read("root"))
    await nothing_is_built_on_it(world, "there is no root metadata")


async def test_metadata_of_a_component_that_is_only_drafted_is_nobodys(world: World) -> None:
    await world.desk.add(world.folder, world.release("1.0.0", "other"), world.signers("ada"))
    intruder = Intruder(world)
    intruder.layout.publish("other", intruder.layout.draft("other") or intruder.read("daemon"))
    await nothing_is_built_on_it(world, "metadata of other, which no published targets")


async def test_a_new_component_takes_no_keys_from_a_draft(world: World) -> None:
    eve = world.keys["eve"].key

    def change(root: Any) -> None:
        root.add_key(eve, "targets")
        root.roles["targets"].threshold = 1

    Intruder(world).draft("root", change)
    new = world.release("1.0.0", "other")
    await world.desk.add(world.folder, new, world.signers(*TEAM), publish=True)
    other = world.repository.targets().delegations
    assert other is not None
    assert other.roles is not None
    assert eve.keyid not in other.roles["other"].keyids
    assert other.roles["other"].threshold == 2


async def test_a_draft_says_not_for_how_long_metadata_is_valid(world: World) -> None:
    Intruder(world).draft(
        "root", lambda root: root.unrecognized_fields["x-kedge-days"].update(timestamp=3650)
    )
    await world.publish(renew=[])
    timestamp = world.repository.layout.newest("timestamp")
    assert timestamp is not None
    assert (timestamp.signed.expires - datetime.now(UTC)).days <= 14


async def test_a_revocation_is_taken_back_with_the_files_that_were_revoked(world: World) -> None:
    honest = await world.reader().trusted(NAME)
    await world.desk.revoke(
        world.folder, NAME, world.signers(*TEAM), reason="x", by="ada", publish=True
    )
    intruder = Intruder(world)
    versions = sorted(intruder.layout.versions("daemon"))[:-1]
    honestly = [_forged(intruder, version) for version in versions]
    with pytest.raises(PlanError, match=r"lists daemon@1\.0\.0 as it was revoked"):
        await world.desk.reinstate(world.folder, NAME, world.signers(*TEAM), publish=True)
    # One honest copy of the old metadata is enough.
    intruder.layout.publish("daemon", honestly[-1])
    await world.desk.reinstate(world.folder, NAME, world.signers(*TEAM), publish=True)
    found = await world.reader(name="another").trusted(NAME)
    assert (found.artifacts, found.target) == (honest.artifacts, honest.target)


def _forged(intruder: Intruder, version: int) -> AnyMetadata:
    """Puts another archive and another document under the release's name, in old metadata; gives what was there."""
    old = intruder.layout.published("daemon", version)
    assert old is not None
    honest = copy.deepcopy(old)
    content = archive("evil")
    path = f"{NAME.folder}linux-amd64.tar.gz"
    intruder.layout.keep_bytes(path, content)
    target = TargetFile.from_data(path, content)
    said = {
        "component": "daemon",
        "version": "1.0.0",
        "upgrade_from": "*",
        "artifacts": {
            "linux/amd64": {
                "digest": target.hashes["sha256"], "length": len(content), "source": f"tuf:{path}",
            }
        },
    }  # fmt: skip
    document = canonical(Release.model_validate(said, strict=False))
    intruder.layout.keep_bytes(NAME.document, document)
    old.signed.targets[path] = target
    old.signed.targets[NAME.document] = TargetFile.from_data(NAME.document, document)
    old.signatures.clear()
    intruder.layout.publish("daemon", old)
    return honest


# -- what is signed along, and what is shown -------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["targets", "daemon"])
async def test_a_draft_that_leaps_is_none(world: World, role: str) -> None:
    Intruder(world).draft(role, lambda signed: setattr(signed, "version", 2_000_000))
    await nothing_is_built_on_it(world, f"the draft of {role} is none: .* version 2000000")


async def test_a_draft_of_another_type_is_none(world: World) -> None:
    intruder = Intruder(world)
    intruder.layout.keep_draft("daemon", intruder.read("root"))
    await nothing_is_built_on_it(world, "the draft of daemon is none: .* of root metadata")


async def test_a_renewal_for_longer_than_the_role_may_is_not_signed_along(world: World) -> None:
    far = datetime(9999, 1, 1, tzinfo=UTC)
    Intruder(world).draft("daemon", lambda signed: setattr(signed, "expires", far))
    changed = await world.publish(*TEAM)
    assert changed.unseen == ("daemon",)
    assert "daemon" not in changed.published
    assert world.desk.changes(world.folder)["daemon"].said == (
        "changes nothing but its expiry",
        "is valid until 9999-01-01T00:00:00Z",
    )


def _author(signed: Any) -> None:
    signed.targets[NEXT.document].unrecognized_fields["custom"]["kedge"]["author"] = "bob"


def _swapped(signed: Any) -> None:
    keyid = signed.roles["targets"].keyids[0]
    was: SSlibKey = signed.keys[keyid]
    signed.keys[keyid] = SSlibKey(keyid, was.keytype, was.scheme, {"public": "00" * 32})


def _second(signed: Any) -> None:
    role = copy.deepcopy(signed.delegations.roles["daemon"])
    role.name, role.paths, role.terminating = "before", ["*/*/*"], False
    signed.delegations.roles = {"before": role, **signed.delegations.roles}


TOLD: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "who made a release": (
        "daemon", _author,
        "changes targets.daemon/1.1.0/release.json.custom.kedge.author from “ada” to “bob”",
    ),
    "a field that nobody knows": (
        "daemon", lambda one: one.unrecognized_fields.update(x={"y": 1}),
        "changes x.y from “nothing” to “1”",
    ),
    "another hash beside the same": (
        "daemon", lambda one: one.targets[NEXT.document].hashes.update(sha512="0" * 128),
        "lists daemon/1.1.0/release.json, sha256 ",
    ),
    "what a component may list": (
        "targets", lambda one: setattr(one.delegations.roles["daemon"], "paths", ["*/*/*"]),
        "lets daemon say what */*/* is",
    ),
    "whether others are asked behind it": (
        "targets", lambda one: setattr(one.delegations.roles["daemon"], "terminating", False),
        "changes delegations.roles.daemon.terminating from “True” to “False”",
    ),
    "another component": ("targets", _second, "lets before say what */*/* is"),
    "another key under the id of an old one": (
        "root", _swapped, "changes keys.",
    ),
    "for how long metadata is valid": (
        "root", lambda one: one.unrecognized_fields["x-kedge-days"].update(timestamp=3650),
        "says after how many days metadata expires: ",
    ),
    "names without their digests": (
        "root", lambda one: setattr(one, "consistent_snapshot", False),
        "changes consistent_snapshot from “True” to “False”",
    ),
    "an older list in the snapshot": (
        "snapshot", lambda one: one.meta.update({"daemon.json": MetaFile(1)}),
        "says that version 1 of daemon is the newest, 2 until now, AND VERSION 2 IS IN THIS FOLDER",
    ),
    "a list that is not there": (
        "snapshot", lambda one: one.meta.update({"daemon.json": MetaFile(9)}),
        "says that version 9 of daemon is the newest, 2 until now, WHICH IS NOT IN THIS FOLDER",
    ),
    "a list that is left out": (
        "snapshot", lambda one: one.meta.pop("daemon.json"), "leaves daemon out",
    ),
    "another snapshot": (
        "timestamp", lambda one: setattr(one, "snapshot_meta", MetaFile(1)),
        "says that version 1 of snapshot is the newest, 3 until now, AND VERSION 3 IS IN THIS FOLDER",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TOLD)
async def test_nothing_that_a_draft_changes_is_kept_from_who_signs_it(
    world: World, what: str
) -> None:
    role, change, said = TOLD[what]
    Intruder(world).draft(role, change)
    told = world.desk.changes(world.folder)[role].said
    assert any(one.startswith(said) for one in told), told
    assert "changes nothing but its expiry" not in told


async def test_what_a_keeper_does_is_told_in_words_and_nothing_else(world: World) -> None:
    await world.desk.add(world.folder, world.release("1.0.0", "other"), [])
    await world.desk.rotate(world.folder, instead_of_bob(world, "targets"), [])
    every = [one for told in world.desk.changes(world.folder).values() for one in told.said]
    assert any(one.startswith("lets other say what other/*/* is") for one in every)
    assert any("other/1.0.0/release.json" in one and one.endswith("made by ada") for one in every)
    assert not any(one.startswith("changes ") for one in every if "its expiry" not in one), every


async def test_only_what_was_shown_is_signed(world: World) -> None:
    await world.desk.add(world.folder, world.release("1.2.0"), [])
    told = world.desk.changes(world.folder)
    shown = {role: draft.content for role, draft in told.items()}
    Intruder(world).draft("daemon", _author)
    with pytest.raises(PlanError, match="the draft of daemon is another than the one that was"):
        await world.desk.sign(world.folder, [], world.signers("ada"), shown=shown)
    draft = world.repository.layout.draft("daemon")
    assert draft is not None
    assert not draft.signatures


# -- what waits ------------------------------------------------------------------------------------------------------


async def test_a_component_whose_new_keys_have_not_signed_stays_with_its_readers(
    world: World,
) -> None:
    await world.add("1.0.0", "other")
    reader = world.reader()
    await reader.trusted(NEXT)
    changed = await world.rotate(instead_of_bob(world, "daemon"), *TEAM)
    assert [(one.role, one.missing) for one in changed.waiting] == [("daemon", 1)]
    assert changed.published == ()
    # A snapshot without the list that they saw would be an attack to them, on every component.
    for name in (NEXT, ReleaseName(component="other", version="1.0.0")):
        await reader.trusted(name)
    await world.publish(renew=[])
    await world.desk.sign(world.folder, [], world.signers("carol"))
    assert "daemon" in (await world.publish()).published
    await reader.trusted(NEXT)


async def test_a_cut_off_rotation_of_a_component_is_finished_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Layout.publish

    def dies(self: Layout, role: str, metadata: AnyMetadata) -> None:
        if role == "daemon":
            raise KeyboardInterrupt
        publish(self, role, metadata)

    monkeypatch.setattr(Layout, "publish", dies)
    with pytest.raises(KeyboardInterrupt):
        await world.rotate(instead_of_bob(world, "daemon"), *TEAM, "carol")
    monkeypatch.undo()
    await world.reader().trusted(NEXT)
    assert "daemon" in (await world.publish()).published
    await world.reader().trusted(NEXT)


async def test_what_was_verified_is_what_is_built_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    intruder = Intruder(world)
    evil = {**intruder.read("daemon").signed.targets, **intruder.listing(EVIL)}
    newest = intruder.read("daemon").signed.version
    verify = tuf_audit.verify_published

    def verified(repository: Repository, pinned: str | None) -> None:
        verify(repository, pinned)
        # Between the look and the change: over the list that was looked at, and as a newer one.
        for version in (newest, newest + 1):
            metadata = copy.deepcopy(intruder.read("daemon"))
            metadata.signed.version, metadata.signed.targets = version, evil
            intruder.layout.publish("daemon", metadata)

    monkeypatch.setattr(tuf_audit, "verify_published", verified)
    honest = (world.folder / "metadata" / f"{newest}.daemon.json").read_bytes()
    new = world.release("1.2.0")
    changed = await world.desk.add(world.folder, new, world.signers(*TEAM), publish=True)
    assert changed.published == ("daemon", "snapshot", "timestamp")
    monkeypatch.undo()
    (world.folder / "metadata" / f"{newest}.daemon.json").write_bytes(honest)
    assert EVIL.document not in intruder.read("daemon").signed.targets
    assert (await world.reader().trusted(new.name)).name == new.name
