"""Every class of attack that the TUF specification lists (1.5.2), run against the client by a hostile mirror.

Each is refused by its name; afterwards the honest repository is taken again, by the same client: nothing of the attack stays.
What a worker does then, and that nothing is written on a host, is in ``test_runs.py``.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import MetaFile

from desk.release_roles import KeyChange
from kedge.drivers.tuf_releases import TufReleases
from kedge.model.errors import DriverError, PlanError
from kedge.model.trusted import ReleaseName
from tests.releases.hostile import Mirror
from tests.releases.world import World

OLD = ReleaseName(component="daemon", version="1.0.0")
NEW = ReleaseName(component="daemon", version="1.1.0")
EVIL = ReleaseName(component="daemon", version="6.6.6")

Attack = Callable[[Mirror], Awaitable[None]]
ATTACKS: list[tuple[str, ReleaseName, Attack]] = []


def attack(name: str, asked: ReleaseName = NEW) -> Callable[[Attack], Attack]:
    """Puts an attack into the table, with the name that it must be refused by and the release that is asked for."""

    def put(made: Attack) -> Attack:
        ATTACKS.append((name, asked, made))
        return made

    return put


# -- arbitrary software -------------------------------------------------------------------------------------------


@attack("arbitrary-software")
async def an_archive_with_another_byte(mirror: Mirror) -> None:
    file = mirror.target(NEW, "linux-amd64.tar.gz")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


@attack("arbitrary-software")
async def a_document_with_another_archive(mirror: Mirror) -> None:
    file = mirror.target(NEW, "release.json")
    file.write_bytes(file.read_bytes().replace(b'"1.1.0"', b'"1.1.6"'))


@attack("arbitrary-software", EVIL)
async def a_release_that_nobody_signed(mirror: Mirror) -> None:
    targets = {**mirror.read("daemon").signed.targets, **mirror.listing(EVIL)}
    await mirror.again("daemon", "eve", targets=targets)
    await mirror.chain("robot")


@attack("arbitrary-software", EVIL)
async def a_whole_chain_of_somebody_else(mirror: Mirror) -> None:
    targets = {**mirror.read("daemon").signed.targets, **mirror.listing(EVIL)}
    await mirror.again("daemon", "eve", targets=targets)
    await mirror.chain("eve")


@attack("arbitrary-software")
async def a_timestamp_that_is_no_metadata(mirror: Mirror) -> None:
    mirror.file("timestamp").write_bytes(b"[" * 10_000)


@attack("arbitrary-software")
async def a_version_that_is_no_whole_number(mirror: Mirror) -> None:
    file = mirror.file("timestamp")
    version = b'"version":%d' % mirror.read("timestamp").signed.version
    file.write_bytes(file.read_bytes().replace(version, version + b".0"))


@attack("arbitrary-software")
async def a_signature_that_does_not_hold_beside_enough_that_do(mirror: Mirror) -> None:
    timestamp = await mirror.again("timestamp", "robot")
    key = mirror.world.keys["eve"]
    timestamp.signatures[key.key.keyid] = await key.sign(b"something else")
    mirror.layout.publish("timestamp", timestamp)


# -- rollback -----------------------------------------------------------------------------------------------------


@attack("rollback")
async def an_older_timestamp(mirror: Mirror) -> None:
    timestamp = mirror.read("timestamp")
    timestamp.signed.version -= 1
    await mirror.put("timestamp", timestamp, "robot")


@attack("rollback")
async def a_newer_timestamp_of_an_older_snapshot(mirror: Mirror) -> None:
    timestamp, old = mirror.read("timestamp"), mirror.read("snapshot").signed.version - 1
    snapshot = mirror.layout.published("snapshot", old)
    assert snapshot is not None
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(old, snapshot.to_bytes(), ["sha256"])
    await mirror.put("timestamp", timestamp, "robot")


@attack("rollback", OLD)
async def a_component_as_it_was_before_a_release(mirror: Mirror) -> None:
    await mirror.chain("robot", meta={"daemon": 1})


@attack("rollback")
async def an_old_root_under_a_new_name(mirror: Mirror) -> None:
    (mirror.layout.metadata / "2.root.json").write_bytes(
        (mirror.layout.metadata / "1.root.json").read_bytes()
    )


# -- fast-forward -------------------------------------------------------------------------------------------------


@attack("fast-forward")
async def a_timestamp_at_the_end_of_all_numbers(mirror: Mirror) -> None:
    await mirror.stamp("robot", leap=2**31)


@attack("fast-forward")
async def a_snapshot_far_ahead(mirror: Mirror) -> None:
    await mirror.again("snapshot", "robot")
    snapshot = mirror.read("snapshot")
    snapshot.signed.version = 2**31
    await mirror.put("snapshot", snapshot, "robot")
    await mirror.stamp("robot")


@attack("fast-forward")
async def a_component_far_ahead(mirror: Mirror) -> None:
    snapshot = mirror.read("snapshot")
    snapshot.signed.version += 1
    snapshot.signed.meta["daemon.json"] = MetaFile(2**31)
    await mirror.put("snapshot", snapshot, "robot")
    await mirror.stamp("robot")


@attack("fast-forward")
async def a_root_that_skips_versions(mirror: Mirror) -> None:
    root = mirror.read("root")
    root.signed.version = 1000
    await mirror.put("root", root, "root", "rita")
    (mirror.layout.metadata / "1000.root.json").rename(mirror.layout.metadata / "2.root.json")


# -- indefinite freeze --------------------------------------------------------------------------------------------


def _past() -> datetime:
    return datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)


@attack("freeze")
async def a_timestamp_that_expired(mirror: Mirror) -> None:
    await mirror.again("timestamp", "robot", expires=_past())


@attack("freeze")
async def a_snapshot_that_expired(mirror: Mirror) -> None:
    await mirror.again("snapshot", "robot", expires=_past())
    await mirror.stamp("robot")


@attack("freeze")
async def a_component_that_expired(mirror: Mirror) -> None:
    await mirror.again("daemon", "ada", "bob", expires=_past())
    await mirror.chain("robot")


# -- endless data -------------------------------------------------------------------------------------------------


@attack("endless-data")
async def a_timestamp_without_end(mirror: Mirror) -> None:
    with mirror.file("timestamp").open("ab") as file:
        file.truncate(1 << 40)


@attack("endless-data")
async def a_root_without_end(mirror: Mirror) -> None:
    with (mirror.layout.metadata / "2.root.json").open("wb") as file:
        file.truncate(1 << 40)


@attack("endless-data")
async def an_archive_that_goes_on(mirror: Mirror) -> None:
    with mirror.target(NEW, "linux-amd64.tar.gz").open("ab") as file:
        file.truncate(1 << 40)


@attack("endless-data", EVIL)
async def a_document_too_large_to_be_one(mirror: Mirror) -> None:
    targets = {**mirror.read("daemon").signed.targets, **mirror.listing(EVIL)}
    targets[EVIL.document].length = 1 << 40
    await mirror.again("daemon", "ada", "bob", targets=targets)
    await mirror.chain("robot")


# -- mix-and-match ------------------------------------------------------------------------------------------------


@attack("mix-and-match")
async def a_component_of_another_time(mirror: Mirror) -> None:
    await mirror.world.add("1.2.0")
    mirror.honest()
    mirror.file("daemon").write_bytes((mirror.layout.metadata / "2.daemon.json").read_bytes())


@attack("mix-and-match")
async def a_snapshot_of_another_time(mirror: Mirror) -> None:
    newest = mirror.file("snapshot").read_bytes()
    await mirror.world.add("1.2.0")
    mirror.honest()
    # An ECDSA signature is a byte longer or shorter by chance; a longer file would be another attack.
    while len(mirror.file("snapshot").read_bytes()) < len(newest):
        await mirror.world.publish(renew=[])
        mirror.honest()
    mirror.file("snapshot").write_bytes(newest)


@attack("mix-and-match")
async def a_snapshot_that_leaves_a_component_out(mirror: Mirror) -> None:
    snapshot = mirror.read("snapshot")
    snapshot.signed.version += 1
    del snapshot.signed.meta["daemon.json"]
    await mirror.put("snapshot", snapshot, "robot")
    await mirror.stamp("robot")


@attack("mix-and-match", EVIL)
async def a_document_and_a_list_that_do_not_agree(mirror: Mirror) -> None:
    targets = {**mirror.read("daemon").signed.targets, **mirror.listing(EVIL)}
    path = f"{EVIL.folder}linux-amd64.tar.gz"
    targets[path] = mirror.read("daemon").signed.targets[f"{NEW.folder}linux-amd64.tar.gz"]
    await mirror.again("daemon", "ada", "bob", targets=targets)
    await mirror.chain("robot")


# -- extraneous dependencies --------------------------------------------------------------------------------------


@attack("extraneous-dependencies", EVIL)
async def a_release_that_asks_for_a_file_of_another(mirror: Mirror) -> None:
    other = mirror.read("daemon").signed.targets[f"{OLD.folder}linux-amd64.tar.gz"]
    extra = {
        "linux/amd64": {
            "digest": other.hashes["sha256"],
            "length": other.length,
            "source": f"tuf:{OLD.folder}linux-amd64.tar.gz",
        }
    }
    await _signed(mirror, artifacts=extra)


@attack("extraneous-dependencies", EVIL)
async def a_release_that_asks_for_a_file_of_the_machine(mirror: Mirror) -> None:
    extra = {"linux/amd64": {"digest": "0" * 64, "length": 1, "source": "file:/usr/bin/env"}}
    await _signed(mirror, artifacts=extra)


@attack("extraneous-dependencies", EVIL)
async def a_release_with_a_file_that_it_does_not_name(mirror: Mirror) -> None:
    targets = {**mirror.read("daemon").signed.targets, **mirror.listing(EVIL)}
    more = f"{EVIL.folder}also-install-this.tar.gz"
    targets[more] = targets[f"{EVIL.folder}linux-amd64.tar.gz"]
    await mirror.again("daemon", "ada", "bob", targets=targets)
    await mirror.chain("robot")


async def _signed(mirror: Mirror, **change: Any) -> None:
    targets = {**mirror.read("daemon").signed.targets, **mirror.listing(EVIL, **change)}
    del targets[f"{EVIL.folder}linux-amd64.tar.gz"]
    await mirror.again("daemon", "ada", "bob", targets=targets)
    await mirror.chain("robot")


# -- wrong software -----------------------------------------------------------------------------------------------


@attack("wrong-software")
async def the_archive_of_another_release(mirror: Mirror) -> None:
    old = mirror.target(OLD, "linux-amd64.tar.gz").read_bytes()
    mirror.target(NEW, "linux-amd64.tar.gz").write_bytes(old)


@attack("wrong-software")
async def the_document_of_another_release(mirror: Mirror) -> None:
    old = mirror.target(OLD, "release.json").read_bytes()
    mirror.target(NEW, "release.json").write_bytes(old)


@attack("wrong-software", EVIL)
async def a_release_under_the_name_of_another(mirror: Mirror) -> None:
    targets = {**mirror.read("daemon").signed.targets, **mirror.listing(EVIL, version="1.1.0")}
    await mirror.again("daemon", "ada", "bob", targets=targets)
    await mirror.chain("robot")


# -- key compromise, below the threshold --------------------------------------------------------------------------


@attack("key-compromise", EVIL)
async def one_of_two_keys_of_a_component_and_those_of_the_robot(mirror: Mirror) -> None:
    targets = {**mirror.read("daemon").signed.targets, **mirror.listing(EVIL)}
    await mirror.again("daemon", "ada", targets=targets)
    await mirror.chain("robot")


@attack("key-compromise")
async def one_of_two_root_keys_rotates_the_others_out(mirror: Mirror) -> None:
    root = mirror.read("root")
    root.signed.version += 1
    root.signed.revoke_key(mirror.world.keys["root"].key.keyid, "root")
    root.signed.add_key(mirror.world.keys["eve"].key, "root")
    await mirror.put("root", root, "rita", "eve")


@attack("key-compromise", EVIL)
async def one_key_under_two_ids_signs_twice(mirror: Mirror) -> None:
    # Even targets' own keepers cannot make a component's threshold of two mean one person.
    ada = mirror.world.keys["ada"]
    twin = SSlibKey("f" * 64, ada.key.keytype, ada.key.scheme, dict(ada.key.keyval))
    targets = mirror.read("targets")
    targets.signed.version += 1
    delegations = targets.signed.delegations
    delegations.keys[twin.keyid] = twin
    delegations.roles["daemon"].keyids = [ada.key.keyid, twin.keyid]
    await mirror.put("targets", targets, "ada", "bob")
    listed = {**mirror.read("daemon").signed.targets, **mirror.listing(EVIL)}
    component = await mirror.again("daemon", "ada", targets=listed)
    signature = (await ada.sign(component.signed_bytes)).to_dict()
    component.signatures[twin.keyid] = type(component.signatures[ada.key.keyid]).from_dict(
        {**signature, "keyid": twin.keyid}
    )
    mirror.layout.publish("daemon", component)
    await mirror.chain("robot")


@attack("key-compromise")
async def a_root_in_which_one_key_stands_twice(mirror: Mirror) -> None:
    root = mirror.read("root")
    root.signed.version += 1
    rita = mirror.world.keys["rita"]
    upper = dict(rita.key.keyval, public=rita.key.keyval["public"].upper())
    twin = SSlibKey("e" * 64, rita.key.keytype, rita.key.scheme, upper)
    root.signed.add_key(twin, "root")
    await mirror.put("root", root, "root", "rita")


@attack("key-compromise")
async def a_root_whose_targets_anybody_may_sign(mirror: Mirror) -> None:
    root = mirror.read("root")
    root.signed.version += 1
    root.signed.roles["targets"].threshold = 9
    await mirror.put("root", root, "root", "rita")


# -- the test -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that every test has a copy of."""
    made = World(tmp_path_factory.mktemp("template"))

    async def fill() -> None:
        await made.init()
        await made.add("1.0.0")
        await made.add("1.1.0")

    asyncio.run(fill())
    return made.base


