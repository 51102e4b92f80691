"""The codec as the SDK calls it, and the ring as processes find it: in files, in the environment, lost, replaced."""

from __future__ import annotations

import base64
import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.converter import (
    ActivitySerializationContext,
    DataConverter,
    WorkflowSerializationContext,
)
from temporalio.exceptions import ApplicationError

from desk import codec as desk_codec
from desk import doctor as desk_doctor
from desk import up as desk_up
from kedge.drivers.codec_ring import FixedRing, RingFile, Rings
from kedge.model.errors import CodecError
from kedge.model.run import Run
from kedge.trust import codec
from kedge.trust.payload_kinds import USES
from worker.codec import (
    ENCODING,
    KeyRings,
    NoCodec,
    client_converter,
    label,
    worker_converter,
)
from worker.logs import configure, get_logger
from worker.rings import KEYS_VARIABLES, converter_of, required_mark, ring_file, rings_of
from worker.settings import Settings

RING = codec.new_ring(b"1" * 32, "2026-01-01T00:00:00Z")
OTHER = codec.new_ring(b"2" * 32, "2026-01-01T00:00:00Z")
CLIENTS = codec.new_ring(b"3" * 32, "2026-01-01T00:00:00Z")
UPGRADE = WorkflowSerializationContext("default", "upgrade/etcd/1")
ACTIVITY = ActivitySerializationContext("default", "1", "run_leg", "kedge", "upgrade/etcd/1", "Wave", is_local=False)  # fmt: skip
RINGS = KeyRings(FixedRing(CLIENTS), FixedRing(RING))
CONVERTER = worker_converter(RINGS)
MARKED = {"node": "node-of-the-crown"}


async def sealed(
    value: Any = MARKED, ring: codec.Ring = RING, whom: Any = UPGRADE, kind: str = "result"
) -> Payload:
    converter = worker_converter(KeyRings(FixedRing(CLIENTS), FixedRing(ring)))
    bound = converter.with_context(whom) if whom else converter
    [payload] = bound.payload_converter.to_payloads([value])
    label([payload], kind, "")
    assert bound.payload_codec is not None
    return (await bound.payload_codec.encode([payload]))[0]


async def read(payload: Payload, kind: Any = None, whom: Any = UPGRADE) -> Any:
    converter = CONVERTER.with_context(whom) if whom else CONVERTER
    return (await converter.decode([payload], [kind] if kind else None))[0]


async def test_a_payload_is_sealed_for_its_workflow_and_says_so_beside_it() -> None:
    payload = await sealed()
    assert b"crown" not in payload.SerializeToString()
    assert payload.metadata["encoding"] == ENCODING
    assert payload.metadata["encryption-key-id"] == RING.active.encode()
    assert payload.metadata["encryption-for"] == b"default/upgrade/etcd/1"
    assert await read(payload) == MARKED


async def test_an_activity_of_the_workflow_reads_what_the_workflow_wrote() -> None:
    asked = await sealed(kind="activity/run_leg")
    activity = CONVERTER.with_context(ACTIVITY)
    assert await activity.decode([asked]) == [MARKED]
    assert await read((await activity.encode([MARKED]))[0]) == MARKED


@pytest.mark.parametrize("whom", [None, WorkflowSerializationContext("default", "")])
async def test_what_the_codec_server_sealed_for_nobody_in_particular_is_read(whom: Any) -> None:
    by = client_converter(RINGS)
    [payload] = await (by.with_context(whom) if whom else by).encode([MARKED])
    assert await read(payload) == MARKED


@pytest.mark.parametrize("context", [UPGRADE, ACTIVITY], ids=["workflow", "activity"])
def test_a_context_changes_the_codec_and_shares_the_converters(context: Any) -> None:
    bound, usual = CONVERTER.with_context(context), DataConverter.with_context(CONVERTER, context)
    assert type(bound) is type(CONVERTER)
    assert bound.payload_codec is not CONVERTER.payload_codec
    assert type(bound.payload_codec) is type(usual.payload_codec)
    assert vars(bound) == {**vars(usual), "payload_codec": bound.payload_codec}


