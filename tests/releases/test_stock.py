"""Tools that kedge did not write: a stock TUF client reads the repository, over HTTP; so does ours, from a static server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from pathlib import Path

import pytest
from tuf.ngclient import Updater

from kedge.drivers import tuf_http
from kedge.model.errors import DriverError
from kedge.model.plan import Artifact
from kedge.model.trusted import ReleaseName
from tests.releases.serving import served
from tests.releases.world import World, archive, world_with_a_release

NAME = ReleaseName(component="daemon", version="1.0.0")


def content_of(path: str) -> bytes:
    return Path(path).read_bytes()


async def test_a_stock_tuf_client_reads_the_repository(tmp_path: Path) -> None:
    world = await world_with_a_release(tmp_path)
    bootstrap = (world.folder / "metadata" / "1.root.json").read_bytes()
    with served(world.folder) as address:
        stock = Updater(
            str(tmp_path / "stock"),
            f"{address}/metadata/",
            target_dir=str(tmp_path / "stock"),
            target_base_url=f"{address}/targets/",
            bootstrap=bootstrap,
        )
        stock.refresh()
        for target in (NAME.document, "daemon/1.0.0/linux-amd64.tar.gz"):
            info = stock.get_targetinfo(target)
            assert info is not None
            got = stock.download_target(info)
        assert content_of(got) == archive("1.0.0")


async def test_a_stock_client_follows_rotations_and_sees_revocations(tmp_path: Path) -> None:
    world = await world_with_a_release(tmp_path)
    bootstrap = (world.folder / "metadata" / "1.root.json").read_bytes()
    from desk.release_roles import KeyChange

    change = KeyChange(role="timestamp", add=(world.key_file("carol"),), remove=(
        f"{world.key_file('robot')}.pub",))  # fmt: skip
    await world.rotate(change, "root", "rita", "robot", "carol")
    await world.desk.revoke(
        world.folder, NAME, world.signers("ada", "bob", "robot", "carol"), reason="x", by="ada",
        publish=True,
    )  # fmt: skip
    with served(world.folder) as address:
        stock = Updater(str(tmp_path / "stock"), f"{address}/metadata/", bootstrap=bootstrap)
        assert stock.get_targetinfo(NAME.document) is None
        assert stock.get_targetinfo(NAME.tombstone) is not None


async def test_a_worker_reads_it_over_http_with_its_archives(tmp_path: Path) -> None:
    world = await world_with_a_release(tmp_path)
    with served(world.folder) as address:
        reader = world.reader(address)
        found = await reader.trusted(NAME)
        (one,) = found.artifacts
        into = tmp_path / "archive"
        reader.client().fetch(one.source.removeprefix("tuf:"), into)
        assert into.read_bytes() == archive("1.0.0")
        stood = await reader.standing(NAME, found.digest)
        assert stood.versions == found.versions


async def test_the_root_that_a_policy_names_is_got_over_http_and_no_other(tmp_path: Path) -> None:
    world = await world_with_a_release(tmp_path)
    other = World(tmp_path / "other")
    await other.init()
    wanted = world.reader().pinned()
    fresh = world.reader(name="fresh")
    (tmp_path / "fresh" / "root.json").unlink()
    with served(world.folder) as address:
        from kedge.drivers.tuf_releases import TufReleases

        reader = TufReleases(address, tmp_path / "fresh2")
        assert (await reader.trusted(NAME, wanted)).name == NAME
    with served(other.folder) as address:
        reader = TufReleases(address, tmp_path / "fresh3")
        with pytest.raises(DriverError, match="is pinned") as refused:
            await reader.trusted(NAME, wanted)
        assert refused.value.kind == "RepositoryRefused"
    assert fresh.pinned() is None


async def test_an_archive_by_its_address_comes_out_verified(tmp_path: Path) -> None:
    from kedge.drivers.artifacts import VerifiedArtifacts
    from kedge.drivers.tuf_releases import TufSource

    world = await world_with_a_release(tmp_path)
    reader = world.reader()
    (one,) = (await reader.trusted(NAME)).artifacts
    artifacts = VerifiedArtifacts(
        tmp_path / "mine", {"tuf": TufSource(reader, tmp_path / "fetched")}
    )
    assert (await artifacts.keep(one)).read_bytes() == archive("1.0.0")
    stranger = Artifact(platform="x/y", digest="0" * 64, length=3, source="tuf:daemon/1.0.0/x.bin")
    with pytest.raises(DriverError) as refused:
        await artifacts.fetch(stranger)
    assert refused.value.kind == "NotFound"


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ANSWERS: dict[str, tuple[bytes, bytes, float]] = {
    "a byte now and then": (OK + b"Connection: close\r\n\r\n", b"{", 0.2),
    "no end": (OK + b"Connection: close\r\n\r\n", b"{" * 4096, 0.0),
    "headers that do not end": (OK, b"X", 0.2),
    "interim answers that do not end": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
    "the length of a piece that does not end": (CHUNKED + b"5", b" ", 0.2),
    "trailers that do not end": (CHUNKED + b"5\r\nhello\r\n0\r\n", b"X-A: b\r\n", 0.01),
    "a handshake that does not end": (b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", b"\x03", 0.2),
    "come again tomorrow": (
        b"HTTP/1.1 503 Busy\r\nRetry-After: 86400\r\nContent-Length: 0\r\n\r\n", b"", 0.2,
    ),
}  # fmt: skip
"""What a server says at once, and then again and again, with a pause between."""


@pytest.mark.parametrize("how", ["nobody there", "silence", *ANSWERS])
async def test_a_server_that_keeps_one_waiting_or_never_stops_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    world = await world_with_a_release(tmp_path)
    monkeypatch.setattr(tuf_http, "SILENCE", 1)
    monkeypatch.setattr(tuf_http, "METADATA_SECONDS", 1.0)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    over = threading.Event()

    def drip() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        first, again, pause = ANSWERS.get(how, (b"", b"", 30.0))
        with connection, contextlib.suppress(OSError):
            connection.recv(4096)
            connection.sendall(first)
            while not over.wait(pause):
                connection.sendall(again)

    if how == "nobody there":
        listener.close()
    else:
        threading.Thread(target=drip, daemon=True).start()
    scheme = "https" if "handshake" in how else "http"
    try:
        with pytest.raises(DriverError) as refused:
            await world.reader(f"{scheme}://127.0.0.1:{port}").trusted(NAME)
        if how == "no end":
            assert refused.value.detail["attack"] == "endless-data"
        else:
            assert refused.value.kind == "Unreachable"
            assert refused.value.retryable
    finally:
        over.set()
        listener.close()


async def test_who_is_not_there_is_said_not_to_be(tmp_path: Path) -> None:
    world = await world_with_a_release(tmp_path)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(DriverError, match=r"does not answer: .*refused"):
        await world.reader(f"http://127.0.0.1:{port}").trusted(NAME)


async def test_a_repository_that_is_away_for_a_moment_stops_nothing_and_no_news_is_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await world_with_a_release(tmp_path)
    reader = world.reader()
    found = await reader.trusted(NAME)
    stood = await reader.standing(NAME, found.digest)
    world.folder.rename(tmp_path / "away")
    assert await reader.standing(NAME, found.digest, within=0.0) == stood
    # Who has not seen it stand knows nothing, and after a while nobody does.
    with pytest.raises(DriverError) as refused:
        await world.reader().standing(NAME, found.digest)
    assert refused.value.kind == "Unreachable"
    monkeypatch.setattr("kedge.drivers.tuf_releases.GRACE", 0.0)
    with pytest.raises(DriverError) as late:
        await reader.standing(NAME, found.digest, within=0.0)
    assert late.value.kind == "Unreachable"
    (tmp_path / "away").rename(world.folder)
    assert await reader.standing(NAME, found.digest) == stood


async def test_many_at_once_share_one_memory(tmp_path: Path) -> None:
    world = await world_with_a_release(tmp_path)
    readers = [world.reader() for _ in range(4)]
    found = await asyncio.gather(*(reader.trusted(NAME) for reader in readers for _ in range(4)))
    assert len({one.digest for one in found}) == 1
    await world.publish(renew=[])
    stood = await asyncio.gather(
        *(
            reader.standing(NAME, found[0].digest, within=0.0)
            for reader in readers
            for _ in range(4)
        )
    )
    assert {one.versions.timestamp for one in stood} == {3}