@pytest.fixture
def world(template: Path, tmp_path: Path) -> World:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return World(tmp_path)


async def taken(reader: TufReleases, name: ReleaseName, into: Path) -> None:
    """Everything of a release, as a worker takes it: the document, then the archives."""
    found = await reader.trusted(name)
    for one in found.artifacts:
        reader.client().fetch(one.source.removeprefix("tuf:"), into)


@pytest.mark.parametrize(
    ("name", "asked", "made"), ATTACKS, ids=[f"{one[0]}: {one[2].__name__}" for one in ATTACKS]
)
async def test_an_attack_is_refused_by_its_name_and_leaves_nothing(
    world: World, tmp_path: Path, name: str, asked: ReleaseName, made: Attack
) -> None:
    mirror = Mirror(world, tmp_path / "mirror")
    reader = world.reader(mirror.folder)
    into = tmp_path / "archive"
    await taken(reader, NEW, into)
    into.unlink()
    # What was seen before is kept in files; the small ones would otherwise not be asked for again.
    for small in (tmp_path / "worker").glob("memory/*/small/*"):
        small.unlink()
    await made(mirror)
    with pytest.raises(DriverError) as refused:
        await taken(reader, asked, into)
    assert refused.value.detail.get("attack") == name, refused.value
    assert refused.value.kind == ("RepositoryStale" if name == "freeze" else "RepositoryRefused")
    assert f"({name})" in refused.value.message
    assert not refused.value.message.endswith(": "), "it says what is wrong"
    assert not refused.value.retryable
    assert not into.exists()
    if mirror.stolen:
        # Numbers that a stolen key signed are seen: the keepers count on beyond them, as after every such loss.
        for _ in range(2):
            await world.publish("ada", "bob", "robot", renew=["targets", "daemon"])
    mirror.honest()
    await taken(reader, NEW, into)


