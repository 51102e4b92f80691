"""Random damage to the files of a repository: two thousand mutations, and none of them is taken."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kedge.drivers.tuf_releases import TufReleases
from kedge.model.errors import DriverError
from kedge.model.trusted import OF_RELEASES, ReleaseName
from tests.conftest import Tell
from tests.releases.world import World, archive

NAME = ReleaseName(component="daemon", version="1.1.0")
MUTATIONS = 2000


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Another content: a byte or some, or something of the JSON, changed, lost, doubled or put in."""
    at = chance.randrange(len(content))
    kind = chance.randrange(8)
    if kind == 0:
        made = content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
    elif kind == 1:
        made = content[:at]
    elif kind == 2:
        made = content[:at] + content[at + chance.randrange(1, 40) :]
    elif kind == 3:
        made = content[:at] + chance.randbytes(chance.randrange(1, 40)) + content[at:]
    elif kind == 4:
        made = content + content[at:]
    elif kind == 5:
        made = content[:at] + chance.choice([b" ", b"\n", b"\t"]) + content[at:]
    else:
        made = _json(content, chance)
    return made if made != content else content + b" "


def _json(content: bytes, chance: random.Random) -> bytes:
    try:
        value = json.loads(content)
    except ValueError:
        return content[::-1]
    holder: Any = value
    for _ in range(chance.randrange(1, 8)):
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            break
        key = chance.choice(keys)
        if isinstance(holder[key], (dict, list)) and holder[key] and chance.random() < 0.8:
            holder = holder[key]
            continue
        _change(holder, key, chance)
        break
    else:
        if isinstance(holder, dict):
            holder["x"] = chance.random()
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _change(holder: Any, key: Any, chance: random.Random) -> None:
    old = holder[key]
    kind = chance.randrange(4)
    if kind == 0 and not isinstance(holder, str):
        del holder[key]
    elif kind == 1 and isinstance(old, str):
        holder[key] = old.swapcase() if old.swapcase() != old else old + "0"
    elif kind == 2 and isinstance(old, int):
        holder[key] = old + chance.choice([-1, 1, 2**31])
    else:
        holder[key] = chance.choice(
            [None, "", 0, -1, [], {}, old * 2 if isinstance(old, str) else 7]
        )


def everything(reader: TufReleases, root: str, into: Path) -> tuple[str, ...]:
    """What a worker takes of the release: the document, the archives, the attestations."""
    found = reader.read(NAME, root)
    taken = [
        found.target,
        found.digest,
        *found.authors,
        *(one.digest for one in found.attestations),
    ]
    for one in found.artifacts:
        reader.client(root).fetch(one.source.removeprefix("tuf:"), into)
        taken.append(hashlib.sha256(into.read_bytes()).hexdigest())
        into.unlink()
    return tuple(taken)


async def prepared(base: Path) -> World:
    """A repository with a rotation behind it, two components, a release with an attestation."""
    from desk.release_roles import KeyChange

    world = World(base)
    await world.init()
    await world.add("1.0.0")
    await world.add("1.1.0")
    await world.add("1.0.0", "other")
    team = world.signers("ada", "bob", "robot")
    await world.desk.attach(world.folder, NAME, {"provenance-1.json": b"{}"}, team, publish=True)
    change = KeyChange(role="snapshot", add=(world.key_file("carol"),))
    await world.rotate(change, "root", "rita", "robot")
    return world


def _version(world: World, role: str) -> int:
    found = world.repository.layout.newest(role)
    assert found is not None
    return int(found.signed.version)


async def damaged(tmp_path: Path, count: int, seed: int) -> Counter[str]:
    """Damages one file at a time, and looks with a client that has seen nothing; how it ended, counted."""
    world = await prepared(tmp_path)
    root = world.reader().pinned()
    assert root is not None
    into = tmp_path / "archive"
    honest = everything(world.reader(), root, into)
    assert hashlib.sha256(archive("1.1.0")).hexdigest() in honest
    chance = random.Random(seed)
    newest = {f"{_version(world, role)}.{role}.json" for role in ("snapshot", "targets", "daemon")}
    newest |= {"timestamp.json", "1.root.json", "2.root.json"}
    # Only what this client reads: whatever is in the other files, it could not be taken.
    files = [world.folder / "metadata" / name for name in sorted(newest)]
    files += sorted((world.folder / "targets" / "daemon" / "1.1.0").iterdir())
    ended: Counter[str] = Counter()
    kinds: set[str] = set()
    for number in range(count):
        path = chance.choice(files)
        content = path.read_bytes()
        path.write_bytes(mutated(content, chance))
        fresh = tmp_path / "fresh"
        try:
            taken = everything(TufReleases(str(world.folder), fresh), root, into)
        except DriverError as error:
            kinds.add(error.kind)
            ended[str(error.detail.get("attack", error.kind))] += 1
        else:
            assert taken != honest, f"mutation {number} of {path.name} was not noticed"
            raise AssertionError(f"mutation {number} of {path.name} was taken")
        finally:
            path.write_bytes(content)
            shutil.rmtree(fresh, ignore_errors=True)
            into.unlink(missing_ok=True)
    assert kinds <= OF_RELEASES | {"Unreachable"}
    assert everything(world.reader(), root, into) == honest
    return ended


async def test_a_hundred_mutations_and_none_is_taken(tmp_path: Path) -> None:
    ended = await damaged(tmp_path, 100, seed=1)
    assert sum(ended.values()) == 100


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_two_thousand_mutations_and_none_is_taken(tmp_path: Path, tell: Tell) -> None:
    ended = await damaged(tmp_path, MUTATIONS, seed=2)
    by_name = ", ".join(f"{name} {count}" for name, count in ended.most_common())
    tell(f"{MUTATIONS} mutations of a repository's files, none taken; refused as {by_name}")
    assert sum(ended.values()) == MUTATIONS
