"""Sigstore bundles: real ones of GitHub's builders, verified offline; and everything that must not pass."""

# ruff: noqa: ARG005 - every forgery takes both bundles, whether it needs the second or not

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedge.model.errors import OrderError
from kedge.model.provenance import (
    Builder,
    BuilderIdentity,
    EnvelopeVerdict,
    ProvenanceRules,
    ProvenanceVerdict,
)
from kedge.trust.bundles import bundle_verifier
from kedge.trust.provenance import judge_provenance
from tests.trust import building

pytest.importorskip("sigstore")

ASSETS = Path(__file__).parent / "assets"
PROVENANCE = (ASSETS / "github-provenance.sigstore.json").read_bytes()
PUBLISH = (ASSETS / "github-publish.sigstore.json").read_bytes()
SUBJECT = "9bb1add04b1b4e182be6b0b80931593f7a291eb49d69b4fd728a5d4cbcdc4bd3"
"""The sha256 of pypi_attestations-0.0.19.tar.gz."""
WORKFLOW = "https://github.com/trailofbits/pypi-attestations/.github/workflows/release.yml"
NOW = "2025-01-31T12:00:00Z"
STORE = importlib.resources.files("sigstore") / "_store"
ROOT = (STORE / "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev" / "trusted_root.json").read_bytes()
STAGING = (STORE / "https%3A%2F%2Ftuf-repo-cdn.sigstage.dev" / "trusted_root.json").read_bytes()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def github(**changes: Any) -> Builder:
    identity = {
        "issuer": "https://token.actions.githubusercontent.com",
        "subject": f"{WORKFLOW}@refs/tags/*",
    }
    return Builder(
        id=f"{WORKFLOW}@refs/tags/*", identity=BuilderIdentity(**{**identity, **changes})
    )


def rules(**changes: Any) -> ProvenanceRules:
    fields: dict[str, Any] = {
        "builders": (github(), building.builder("a")),
        "sources": (
            "https://github.com/trailofbits/pypi-attestations@refs/tags/*",
            building.SOURCE,
        ),
        "build_types": (
            "https://actions.github.io/buildtypes/workflow/v1",
            building.BUILD_TYPE,
        ),
        "builders_agree": 1,
        "max_age": "90d",
        "trusted_root": sha(ROOT),
    }
    return ProvenanceRules(**{**fields, **changes})


def judge(
    *contents: bytes, subject: str = SUBJECT, now: str = NOW, **changes: Any
) -> ProvenanceVerdict:
    verifier = bundle_verifier(ROOT, sha(ROOT))
    return judge_provenance(subject, building.attested(*contents), rules(**changes), now, verifier)


def only(verdict: ProvenanceVerdict) -> EnvelopeVerdict:
    (one,) = verdict.envelopes
    return one


def test_a_real_bundle_of_github_counts_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    found = judge(PROVENANCE)
    assert found.ok, found.envelopes
    assert found.agreed == (f"{WORKFLOW}@refs/tags/*",)
    assert only(found).builder == f"{WORKFLOW}@refs/tags/v0.0.19"
    assert only(found).finished == "2024-12-04T23:13:46Z"
    assert only(found).sources == (
        "https://github.com/trailofbits/pypi-attestations@refs/tags/v0.0.19",
    )


