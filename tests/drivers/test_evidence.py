"""Evidence: each key once, one unbroken chain per fleet, whoever appends and whoever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from kedge.drivers.evidence import SqliteEvidence, entry_of
from kedge.drivers.evidence_postgres import PostgresEvidence
from kedge.drivers.evidence_writer import MAX_RECORD, OwnTexts, WrittenEvidence
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.evidence import Checkpoint
from kedge.trust.chain import EvidenceEntry, genesis, link, linked, verify
from tests.drivers.conftest import Place
from tests.drivers.databases import Server, from_packages, program

ROOT = Path(__file__).parents[2]

WRITER = """
import asyncio, sys
from tests.drivers.conftest import opened

async def main(address, who, shared, count):
    evidence = opened(address)
    async def one(number):
        key = f"shared/{number}" if number % 2 else f"{who}/{number}"
        await evidence.append("etcd", key, {"who": who, "number": number})
        print(key, flush=True)
    for start in range(0, int(count), 20):
        await asyncio.gather(*(one(number) for number in range(start, start + 20)))
    await evidence.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def evidence(place: Place) -> AsyncIterator[WrittenEvidence]:
    made = place()
    yield made
    await made.aclose()


async def everything(evidence: WrittenEvidence, fleet: str = "etcd") -> list[EvidenceEntry]:
    found: list[EvidenceEntry] = []
    while page := await evidence.read(fleet, len(found)):
        found += page
    return found


async def assert_sound(evidence: WrittenEvidence, fleet: str = "etcd") -> list[EvidenceEntry]:
    """One chain without a gap, each key once, and its head is the head."""
    entries = await everything(evidence, fleet)
    verdict = verify(fleet, [entry.link() for entry in entries])
    assert verdict.ok, verdict.said
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert len({entry.key for entry in entries}) == len(entries)
    head = await evidence.head(fleet)
    assert (head.seq, head.hash) == (len(entries), verdict.head)
    return entries


async def test_an_empty_chain_begins_with_its_fleet(evidence: WrittenEvidence) -> None:
    head = await evidence.head("etcd")
    assert (head.seq, head.hash) == (0, genesis("etcd"))
    assert await evidence.read("etcd") == ()


async def test_records_follow_each_other(evidence: WrittenEvidence) -> None:
    records: list[Json] = [{"what": "start"}, ["any", 1, None], "text"]
    heads = [
        await evidence.append("etcd", f"k{number}", record) for number, record in enumerate(records)
    ]
    entries = await assert_sound(evidence)
    assert [entry.record for entry in entries] == records
    assert [entry.hash for entry in entries] == [head.hash for head in heads]


async def test_a_key_is_appended_once_and_the_first_record_stays(evidence: WrittenEvidence) -> None:
    first = await evidence.append("etcd", "k", {"at": 1})
    await evidence.append("etcd", "other", {})
    again = await evidence.append("etcd", "k", {"at": 2})
    assert again == first
    assert [entry.record for entry in await assert_sound(evidence)] == [{"at": 1}, {}]


async def test_fleets_have_chains_of_their_own(evidence: WrittenEvidence) -> None:
    await evidence.append("etcd", "k", 1)
    await evidence.append("nats", "k", 1)
    (etcd,) = await assert_sound(evidence, "etcd")
    (nats,) = await assert_sound(evidence, "nats")
    assert etcd.hash != nats.hash


async def test_a_key_is_part_of_what_is_hashed(evidence: WrittenEvidence) -> None:
    await evidence.append("etcd", "k1", 1)
    (entry,) = await assert_sound(evidence)
    changed = replace(entry, key="k2")
    assert not verify("etcd", [changed.link()]).ok


async def test_a_page_is_bounded_and_goes_on(evidence: WrittenEvidence) -> None:
    await asyncio.gather(*(evidence.append("etcd", f"k{number}", number) for number in range(25)))
    page = await evidence.read("etcd", since=10, limit=5)
    assert [entry.seq for entry in page] == [11, 12, 13, 14, 15]


