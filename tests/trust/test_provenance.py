"""Provenance: what counts, what does not and under which name, and how many must agree."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from kedge.model.errors import DocumentError
from kedge.model.policy import Policy
from kedge.model.provenance import Builder, ProvenanceRules, ProvenanceVerdict
from kedge.plan.parse import parse
from kedge.trust.dsse import pae
from kedge.trust.provenance import MOST_ENVELOPES, judge_artifacts, judge_provenance
from kedge.trust.statement import PAYLOAD_TYPE, sources_of
from tests.trust import building
from tests.trust.building import (
    NOW,
    OTHER,
    SUBJECT,
    attested,
    builder,
    builder_id,
    envelope,
    private,
    rules,
    statement,
    wrap,
)

DEFINITION = "predicate/buildDefinition"
METADATA = "predicate/runDetails/metadata"


def judge(*contents: bytes, **changes: Any) -> ProvenanceVerdict:
    return judge_provenance(SUBJECT, attested(*contents), rules(**changes), NOW)


def test_two_builders_that_arrived_at_the_same_digest_are_enough() -> None:
    found = judge(envelope("a"), envelope("c"))
    assert found.ok
    assert found.agreed == (builder_id("a"), builder_id("c"))
    assert [one.rule for one in found.envelopes] == ["counted", "counted"]
    assert found.envelopes[0].keys[0].startswith("SHA256:")
    assert "2 independent builders arrived at 555555555555" in found.said


def test_one_builder_is_not_enough_where_two_must_agree() -> None:
    found = judge(envelope("a"))
    assert not found.ok
    assert found.agreed == (builder_id("a"),)
    assert "1 builder arrived" in found.said
    assert "2 needed" in found.said


def test_nothing_at_all_is_not_enough() -> None:
    found = judge(builders_agree=1)
    assert not found.ok
    assert "nobody who is believed" in found.said


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("ed25519", ""),
        ("p256", ""),
        ("p384", ""),
        ("p384", "sha256"),
        ("p521", ""),
        ("p521", "sha256"),
        ("rsa", "pss-sha256"),
        ("rsa", "pss-sha512"),
        ("rsa", "pkcs1-sha256"),
        ("rsa", "pkcs1-sha512"),
    ],
)
@pytest.mark.parametrize("written", ["openssh", "pem"])
def test_a_key_of_each_kind_signs_as_the_field_does(kind: str, how: str, written: str) -> None:
    key = private("k", kind)
    payload = json.dumps(statement("k")).encode()
    signature = building.sign(key, pae(PAYLOAD_TYPE, payload), how)
    made = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    line = building.openssh(key) if written == "openssh" else building.pem(key)
    one = Builder(id=builder_id("k"), keys=(line,))
    found = judge(json.dumps(made).encode(), builders=(one,), builders_agree=1)
    assert found.ok, found.envelopes


def _without_padding() -> bytes:
    made = json.loads(envelope("a"))
    made["signatures"][0]["sig"] = made["signatures"][0]["sig"].rstrip("=")
    return json.dumps(made).encode()


def _doubled(text: str, again: str) -> bytes:
    return text.replace("{", "{" + again + ",", 1).encode()


def _signed_text(text: str, by: str = "a") -> bytes:
    return wrap(text.encode(), private(by))


def _moved_payload() -> bytes:
    mine, other = json.loads(envelope("a")), json.loads(envelope("a", {"predicateType": "x"}))
    return json.dumps({**mine, "payload": other["payload"]}).encode()


def _retyped() -> bytes:
    """The same signature under another type: the encoding that is signed has the type in it."""
    made = json.loads(wrap(json.dumps(statement("a")).encode(), private("a"), payload_type="x"))
    return json.dumps({**made, "payloadType": PAYLOAD_TYPE}).encode()


def _bare() -> bytes:
    """A signature over the payload alone, as JWS-like schemes make it."""
    payload = json.dumps(statement("a")).encode()
    made = json.loads(wrap(payload, private("a")))
    made["signatures"][0]["sig"] = base64.b64encode(building.sign(private("a"), payload)).decode()
    return json.dumps(made).encode()


ATTACKS: list[tuple[str, str, Callable[[], bytes]]] = [
    ("nothing", "unreadable", lambda: b""),
    ("no JSON", "unreadable", lambda: b"hello"),
    ("no object", "unreadable", lambda: b"[]"),
    ("no text", "unreadable", lambda: b"\xff\xfe{}"),
    ("a byte order mark", "unreadable", lambda: b"\xef\xbb\xbf" + envelope("a")),
    ("something behind it", "unreadable", lambda: envelope("a") + b"{}"),
    ("a field that no envelope has", "unreadable", lambda: _doubled(envelope("a").decode(), '"x":1')),
    ("a key that stands twice", "unreadable", lambda: _doubled(envelope("a").decode(), '"payloadType":"x"')),
    ("no signatures", "unreadable", lambda: wrap(b"{}")),
    ("nine signatures", "unreadable", lambda: wrap(b"{}", *[private("a")] * 9)),
    ("base64 without its padding", "unreadable", _without_padding),
    ("too long", "unreadable", lambda: b" " * (1 << 20) + envelope("a")),
    ("too deep", "unreadable", lambda: b"[" * 100_000 + b"]" * 100_000),
    ("a payload of another type", "payload-type", lambda: wrap(b"{}", private("a"), payload_type="text/plain")),
    ("nobody's key", "signature", lambda: envelope("a", by="stranger")),
    ("nobody's key under a builder's key id", "signature", lambda: wrap(json.dumps(statement("a")).encode(), private("stranger"), keyid=builder("a").keys[0])),
    ("the payload of another envelope", "signature", _moved_payload),
    ("a signature made for another type", "signature", _retyped),
    ("a signature over the payload alone", "signature", _bare),
    ("a payload that is no JSON", "statement", lambda: _signed_text("hello")),
    ("a payload that is a list", "statement", lambda: _signed_text("[]")),
    ("a payload that says a thing twice", "statement", lambda: _signed_text(json.dumps(statement("a")).replace("{", '{"_type":"y",', 1))),
    ("a payload with NaN in it", "statement", lambda: _signed_text(json.dumps(statement("a", {"predicate": float("nan")})))),
    ("statement v0.1", "statement", lambda: envelope("a", {"_type": "https://in-toto.io/Statement/v0.1"})),
    ("no subject", "statement", lambda: envelope("a", {"subject": []})),
    ("a subject without a digest", "statement", lambda: envelope("a", {"subject": [{"name": "x", "digest": {}}]})),
    ("another predicate", "predicate-type", lambda: envelope("a", {"predicateType": "https://spdx.dev/Document"})),
    ("SLSA provenance v0.2", "predicate-type", lambda: envelope("a", {"predicateType": "https://slsa.dev/provenance/v0.2"})),
    ("no builder", "statement", lambda: envelope("a", {"predicate/runDetails/builder": None})),
    ("no build definition", "statement", lambda: envelope("a", {DEFINITION: None})),
    ("an unknown builder", "builder", lambda: envelope("x", by="a")),
    ("another builder's name", "builder", lambda: envelope("b", by="a")),
    ("a builder's name in capitals", "builder", lambda: envelope("A", by="a")),
    ("another build type", "build-type", lambda: envelope("a", {f"{DEFINITION}/buildType": "https://slsa.example.org/make/v2"})),
    ("no source", "source", lambda: envelope("a", {f"{DEFINITION}/externalParameters": {}})),
    ("another source", "source", lambda: envelope("a", {f"{DEFINITION}/externalParameters/source": {"uri": "git+https://git.example.org/evil/db@refs/tags/v1.1"}})),
    ("the source among what was fetched only", "source", lambda: envelope("a", {f"{DEFINITION}/externalParameters": {"target": "all"}})),
    ("the source and another one", "source", lambda: envelope("a", {f"{DEFINITION}/externalParameters/workflow": {"repository": "https://evil.example.org"}})),
    ("a source that is no text", "source", lambda: envelope("a", {f"{DEFINITION}/externalParameters/source": [building.SOURCE]})),
    ("a source of two places", "source", lambda: envelope("a", {f"{DEFINITION}/externalParameters/source": {"uri": building.SOURCE, "repository": "https://evil.example.org"}})),
    ("a branch where tags are wanted", "source", lambda: envelope("a", {f"{DEFINITION}/externalParameters/source": {"uri": "git+https://git.example.org/db/db@refs/heads/main"}})),
    ("a source with a way up in it", "source", lambda: envelope("a", {f"{DEFINITION}/externalParameters/source": {"uri": "git+https://git.example.org/db/db@refs/tags/.."}})),
    ("a source with a part more", "source", lambda: envelope("a", {f"{DEFINITION}/externalParameters/source": {"uri": building.SOURCE + "/x"}})),
    ("no time", "time", lambda: envelope("a", {METADATA: None})),
    ("a time that is none", "time", lambda: envelope("a", {f"{METADATA}/finishedOn": "2025-13-01T00:00:00Z"})),
    ("a build of tomorrow", "time", lambda: envelope("a", {f"{METADATA}/finishedOn": "2025-02-01T12:00:00Z"})),
    ("a build of last summer", "time", lambda: envelope("a", {f"{METADATA}/startedOn": "2024-08-01T12:00:00Z", f"{METADATA}/finishedOn": "2024-08-01T12:01:00Z"})),
    ("a build that began after it ended", "time", lambda: envelope("a", {f"{METADATA}/startedOn": "2025-01-30T10:06:00Z"})),
    ("a beginning that is no time", "time", lambda: envelope("a", {f"{METADATA}/startedOn": "yesterday"})),
    ("another artifact", "subject", lambda: envelope("a", {"subject": [{"name": "x", "digest": {"sha256": OTHER}}]})),
    ("the digest under another algorithm", "subject", lambda: envelope("a", {"subject": [{"name": "x", "digest": {"sha512": SUBJECT}}]})),
    ("the digest in capitals", "subject", lambda: envelope("a", {"subject": [{"name": "x", "digest": {"sha256": "A" * 64}}]})),
    ("a bundle without a trusted root", "bundle", lambda: b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "made"), [row[1:] for row in ATTACKS], ids=[r[0] for r in ATTACKS]
)
def test_an_attack_is_refused_under_its_name(rule: str, made: Callable[[], bytes]) -> None:
    found = judge(made(), builders_agree=1)
    assert not found.ok
    assert [one.rule for one in found.envelopes] == [rule], found.envelopes
    assert found.envelopes[0].said
    assert found.envelopes[0].said.isprintable()


def test_one_builder_that_signs_twice_counts_once() -> None:
    again = envelope("a", {"predicate/runDetails/metadata/invocationId": "8"})
    found = judge(envelope("a"), again, envelope("a"))
    assert not found.ok
    assert [one.rule for one in found.envelopes] == ["counted", "repeated", "repeated"]


def test_one_builder_with_two_keys_counts_once() -> None:
    two = (builder("a", "ed25519", "p256"), builder("b"))
    found = judge(envelope("a"), envelope("a", kind="p256"), builders=two)
    assert not found.ok
    assert found.envelopes[1].rule == "repeated"


def test_one_envelope_with_the_signatures_of_two_builders_counts_for_the_one_it_names() -> None:
    both = wrap(json.dumps(statement("a")).encode(), private("a"), private("b"))
    found = judge(both, both)
    assert not found.ok
    assert found.agreed == (builder_id("a"),)
    assert len(found.envelopes[0].keys) == 2


def test_a_key_that_came_past_the_model_under_two_builders_counts_for_neither() -> None:
    same = builder("a").keys
    forged = rules().model_copy(
        update={
            "builders": (
                builder("a"),
                Builder.model_construct(id=builder_id("b"), keys=same, identity=None),
            )
        }
    )
    for needed in (1, 2):
        found = judge_provenance(
            SUBJECT,
            attested(envelope("a"), envelope("b", by="a")),
            forged.model_copy(update={"builders_agree": needed}),
            NOW,
        )
        assert not found.ok
        assert {one.rule for one in found.envelopes} == {"signature"}


def test_who_arrived_at_other_bytes_is_named_and_does_not_count() -> None:
    other = envelope(
        "b", {"subject": [{"name": "db-linux-amd64.tar.gz", "digest": {"sha256": OTHER}}]}
    )
    found = judge(envelope("a"), other)
    assert not found.ok
    assert found.dissent == (builder_id("b"),)
    assert "arrived at other bytes" in found.said
    enough = judge(envelope("a"), other, envelope("c"))
    assert enough.ok
    assert enough.dissent == (builder_id("b"),)


def test_each_artifact_of_a_release_needs_builders_of_its_own() -> None:
    arm = [{"name": "db-linux-arm64.tar.gz", "digest": {"sha256": OTHER}}]
    made = attested(envelope("a"), envelope("b"), envelope("a", {"subject": arm}))
    found = judge_artifacts({"linux/amd64": SUBJECT, "linux/arm64": OTHER}, made, rules(), NOW)
    assert found["linux/amd64"].ok
    assert not found["linux/arm64"].ok
    assert found["linux/arm64"].agreed == (builder_id("a"),)
    assert not found["linux/amd64"].dissent


def test_what_stands_behind_the_most_envelopes_is_not_looked_at_and_that_is_said() -> None:
    found = judge(*[b"x"] * MOST_ENVELOPES, envelope("a"), envelope("b"))
    assert not found.ok
    assert len(found.envelopes) == MOST_ENVELOPES
    assert "2 more envelopes were not looked at" in found.said


def test_unknown_fields_of_statement_and_predicate_are_left_out_as_the_specifications_ask() -> None:
    made = envelope(
        "a", {"extra": {"x": 1}, "predicate/extra": [1.5], f"{DEFINITION}/internalParameters": {}}
    )
    assert judge(made, builders_agree=1).ok


def test_without_a_greatest_age_a_build_without_times_counts() -> None:
    made = envelope("a", {METADATA: None})
    assert judge(made, builders_agree=1, max_age=None).ok


@pytest.mark.parametrize(
    ("parameters", "sources"),
    [
        ({"source": "git+https://x"}, ("git+https://x",)),
        ({"source": {"uri": "git+https://x"}}, ("git+https://x",)),
        ({"workflow": {"repository": "https://x", "ref": "refs/tags/1", "path": "y"}}, ("https://x@refs/tags/1",)),
        ({"sourceToBuild": {"repository": "https://x"}}, ("https://x",)),
        ({"repository": "https://x", "ref": "main"}, ("https://x@main",)),
        ({"repository": "https://x", "source": "https://y"}, ("https://y", "https://x")),
        ({"workflow": {"path": "y"}}, ("",)),
        ({"source": None, "configSource": 3}, ("",)),
        ({}, ()),
    ],
)  # fmt: skip
def test_the_sources_are_those_that_the_external_parameters_name(
    parameters: dict[str, Any], sources: tuple[str, ...]
) -> None:
    assert sources_of(parameters) == sources


RULES: list[tuple[str, dict[str, Any], str]] = [
    ("no builders", {"builders": ()}, "at least 1"),
    ("a builder twice", {"builders": (builder("a"), builder("a", "p256"))}, "is builder 1 already"),
    ("a builder without keys", {"builders": (Builder(id=builder_id("a")),)}, "nobody could sign"),
    ("more agree than there are", {"builders_agree": 4}, "only 3 are named"),
    ("nobody has to agree", {"builders_agree": 0}, "greater than or equal to 1"),
    ("a star in the host", {"sources": ("https://*.example.org/x",)}, "behind the host"),
    ("a star at the end of the host", {"sources": ("https://example.org*",)}, "behind the host"),
    ("two stars", {"sources": ("https://example.org/**",)}, "no '**'"),
    ("a way up", {"sources": ("https://example.org/a/../b",)}, "'..'"),
    ("an age without a unit", {"max_age": "90"}, "hours or days"),
    ("no sources", {"sources": ()}, "at least 1"),
    ("no build types", {"build_types": ()}, "at least 1"),
]


@pytest.mark.parametrize(("changes", "said"), [row[1:] for row in RULES], ids=[r[0] for r in RULES])
def test_rules_that_would_mean_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace("*", r"\*").replace(".", r"\.")):
        rules(**changes)


@pytest.mark.parametrize("spelling", ["openssh", "comment", "pem"])
def test_a_key_under_two_builders_is_refused_however_it_is_written(spelling: str) -> None:
    key = private("a")
    text = {
        "openssh": building.openssh(key),
        "comment": building.openssh(key) + " of b",
        "pem": building.pem(key),
    }[spelling]
    with pytest.raises(ValidationError, match="same key as one of https://a"):
        rules(builders=(builder("a"), Builder(id=builder_id("b"), keys=(text,))))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519 AAAA",
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIA== x",
        "ssh-ed25519-cert-v01@openssh.com AAAA",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        building.openssh(private("short", "rsa2048")),
        building.openssh(private("a")) + "\n" + building.openssh(private("b")),
        building.pem(private("a")) + building.pem(private("b")),
    ],
)
def test_what_is_not_one_usable_public_key_is_no_builder_key(text: str) -> None:
    with pytest.raises(ValidationError):
        Builder(id=builder_id("a"), keys=(text,))


def test_rules_survive_being_written_and_read() -> None:
    written = rules().model_dump_json()
    assert ProvenanceRules.model_validate_json(written) == rules()
    as_pem = Builder(id=builder_id("a"), keys=(building.pem(private("a")),))
    assert as_pem == builder("a")


def test_the_encoding_is_that_of_the_specification() -> None:
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


POLICY = """
kind: Policy
name: prod
environment: prod
people:
  - {name: alice, roles: [operator], keys: ["KEY"]}