async def test_a_root_that_expired_freezes_and_a_newer_one_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    ago = datetime.now(UTC).replace(microsecond=0) - timedelta(days=400)
    monkeypatch.setattr("desk.releases._now", lambda: ago)
    await world.init()
    monkeypatch.undo()
    with pytest.raises(PlanError, match="expired already: root"):
        await world.publish("ada", "bob", "robot", renew=["targets"])
    reader = world.reader()
    with pytest.raises(DriverError, match="freeze") as refused:
        await reader.trusted(NEW)
    assert refused.value.kind == "RepositoryStale"
    renewed = await world.publish("root", "rita", "ada", "bob", "robot", renew=["root", "targets"])
    assert "root" in renewed.published
    await world.add("1.1.0")
    await reader.trusted(NEW)


async def test_every_attack_of_the_list_is_run() -> None:
    from typing import get_args

    from kedge.model.trusted import Attack as Named

    assert {name for name, _, _ in ATTACKS} == set(get_args(Named))


async def test_a_smaller_leap_by_a_stolen_key_is_mended_by_its_rotation(
    world: World, tmp_path: Path
) -> None:
    mirror = Mirror(world, tmp_path / "mirror")
    reader = world.reader(mirror.folder)
    await mirror.stamp("robot", leap=900_000)
    await reader.trusted(NEW)
    mirror.honest()
    with pytest.raises(DriverError, match="rollback"):
        await reader.trusted(NEW)
    for role in ("timestamp", "snapshot"):
        change = KeyChange(
            role=role, add=(world.key_file("carol"),), remove=(f"{world.key_file('robot')}.pub",)
        )
        await world.rotate(change, "root", "rita", "carol", "robot")
    mirror.honest()
    await reader.trusted(NEW)


async def test_a_pinned_root_with_one_key_twice_is_not_pinned(world: World, tmp_path: Path) -> None:
    root = world.repository.layout.newest("root")
    assert root is not None
    rita = world.keys["rita"].key
    root.signed.add_key(SSlibKey("e" * 64, rita.keytype, rita.scheme, dict(rita.keyval)), "root")
    with pytest.raises(DriverError, match="under two ids"):
        TufReleases(None, tmp_path / "new").pin(root.to_bytes())


async def test_one_component_cannot_list_the_files_of_another(world: World, tmp_path: Path) -> None:
    await world.desk.add(
        world.folder, world.release("1.0.0", "other"), world.signers("ada", "bob", "carol", "robot"),
        component=world.spec("other", 1, "carol"), publish=True,
    )  # fmt: skip
    mirror = Mirror(world, tmp_path / "mirror")
    targets = {**mirror.read("other").signed.targets, **mirror.listing(EVIL)}
    await mirror.again("other", "carol", targets=targets)
    await mirror.chain("robot")
    with pytest.raises(DriverError) as refused:
        await world.reader(mirror.folder).trusted(EVIL)
    assert refused.value.kind == "ReleaseUnknown"