async def test_what_is_no_canonical_json_is_refused_alone(evidence: WrittenEvidence) -> None:
    good = evidence.append("etcd", "good", 1)
    for record in (float("nan"), 2**60, "x" * MAX_RECORD):
        with pytest.raises(DriverError) as caught:
            await evidence.append("etcd", "bad", record)
        assert (caught.value.kind, caught.value.retryable) == ("StoreError", False)
    await good
    assert len(await assert_sound(evidence)) == 1


async def test_names_that_are_no_text_are_refused_alone(evidence: WrittenEvidence) -> None:
    for fleet, key in (("etcd", "\ud800"), ("\ud800", "k"), ("etcd", "a\0b"), ("etcd", "k" * 2000)):
        with pytest.raises(DriverError) as caught:
            await evidence.append(fleet, key, 1)
        assert not caught.value.retryable
    assert (await evidence.append("etcd", "k", 1)).seq == 1


async def test_appending_while_it_is_closed_loses_nothing(evidence: WrittenEvidence) -> None:
    async def appends(who: str) -> None:
        for number in range(20):
            await evidence.append("etcd", f"{who}/{number}", number)

    async def closes() -> None:
        for _ in range(10):
            await evidence.aclose()

    await asyncio.gather(appends("a"), closes(), appends("b"), closes())
    assert len(await assert_sound(evidence)) == 40


async def test_a_thousand_at_once_are_few_transactions(evidence: WrittenEvidence) -> None:
    begun = time.perf_counter()
    await asyncio.gather(*(evidence.append("etcd", f"k{number}", number) for number in range(1000)))
    assert time.perf_counter() - begun < 10
    assert len(await assert_sound(evidence)) == 1000


async def test_the_same_key_at_once_is_one_entry(evidence: WrittenEvidence) -> None:
    heads = await asyncio.gather(*(evidence.append("etcd", "k", number) for number in range(50)))
    assert len(set(heads)) == 1
    assert len(await assert_sound(evidence)) == 1


async def test_a_cancelled_append_does_not_stop_the_others(evidence: WrittenEvidence) -> None:
    tasks = [
        asyncio.create_task(evidence.append("etcd", f"k{number}", number)) for number in range(20)
    ]
    await asyncio.sleep(0)
    tasks[3].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(one, BaseException) for one in results) == 1
    assert len(await assert_sound(evidence)) in {19, 20}


async def test_it_goes_on_after_being_closed(evidence: WrittenEvidence) -> None:
    await evidence.append("etcd", "k1", 1)
    await evidence.aclose()
    await evidence.append("etcd", "k2", 2)
    assert len(await assert_sound(evidence)) == 2


async def test_a_disk_that_refuses_is_an_error_that_may_pass(tmp_path: Path) -> None:
    (tmp_path / "evidence.db").mkdir()
    evidence = SqliteEvidence(tmp_path / "evidence.db")
    with pytest.raises(DriverError) as caught:
        await evidence.append("etcd", "k", 1)
    assert (caught.value.kind, caught.value.retryable) == ("StoreError", True)
    (tmp_path / "evidence.db").rmdir()
    assert (await evidence.append("etcd", "k", 1)).seq == 1
    await evidence.aclose()


def writer(address: str, who: str, count: int = 200) -> subprocess.Popen[str]:
    arguments = [address, who, "shared", str(count)]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


async def test_many_processes_write_one_chain(evidence: WrittenEvidence, address: str) -> None:
    writers = [writer(address, who) for who in ("a", "b", "c")]
    await asyncio.gather(*(evidence.append("etcd", f"own/{number}", 0) for number in range(100)))
    for one in writers:
        await asyncio.to_thread(one.communicate, None, 60)
    assert [one.returncode for one in writers] == [0, 0, 0]
    entries = await assert_sound(evidence)
    assert len(entries) == 100 + 3 * 100 + 100


@pytest.mark.parametrize("lines", [1, 40, 150])
async def test_a_killed_writer_loses_nothing_it_was_told_and_breaks_nothing(
    evidence: WrittenEvidence, address: str, lines: int
) -> None:
    one = writer(address, "a", 2000)
    assert one.stdout is not None
    told = [await asyncio.to_thread(one.stdout.readline) for _ in range(lines)]
    one.kill()
    rest, _ = await asyncio.to_thread(one.communicate)
    # A last line that was cut off by the kill tells nothing.
    lines_told = [*told, *rest.splitlines(keepends=True)]
    acknowledged = {line.strip() for line in lines_told if line.endswith("\n")}
    keys = {entry.key for entry in await assert_sound(evidence)}
    assert acknowledged <= keys
    await evidence.append("etcd", "after", {})
    await assert_sound(evidence)


