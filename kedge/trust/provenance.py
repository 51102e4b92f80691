"""How an artifact was built, and by how many: in-toto Statement v1 and SLSA provenance v1, judged by a policy's rules.

Sources: SLSA v1.0 "Verifying artifacts", DSSE v1. How a statement is read: :mod:`kedge.trust.statement`. What a rule needs
and cannot be found is a refusal.

An envelope counts for an artifact when each of these holds, in this order; the first that does not names its verdict:

- ``unreadable``: it is a DSSE envelope of at most 1 MiB, strict JSON;
- ``payload-type``: ``application/vnd.in-toto+json``;
- ``bundle``: a sigstore bundle is verified offline by the pinned trusted root;
- ``signature``: one of the policy's builders signed it;
- ``statement``, ``predicate-type``: it is a Statement v1 about SLSA provenance v1, complete;
- ``builder``: its ``builder.id`` is one of the policy's, and it was *that* builder's key or identity that signed;
- ``build-type``, ``source``: both are the policy's. The sources are those that ``externalParameters`` name
  (:func:`kedge.trust.statement.sources_of`), not what was merely fetched during the build; all that are named must be accepted;
- ``time``: the build ended after it began, not in the future, and no longer ago than ``max_age``. Of a bundle that does not
  say when the build ended, the time at which the log took it is taken;
- ``subject``: the artifact's sha256 is among its subjects;
- ``repeated``: no other envelope of the same builder was counted already.

Enough builders agree when ``builders_agree`` different ids are counted, with distinct key material. Everything else is a
verdict that says no: nothing that is in an envelope raises.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from kedge.model.base import Digest, Json
from kedge.model.errors import OrderError
from kedge.model.order import Instant
from kedge.model.provenance import (
    Builder,
    BuilderIdentity,
    EnvelopeVerdict,
    ProvenanceRule,
    ProvenanceRules,
    ProvenanceVerdict,
)
from kedge.model.trusted import Attestation
from kedge.trust.dsse import MOST_BYTES, Dsse, EnvelopeError, signers, take_apart
from kedge.trust.envelope import moment
from kedge.trust.keys import PublicKey, parse_public_key
from kedge.trust.refusal import quoted
from kedge.trust.statement import (
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    BuildDefinition,
    BuildMetadata,
    SlsaProvenance,
    Statement,
    Subject,
    sources_of,
)
from kedge.trust.strict_json import read_json

MOST_ENVELOPES = 32
"""How many envelopes one release may have; what stands behind them is not looked at, which is said."""
SKEW = timedelta(minutes=5)
"""How far in the future a build may have ended, by a builder's clock."""

_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = "[A-Za-z0-9._~+-]+"


@dataclass(frozen=True)
class Proven:
    """What a verified bundle holds: the envelope, and the identity in its certificate."""

    envelope: Dsse
    identity: BuilderIdentity
    logged: datetime | None = None
    """When a transparency log took it, where that is proven."""


BundleVerifier = Callable[[bytes], Proven]
"""Verifies a sigstore bundle offline; raises ``OrderError`` with a sentence when it does not hold
(:mod:`kedge.trust.bundles`)."""


class _RefusedError(Exception):
    """An envelope does not count: the rule, the sentence, and what was read until then."""

    def __init__(self, rule: ProvenanceRule, said: str) -> None:
        super().__init__(said)
        self.rule: ProvenanceRule = rule
        self.said = said


@dataclass
class _Seen:
    """What was read of an envelope so far."""

    builder: str = ""
    counts_as: str = ""
    build_type: str = ""
    sources: tuple[str, ...] = ()
    finished: str = ""
    keys: tuple[str, ...] = ()
    logged: datetime | None = None
    subjects: tuple[Subject, ...] = ()


@dataclass(frozen=True)
class _Looked:
    """An envelope judged up to its subject, which is all that differs between the artifacts of a release."""

    name: str
    digest: Digest
    seen: _Seen
    refused: _RefusedError | None


def judge_provenance(
    subject: Digest,
    attestations: Sequence[Attestation],
    rules: ProvenanceRules,
    now: Instant,
    bundles: BundleVerifier | None = None,
) -> ProvenanceVerdict:
    """Whether enough builders arrived at the artifact of this sha256; total over what the attestations hold.

    ``bundles`` verifies sigstore bundles; None: there is no trusted root, and a bundle counts for nothing.
    """
    return judge_artifacts({"": subject}, attestations, rules, now, bundles)[""]