async def forged(name: str) -> Payload:
    payload = await sealed()
    elsewhere = await sealed(whom=WorkflowSerializationContext("default", "upgrade/etcd/2"))
    renamed, nameless, keyless = Payload(), Payload(), Payload()
    renamed.CopyFrom(elsewhere)
    renamed.metadata["encryption-for"] = b"default/upgrade/etcd/1"
    nameless.CopyFrom(elsewhere)
    del nameless.metadata["encryption-for"]
    keyless.CopyFrom(payload)
    del keyless.metadata["encryption-key-id"]
    made = {
        "never sealed": Payload(metadata={"encoding": b"json/plain"}, data=b'{"node":"rogue"}'),
        "without any encoding": Payload(data=b'{"node":"rogue"}'),
        "of another workflow": elsewhere,
        "of another namespace": await sealed(
            whom=WorkflowSerializationContext("other", "upgrade/etcd/1")
        ),
        "of another workflow under this one's name": renamed,
        "of another workflow without a name": nameless,
        "changed": Payload(metadata=payload.metadata, data=payload.data[:-1] + b"\0"),
        "empty": Payload(metadata=payload.metadata),
        "with no key's name": keyless,
    }
    return made[name]


FORGED = (
    ("never sealed", "Plaintext"),
    ("without any encoding", "Plaintext"),
    ("of another workflow", "WrongWorkflow"),
    ("of another namespace", "WrongWorkflow"),
    ("of another workflow under this one's name", "Tampered"),
    ("of another workflow without a name", "WrongWorkflow"),
    ("changed", "Tampered"),
    ("empty", "Tampered"),
    ("with no key's name", "Tampered"),
)


@pytest.mark.parametrize(("name", "kind"), FORGED)
async def test_a_forged_payload_is_no_value_and_no_order(name: str, kind: str) -> None:
    payload = await forged(name)
    with pytest.raises(CodecError) as caught:
        await read(payload, Run)
    assert caught.value.kind == kind
    assert "rogue" not in caught.value.message
    # A signal that takes anything gets a note, so that nobody can stop a workflow with rubbish.
    note = await read(payload)
    assert set(note) == {"kedge_refused"}


async def test_two_thousand_changes_of_a_sealed_payload_give_its_value_or_none() -> None:
    random = Random(20_261_123)
    message = (await sealed(17)).SerializeToString()
    refused, same = 0, 0
    for _ in range(2000):
        changed = bytearray(message)
        for _ in range(random.choice((1, 1, 2, 5))):
            place = random.randrange(len(changed))
            match random.randrange(3):
                case 0:
                    changed[place] ^= 1 << random.randrange(8)
                case 1:
                    del changed[place]
                case _:
                    changed.insert(place, random.randrange(256))
        try:
            value = await read(Payload.FromString(bytes(changed)), int)
        except (CodecError, DecodeError):
            refused += 1
        else:
            # What stands beside the content and says nothing, an unknown field say, changes nothing.
            assert value == 17
            same += 1
    assert refused > 1500
    assert refused + same == 2000


async def test_a_key_that_is_not_here_stops_the_task_instead_of_losing_what_was_said() -> None:
    payload = await sealed(ring=OTHER)
    for kind in (None, Run):
        with pytest.raises(CodecError) as caught:
            await read(payload, kind)
        assert caught.value.kind == "UnknownKey"


async def test_in_a_time_of_grace_open_payloads_are_read_and_none_is_written() -> None:
    ring = codec.Ring(RING.active, RING.keys, "2999-01-01T00:00:00Z")
    converter = worker_converter(KeyRings(FixedRing(CLIENTS), FixedRing(ring))).with_context(
        UPGRADE
    )
    assert await converter.decode([await forged("never sealed")]) == [{"node": "rogue"}]
    assert (await converter.encode([1]))[0].metadata["encoding"] == ENCODING
    with pytest.raises(CodecError, match="moved from another workflow"):
        await converter.decode([await forged("changed")], [Run])


async def test_the_words_of_a_failure_are_sealed_its_type_is_not() -> None:
    failure = Failure()
    converter = CONVERTER.with_context(UPGRADE)
    error = ApplicationError("node-of-the-crown is sick", MARKED, type="NotHealthy")
    await converter.encode_failure(error, failure)
    assert b"crown" not in failure.SerializeToString()
    assert failure.application_failure_info.type == "NotHealthy"
    again = await converter.decode_failure(failure)
    assert "node-of-the-crown is sick" in str(again)