async def test_what_is_appended_comes_back_as_it_was(evidence: WrittenEvidence) -> None:
    record: Json = {
        "text": "× … – \u0000 \u001b \U0001f4a9",
        "deep": [[[{"a": None}]]],
        "n": [0, -1, 2**53 - 1, 1.5],
    }
    await evidence.append("etcd", "schlüssel/ß", record)
    (entry,) = await assert_sound(evidence)
    assert (entry.key, entry.record) == ("schlüssel/ß", record)


async def test_a_record_is_found_by_its_key(evidence: WrittenEvidence) -> None:
    head = await evidence.append("etcd", "k", {"at": 1})
    found = await evidence.find("etcd", "k")
    assert found is not None
    assert (found.seq, found.hash, found.record) == (head.seq, head.hash, {"at": 1})
    assert await evidence.find("etcd", "other") is None
    assert await evidence.find("nats", "k") is None


async def test_records_are_found_by_how_their_keys_begin(evidence: WrittenEvidence) -> None:
    assert await evidence.under("etcd", "glass/") == ()
    for key in ("glass/b", "glas", "glass/a", "glassy", "Glass/c", "glass%", "glass/\U0001f4a9"):
        await evidence.append("etcd", key, {"key": key})
    await evidence.append("nats", "glass/d", {})
    found = await evidence.under("etcd", "glass/")
    assert [one.key for one in found] == ["glass/b", "glass/a", "glass/\U0001f4a9"]
    assert [one.key for one in await evidence.under("etcd", "glass/", 2)] == ["glass/b", "glass/a"]


def checkpoint(seq: int, key: str = "ssh-ed25519 AAAA", digest: str = "a" * 64) -> Checkpoint:
    return Checkpoint(
        fleet="etcd",
        seq=seq,
        hash=digest,
        at="2025-01-31T12:00:00Z",
        key=key,
        signature=f"of {seq}",
    )


async def test_checkpoints_are_kept_once_and_read_in_pages(evidence: WrittenEvidence) -> None:
    kept = [checkpoint(1), checkpoint(2), checkpoint(2, "ssh-ed25519 BBBB"), checkpoint(5)]
    for one in [*kept, *kept]:
        await evidence.keep_checkpoint(one)
    await evidence.keep_checkpoint(kept[0].model_copy(update={"signature": "later"}))
    assert await evidence.checkpoints("etcd") == tuple(kept)
    assert await evidence.checkpoints("etcd", since=2) == (kept[3],)
    # A page never ends between two of one place: the next one begins behind it.
    assert await evidence.checkpoints("etcd", limit=2) == tuple(kept[:3])
    assert await evidence.checkpoints("nats") == ()


def execute(address: str, statement: str) -> None:
    """Straight into the store, as somebody with its password may."""
    if address.startswith("postgresql:"):
        with psycopg.connect(address) as database:
            database.execute(statement.encode())
    else:
        with contextlib.closing(sqlite3.connect(address)) as file:
            file.execute(statement)
            file.commit()


@pytest.mark.parametrize("what", ["UPDATE entries SET key = 'x'", "DELETE FROM entries"])
async def test_the_tables_take_no_changes(
    evidence: WrittenEvidence, address: str, what: str
) -> None:
    await evidence.append("etcd", "k", 1)
    with pytest.raises((psycopg.Error, sqlite3.Error), match="only appended to"):
        execute(address, what)
    assert len(await assert_sound(evidence)) == 1


TWICE = '{"accepted":false,"what":"order","accepted":true}'
SPELLED = [
    ("a key that stands there twice", TWICE, {"accepted": True, "what": "order"}),
    ("spaces", '{"n": 1}', {"n": 1}),
    ("another order", '{"b":1,"a":2}', {"a": 2, "b": 1}),
    ("a number in another form", '{"n":1.0}', {"n": 1}),
    ("a letter that is escaped", '{"n":"\\u0061"}', {"n": "a"}),
]


