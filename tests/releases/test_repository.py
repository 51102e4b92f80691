"""The keepers' side: drafts, thresholds of distinct keys, publishing, rotation, expiry, revocation."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from desk.release_roles import KeyChange
from kedge.drivers.tuf_layout import Layout
from kedge.model.errors import DriverError, PlanError
from kedge.model.trusted import ReleaseName
from tests.releases.world import World, world_with_a_release


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return await world_with_a_release(tmp_path)


NAME = ReleaseName(component="daemon", version="1.0.0")


async def test_a_release_that_was_added_is_read_whole_and_verified(world: World) -> None:
    found = await world.reader().trusted(NAME)
    assert found.name == NAME
    assert [one.platform for one in found.artifacts] == ["linux/amd64"]
    assert found.artifacts[0].source == "tuf:daemon/1.0.0/linux-amd64.tar.gz"
    assert found.authors[0] == "ada"
    assert len(found.authors) == 3, "who added it, and the two who signed"
    assert found.versions.component == 1


async def test_nothing_is_published_before_enough_people_signed(world: World) -> None:
    changed = await world.desk.add(
        world.folder, world.release("1.1.0"), world.signers("ada", "robot"), publish=True
    )
    assert [(one.role, one.missing) for one in changed.waiting] == [("daemon", 1)]
    assert changed.published == ()
    with pytest.raises(DriverError) as refused:
        await world.reader().trusted(ReleaseName(component="daemon", version="1.1.0"))
    assert refused.value.kind == "ReleaseUnknown"
    signed = await world.desk.sign(world.folder, [], world.signers("bob"))
    assert signed.signed == ("daemon",)
    published = await world.publish()
    assert published.published == ("daemon", "snapshot", "timestamp")
    await world.reader().trusted(ReleaseName(component="daemon", version="1.1.0"))


async def test_two_people_sign_copies_offline_and_their_signatures_are_put_together(
    world: World, tmp_path: Path
) -> None:
    await world.desk.add(world.folder, world.release("1.1.0"), [])
    for person in ("ada", "bob"):
        away = tmp_path / person
        shutil.copytree(world.folder, away)
        await world.desk.sign(away, ["daemon"], world.signers(person))
    copies = [tmp_path / person / "drafts" / "daemon.json" for person in ("ada", "bob")]
    merged = await world.desk.sign(world.folder, [], [], copies=copies)
    assert merged.signed == ("daemon",)
    assert not merged.waiting
    assert (await world.publish()).published == ("daemon", "snapshot", "timestamp")


async def test_a_copy_of_another_draft_is_not_merged(world: World, tmp_path: Path) -> None:
    await world.desk.add(world.folder, world.release("1.1.0"), [])
    away = tmp_path / "away"
    shutil.copytree(world.folder, away)
    await world.desk.add(world.folder, world.release("1.2.0"), [])
    with pytest.raises(PlanError, match="not the draft"):
        await world.desk.sign(world.folder, [], [], copies=[away / "drafts" / "daemon.json"])


async def test_a_stranger_signs_nothing(world: World) -> None:
    await world.desk.add(world.folder, world.release("1.1.0"), [])
    with pytest.raises(PlanError, match="none of the drafts"):
        await world.desk.sign(world.folder, [], world.signers("eve"))


async def test_a_version_has_one_content_for_ever(world: World) -> None:
    with pytest.raises(PlanError, match="there already"):
        await world.desk.add(world.folder, world.release("1.0.0"), [])
    await world.desk.revoke(
        world.folder, NAME, world.signers("ada", "bob", "robot"), reason="x", by="ada", publish=True
    )
    with pytest.raises(PlanError, match="revoked"):
        await world.desk.add(world.folder, world.release("1.0.0"), [])


async def test_a_revoked_release_says_by_whom_and_why(world: World) -> None:
    await world.desk.revoke(
        world.folder,
        NAME,
        world.signers("ada", "bob", "robot"),
        reason="CVE-2026-1",
        by="ada",
        publish=True,
    )
    with pytest.raises(DriverError, match="revoked by ada: CVE-2026-1") as refused:
        await world.reader().trusted(NAME)
    assert refused.value.kind == "ReleaseRevoked"


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp521"])
async def test_every_kind_of_key_but_a_hardware_one_signs(world: World, kind: str) -> None:
    world.person("carol", kind)
    change = KeyChange(role="daemon", add=(world.key_file("carol"),), threshold=3)
    await world.rotate(change, "ada", "bob", "carol", "robot")
    found = await world.reader().trusted(NAME)
    assert len(found.authors) == 4


async def test_a_rotated_component_key_signs_and_the_old_one_does_not(world: World) -> None:
    change = KeyChange(
        role="daemon", add=(world.key_file("carol"),), remove=(f"{world.key_file('bob')}.pub",)
    )
    changed = await world.rotate(change, "ada", "bob", "carol", "robot")
    assert changed.published == ("targets", "daemon", "snapshot", "timestamp")
    await world.desk.add(world.folder, world.release("1.1.0"), world.signers("ada", "bob"))
    waiting = await world.publish()
    assert [(one.role, one.missing) for one in waiting.waiting] == [("daemon", 1)]
    await world.desk.sign(world.folder, [], world.signers("carol"))
    assert "daemon" in (await world.publish()).published


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
async def test_top_level_keys_are_rotated_and_clients_follow(world: World, role: str) -> None:
    reader = world.reader()
    await reader.trusted(NAME)
    old = {"root": "rita", "targets": "bob", "snapshot": "robot", "timestamp": "robot"}[role]
    change = KeyChange(
        role=role, add=(world.key_file("carol"),), remove=(f"{world.key_file(old)}.pub",)
    )
    changed = await world.rotate(change, "root", "rita", "ada", "bob", "robot", "carol")
    assert "root" in changed.published
    found = await reader.trusted(NAME)
    assert found.versions.root == 2
    again = await world.reader(name="another").trusted(NAME)
    assert again.versions == found.versions


async def test_a_root_rotation_needs_the_old_threshold_too(world: World) -> None:
    change = KeyChange(
        role="root",
        add=(world.key_file("carol"), world.key_file("eve")),
        remove=(f"{world.key_file('root')}.pub", f"{world.key_file('rita')}.pub"),
    )
    changed = await world.rotate(change, "carol", "eve", "robot")
    assert [(one.role, one.missing) for one in changed.waiting] == [("root", 2)]
    await world.desk.sign(world.folder, ["root"], world.signers("root", "rita"))
    assert "root" in (await world.publish()).published


async def test_a_threshold_that_too_few_keys_could_meet_is_refused(world: World) -> None:
    with pytest.raises(PlanError, match="asks for 3 signatures and has 2 keys"):
        await world.rotate(KeyChange(role="daemon", threshold=3), "ada")


async def test_what_expired_is_refused_as_a_freeze_and_a_renewal_mends_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=14)
    monkeypatch.setattr("desk.releases._now", lambda: long_ago)
    await world.publish(renew=[])
    monkeypatch.undo()
    reader = world.reader()

    with pytest.raises(DriverError) as refused:
        await reader.trusted(NAME)
    assert refused.value.kind == "RepositoryStale"
    assert refused.value.detail["attack"] == "freeze"
    changed = await world.publish(renew=[])
    assert changed.published == ("snapshot", "timestamp")
    await reader.trusted(NAME)


async def test_a_publication_that_was_cut_off_is_finished_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.desk.add(world.folder, world.release("1.1.0"), world.signers("ada", "bob"))
    publish = Layout.publish

    def dies(self: Layout, role: str, metadata: object) -> None:
        if role == "timestamp":
            raise KeyboardInterrupt
        publish(self, role, metadata)  # type: ignore[arg-type]

    monkeypatch.setattr(Layout, "publish", dies)
    with pytest.raises(KeyboardInterrupt):
        await world.publish()
    monkeypatch.undo()
    name = ReleaseName(component="daemon", version="1.1.0")
    with pytest.raises(DriverError, match="lists no release"):
        await world.reader().trusted(name)
    await world.publish()
    await world.reader().trusted(name)


async def test_an_archive_that_is_not_the_documents_is_not_added(world: World) -> None:
    new = world.release("1.1.0")
    new.files["linux/amd64"].write_bytes(b"x" * new.document.artifacts["linux/amd64"].length)
    with pytest.raises(DriverError) as refused:
        await world.desk.add(world.folder, new, [])
    assert refused.value.kind == "DigestMismatch"
    assert world.repository.layout.drafted() == ()


async def test_components_have_keys_of_their_own_and_list_their_own_files_only(
    world: World,
) -> None:
    new = world.release("2.0.0", "other")
    await world.desk.add(
        world.folder,
        new,
        world.signers("ada", "bob", "carol", "robot"),
        component=world.spec("other", 1, "carol"),
        publish=True,
    )
    found = await world.reader().trusted(new.name)
    fingerprint = found.authors[1]
    assert found.authors == ("ada", fingerprint)
    await world.desk.add(world.folder, world.release("2.1.0", "other"), world.signers("ada"))
    assert [one.role for one in (await world.publish()).waiting] == ["other"]


@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("daemon", "daemon metadata is not signed"),
        ("targets", "targets metadata is not signed"),
        ("snapshot", "snapshot metadata is not signed"),
        ("root", "pinned in this home"),
    ],
)
async def test_nothing_is_signed_on_top_of_metadata_that_somebody_changed(
    world: World, role: str, said: str
) -> None:
    # Whoever can write in the keepers' folder would have his release signed with the next one.
    metadata = world.repository.layout.newest(role)
    assert metadata is not None
    metadata.signed.expires += timedelta(days=1)
    if role == "root":
        metadata.signatures.clear()
        for person in ("root", "rita"):
            key = world.keys[person]
            metadata.signatures[key.key.keyid] = await key.sign(metadata.signed_bytes)
    world.repository.layout.publish(role, metadata)
    with pytest.raises(DriverError, match=said) as refused:
        await world.desk.add(world.folder, world.release("1.1.0"), world.signers("ada", "bob"))
    assert refused.value.kind == "RepositoryRefused"
    assert world.repository.layout.drafted() == ()


async def test_who_signs_is_told_what_the_draft_changes(world: World) -> None:
    await world.desk.add(world.folder, world.release("1.1.0"), [])
    new = world.release("1.2.0")
    await world.desk.add(world.folder, new, [])
    digest = new.document.artifacts["linux/amd64"].digest
    (file,) = world.folder.glob(f"targets/daemon/1.2.0/{digest}.*")
    file.write_bytes(b"something else")
    told = world.desk.changes(world.folder)["daemon"].said
    assert any("lists daemon/1.1.0/linux-amd64.tar.gz, sha256 " in one for one in told)
    (evil,) = [one for one in told if "daemon/1.2.0/linux-amd64" in one]
    assert evil.endswith("AND THE FILE IN THIS FOLDER IS ANOTHER")
    world.repository.rotate(
        "targets", add=[world.keys["carol"].key], threshold=3, now=datetime.now(UTC)
    )
    told = world.desk.changes(world.folder, ["root"])["root"].said
    assert any(
        one.startswith("lets carol (SHA256:") and one.endswith("sign targets") for one in told
    )
    assert "asks for 3 signature(s) of targets, 2 until now" in told


async def test_a_draft_that_others_began_is_not_signed_unseen(world: World) -> None:
    # It may hold whatever somebody put there: whoever adds to it is asked to look first.
    await world.desk.add(world.folder, world.release("6.6.6"), [])
    changed = await world.desk.add(
        world.folder, world.release("1.1.0"), world.signers("ada", "bob", "robot"), publish=True
    )
    assert changed.published == ()
    assert changed.unseen == ("daemon",)
    assert [(one.role, one.missing) for one in changed.waiting] == [("daemon", 2)]
    await world.desk.sign(world.folder, [], world.signers("ada", "bob"))
    assert "daemon" in (await world.publish()).published
