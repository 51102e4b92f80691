"""A policy's next version: signed by who the version before names, one higher, made from it; and stock ssh-keygen agrees."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kedge.model.governance import ChangeRule, Hardware, Revoked
from kedge.model.policy import Person, Policy
from kedge.model.signed_policy import KeptPolicy, PinnedBy, SignedPolicy
from kedge.trust.keys import parse_public_key
from kedge.trust.policies import (
    ChangeFault,
    follow,
    judge_change,
    policy_text,
    read_policy,
    text_digest,
    verify_kept,
)
from kedge.trust.sshsig import check, parse
from tests.trust import world

TOKEN = world.HardwareKey(curve=True)
RULE = ChangeRule(threshold=2, roles=("sre", "db-owner"), each_of=("db-owner",))
PEOPLE = (
    *world.policy().people,
    Person(name="gina", roles=("sre",), keys=(TOKEN.line,)),
    Person(name="hugo", roles=("sre",), keys=(world.public("hugo", "ssh-rsa"),)),
)
FIRST = world.policy(people=PEOPLE, change=RULE)
PINNED = SignedPolicy(policy=policy_text(FIRST))


def second(**changes: Any) -> Policy:
    fields = {"version": 2, "previous": text_digest(PINNED.policy), "max_lifetime": 1800.0}
    return Policy(**{**dict(FIRST), **fields, **changes})


def signed(
    policy: Policy | str,
    *by: str,
    namespace: str = "kedge-policy",
    kinds: dict[str, str] | None = None,
) -> SignedPolicy:
    text = policy if isinstance(policy, str) else policy_text(policy)
    kinds = {"hugo": "ssh-rsa", **(kinds or {})}
    signatures = tuple(
        world.sign(
            text.encode(), world.private(who, kinds.get(who, "ssh-ed25519")), namespace=namespace
        )
        for who in by
    )
    return SignedPolicy(policy=text, signatures=signatures)


CASES: list[tuple[str, SignedPolicy, ChangeFault | None]] = [
    ("two people, the owner of the database among them", signed(second(), "bob", "carol"), None),
    ("three of them", signed(second(), "alice", "bob", "hugo"), None),
    ("two, and a signature of nobody beside them", signed(second(), "bob", "mallory", "carol"), None),
    ("nobody", signed(second()), "signatures"),
    ("one", signed(second(), "bob"), "signatures"),
    ("one, twice", signed(second(), "bob", "bob"), "signatures"),
    ("two, without the owner of the database", signed(second(), "alice", "carol"), "signatures"),
    ("one of them by a role that signs no changes", signed(second(), "bob", "dora"), "signatures"),
    ("one of them nobody's", signed(second(), "bob", "mallory"), "signatures"),
    ("signatures made for orders", signed(second(), "bob", "carol", namespace="kedge-order"), "signatures"),
    ("signatures made for files", signed(second(), "bob", "carol", namespace="file"), "signatures"),
    ("signatures of another text", SignedPolicy(policy=policy_text(second()), signatures=signed(FIRST, "bob", "carol").signatures), "signatures"),
    ("the same version again", signed(FIRST, "bob", "carol"), "version"),
    ("one left out", signed(second(version=3), "bob", "carol"), "version"),
    ("made from another", signed(second(previous="f" * 64), "bob", "carol"), "previous"),
    ("another name", signed(second(name="other"), "bob", "carol"), "name"),
    ("another environment", signed(second(environment="stage"), "bob", "carol"), "name"),
    ("a newline behind", signed(policy_text(second()) + "\n", "bob", "carol"), "not-canonical"),
    ("a key twice", signed(policy_text(second()).replace("{", '{"version":1,', 1), "bob", "carol"), "not-canonical"),
    ("no policy", signed("{}", "bob", "carol"), "unreadable"),
    ("no JSON", signed("version: 2", "bob", "carol"), "unreadable"),
    ("very deep", signed("[" * 200_000, "bob", "carol"), "unreadable"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "fault"), [(d, f) for _, d, f in CASES], ids=[name for name, *_ in CASES]
)
def test_a_version_follows_when_its_predecessor_says_so(
    document: SignedPolicy, fault: ChangeFault | None
) -> None:
    found = judge_change(PINNED, document)
    assert found.fault == fault, found.said
    assert found.ok is (fault is None)
    assert found.said
    assert "Traceback" not in found.said


def test_the_new_version_does_not_say_who_signs_it() -> None:
    """Whoever it names: it is the one before that says who may."""
    alone = second(change=ChangeRule(roles=("operator",)))
    assert judge_change(PINNED, signed(alone, "alice")).fault == "signatures"
    assert judge_change(PINNED, signed(alone, "bob", "carol")).ok


def test_who_was_revoked_signs_no_change() -> None:
    for revoked in (
        Revoked(people=("bob",)),
        Revoked(keys=(world.public("bob"),)),
        Revoked(keys=(parse_public_key(world.public("bob")).fingerprint,)),
    ):
        people = tuple(
            person
            if person.name != "bob" or not revoked.keys
            else Person(name="bob", roles=person.roles, keys=(world.public("bob, again"),))
            for person in PEOPLE
        )
        # bob is the only one with the role, so the rule asks for people alone here.
        rule = ChangeRule(threshold=2, roles=("sre", "db-owner"))
        first = SignedPolicy(
            policy=policy_text(world.policy(people=people, change=rule, revoked=revoked))
        )
        new = Policy(
            **{
                **dict(read_policy(first.policy)),
                "version": 2,
                "previous": text_digest(first.policy),
            }
        )
        assert judge_change(first, signed(new, "bob", "carol")).fault == "signatures"
        assert judge_change(first, signed(new, "alice", "carol")).ok


def test_a_hardware_key_signs_a_change_when_it_was_touched() -> None:
    text = policy_text(second())
    for flags, ok in ((0x01, True), (0x00, False)):
        by_token = TOKEN.sign(text.encode(), flags=flags, namespace="kedge-policy")
        document = SignedPolicy(policy=text, signatures=(*signed(text, "bob").signatures, by_token))
        assert judge_change(PINNED, document).ok is ok
    pin = world.policy(people=PEOPLE, change=RULE, hardware=Hardware(pin=True))
    first = SignedPolicy(policy=policy_text(pin))
    text = policy_text(second(previous=text_digest(first.policy)))
    for flags, ok in ((0x05, True), (0x01, False)):
        by_token = TOKEN.sign(text.encode(), flags=flags, namespace="kedge-policy")
        document = SignedPolicy(policy=text, signatures=(*signed(text, "bob").signatures, by_token))
        assert judge_change(first, document).ok is ok


def test_without_a_rule_nobody_changes_a_policy_by_signature() -> None:
    first = SignedPolicy(policy=policy_text(world.policy()))
    new = world.policy(
        version=2, previous=text_digest(first.policy), change=ChangeRule(roles=("sre",))
    )
    found = judge_change(first, signed(new, "carol"))
    assert found.fault == "no-change"
    assert "--as-owner" in found.said


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("a first version that follows another", {"previous": "a" * 64}, "none before it"),
    ("a second that follows none", {"version": 2}, "kedge policy show"),
    ("version zero", {"version": 0}, "version"),
    ("a change that nobody could sign", {"change": {"roles": ["db-owner"], "threshold": 2}}, "nobody could ever change"),
    ("a change that only a revoked person could sign", {"change": {"roles": ["db-owner"]}, "revoked": {"people": ["bob"]}}, "only nobody may"),
    ("a change with a role nobody has", {"change": {"roles": ["pope"]}}, "nobody has the role pope"),
    ("a change by a role that nobody who signs has", {"change": {"roles": ["sre"], "each_of": ["db-owner"]}}, "has the role db-owner"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"), [(c, s) for _, c, s in BAD], ids=[name for name, *_ in BAD]
)
def test_a_document_that_could_not_be_changed_as_it_says_is_no_policy(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as error:
        Policy.model_validate({**world.policy().model_dump(mode="json"), **changes}, strict=False)
    assert said in str(error.value)


# -- the chain ----------------------------------------------------------------------------------------------------

SECOND = signed(second(), "bob", "carol")
THIRD = signed(
    second(version=3, previous=text_digest(SECOND.policy), max_lifetime=600.0), "bob", "alice"
)


def kept(*documents: tuple[SignedPolicy, PinnedBy]) -> list[KeptPolicy]:
    return [
        KeptPolicy(seq=place, by=by, at=world.NOW, document=document)
        for place, (document, by) in enumerate(documents, start=1)
    ]


def test_the_chain_of_versions_holds_or_says_where_it_breaks() -> None:
    whole = kept((PINNED, "first"), (SECOND, "signed"), (THIRD, "signed"))
    assert verify_kept(whole).ok
    assert verify_kept(whole[:2]).ok
    assert verify_kept([whole[0], whole[2].model_copy(update={"seq": 2})]).place == 2
    assert verify_kept([whole[0], whole[2]]).place == 2
    forged = THIRD.model_copy(update={"signatures": THIRD.signatures[:1]})
    assert verify_kept([*whole[:2], whole[2].model_copy(update={"document": forged})]).place == 3
    assert verify_kept(kept((PINNED, "first"), (SECOND, "first"))).place == 2
    assert verify_kept(kept((SECOND, "signed"))).place == 1
    owned = verify_kept(kept((PINNED, "first"), (THIRD, "owner")))
    assert (owned.ok, owned.owners) == (True, (2,))


def test_who_has_the_pinned_root_alone_finds_what_follows_from_it() -> None:
    root = {text_digest(PINNED.policy): PINNED}
    alone = signed(second(max_lifetime=1.0), "bob")
    found = follow(root, [THIRD, alone, SignedPolicy(policy="{}"), SECOND])
    assert set(found) == {text_digest(one.policy) for one in (PINNED, SECOND, THIRD)}
    assert set(follow(root, [THIRD])) == set(root)


# -- stock tools --------------------------------------------------------------------------------------------------


def ssh_keygen(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ssh-keygen", *words], input=given, capture_output=True, check=False)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_stock_ssh_keygen_and_kedge_accept_each_others_signatures_of_policies(
    tmp_path: Path, kind: str
) -> None:
    from kedge.drivers.signers import sign_with_key

    key = tmp_path / "key"
    made = ssh_keygen(
        "-q", "-t", kind, "-N", "", "-f", str(key), *(["-b", "3072"] if kind == "rsa" else [])
    )
    assert made.returncode == 0, made.stderr
    line = (tmp_path / "key.pub").read_text().strip()
    text = tmp_path / "policy.json"
    text.write_text(policy_text(second()))
    signers = tmp_path / "signers"
    signers.write_text(f'bob namespaces="kedge-policy" {line}\n')

    stock = ssh_keygen("-Y", "sign", "-q", "-n", "kedge-policy", "-f", str(key), str(text))
    assert stock.returncode == 0, stock.stderr
    check(
        parse((tmp_path / "policy.json.sig").read_text()),
        parse_public_key(line),
        text.read_bytes(),
        namespace="kedge-policy",
    )

    ours = tmp_path / "ours.sig"
    ours.write_text(sign_with_key(key, text.read_bytes(), namespace="kedge-policy"))
    verify = ["-Y", "verify", "-f", str(signers), "-I", "bob", "-s", str(ours)]
    good = ssh_keygen(*verify, "-n", "kedge-policy", given=text.read_bytes())
    assert good.returncode == 0, good.stderr
    assert ssh_keygen(*verify, "-n", "kedge-order", given=text.read_bytes()).returncode != 0
    assert (
        ssh_keygen(*verify, "-n", "kedge-policy", given=text.read_bytes() + b"\n").returncode != 0
    )