def test_a_keyless_builder_and_one_with_a_key_agree() -> None:
    subject = [{"name": "x", "digest": {"sha256": SUBJECT}}]
    keyed = building.envelope("a", {"subject": subject})
    assert judge(PROVENANCE, keyed, builders_agree=2).ok
    assert not judge(PROVENANCE, PROVENANCE, builders_agree=2).ok
    assert only(judge(keyed)).rule == "counted"


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("another artifact", "subject", {"subject": "0" * 64}),
    ("another repository's workflow", "signature", {"builders": (github(subject="https://github.com/trailofbits/other/x@refs/tags/*"),)}),
    ("a branch of the same workflow", "signature", {"builders": (github(subject=f"{WORKFLOW}@refs/heads/*"),)}),
    ("another issuer", "signature", {"builders": (github(issuer="https://accounts.example.org"),)}),
    ("an identity that two builders share", "signature", {"builders": (github(), Builder(id="https://b.example.org/b", identity=BuilderIdentity(issuer="https://token.actions.githubusercontent.com", subject=f"{WORKFLOW}@refs/tags/v0.0.19")))}),
    ("a builder by another name", "builder", {"builders": (Builder(id="https://b.example.org/b", identity=github().identity),)}),
    ("another source", "source", {"sources": ("https://github.com/trailofbits/other@refs/tags/*",)}),
    ("another build type", "build-type", {"build_types": (building.BUILD_TYPE,)}),
    ("too long ago, by the log's own time", "time", {"now": "2025-12-31T12:00:00Z"}),
    ("before the log took it", "time", {"now": "2024-11-30T12:00:00Z"}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "changes"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_good_bundle_that_the_policy_does_not_want_is_refused(
    rule: str, changes: dict[str, Any]
) -> None:
    found = judge(PROVENANCE, **changes)
    assert not found.ok
    assert only(found).rule == rule, only(found)


def test_a_bundle_about_something_else_is_refused() -> None:
    assert only(judge(PUBLISH)).rule == "predicate-type"


def _with(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    made, other = json.loads(PROVENANCE), json.loads(PUBLISH)
    change(made, other)
    return json.dumps(made).encode()


def _material(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = value["verificationMaterial"]
    return found


def _entry(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = _material(value)["tlogEntries"][0]
    return found


def _flipped(text: str) -> str:
    raw = bytearray(base64.b64decode(text))
    raw[len(raw) // 2] ^= 1
    return base64.b64encode(bytes(raw)).decode()


FORGED: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], object]]] = [
    ("the payload of another", lambda m, o: m["dsseEnvelope"].update(payload=o["dsseEnvelope"]["payload"])),
    ("the signature of another", lambda m, o: m["dsseEnvelope"].update(signatures=o["dsseEnvelope"]["signatures"])),
    ("another payload type", lambda m, o: m["dsseEnvelope"].update(payloadType="text/plain")),
    ("the certificate of another", lambda m, o: _material(m).update(certificate=_material(o)["certificate"])),
    ("the log entry of another", lambda m, o: _material(m).update(tlogEntries=_material(o)["tlogEntries"])),
    ("no log entry", lambda m, o: _material(m).update(tlogEntries=[])),
    ("two log entries", lambda m, o: _material(m)["tlogEntries"].append(_entry(o))),
    ("no proof of inclusion", lambda m, o: _entry(m).pop("inclusionProof")),
    ("no promise of inclusion", lambda m, o: _entry(m).pop("inclusionPromise")),
    ("another time in the log", lambda m, o: _entry(m).update(integratedTime="1733359041")),
    ("another place in the log", lambda m, o: _entry(m).update(logIndex="1")),
    ("a changed promise", lambda m, o: _entry(m)["inclusionPromise"].update(signedEntryTimestamp=_flipped(_entry(m)["inclusionPromise"]["signedEntryTimestamp"]))),
    ("a changed root hash", lambda m, o: _entry(m)["inclusionProof"].update(rootHash=_flipped(_entry(m)["inclusionProof"]["rootHash"]))),
    ("a changed entry", lambda m, o: _entry(m).update(canonicalizedBody=_flipped(_entry(m)["canonicalizedBody"]))),
    ("a changed certificate", lambda m, o: _material(m)["certificate"].update(rawBytes=_flipped(_material(m)["certificate"]["rawBytes"]))),
    ("an unknown media type", lambda m, o: m.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=9")),
    ("no envelope", lambda m, o: m.pop("dsseEnvelope")),
    ("nothing but a media type", lambda m, o: [m.pop(key) for key in list(m) if key != "mediaType"]),
]  # fmt: skip


@pytest.mark.parametrize("change", [row[1] for row in FORGED], ids=[row[0] for row in FORGED])
def test_a_forged_bundle_does_not_hold(
    change: Callable[[dict[str, Any], dict[str, Any]], object],
) -> None:
    found = judge(_with(change))
    assert not found.ok
    assert only(found).rule == "bundle", only(found)
    assert only(found).said.isprintable()


def test_none_of_three_hundred_damaged_bundles_counts() -> None:
    chance = random.Random("kedge bundles")
    good = json.loads(PROVENANCE)
    verifier = bundle_verifier(ROOT, sha(ROOT))
    tried = 0
    while tried < 300:
        raw = bytearray(PROVENANCE)
        for _ in range(chance.choice((1, 1, 3))):
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        try:
            # What says the same in other spaces, and hints that nothing depends on.
            if json.loads(bytes(raw)) == good:
                continue
        except ValueError:
            pass
        tried += 1
        found = judge_provenance(SUBJECT, building.attested(bytes(raw)), rules(), NOW, verifier)
        if found.ok:
            assert _known_to_be_unsigned(json.loads(bytes(raw)), good)


def _known_to_be_unsigned(made: dict[str, Any], good: dict[str, Any]) -> bool:
    """Whether the statement, its signature, certificate, and log entry are still the same."""
    return _core(made) == _core(good)


def _core(value: dict[str, Any]) -> list[object]:
    entry = _entry(value)
    return [
        value["dsseEnvelope"],
        _material(value)["certificate"],
        entry["canonicalizedBody"],
        entry["integratedTime"],
    ]


def test_a_bundle_of_another_instance_does_not_hold() -> None:
    verifier = bundle_verifier(STAGING, sha(STAGING))
    pinned = rules(trusted_root=sha(STAGING))
    found = judge_provenance(SUBJECT, building.attested(PROVENANCE), pinned, NOW, verifier)
    assert only(found).rule == "bundle"


@pytest.mark.parametrize("pinned", [None, "0" * 64])
def test_only_the_pinned_root_is_taken(pinned: str | None) -> None:
    with pytest.raises(OrderError, match="the policy pins"):
        bundle_verifier(ROOT, pinned)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"mediaType":"x"}'])
def test_a_root_that_is_none_is_refused_in_words(content: bytes) -> None:
    with pytest.raises(OrderError, match="cannot be read"):
        bundle_verifier(content, sha(content))


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sigstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    with pytest.raises(OrderError, match="extra sigstore is not installed") as found:
        bundle_verifier(ROOT, sha(ROOT))
    assert found.value.next_step == "pip install 'kedge[sigstore]'"


def test_an_identity_needs_a_root_and_only_identities_have_stars() -> None:
    with pytest.raises(ValueError, match="needs trusted_root"):
        rules(trusted_root=None)
    keyed = building.builder("a").model_copy(update={"id": f"{WORKFLOW}@refs/tags/*"})
    with pytest.raises(ValueError, match="names one builder where it has keys"):
        rules(builders=(keyed,))
    with pytest.raises(ValueError, match="is the identity of"):
        rules(builders=(github(), github().model_copy(update={"id": "https://b.example.org/b"})))
