"""What Temporal gets to see of kedge's payloads: ciphertext.

Sealed are: arguments and results of workflows and activities, signals, updates, queries and their answers, heartbeats,
messages and details of failures, memos, summaries and details of workflows, activities and timers. Not sealed, because
Temporal itself works with them, and so never to hold a secret: workflow, run and activity ids, types, names of
signals, updates and queries, task queues, search attributes, the type of a failure, identities of workers, times.

Two codecs, two rings (:mod:`kedge.trust.payload_kinds`). :class:`ClientCodec` is every client's: whatever it seals is a
client's word. :class:`WorkerCodec` is a worker's: :mod:`worker.sealed` labels what a workflow writes, and judges what it
reads by the labels that this codec found to be sealed.

Reading is strict. A payload that was never sealed, was changed, is of another kind, or belongs to another workflow is not
believed: whoever expects a value gets a ``CodecError`` instead, and a signal or an order that takes anything gets a note of
the refusal, which is no order. A key that is not in the ring is an error of the whole task: another worker may have it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.converter import (
    ActivitySerializationContext,
    CompositePayloadConverter,
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    EncodingPayloadConverter,
    PayloadCodec,
    PayloadConverter,
    SerializationContext,
    WithSerializationContext,
    WorkflowSerializationContext,
)

from kedge.drivers.codec_ring import Rings
from kedge.model.errors import CodecError
from kedge.trust import payload_kinds as kinds
from kedge.trust.codec import NONCE_BYTES, Sealed, open_sealed, seal

ENCODING = b"binary/encrypted"
"""What Temporal's own samples call it; its tools know by it that a codec is needed."""
REFUSED = b"binary/kedge-refused"
KIND, REQUEST = "kedge-kind", "kedge-request"
"""Labels of payloads inside a worker. They never reach Temporal: there their values stand beside what is sealed."""

answering: ContextVar[str | None] = ContextVar("answering", default=None)
"""The name of the question whose answer this task waits for; None where it asked none by name."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class KeyRings:
    """Both rings; a client may have no workers' ring."""

    clients: Rings
    workers: Rings | None = None

    def of(self, kind: str) -> Rings:
        """The ring for a kind. Raises ``CodecError`` (``NoRing``) where it is not here."""
        if kinds.ring_of(kind) == "clients":
            return self.clients
        if self.workers is None:
            raise CodecError(
                "NoRing",
                "this payload is sealed between workers, and their ring of keys is not here",
                next_step="read it through the codec server (`kedge codec login`), or on a worker",
            )
        return self.workers


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


class KedgeFailureConverter(DefaultFailureConverterWithEncodedAttributes):
    """Words and details of a failure are sealed, and bound to what of it stays in the open."""

    def to_failure(
        self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure
    ) -> None:
        """See base class."""
        super().to_failure(exception, payload_converter, failure)
        for one in chain(failure):
            info = one.application_failure_info
            words, details = failure_kinds(one)
            label([one.encoded_attributes] if one.HasField("encoded_attributes") else [], words, "")
            label(info.details.payloads, details, "")


def chain(failure: Failure) -> Iterable[Failure]:
    """A failure and its causes."""
    yield failure
    while failure.HasField("cause"):
        failure = failure.cause
        yield failure


def failure_kinds(failure: Failure) -> tuple[str, str]:
    """The kinds of the words and the details of a failure."""
    info = failure.application_failure_info
    final = info.non_retryable
    return kinds.failure(info.type, final=final), kinds.details(info.type, final=final)


def label(payloads: Iterable[Payload], kind: str, request: str) -> None:
    """Say what these payloads are sealed as, and what they answer."""
    for payload in payloads:
        payload.metadata[KIND] = kind.encode()
        payload.metadata[REQUEST] = request.encode()


def label_of(payload: Payload) -> tuple[str, str]:
    """What a payload was sealed as, and what it answers; empty for one that was refused."""
    return _text(payload.metadata.get(KIND, b"")), _text(payload.metadata.get(REQUEST, b""))


def refusal(error: CodecError) -> Payload:
    """The note that stands for a refused payload."""
    said = {"kind": error.kind, "said": error.message, "next": error.next_step}
    return Payload(metadata={"encoding": REFUSED}, data=json.dumps(said).encode())