def judge_artifacts(
    subjects: Mapping[str, Digest],
    attestations: Sequence[Attestation],
    rules: ProvenanceRules,
    now: Instant,
    bundles: BundleVerifier | None = None,
) -> dict[str, ProvenanceVerdict]:
    """A verdict for each artifact of a release, by its platform. Signatures are verified once for all of them."""
    bench = _Bench(rules, moment(now), bundles)
    looked = [bench.look(one) for one in attestations[:MOST_ENVELOPES]]
    left_out = max(0, len(attestations) - MOST_ENVELOPES)
    return {
        name: _count(digest, looked, rules, left_out=left_out) for name, digest in subjects.items()
    }


class _Bench:
    """The rules with their keys read, and the time."""

    def __init__(
        self, rules: ProvenanceRules, now: datetime, bundles: BundleVerifier | None
    ) -> None:
        self._rules = rules
        self._now = now
        self._bundles = bundles
        self._keys, self._owner = _keyring(rules.builders)
        self._sources = tuple(_pattern(source) for source in rules.sources)

    def look(self, given: Attestation) -> _Looked:
        # Lone surrogates cannot be written, yet the refusal needs a name to be filed under.
        content = given.content.encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(content).hexdigest()
        seen = _Seen()
        refused: _RefusedError | None = None
        try:
            self._judge(content, seen)
        except _RefusedError as error:
            refused = error
        return _Looked(given.name, digest, seen, refused)

    def _judge(self, content: bytes, seen: _Seen) -> None:
        value = _json(content)
        if isinstance(value, dict) and "mediaType" in value:
            envelope, signed_as = self._proven(content, seen)
        else:
            envelope, signed_as = self._signed(value, seen)
        statement = _statement(envelope.payload)
        seen.subjects = statement.subject
        provenance = _predicate(statement)
        self._judge_builder(provenance.run.builder.id, signed_as, seen)
        self._judge_definition(provenance.build, seen)
        self._judge_time(provenance.run.metadata or BuildMetadata(), seen)

    def _signed(self, value: Json, seen: _Seen) -> tuple[Dsse, frozenset[str]]:
        """The envelope, and the ids of the builders whose keys signed it."""
        try:
            envelope = take_apart(value)
        except EnvelopeError as error:
            raise _RefusedError("unreadable", f"the envelope {error.message}") from error
        _expect_payload_type(envelope)
        found = signers(envelope, self._keys)
        if not found:
            raise _RefusedError(
                "signature",
                "no key of the policy's builders made a signature over this payload: it was changed, or another signed",
            )
        seen.keys = tuple(key.fingerprint for key in found)
        return envelope, frozenset(self._owner[key.material] for key in found)

    def _proven(self, content: bytes, seen: _Seen) -> tuple[Dsse, frozenset[str]]:
        if self._bundles is None:
            raise _RefusedError(
                "bundle", "it is a sigstore bundle, and there is no trusted root to judge it by"
            )
        try:
            proven = self._bundles(content)
        except OrderError as error:
            raise _RefusedError("bundle", error.message) from error
        _expect_payload_type(proven.envelope)
        owners = frozenset(
            builder.id
            for builder in self._rules.builders
            if builder.identity is not None and _is_identity(builder.identity, proven.identity)
        )
        if len(owners) != 1:
            who = proven.identity
            raise _RefusedError(
                "signature",
                f"{quoted(who.subject)} of {quoted(who.issuer)} signed it, who is not one builder of the policy",
            )
        seen.logged = proven.logged
        return proven.envelope, owners

    def _judge_builder(self, claimed: str, signed_as: frozenset[str], seen: _Seen) -> None:
        seen.builder = claimed
        meant = [one.id for one in self._rules.builders if _pattern(one.id).fullmatch(claimed)]
        if not meant:
            raise _RefusedError(
                "builder", f"the policy does not know the builder {quoted(claimed)}"
            )
        fitting = signed_as.intersection(meant)
        if not fitting:
            raise _RefusedError(
                "builder",
                f"it says that {quoted(claimed)} built, but {quoted(min(signed_as))} signed it",
            )
        seen.counts_as = min(fitting)

    def _judge_definition(self, build: BuildDefinition, seen: _Seen) -> None:
        seen.build_type = build.build_type
        if build.build_type not in self._rules.build_types:
            said = f"the policy does not accept the build type {quoted(build.build_type)}"
            raise _RefusedError("build-type", said)
        seen.sources = sources_of(build.external_parameters)
        if not seen.sources:
            raise _RefusedError(
                "source", "its external parameters name no source that can be judged"
            )
        for source in seen.sources:
            if not any(pattern.fullmatch(source) for pattern in self._sources):
                raise _RefusedError(
                    "source", f"the policy does not accept the source {quoted(source)}"
                )

    def _judge_time(self, metadata: BuildMetadata, seen: _Seen) -> None:
        begun, ended = _when(metadata.started), _when(metadata.finished)
        seen.finished = metadata.finished if ended is not None and metadata.finished else ""
        if metadata.finished is None and seen.logged is not None:
            # It was signed after it was built, so this is the latest that the build can have ended.
            ended, seen.finished = seen.logged, seen.logged.strftime("%Y-%m-%dT%H:%M:%SZ")
        if ended is None:
            if metadata.finished is not None or self._rules.max_age is not None:
                raise _RefusedError("time", "it does not say when the build ended (finishedOn)")
        elif ended > self._now + SKEW:
            raise _RefusedError(
                "time", f"it says that the build ended in the future, {seen.finished}"
            )
        elif self._rules.max_age is not None and (
            self._now - ended > timedelta(seconds=self._rules.max_age)
        ):
            raise _RefusedError(
                "time",
                f"the build ended {seen.finished}; the policy takes builds of the last {_age(self._rules.max_age)}",
            )
        if metadata.started is not None and begun is None:
            raise _RefusedError("time", "what it says about when the build began is no time")
        if begun is not None and begun > (ended or self._now + SKEW):
            raise _RefusedError("time", "it says that the build began after it ended")


def _keyring(builders: Iterable[Builder]) -> tuple[tuple[PublicKey, ...], dict[str, str]]:
    """The keys, and the one builder of each key material.

    The model refuses a key under two builders; should one come past it, it counts for nobody.
    """
    keys: list[PublicKey] = []
    held: dict[str, set[str]] = {}
    for builder in builders:
        for line in builder.keys:
            key = parse_public_key(line)
            keys.append(key)
            held.setdefault(key.material, set()).add(builder.id)
    owner = {material: min(ids) for material, ids in held.items() if len(ids) == 1}
    return tuple(key for key in keys if key.material in owner), owner


def _json(content: bytes) -> Json:
    try:
        return read_json(content, most_bytes=MOST_BYTES)
    except ValueError as error:
        raise _RefusedError("unreadable", f"the envelope {error}") from error


def _expect_payload_type(envelope: Dsse) -> None:
    if envelope.payload_type != PAYLOAD_TYPE:
        raise _RefusedError(
            "payload-type",
            f"its payload is {quoted(envelope.payload_type)}, not {PAYLOAD_TYPE}",
        )


def _statement(payload: bytes) -> Statement:
    try:
        value = read_json(payload, most_bytes=MOST_BYTES)
        return Statement.model_validate_json(json.dumps(value))
    except ValidationError as error:
        raise _RefusedError(
            "statement", f"it is no in-toto Statement v1: {_first(error)}"
        ) from error
    except ValueError as error:
        raise _RefusedError("statement", f"the payload {error}") from error


def _predicate(statement: Statement) -> SlsaProvenance:
    if statement.predicate_type != PREDICATE_TYPE:
        raise _RefusedError(
            "predicate-type",
            f"it is about {quoted(statement.predicate_type)}, not {PREDICATE_TYPE}",
        )
    try:
        return SlsaProvenance.model_validate_json(json.dumps(statement.predicate))
    except ValidationError as error:
        raise _RefusedError(
            "statement", f"its predicate is no SLSA provenance v1: {_first(error)}"
        ) from error


def _first(error: ValidationError) -> str:
    one = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{quoted('.'.join(map(str, one['loc'])))}: {quoted(one['msg'], 120)}"


def _is_identity(wanted: BuilderIdentity, found: BuilderIdentity) -> bool:
    return (
        wanted.issuer == found.issuer
        and _pattern(wanted.subject).fullmatch(found.subject) is not None
    )