async def test_without_a_ring_a_sealed_payload_is_an_error_with_what_to_do() -> None:
    with pytest.raises(CodecError) as caught:
        await NoCodec().decode([await sealed()])
    assert caught.value.kind == "NoRing"
    assert RING.active in caught.value.message
    assert KEYS_VARIABLES["clients"] in (caught.value.next_step or "")


# -- rings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(home=tmp_path / "home")


def workers(settings: Settings) -> Rings:
    """The workers' ring of a home."""
    rings = rings_of(settings)
    assert rings is not None
    assert rings.workers is not None
    return rings.workers


def test_a_home_without_rings_writes_nothing_until_they_are_made(settings: Settings) -> None:
    for act in (rings_of, converter_of):
        with pytest.raises(CodecError, match="no ring of keys here") as caught:
            act(settings)
        assert "kedge up" in (caught.value.next_step or "")
    shown = desk_codec.init(settings)
    assert {key.ring for key in shown.keys} == {"workers", "clients"}
    assert workers(settings).ring().active == shown.keys[0].id
    for use in USES:
        assert ring_file(settings, use).path.stat().st_mode & 0o777 == 0o600


def test_only_a_setting_puts_payloads_in_the_open(settings: Settings) -> None:
    opened = settings.model_copy(update={"payloads": "open"})
    assert isinstance(converter_of(opened).payload_codec, NoCodec)
    desk_codec.init(settings)
    with pytest.raises(CodecError, match="would write in the open"):
        converter_of(opened)


def test_bringing_up_a_new_home_gives_it_both_rings(settings: Settings) -> None:
    desk_codec.ensure(settings)
    before = desk_codec.show(settings)
    assert len(before.keys) == 2
    desk_codec.ensure(settings)
    assert desk_codec.show(settings) == before


def test_a_home_with_runs_in_the_open_is_refused_with_what_to_do(settings: Settings) -> None:
    settings.engine_dir.mkdir(parents=True)
    (settings.engine_dir / "temporal.db").touch()
    with pytest.raises(CodecError, match="are in the open") as caught:
        desk_codec.ensure(settings)
    assert "kedge codec init --grace" in (caught.value.next_step or "")
    desk_codec.init(settings, "1d")
    desk_codec.ensure(settings)


def test_a_home_with_one_ring_for_all_is_moved_over_with_a_time_of_grace(
    settings: Settings,
) -> None:
    ring_file(settings).write(RING)
    required_mark(settings).write_text(f"Keys:\n{RING.active}\n")
    settings.engine_dir.mkdir(parents=True)
    (settings.engine_dir / "temporal.db").touch()
    for act in (rings_of, desk_codec.ensure):
        with pytest.raises(CodecError, match="one ring of payload keys") as caught:
            act(settings)
        assert "kedge codec init --grace" in (caught.value.next_step or "")
    with pytest.raises(CodecError, match="one ring for all"):
        desk_codec.init(settings)
    shown = desk_codec.init(settings, "1d")
    assert shown.plaintext_until
    assert shown.keys[0].id == RING.active
    assert workers(settings).ring().reads_plaintext(datetime.now(UTC))


def test_one_key_in_both_rings_is_refused(settings: Settings) -> None:
    for use in USES:
        ring_file(settings, use).write(RING)
    with pytest.raises(CodecError, match="one key is in both rings"):
        rings_of(settings)


def test_a_home_that_had_a_ring_does_nothing_without_it(settings: Settings) -> None:
    desk_codec.init(settings)
    ring_file(settings).path.unlink()
    for act in (rings_of, desk_codec.init, desk_codec.rotate, desk_codec.show):
        with pytest.raises(CodecError) as caught:
            act(settings)
        assert caught.value.kind == "NoRing"
    with pytest.raises(CodecError, match="is not there"):
        desk_codec.ensure(settings)


async def test_nothing_is_started_in_a_home_that_lost_its_ring(settings: Settings) -> None:
    desk_codec.init(settings)
    ring_file(settings).path.unlink()
    with pytest.raises(CodecError, match="is not there"):
        await desk_up.start(settings, lambda _: None)
    assert not settings.engine_dir.exists()