class ClientCodec(PayloadCodec, WithSerializationContext):
    """Seals a client's words with the clients' ring, and opens what this process may read.

    ``bound`` is ``<namespace>/<workflow id>`` where the SDK says whom a payload is for, ``<namespace>`` or nothing where
    it does not: so do Temporal's own tools, by way of the codec server. ``reads`` says which kinds are read.
    """

    def __init__(
        self,
        rings: KeyRings,
        bound: str = "",
        now: Callable[[], datetime] = _now,
        reads: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.rings = rings
        self._bound = bound
        self._now = now
        self._reads = reads

    def with_context(self, context: SerializationContext) -> ClientCodec:
        """The codec for one workflow and its activities."""
        return ClientCodec(self.rings, _bound(context, self._bound), self._now, self._reads)

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Seals every payload, sealed ones too: nothing gets past by looking sealed. Raises ``CodecError``."""
        return [self.sealed(payload, kinds.CLIENT, "") for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Opens every payload; refused ones become notes of it. Raises ``CodecError`` for keys that are not here."""
        return [self._answer(payload) for payload in payloads]

    def _answer(self, payload: Payload) -> Payload:
        opened = self.opened(payload)
        kind, request = label_of(opened)
        wanted = answering.get()
        if kind == kinds.ANSWER and wanted is not None and request != wanted:
            return refusal(
                CodecError(
                    "Tampered",
                    "an answer is to another question than the one that was asked",
                    next_step="ask again; if it stays, find out who else polls the task queue",
                )
            )
        return unlabelled(opened)

    def sealed(self, payload: Payload, kind: str, request: str) -> Payload:
        """One payload, sealed as that kind."""
        inner = unlabelled(payload).SerializeToString()
        ring = self.rings.of(kind).ring()
        made = seal(ring, inner, self._bound, os.urandom(NONCE_BYTES), kind, request)
        metadata = {
            "encoding": ENCODING,
            "encryption-key-id": made.key.encode(),
            "encryption-kind": kind.encode(),
        }
        if made.bound:
            metadata["encryption-for"] = made.bound.encode()
        if request:
            metadata["encryption-request"] = request.encode()
        return Payload(metadata=metadata, data=made.content)

    def opened(self, payload: Payload) -> Payload:
        """One payload, opened and labelled, or the note of its refusal."""
        try:
            return self.strictly_opened(payload)
        except CodecError as error:
            if error.kind in ("UnknownKey", "NoRing"):
                raise
            return refusal(error)

    def strictly_opened(self, payload: Payload) -> Payload:
        """One payload, opened and labelled. Raises ``CodecError``."""
        if payload.metadata.get("encoding") != ENCODING:
            return self._of_before(payload)
        bound = _text(payload.metadata.get("encryption-for", b""))
        key = _text(payload.metadata.get("encryption-key-id", b""))
        if "encryption-kind" not in payload.metadata:
            return self._of_before(payload, Sealed(key, bound, payload.data))
        kind = _text(payload.metadata["encryption-kind"])
        request = _text(payload.metadata.get("encryption-request", b""))
        self._check_bound(bound, kind)
        if not self._reads(kind):
            raise _wrong_kind(kind)
        self._check_ring(key, kind)
        sealed = Sealed(key, bound, payload.data, kind, request)
        found = Payload()
        found.ParseFromString(open_sealed(self.rings.of(kind).ring(), sealed))
        label([found], kind, request)
        return found

    def _check_bound(self, bound: str, kind: str) -> None:
        allowed = {self._bound}
        if kind == kinds.CLIENT:
            allowed |= {self._bound.partition("/")[0], ""}
        if self._bound and bound not in allowed:
            raise CodecError(
                "WrongWorkflow",
                f"a payload was sealed for {bound[:200]!r}, not for {self._bound!r}",
                next_step="find out who moved it; the payload is not believed",
            )

    def _check_ring(self, key: str, kind: str) -> None:
        """A key of the other ring is no key that may come later: what it sealed is forged."""
        own = kinds.ring_of(kind)
        other = self.rings.workers if own == "clients" else self.rings.clients
        if other is None or key not in other.ring().keys:
            return
        if key not in self.rings.of(kind).ring().keys:
            raise CodecError(
                "Tampered",
                f"a payload says that it is {kind[:100]!r}, and is not sealed with the ring of the {own}",
                next_step="find out who has keys of that ring; the payload is not believed",
            )

    def _of_before(self, payload: Payload, sealed: Sealed | None = None) -> Payload:
        """What was written before there were two rings, or in the open: read in a time of grace only."""
        workers = self.rings.workers
        grace = workers is not None and workers.ring().reads_plaintext(self._now())
        if not grace or workers is None:
            what = "in the open" if sealed is None else "sealed without its kind, as before"
            raise CodecError(
                "Plaintext",
                f"a payload came {what}, and this home takes sealed ones of a known kind only",
                next_step="send it through the codec (temporal --codec-endpoint), or with kedge; "
                "`kedge codec grace TIME` reads such payloads for a while",
            )
        found = Payload()
        if sealed is None:
            found.CopyFrom(payload)
        else:
            self._check_bound(sealed.bound, kinds.CLIENT)
            found.ParseFromString(open_sealed(workers.ring(), sealed))
        label([found], kinds.GRACE, "")
        return found


class WorkerCodec(ClientCodec):
    """A worker's: payloads keep the labels with which they were sealed, and are sealed as they are labelled.

    For an activity, what it returns answers the request that it was given. Arguments that were not sealed as this
    activity's are refused.
    """

    def __init__(
        self,
        rings: KeyRings,
        bound: str = "",
        now: Callable[[], datetime] = _now,
        activity: str | None = None,
    ) -> None:
        super().__init__(rings, bound, now)
        self._activity = activity
        self._request: str | None = None

    def with_context(self, context: SerializationContext) -> WorkerCodec:
        """The codec for one workflow, or for one activity: each time a new one, for it knows its request."""
        own = isinstance(context, ActivitySerializationContext)
        name = (context.activity_type or "") if isinstance(context, ActivitySerializationContext) else None  # fmt: skip
        return WorkerCodec(
            self.rings, _bound(context, self._bound), self._now, name if own else None
        )

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Seals every payload as it is labelled."""
        return [self._sealed_as_labelled(payload) for payload in payloads]

    def _sealed_as_labelled(self, payload: Payload) -> Payload:
        kind, request = label_of(payload)
        if self._request is not None:
            return self.sealed(payload, kind or kinds.RESULT, self._request)
        return self.sealed(payload, kind or kinds.NOTE, request)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Opens every payload, with the label that it was sealed with; refused ones become notes of it."""
        opened = [self.opened(payload) for payload in payloads]
        if self._activity is None:
            return opened
        return [self._argument(payload) for payload in opened]

    def _argument(self, payload: Payload) -> Payload:
        kind, request = label_of(payload)
        if kind == kinds.NOTE:
            # Details of an earlier heartbeat: no activity reads them.
            return Payload(metadata={"encoding": b"binary/null"})
        if kind in (kinds.activity_input(self._activity or ""), kinds.GRACE):
            if self._request is None:
                self._request = request
            return unlabelled(payload)
        if payload.metadata.get("encoding") == REFUSED:
            return payload
        return refusal(_wrong_kind(kind))


def _wrong_kind(kind: str) -> CodecError:
    return CodecError(
        "WrongKind",
        f"a payload is sealed as {kind[:100]!r}, and something else is expected here",
        next_step="find out who moved it; the payload is not believed",
    )


def _bound(context: SerializationContext, otherwise: str) -> str:
    if isinstance(context, (WorkflowSerializationContext, ActivitySerializationContext)):
        if context.workflow_id:
            return f"{context.namespace}/{context.workflow_id}"
        return context.namespace
    return otherwise


def unlabelled(payload: Payload) -> Payload:
    """The payload without labels: a copy, where there are any."""
    if KIND not in payload.metadata and REQUEST not in payload.metadata:
        return payload
    made = Payload()
    made.CopyFrom(payload)
    made.metadata.pop(KIND, None)
    made.metadata.pop(REQUEST, None)
    return made


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


class NoCodec(PayloadCodec):
    """For homes whose payloads are in the open: says what is wrong when it meets something sealed."""

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
                    next_step="bring the clients' ring: KEDGE_CODEC_CLIENT_RING names its file, KEDGE_CODEC_CLIENT_KEYS "
                    "holds its keys",
                )
        return list(payloads)


