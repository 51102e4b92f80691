"""What Temporal gets to see of kedge's payloads: ciphertext, once this home or process has a ring of keys.

Sealed are: arguments and results of workflows and activities, signals, updates, queries and their answers, heartbeats,
messages and details of failures, memos, summaries and details of workflows, activities and timers. Not sealed, because
Temporal itself works with them, and so never to hold a secret: workflow, run and activity ids, types, names of
signals, updates and queries, task queues, search attributes, the type of a failure, identities of workers, times.

Reading is strict. What was never sealed, was changed, or belongs to another workflow is not believed: whoever
expects a value gets a ``CodecError`` instead (a workflow task fails and is tried again), and a signal or an order that
takes anything gets a note of the refusal, which is no order. A key that is not in the ring is an error of the whole
task: another worker may have it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.converter import (
    ActivitySerializationContext,
    CompositePayloadConverter,
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    EncodingPayloadConverter,
    PayloadCodec,
    SerializationContext,
    WithSerializationContext,
    WorkflowSerializationContext,
)

from kedge.drivers.codec_ring import FixedRing, RingFile, Rings
from kedge.drivers.files import sync_directory, write_atomic
from kedge.model.errors import CodecError
from kedge.trust.codec import NONCE_BYTES, Ring, Sealed, open_sealed, ring_of_words, seal
from worker.logs import get_logger
from worker.settings import Settings

ENCODING = b"binary/encrypted"
"""What Temporal's own samples call it; its tools know by it that a codec is needed."""
REFUSED = b"binary/kedge-refused"
KEYS_VARIABLE = "KEDGE_CODEC_KEYS"
"""Keys for machines that have no file for them: base64, separated by blanks, the first one active."""
_COMPLAIN_EVERY = 60.0
_ID = re.compile(r"[0-9a-f]{16}")


def _now() -> datetime:
    return datetime.now(UTC)


class Refusals(EncodingPayloadConverter):
    """What a refused payload becomes: an error where a value of some type is expected, a note where anything goes."""

    @property
    def encoding(self) -> str:
        """See base class."""
        return REFUSED.decode()

    def to_payload(self, value: Any) -> Payload | None:  # noqa: ARG002 - the SDK's signature
        """Nothing of ours is ever written as a refusal."""
        return None

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> Any:
        """Raises ``CodecError`` unless nobody said what is expected."""
        said = json.loads(payload.data)
        if type_hint is None or type_hint is Any:
            return {"kedge_refused": said["said"]}
        raise CodecError(said["kind"], said["said"], next_step=said["next"])


class KedgePayloadConverter(CompositePayloadConverter):
    """Pydantic's converter, and refusals."""

    def __init__(self) -> None:
        super().__init__(*PydanticPayloadConverter().converters.values(), Refusals())


class SealingCodec(PayloadCodec, WithSerializationContext):
    """Seals what goes to Temporal and opens what comes from there.

    ``bound`` is ``<namespace>/<workflow id>`` where the SDK says whom a payload is for, ``<namespace>`` or nothing where
    it does not. Payloads bound to nothing or to the namespace alone are taken by every workflow of it: they come from
    the codec server, which Temporal's own tools do not tell the workflow.
    """

    def __init__(self, rings: Rings, bound: str = "", now: Callable[[], datetime] = _now) -> None:
        self._rings = rings
        self._bound = bound
        self._now = now

    def with_context(self, context: SerializationContext) -> SealingCodec:
        """The codec for one workflow and its activities."""
        if isinstance(context, (WorkflowSerializationContext, ActivitySerializationContext)):
            bound = (
                f"{context.namespace}/{context.workflow_id}"
                if context.workflow_id
                else context.namespace
            )
            if bound != self._bound:
                return SealingCodec(self._rings, bound, self._now)
        return self

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Seals every payload, sealed ones too: nothing gets past by looking sealed. Raises ``CodecError``."""
        ring = self._rings.ring()
        return [self.sealed(ring, payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Opens every payload; refused ones become notes of it. Raises ``CodecError`` for keys that are not here."""
        ring = self._rings.ring()
        return [self.opened(ring, payload) for payload in payloads]

    def sealed(self, ring: Ring, payload: Payload) -> Payload:
        """One payload, sealed."""
        made = seal(ring, payload.SerializeToString(), self._bound, os.urandom(NONCE_BYTES))
        metadata = {"encoding": ENCODING, "encryption-key-id": made.key.encode()}
        if made.bound:
            metadata["encryption-for"] = made.bound.encode()
        return Payload(metadata=metadata, data=made.content)

    def opened(self, ring: Ring, payload: Payload) -> Payload:
        """One payload, opened, or the note of its refusal."""
        try:
            return self.strictly_opened(ring, payload)
        except CodecError as error:
            if error.kind == "UnknownKey":
                raise
            said = {"kind": error.kind, "said": error.message, "next": error.next_step}
            return Payload(metadata={"encoding": REFUSED}, data=json.dumps(said).encode())

    def strictly_opened(self, ring: Ring, payload: Payload) -> Payload:
        """One payload, opened. Raises ``CodecError``."""
        if payload.metadata.get("encoding") != ENCODING:
            if ring.reads_plaintext(self._now()):
                return payload
            raise CodecError(
                "Plaintext",
                "a payload came in the open, and this home takes sealed ones only",
                next_step="send it through the codec (temporal --codec-endpoint), or with kedge; "
                "`kedge codec grace TIME` reads open ones for a while",
            )
        bound = _text(payload.metadata.get("encryption-for", b""))
        namespace = self._bound.partition("/")[0]
        if self._bound and bound not in (self._bound, namespace, ""):
            raise CodecError(
                "WrongWorkflow",
                f"a payload was sealed for {bound[:200]!r}, not for {self._bound!r}",
                next_step="find out who moved it; the payload is not believed",
            )
        sealed = Sealed(_text(payload.metadata.get("encryption-key-id", b"")), bound, payload.data)
        found = Payload()
        found.ParseFromString(open_sealed(ring, sealed))
        return found


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