@pytest.mark.parametrize(
    "given", [{"codec_client_ring": Path("nowhere")}, {"codec_ring": Path("nowhere")}]
)
def test_a_ring_that_settings_ask_for_must_be_there(tmp_path: Path, given: Any) -> None:
    with pytest.raises(CodecError, match="is not there"):
        rings_of(Settings.load(home=tmp_path, **given))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_ring_that_others_may_read_is_not_used(settings: Settings, mode: int) -> None:
    desk_codec.init(settings)
    ring_file(settings).path.chmod(mode)
    with pytest.raises(CodecError, match="by others") as caught:
        rings_of(settings)
    assert caught.value.kind == "RingRefused"


def test_the_environment_brings_keys_where_there_is_no_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEYS_VARIABLES["workers"], base64.b64encode(b"1" * 32).decode())
    with pytest.raises(CodecError, match="the clients' ring is not here") as missing:
        rings_of(settings)
    assert KEYS_VARIABLES["clients"] in (missing.value.next_step or "")
    monkeypatch.setenv(KEYS_VARIABLES["clients"], base64.b64encode(b"3" * 32).decode())
    assert workers(settings).ring().active == RING.active
    assert desk_codec.show(settings).where == KEYS_VARIABLES["workers"]
    assert desk_codec.show(settings).clients == KEYS_VARIABLES["clients"]
    with pytest.raises(CodecError, match="not from a file"):
        desk_codec.rotate(settings)
    monkeypatch.setenv(KEYS_VARIABLES["workers"], "not-a-key")
    with pytest.raises(CodecError) as caught:
        converter_of(settings)
    assert "not-a-key" not in caught.value.message


def test_a_home_that_sealed_with_keys_from_the_environment_writes_nothing_in_the_open_without_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.home.mkdir()
    first, second = (base64.b64encode(one * 32).decode() for one in (b"1", b"2"))
    monkeypatch.setenv(KEYS_VARIABLES["workers"], first)
    monkeypatch.setenv(KEYS_VARIABLES["clients"], base64.b64encode(b"3" * 32).decode())
    converter_of(settings)
    for use in USES:
        monkeypatch.delenv(KEYS_VARIABLES[use])
    with pytest.raises(CodecError) as caught:
        converter_of(settings)
    assert caught.value.kind == "NoRing"
    assert KEYS_VARIABLES["workers"] in (caught.value.next_step or "")
    for act in (desk_codec.init, desk_codec.show):
        with pytest.raises(CodecError):
            act(settings)
    # Which keys there are is the variable's: one that was taken out of it there is not missed here.
    monkeypatch.setenv(KEYS_VARIABLES["clients"], base64.b64encode(b"3" * 32).decode())
    for words in (f"{second} {first}", second):
        monkeypatch.setenv(KEYS_VARIABLES["workers"], words)
        assert workers(settings).ring().active != RING.active


def test_a_running_process_takes_up_a_rotated_ring_and_outlives_a_lost_one(
    settings: Settings,
) -> None:
    desk_codec.init(settings)
    file = ring_file(settings)
    living = workers(settings)
    for _ in range(3):
        shown = desk_codec.rotate(settings)
        assert living.ring().active == shown.keys[0].id
    kept = file.path.read_bytes()
    for broken in (b"", b"{}", b"nonsense"):
        file.path.write_bytes(broken)
        assert living.ring().active == shown.keys[0].id
    file.path.unlink()
    assert living.ring().active == shown.keys[0].id
    file.path.write_bytes(kept)
    file.path.chmod(0o600)
    prepared = desk_codec.rotate(settings, prepare=True)
    assert living.ring().active == shown.keys[0].id
    newest = next(key.id for key in prepared.keys if key.id not in {one.id for one in shown.keys})
    desk_codec.rotate(settings, activate=newest)
    assert living.ring().active == newest
    # Another home's ring in its place is none of its own.
    own = file.path.read_bytes()
    file.path.write_bytes(codec.ring_document(OTHER))
    assert living.ring().active == newest
    file.path.write_bytes(own)
    desk_codec.retire(settings, shown.keys[0].id)
    assert shown.keys[0].id not in living.ring().keys


def test_a_second_ring_is_never_made_over_the_first(settings: Settings) -> None:
    desk_codec.init(settings)
    with pytest.raises(CodecError, match="there is a ring already"):
        desk_codec.init(settings)