may: {start: [operator]}
releases:
  root: "0000000000000000000000000000000000000000000000000000000000000000"
  provenance:
    builders:
      - id: https://a.example.org/builder
        keys:
          - |
PEM
      - id: not an address
        keys: ["ssh-ed25519 AAAA"]
    sources: ["https://*.example.org/x", https://git.example.org/y]
    build_types: [https://slsa.example.org/make/v1]
    builders_agree: 2
    max_age: 90
"""


def test_a_policy_says_it_in_yaml_and_each_mistake_has_its_place() -> None:
    pem = "".join(f"            {line}\n" for line in building.pem(private("a")).splitlines())
    text = POLICY.replace("KEY", building.openssh(private("alice"))).replace("PEM\n", pem)
    with pytest.raises(DocumentError) as found:
        parse(text.encode(), "policy.yaml", Policy)
    said = "\n".join(found.value.problems)
    assert "releases.provenance.builders.1.id: must be an address or other URI" in said
    assert "releases.provenance.builders.1.keys.0: not usable" in said
    assert "releases.provenance.sources.0: a '*' may stand behind the host's name only" in said
    assert "releases.provenance.max_age: must be an age in hours or days" in said
    assert len(found.value.problems) == 4
    right = text.replace("not an address", "https://b.example.org/builder")
    right = right.replace('"ssh-ed25519 AAAA"', f'"{building.openssh(private("b"))}"')
    right = right.replace("*.example", "git.example").replace("max_age: 90", "max_age: 90d")
    parsed = parse(right.encode(), "policy.yaml", Policy).value.releases
    assert parsed is not None
    assert parsed.provenance is not None
    assert parsed.provenance.builders[0] == builder("a")
    assert parsed.provenance.max_age == 90 * 86400