class NoCodec(PayloadCodec):
    """For homes without a ring: writes in the open, and says what is wrong when it meets something sealed."""

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """The payloads as they are."""
        return list(payloads)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """The payloads as they are. Raises ``CodecError`` (``NoRing``) for a sealed one."""
        for payload in payloads:
            if payload.metadata.get("encoding") == ENCODING:
                key = _text(payload.metadata.get("encryption-key-id", b""))[:32]
                raise CodecError(
                    "NoRing",
                    f"what Temporal has here is sealed with key {key}, and there is no ring of keys here",
                    next_step=f"bring the ring: KEDGE_CODEC_RING names its file, {KEYS_VARIABLE} holds its keys",
                )
        return list(payloads)


class LivingRing:
    """A ring that is followed while a process runs: a rotated one is taken up, a lost one changes nothing.

    A process that has read its ring once goes on with it when the file is lost or broken: what it writes is sealed
    all the same. It complains in the log.
    """

    def __init__(self, rings: Rings) -> None:
        self._rings = rings
        self._last = rings.ring()
        self._complained = -_COMPLAIN_EVERY

    def ring(self) -> Ring:
        """The ring as it is now, or as it was last good."""
        try:
            self._last = self._rings.ring()
        except CodecError as error:
            if time.monotonic() - self._complained >= _COMPLAIN_EVERY:
                self._complained = time.monotonic()
                get_logger("codec").error("the ring is lost, the last one is used", reason=error.message, next=error.next_step)  # fmt: skip
        return self._last


def ring_file(settings: Settings) -> RingFile:
    """Where the ring of these settings is, whether or not it is there."""
    return RingFile(settings.codec_ring or settings.home / "trust" / "codec.json")


def required_mark(settings: Settings) -> Path:
    """The file that says that this home had a ring: without one nothing is written any more."""
    return settings.home / "codec.required"


def mark(settings: Settings, keys: Iterable[str]) -> None:
    """Notes that this home has a ring, and the names of its keys: a wrong one is known by them. Raises ``OSError``."""
    path = required_mark(settings)
    text = "This home seals what it gives to Temporal (docs/secrets.md). Keys:"
    write_atomic(path, "\n".join([text, *sorted(keys), ""]).encode())
    sync_directory(path.parent)


def marked_keys(settings: Settings) -> tuple[str, ...]:
    """The names of the keys this home is known to have sealed with; empty where it never had a ring."""
    try:
        words = required_mark(settings).read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return ()
    return tuple(word for word in words if _ID.fullmatch(word))


def checked(ring: Ring, settings: Settings) -> Ring:
    """The ring, if it is this home's. Raises ``CodecError`` (``RingRefused``) for another one, before anything is
    written with it that nobody here could read.
    """
    missing = [key for key in marked_keys(settings) if key not in ring.keys]
    if missing:
        raise CodecError(
            "RingRefused",
            f"this is not the ring of {settings.home}: it has no key {', '.join(missing[:4])}, with which payloads here are sealed",
            next_step="bring the home's own ring back; keys that nobody needs any more go with `kedge codec retire`",
        )
    return ring


class OwnRing:
    """A home's own ring in its file: another one is refused whenever it comes, also while a process runs."""

    def __init__(self, file: Rings, settings: Settings) -> None:
        self._file = file
        self._settings = settings
        self._good: Ring | None = None

    def ring(self) -> Ring:
        """The ring as it is now. Raises ``CodecError``."""
        found = self._file.ring()
        if found is not self._good:
            self._good = checked(found, self._settings)
        return found


def rings_of(settings: Settings) -> Rings | None:
    """The ring these settings mean; None where payloads are in the open.

    Raises ``CodecError`` for a ring that is required and not there, or cannot be used.
    """
    words = os.environ.get(KEYS_VARIABLE, "")
    marked = required_mark(settings).exists()
    if words.strip():
        ring = checked(ring_of_words(words), settings)
        if not marked and settings.home.is_dir():
            # Without names: which keys a variable has is changed where it is set. Who may not write here notes nothing.
            with contextlib.suppress(OSError):
                mark(settings, ())
        return LivingRing(FixedRing(ring))
    file = ring_file(settings)
    wanted = settings.codec_required or settings.codec_ring is not None
    if marked and not wanted and not file.there() and not marked_keys(settings):
        raise CodecError(
            "NoRing",
            f"{settings.home} gave sealed payloads to Temporal, with keys that are not here now",
            next_step=f"set {KEYS_VARIABLE} as it was, or put {file.path} back; only a home without runs may begin anew in the open "
            f"(remove {required_mark(settings)})",
        )
    if wanted or file.there() or marked:
        return LivingRing(OwnRing(file, settings))
    return None


def converter_of(settings: Settings) -> DataConverter:
    """The data converter for every connection of these settings. Raises ``CodecError`` as :func:`rings_of`."""
    rings = rings_of(settings)
    if rings is None:
        return dataclasses.replace(pydantic_data_converter, payload_codec=NoCodec())
    return sealing_converter(rings)


def sealing_converter(rings: Rings) -> DataConverter:
    """A data converter that seals with these rings; messages and stacks of failures become payloads too."""
    return DataConverter(
        payload_converter_class=KedgePayloadConverter,
        payload_codec=SealingCodec(rings),
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )
