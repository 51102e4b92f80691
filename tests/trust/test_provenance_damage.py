"""Thousands of damaged envelopes: none counts, none raises, each gets a sentence."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.model.provenance import ProvenanceVerdict
from kedge.trust.dsse import EnvelopeError, read_envelope
from kedge.trust.provenance import judge_provenance
from tests.trust.building import (
    NOW,
    SUBJECT,
    attested,
    builder,
    envelope,
    private,
    rules,
    statement,
    wrap,
)

DEFINITION = "predicate/buildDefinition"
METADATA = "predicate/runDetails/metadata"


def judge(content: bytes) -> ProvenanceVerdict:
    return judge_provenance(SUBJECT, attested(content), rules(builders_agree=1), NOW)


def _meaning(content: bytes) -> object:
    """What an envelope says without its key ids, which are not signed; None for one that cannot be read."""
    try:
        found = read_envelope(content)
    except EnvelopeError:
        return None
    return found


def _damaged(chance: random.Random, content: bytes) -> bytes:
    raw = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at = chance.randrange(len(raw))
        kind = chance.randrange(5)
        if kind == 0:
            raw[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            raw[at] = chance.randrange(256)
        elif kind == 2:
            del raw[at : at + chance.choice((1, 1, 3, 40))]
        elif kind == 3:
            raw[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 2, 20))))
        else:
            other = chance.randrange(len(raw))
            raw[at], raw[other] = raw[other], raw[at]
        if not raw:
            break
    return bytes(raw)


@pytest.mark.parametrize("kind", ["ed25519", "p256", "rsa"])
def test_none_of_a_thousand_damaged_envelopes_counts(kind: str) -> None:
    chance = random.Random(f"kedge {kind}")
    one = rules(builders=(builder("a", kind),), builders_agree=1)
    good = envelope("a", kind=kind)
    assert judge_provenance(SUBJECT, attested(good), one, NOW).ok
    seen: set[str] = set()
    tried = 0
    while tried < 1000:
        made = _damaged(chance, good)
        if _meaning(made) == _meaning(good):
            continue  # spaces between tokens: the same envelope
        tried += 1
        found = judge_provenance(SUBJECT, attested(made), one, NOW)
        assert not found.ok, made
        seen.add(found.envelopes[0].rule)
    assert {"unreadable", "signature"} <= seen


def test_no_changed_bit_of_payload_or_signature_counts() -> None:
    """The base64 is whole, so that each change gets to the mathematics."""
    chance = random.Random("inside")
    good = json.loads(envelope("a"))
    one = rules(builders_agree=1)
    payload = base64.b64decode(good["payload"])
    signature = base64.b64decode(good["signatures"][0]["sig"])
    for place in range(len(payload) + len(signature)):
        parts = [bytearray(payload), bytearray(signature)]
        which, at = (0, place) if place < len(payload) else (1, place - len(payload))
        parts[which][at] ^= chance.randrange(1, 256)
        made = {
            **good,
            "payload": base64.b64encode(parts[0]).decode(),
            "signatures": [{"sig": base64.b64encode(parts[1]).decode()}],
        }
        found = judge_provenance(SUBJECT, attested(json.dumps(made).encode()), one, NOW)
        assert found.envelopes[0].rule in {"signature", "unreadable"}, place


@given(content=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_bytes_at_all_get_a_verdict(content: bytes) -> None:
    assert not judge(content).ok


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)
PLACES = [
    "_type", "subject", "predicateType", "predicate", DEFINITION, f"{DEFINITION}/buildType",
    f"{DEFINITION}/externalParameters", f"{DEFINITION}/externalParameters/source",
    f"{DEFINITION}/resolvedDependencies", "predicate/runDetails", "predicate/runDetails/builder",
    "predicate/runDetails/builder/id", METADATA, f"{METADATA}/startedOn", f"{METADATA}/finishedOn",
]  # fmt: skip


@given(place=st.sampled_from(PLACES), value=JSON)
@settings(max_examples=150, deadline=None)
def test_whatever_a_builder_signs_gets_a_verdict(place: str, value: Any) -> None:
    made = statement("a")
    *way, last = place.split("/")
    inner = made
    for part in way:
        inner = inner[part]
    inner[last] = value
    found = judge(wrap(json.dumps(made).encode(), private("a")))
    harmless = {f"{DEFINITION}/resolvedDependencies", f"{METADATA}/startedOn"}
    assert not found.ok or place in harmless
    assert all(one.said.isprintable() for one in found.envelopes)