def test_a_home_with_runs_is_switched_over_with_a_time_of_grace(settings: Settings) -> None:
    settings.engine_dir.mkdir(parents=True)
    (settings.engine_dir / "temporal.db").touch()
    with pytest.raises(CodecError, match="in the open") as caught:
        desk_codec.init(settings)
    assert "--grace" in (caught.value.next_step or "")
    shown = desk_codec.init(settings, "7d")
    assert shown.plaintext_until
    until = codec.moment(shown.plaintext_until)
    assert 6.9 < (until - datetime.now(UTC)).total_seconds() / 86400 <= 7
    assert not desk_codec.grace(settings, "0s").plaintext_until
    with pytest.raises(CodecError, match="is no time"):
        desk_codec.grace(settings, "soon")


def test_a_ring_is_read_only_once_while_it_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    file = RingFile(tmp_path / "ring.json")
    file.write(RING)
    first = file.ring()
    monkeypatch.setattr("kedge.drivers.codec_ring.parse_ring", None)
    assert file.ring() is first


def shared_by_two(tmp_path: Path) -> tuple[Settings, Settings]:
    first = Settings.load(home=tmp_path / "first")
    desk_codec.init(first)
    link, clients = tmp_path / "ring.json", tmp_path / "clients.json"
    link.symlink_to(ring_file(first).path)
    clients.symlink_to(ring_file(first, "clients").path)
    second = Settings.load(home=tmp_path / "second", codec_ring=link, codec_client_ring=clients)
    return first, second


def test_two_homes_that_change_one_ring_at_once_lose_no_key(tmp_path: Path) -> None:
    homes = shared_by_two(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(desk_codec.rotate, homes * 10))
    assert len(ring_file(homes[0]).ring().keys) == 21
    assert (tmp_path / "ring.json").is_symlink()
    assert desk_codec.show(homes[0]).keys == desk_codec.show(homes[1]).keys


def test_a_key_that_was_retired_by_another_home_is_forgotten_by_retiring_it_again(
    tmp_path: Path,
) -> None:
    first, second = shared_by_two(tmp_path)
    old = desk_codec.show(first).keys[0].id
    desk_codec.rotate(second)
    desk_codec.rotate(first)
    desk_codec.retire(second, old)
    with pytest.raises(CodecError, match="not the workers' ring of"):
        rings_of(first)
    desk_codec.retire(first, old)
    assert rings_of(first) is not None
    with pytest.raises(CodecError, match="no key"):
        desk_codec.retire(first, old)


def test_a_ring_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ring.json", 0o600)
    with pytest.raises(CodecError, match="is not a file"):
        RingFile(tmp_path / "ring.json").ring()


def test_a_ring_of_somebody_else_is_not_used(settings: Settings) -> None:
    desk_codec.init(settings)
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(ring_file(settings).path, 65534, -1)
    with pytest.raises(CodecError, match="belongs to somebody else"):
        rings_of(settings)


@pytest.mark.parametrize("time", ["31d", "100000d", "-1d", "1e9d", "nan", "7"])
def test_a_time_of_grace_is_bounded(settings: Settings, time: str) -> None:
    desk_codec.init(settings)
    with pytest.raises(CodecError, match="is no time"):
        desk_codec.grace(settings, time)
    assert not desk_codec.show(settings).plaintext_until


# -- logs ---------------------------------------------------------------------------------------------------------


def test_no_log_of_ours_shows_a_payload() -> None:
    out = io.StringIO()
    configure("json", "info", out)
    payload = Payload(metadata={"encoding": b"json/plain"}, data=b'"crownword"')
    failure = Failure(message="crownword")
    get_logger("test").info(
        "met", payload=payload, several=[payload], failure=failure, named={"x": payload}
    )
    logging.getLogger("another").warning("met", extra={"payload": payload})
    shown = out.getvalue()
    assert shown.count("not logged") >= 5
    assert "crownword" not in shown


def test_the_doctor_says_whether_payloads_are_sealed(settings: Settings) -> None:
    assert "kedge up" in desk_doctor._codec(settings).said
    opened = desk_doctor._codec(settings.model_copy(update={"payloads": "open"}))
    assert (opened.verdict, "in the open" in opened.said) == ("wrong", True)
    desk_codec.init(settings)
    check = desk_doctor._codec(settings)
    assert (check.verdict, "sealed with key" in check.said) == ("ok", True)
    desk_codec.grace(settings, "1d")
    assert "open ones are read until" in desk_doctor._codec(settings).said
    ring_file(settings).path.unlink()
    assert desk_doctor._codec(settings).verdict == "wrong"
    assert desk_doctor._codec(settings).next_step