def open_converter() -> DataConverter:
    """Payloads in the open."""
    return dataclasses.replace(pydantic_data_converter, payload_codec=NoCodec())


def client_converter(
    rings: KeyRings, reads: Callable[[str], bool] = lambda _: True
) -> DataConverter:
    """A client's data converter; messages and stacks of failures become payloads too."""
    return _converter(ClientCodec(rings, reads=reads))


def worker_converter(rings: KeyRings) -> DataConverter:
    """A worker's data converter, for workflows and activities. Raises ``CodecError`` without a workers' ring."""
    rings.of(kinds.RESULT)
    return _converter(WorkerCodec(rings))


class KedgeDataConverter(DataConverter):
    """For codecs that take a context, beside converters that take none.

    A context comes with each payload and each activity; the SDK's own method makes a whole new set of converters for it.
    """

    def with_context(self, context: SerializationContext) -> Self:
        """This converter, with the codec of that context."""
        codec = self.payload_codec
        if not isinstance(codec, ClientCodec):
            return super().with_context(context)
        bound = object.__new__(type(self))
        vars(bound).update(vars(self), payload_codec=codec.with_context(context))
        return bound


def _converter(codec: PayloadCodec) -> DataConverter:
    return KedgeDataConverter(
        payload_converter_class=KedgePayloadConverter,
        payload_codec=codec,
        failure_converter_class=KedgeFailureConverter,
    )