@pytest.mark.parametrize(
    ("text", "meant"), [row[1:] for row in SPELLED], ids=[row[0] for row in SPELLED]
)
async def test_a_record_that_is_not_in_its_one_form_is_not_the_one_its_hash_was_taken_over(
    evidence: WrittenEvidence, address: str, text: str, meant: Json
) -> None:
    first = await evidence.append("etcd", "k1", 1)
    digest = link(first.hash, linked("k2", meant))
    row = f"('etcd', 2, 'k2', '{text}', '{first.hash}', '{digest}')"
    execute(address, f"INSERT INTO entries VALUES {row}")  # noqa: S608 - a row of this test's own
    entries = await evidence.read("etcd")
    verdict = verify("etcd", [one.link() for one in entries])
    assert (verdict.place, verdict.fault) == (1, "edited")
    assert await evidence.find("etcd", "k2") == entries[1]


QUERY = """
SELECT e.seq, e.key, e.hash, c.signature IS NOT NULL FROM entries e
LEFT JOIN checkpoints c ON c.fleet = e.fleet AND c.seq = e.seq AND c.hash = e.hash
WHERE e.fleet = 'etcd' ORDER BY e.seq
"""


async def test_the_stock_programs_read_the_record_by_the_documented_query(
    evidence: WrittenEvidence, address: str
) -> None:
    heads = [await evidence.append("etcd", f"k{number}", {"n": number}) for number in range(3)]
    await evidence.keep_checkpoint(checkpoint(2, digest=heads[1].hash))
    if address.startswith("postgresql:"):
        call = [program("psql") or "psql", address, "--no-psqlrc", "--tuples-only", "--no-align"]
    else:
        if shutil.which("sqlite3") is None:
            pytest.skip("sqlite3 is not installed: tools/packages installs it")
        call = ["sqlite3", address]
    call += ["-c", QUERY] if "psql" in call[0] else [QUERY]
    found = await asyncio.to_thread(
        subprocess.run, call, capture_output=True, text=True, timeout=30, check=True
    )
    rows = [line.split("|") for line in found.stdout.splitlines()]
    assert [(int(row[0]), row[1], row[2]) for row in rows] == [
        (number + 1, f"k{number}", head.hash) for number, head in enumerate(heads)
    ]
    assert [row[3] for row in rows] == (["f", "t", "f"] if "psql" in call[0] else ["0", "1", "0"])
    assert QUERY.strip() in (ROOT / "docs" / "evidence.md").read_text()


async def test_two_workers_take_turns(place: Place) -> None:
    one, two = place(), place()

    async def appends(evidence: WrittenEvidence, who: str) -> None:
        for number in range(40):
            await evidence.append("etcd", f"{who}/{number}", number)
            await evidence.append("etcd", f"both/{number}", number)

    await asyncio.gather(appends(one, "a"), appends(two, "b"))
    assert len(await assert_sound(one)) == 120
    await one.aclose()
    await two.aclose()


async def test_a_server_that_is_not_there_is_an_error_without_the_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    evidence = PostgresEvidence("postgresql://kedge@127.0.0.1:1/kedge")
    for attempt in (evidence.head("etcd"), evidence.append("etcd", "k", 1)):
        with pytest.raises(DriverError) as caught:
            await attempt
        assert (caught.value.kind, caught.value.retryable) == ("StoreError", True)
        assert "hunter2" not in caught.value.message
    await evidence.aclose()