def _pattern(source: str) -> re.Pattern[str]:
    """``*`` is one part of a path, and never ``.`` or ``..``."""
    parts = [re.escape(part) for part in source.split("*")]
    return re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))" + _PART.join(parts), re.ASCII)


def _when(text: str | None) -> datetime | None:
    """The point in time; None where the text is none."""
    found = _TIME.fullmatch(text or "")
    if found is None:
        return None
    try:
        return datetime.fromisoformat(found[1] + found[2].replace("Z", "+00:00")).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _age(seconds: float) -> str:
    return f"{seconds / 86400:g} days" if seconds >= 2 * 86400 else f"{seconds / 3600:g} hours"


def _count(
    subject: Digest, looked: Sequence[_Looked], rules: ProvenanceRules, *, left_out: int
) -> ProvenanceVerdict:
    agreed: dict[str, _Looked] = {}
    verdicts: list[EnvelopeVerdict] = []
    for one in looked:
        refused = one.refused or _not_about(subject, one.seen.subjects)
        who = one.seen.counts_as
        if refused is None and who in agreed:
            said = f"{agreed[who].name} is of {quoted(who)} already: a builder counts once"
            refused = _RefusedError("repeated", said)
        if refused is None:
            agreed[who] = one
        verdicts.append(_verdict(one, refused))
    names = tuple(agreed)
    ok = len(names) >= rules.builders_agree
    said = _total(subject, names, rules.builders_agree)
    dissent = _dissent(subject, looked, agreed)
    if dissent:
        said += f"; {', '.join(dissent)} arrived at other bytes"
    if left_out:
        said += f"; {left_out} more envelopes were not looked at: {MOST_ENVELOPES} are the most"
    return ProvenanceVerdict(
        ok=ok,
        said=said,
        subject=subject,
        needed=rules.builders_agree,
        agreed=names,
        dissent=dissent,
        envelopes=tuple(verdicts),
    )


def _not_about(subject: Digest, subjects: Sequence[Subject]) -> _RefusedError | None:
    if any(one.digest.get("sha256") == subject for one in subjects):
        return None
    others = ", ".join(quoted(one.name or "?", 60) for one in subjects[:3])
    more = f" and {len(subjects) - 3} more" if len(subjects) > 3 else ""
    return _RefusedError(
        "subject", f"the artifact {subject[:12]}… is not among what it is about: {others}{more}"
    )


def _dissent(
    subject: Digest, looked: Sequence[_Looked], agreed: Mapping[str, _Looked]
) -> tuple[str, ...]:
    """Builders that are believed and arrived at another digest for what those that agree call by the same name."""
    names = {
        one.name
        for counted in agreed.values()
        for one in counted.seen.subjects
        if one.name and one.digest.get("sha256") == subject
    }
    found = {
        other.seen.counts_as: None
        for other in looked
        if other.refused is None
        for one in other.seen.subjects
        if one.name in names and one.digest.get("sha256") != subject
    }
    return tuple(found)


def _verdict(one: _Looked, refused: _RefusedError | None) -> EnvelopeVerdict:
    seen = one.seen
    if refused is None:
        from_ = ", ".join(seen.sources)
        said = f"{seen.builder} built it from {from_}" + (
            f" until {seen.finished}" if seen.finished else ""
        )
    else:
        said = refused.said
    return EnvelopeVerdict(
        name=one.name,
        digest=one.digest,
        rule="counted" if refused is None else refused.rule,
        said=said,
        builder=_plain(seen.builder),
        build_type=_plain(seen.build_type),
        sources=tuple(_plain(source) for source in seen.sources[:8]),
        finished=seen.finished,
        keys=seen.keys,
    )


def _plain(text: str) -> str:
    """What an envelope says, fit to be shown: as it is where that is short plain text."""
    return text if len(text) <= 600 and text.isascii() and text.isprintable() else quoted(text, 200)


def _total(subject: Digest, agreed: Sequence[str], needed: int) -> str:
    who = f": {', '.join(agreed)}" if agreed else ""
    builders = "builder" if len(agreed) == 1 else "independent builders"
    said = f"{len(agreed)} {builders} arrived at {subject[:12]}…, {needed} needed{who}"
    return said if agreed else f"nobody who is believed arrived at {subject[:12]}…, {needed} needed"