async def test_connections_that_the_server_ends_are_made_anew(postgres: Server) -> None:
    address = postgres.fresh()
    evidence = PostgresEvidence(address)
    await evidence.append("etcd", "k1", 1)
    assert (await evidence.head("etcd")).seq == 1
    with psycopg.connect(address, autocommit=True) as database:
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert (await evidence.head("etcd")).seq == 1
    with pytest.raises(DriverError) as caught:
        await evidence.append("etcd", "k2", 2)
    assert caught.value.retryable
    assert (await evidence.append("etcd", "k2", 2)).seq == 2
    assert len(await assert_sound(evidence)) == 2
    await evidence.aclose()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_workers_take_turns_whatever_the_database_isolates_by_default(
    postgres: Server, level: str
) -> None:
    address = postgres.fresh()
    name = address.rpartition("/")[2]
    execute(address, f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    workers = [PostgresEvidence(address) for _ in range(3)]

    async def appends(evidence: WrittenEvidence, who: int) -> None:
        for number in range(40):
            await evidence.append("etcd", f"{who}/{number}", number)

    await asyncio.gather(*(appends(one, who) for who, one in enumerate(workers)))
    assert len(await assert_sound(workers[0])) == 120
    for one in workers:
        await one.aclose()


async def test_a_database_of_another_encoding_is_refused_before_anything_is_made_in_it(
    postgres: Server,
) -> None:
    address = postgres.fresh() + "_bytes"
    name = address.rpartition("/")[2]
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as database:
        made = (
            "CREATE DATABASE {} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
        database.execute(sql.SQL(made).format(sql.Identifier(name)))
    evidence = PostgresEvidence(address)
    for attempt in (evidence.append("etcd", "k", 1), evidence.head("etcd")):
        with pytest.raises(DriverError, match="not encoded in UTF8") as caught:
            await attempt
        assert not caught.value.retryable
    await evidence.aclose()
    with psycopg.connect(address) as database:
        assert database.execute("SELECT to_regclass('entries')").fetchone() == (None,)


async def test_tables_of_another_schema_are_not_taken_for_those_of_this_one(
    postgres: Server,
) -> None:
    address = postgres.fresh()
    one = PostgresEvidence(address)
    await one.append("etcd", "k", 1)
    execute(address, "CREATE SCHEMA other")
    for table in ("entries", "checkpoints"):
        execute(address, f"CREATE TABLE other.{table} (LIKE public.{table} INCLUDING ALL)")
    two = PostgresEvidence(address + "?options=-csearch_path%3Dother")
    await two.append("etcd", "k", 2)
    assert [entry.record for entry in await assert_sound(two)] == [2]
    with pytest.raises(psycopg.Error, match="only appended to"):
        execute(address, "DELETE FROM other.entries")
    await one.aclose()
    await two.aclose()


async def patiently(evidence: WrittenEvidence, key: str, told: set[str]) -> None:
    """Appends until it is answered, as an activity is tried again."""
    while True:
        try:
            await evidence.append("etcd", key, key)
        except DriverError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(0.05)
        else:
            told.add(key)
            return


async def test_a_server_that_goes_in_the_middle_of_writes_loses_nothing_that_it_answered() -> None:
    if program("postgres") is None:
        pytest.skip("PostgreSQL is not installed: tools/packages installs it")
    with from_packages() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSFILE", str(server.passfile))
        address = server.fresh()
        workers = [PostgresEvidence(address) for _ in range(2)]
        told: set[str] = set()

        async def appends(evidence: WrittenEvidence, who: int) -> None:
            for number in range(80):
                keys = (f"{who}/{number}", f"both/{number}")
                await asyncio.gather(*(patiently(evidence, key, told) for key in keys))

        writing = asyncio.gather(*(appends(one, who) for who, one in enumerate(workers)))
        for lines in (30, 120):
            while len(told) < lines and not writing.done():  # noqa: ASYNC110 - a set that grows
                await asyncio.sleep(0.002)
            # One backend that is killed in whatever it does: the server ends all others, and recovers from its log.
            assert await asyncio.to_thread(server.crash, address)
        await writing
        entries = await assert_sound(workers[0])
        assert {entry.key for entry in entries} == told
        assert len(entries) == 240
        for one in workers:
            await one.aclose()


FULL = """
import asyncio, resource, signal, sys
from pathlib import Path
from kedge.drivers.evidence import SqliteEvidence
from kedge.model.errors import DriverError

async def main():
    evidence = SqliteEvidence(Path(sys.argv[1]))
    await evidence.append("etcd", "before", {})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for number in range(100):
        try:
            await evidence.append("etcd", f"k{number}", "x" * 20_000)
        except DriverError as error:
            print("refused", error.kind, error.retryable)
            break
        print(f"k{number}", flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await evidence.append("etcd", f"k{number}", "x" * 20_000)
    print(f"k{number}")
    await evidence.aclose()

asyncio.run(main())
"""


async def test_a_disk_that_is_full_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", FULL, str(path)],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert "refused StoreError True" in told
    evidence = SqliteEvidence(path)
    entries = await assert_sound(evidence)
    assert [one.key for one in entries] == ["before", *(one for one in told if one[0] == "k")]
    await evidence.aclose()


async def test_the_cluster_of_compose_gets_a_role_and_a_database(
    postgres: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    psql = Path(program("psql") or "psql").parent
    environment = {
        **os.environ,
        "PATH": f"{psql}:{os.environ['PATH']}",
        "PGHOST": postgres.host,
        "PGPORT": str(postgres.port),
        "PGUSER": postgres.user,
        "EVIDENCE_PASSWORD": 'it\'s a "secret"',
    }
    # This server's superuser is called as the role would be.
    renamed = tmp_path / "prepare-evidence"
    script = (ROOT / "deploy" / "prepare-evidence").read_text()
    renamed.write_text(script.replace("kedge", "kedge_role"))
    for _ in range(2):
        made = await asyncio.to_thread(
            subprocess.run, ["sh", str(renamed)], env=environment, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr
    monkeypatch.delenv("PGPASSFILE")
    monkeypatch.setenv("PGPASSWORD", environment["EVIDENCE_PASSWORD"])
    address = f"postgresql://kedge_role@{postgres.host}:{postgres.port}/kedge_role"
    evidence = PostgresEvidence(address)
    assert (await evidence.append("etcd", "k", 1)).seq == 1
    await evidence.aclose()
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(DriverError, match="password authentication failed"):
        await PostgresEvidence(address).head("etcd")


async def test_looking_makes_no_file(tmp_path: Path) -> None:
    evidence = SqliteEvidence(tmp_path / "evidence.db")
    assert (await evidence.head("etcd")).seq == 0
    assert await evidence.read("etcd") == ()
    assert await evidence.under("etcd", "k") == ()
    assert await evidence.find("etcd", "k") is None
    assert await evidence.checkpoints("etcd") == ()
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []


LOOKS = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
print(len(database.execute("select * from entries").fetchall()))
database.close()
"""


async def test_a_reader_in_another_process_takes_no_writers_log_away(tmp_path: Path) -> None:
    """A descriptor of the file that is closed lets go of SQLite's locks: another process then removes the log in use."""
    path = tmp_path / "evidence.db"
    evidence = SqliteEvidence(path)
    for number in range(1, 4):
        await evidence.append("f", f"k{number}", {"n": number})
        await evidence.read("f")
        assert await asyncio.to_thread(looked_at, path) == number
        assert not [name for name in open_files() if name.endswith("(deleted)")]
    assert [entry.key for entry in await evidence.read("f")] == ["k1", "k2", "k3"]
    await evidence.aclose()


def looked_at(path: Path) -> int:
    """How many entries another process sees, which then closes what it opened."""
    said = subprocess.run(
        [sys.executable, "-c", LOOKS, str(path)], capture_output=True, text=True, check=True
    )
    return int(said.stdout)


def open_files() -> list[str]:
    """The database's files that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        # The descriptor that the folder itself was listed by is gone by now.
        with contextlib.suppress(OSError):
            found.append(entry.readlink().name)
    return [name for name in found if name.startswith("evidence.db")]


def test_only_the_texts_that_a_writer_made_itself_are_read_without_being_judged() -> None:
    own = OwnTexts(most=30)
    own.add('{"a":1,"b":2}')
    assert entry_of(1, "k", '{"a":1,"b":2}', "", "", own=own).record == {"a": 1, "b": 2}
    for edited in ('{"b":2,"a":1}', '{"a":1,"a":1,"b":2}', '{"a": 1,"b":2}'):
        assert edited not in own
        assert entry_of(1, "k", edited, "", "", own=own).record == edited
    own.add('{"c":"0123456789"}')
    assert '{"a":1,"b":2}' not in own
