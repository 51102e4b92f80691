"""What vendors publish, made with the vendors' own tools: what is taken, what is not, and under which name."""
# ruff: noqa: ARG005 - every row of a table takes the vendor, whether it asks for something of his or not

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pysequoia.packet import PacketPile

from kedge.model.errors import OrderError
from kedge.model.upstream import VendorImport
from kedge.trust.upstream import _may_be, is_older, read_sums
from kedge.trust.vendor_pins import read_pins
from tests.trust.vendors import (
    AMD,
    ARM,
    Gpg,
    archive,
    gpg_home,
    judge,
    minisign_public,
    minisigned,
    ssh_key,
    ssh_signed,
    sums,
)

PAST = "20230101T000000"


@pytest.fixture(scope="module")
def gpg() -> Iterator[Gpg]:
    with gpg_home() as found:
        found.key("anna")
        found.key("bert", "rsa3072")
        found.key("stranger")
        found.key("old", lasts="1y", at=PAST)
        found.key("gone")
        found.kept = found.sign(sums(), "gone")
        found.revoke("gone")
        found.key("parts", lasts="9y", at=PAST)
        found.subkey("parts", "ed25519", lasts="1y", at=PAST)
        yield found


class Vendor:
    """All that the tests sign with."""

    def __init__(self, gpg: Gpg, folder: Path) -> None:
        self.gpg, self.folder = gpg, folder

    def pgp(
        self, *names: str, content: bytes | None = None, at: str = "", options: tuple[str, ...] = ()
    ) -> bytes:
        return self.gpg.sign(sums() if content is None else content, *names, at=at, options=options)

    def pins(self, *names: str) -> dict[str, bytes]:
        return {f"{name}.asc": self.gpg.public(name) for name in names}

    def ssh(self, name: str, content: bytes | None = None, namespace: str = "file") -> bytes:
        key = ssh_key(self.folder, name)
        return ssh_signed(key, sums() if content is None else content, namespace)

    def ssh_pin(self, name: str, options: str = "") -> dict[str, bytes]:
        line = ssh_key(self.folder, name).with_suffix(".pub").read_bytes()
        return {f"{name}.pub": f"{name} {options} ".encode() + line if options else line}


@pytest.fixture(scope="module")
def vendor(gpg: Gpg, tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    return Vendor(gpg, tmp_path_factory.mktemp("vendor"))


GOOD: list[tuple[str, str, Callable[[Vendor], VendorImport]]] = [
    ("OpenPGP, Ed25519", "openpgp", lambda v: judge({"s.asc": v.pgp("anna")}, v.pins("anna"))),
    ("OpenPGP, RSA", "openpgp", lambda v: judge({"s.asc": v.pgp("bert")}, v.pins("bert"))),
    ("OpenPGP, not armored", "openpgp", lambda v: judge({"s.sig": v.pgp("anna", options=("--no-armor",))}, v.pins("anna"))),
    ("OpenPGP of two in one file, both pinned", "openpgp", lambda v: judge({"s.asc": v.pgp("anna", "bert")}, v.pins("anna", "bert"), needed=2)),
    ("OpenPGP of two, only the second pinned", "openpgp", lambda v: judge({"s.asc": v.pgp("stranger", "anna")}, v.pins("anna"))),
    ("two armored signatures one behind the other", "openpgp", lambda v: judge({"s.asc": v.pgp("bert") + v.pgp("anna")}, v.pins("anna"))),
    ("a key that ran out beside its successor", "openpgp", lambda v: judge({"old.asc": v.pgp("old", at="20230601T000000"), "new.asc": v.pgp("anna")}, v.pins("old", "anna"))),
    ("minisign", "minisign", lambda v: judge({"s.minisig": minisigned("mia", sums())}, {"mia.pub": minisign_public("mia")})),
    ("minisign's legacy form", "minisign-legacy", lambda v: judge({"s.minisig": minisigned("mia", sums(), prehash=False)}, {"mia.pub": minisign_public("mia")})),
    ("SSH", "ssh", lambda v: judge({"s.sig": v.ssh("sam")}, v.ssh_pin("sam"))),
    ("SSH by allowed signers of another namespace", "ssh", lambda v: judge({"s.sig": v.ssh("sam", namespace="db-release")}, v.ssh_pin("sam", 'namespaces="db-release"'))),
    ("three of three kinds", "openpgp", lambda v: judge(
        {"a": v.pgp("anna"), "b": minisigned("mia", sums()), "c": v.ssh("sam")},
        {**v.pins("anna"), "mia.pub": minisign_public("mia"), **v.ssh_pin("sam")}, needed=3)),
]  # fmt: skip


@pytest.mark.parametrize(("best", "made"), [row[1:] for row in GOOD], ids=[row[0] for row in GOOD])
def test_what_the_vendors_tools_sign_is_taken(
    vendor: Vendor, best: str, made: Callable[[Vendor], VendorImport]
) -> None:
    found = made(vendor)
    assert found.ok, (found.said, found.signatures)
    assert found.best == best
    assert found.signed_by
    assert [one.digest for one in found.archives] == [
        archive().digest,
        archive("arm64", ARM).digest,
    ]


def _one(v: Vendor, **changes: Any) -> VendorImport:
    return judge({"s.asc": v.pgp("anna")}, v.pins("anna"), **changes)


def _tomorrow() -> str:
    return "2099-01-01T00:00:00Z"


BAD: list[tuple[str, str, str, Callable[[Vendor], VendorImport]]] = [
    ("no signature", "unsigned", "no signature", lambda v: judge({}, v.pins("anna"))),
    ("OpenPGP over other sums", "wrong", "does not fit SHA256SUMS", lambda v: judge({"s.asc": v.pgp("anna", content=b"x")}, v.pins("anna"))),
    ("the sums changed by one newline", "wrong", "does not fit", lambda v: judge({"s.asc": v.pgp("anna")}, v.pins("anna"), content=sums() + b"\n")),
    ("minisign over other sums", "wrong", "does not fit", lambda v: judge({"s": minisigned("mia", b"x")}, {"p": minisign_public("mia")})),
    ("minisign for a file of another name", "wrong", "a file called “MD5SUMS”", lambda v: judge({"s": minisigned("mia", sums(), "file:MD5SUMS")}, {"p": minisign_public("mia")})),
    ("minisign with a changed comment", "wrong", "does not fit", lambda v: judge({"s": minisigned("mia", sums()).replace(b"timestamp:1", b"timestamp:0")}, {"p": minisign_public("mia")})),
    ("SSH over other sums", "wrong", "does not fit", lambda v: judge({"s": v.ssh("sam", b"x")}, v.ssh_pin("sam"))),
    ("an order's namespace", "wrong", "signed for “kedge-order”, not for file", lambda v: judge({"s": v.ssh("sam", namespace="kedge-order")}, v.ssh_pin("sam"))),
    ("a stranger's OpenPGP key", "unknown-key", "is not pinned", lambda v: judge({"s": v.pgp("stranger")}, v.pins("anna"))),
    ("a stranger's minisign key", "unknown-key", "is not pinned", lambda v: judge({"s": minisigned("mo", sums())}, {"p": minisign_public("mia")})),
    ("a stranger's SSH key", "unknown-key", "is not pinned", lambda v: judge({"s": v.ssh("zoe")}, v.ssh_pin("sam"))),
    ("a key that ran out, a signature of its time", "expired", "ran out on 2024", lambda v: judge({"s": v.pgp("old", at="20230601T000000")}, v.pins("old"))),
    ("a subkey that ran out, though its holder lives", "expired", "ran out on 2024", lambda v: judge({"s": v.pgp("parts", at="20230601T000000")}, v.pins("parts"))),
    ("a signature that runs out", "expired", "ran out on", lambda v: judge({"s": v.pgp("anna", options=("--default-sig-expire", "1d"))}, v.pins("anna"), at=_tomorrow())),
    ("an SSH key beyond its time", "expired", "was pinned until 2024-01-01", lambda v: judge({"s": v.ssh("sam")}, v.ssh_pin("sam", 'valid-before="20240101"'))),
    ("an SSH key before its time", "early", "is pinned from 2090-01-01", lambda v: judge({"s": v.ssh("sam")}, v.ssh_pin("sam", 'valid-after="20900101Z"'))),
    ("OpenPGP from the future", "early", "in the future", lambda v: _one(v, at="2024-01-01T00:00:00Z")),
    ("minisign from the future", "early", "in the future", lambda v: judge({"s": minisigned("mia", sums(), "timestamp:4000000000")}, {"p": minisign_public("mia")})),
    ("a revoked key", "revoked", "was revoked", lambda v: judge({"s": v.gpg.kept}, v.pins("gone"))),
    ("SHA-1", "weak", "prove nothing", lambda v: judge({"s": v.pgp("bert", options=("--digest-algo", "SHA1"))}, v.pins("bert"))),
    ("a packet that nobody knows behind a stranger's signature", "multiple", "Unknown packet tag", lambda v: judge({"s": v.pgp("stranger", options=("--no-armor",)) + b"\xbc\x01\x00"}, v.pins("anna"))),
    ("a signature over text", "unreadable", "not a file", lambda v: judge({"s": v.pgp("anna", options=("--textmode",))}, v.pins("anna"))),
    ("no signature at all", "unreadable", "neither an OpenPGP", lambda v: judge({"s": b"hello"}, v.pins("anna"))),
    ("half a signature", "unreadable", "no OpenPGP signature", lambda v: judge({"s": v.pgp("anna")[:150] + b"\n-----END PGP SIGNATURE-----"}, v.pins("anna"))),
    ("a certificate where a signature should be", "unreadable", "no signature", lambda v: judge({"s": v.gpg.run("--export", "anna")[:20000]}, v.pins("anna"))),
    ("half a minisign signature", "unreadable", "four lines", lambda v: judge({"s": b"\n".join(minisigned("mia", sums()).split(b"\n")[:2])}, {"p": minisign_public("mia")})),
    ("half an SSH signature", "unreadable", "no end", lambda v: judge({"s": v.ssh("sam")[:100]}, v.ssh_pin("sam"))),
    ("one good beside one wrong", "multiple", "do not go together", lambda v: judge({"a": v.pgp("anna"), "b": v.pgp("bert", content=b"x")}, v.pins("anna", "bert"))),
    ("one key twice where two are needed", "multiple", "of 1 different pinned keys", lambda v: judge({"a": v.pgp("anna"), "b": v.pgp("anna")}, v.pins("anna", "bert"), needed=2)),
    ("one good and a stranger where two are needed", "multiple", "unknown-key", lambda v: judge({"a": v.pgp("anna", "stranger")}, v.pins("anna", "bert"), needed=2)),
    ("one where two are needed", "multiple", "1 pinned key signed, 2 needed", lambda v: judge({"a": v.pgp("anna")}, v.pins("anna", "bert"), needed=2)),
    ("two that are bad in two ways", "multiple", "expired", lambda v: judge({"a": v.pgp("old", at="20230601T000000"), "b": v.pgp("stranger")}, v.pins("old"))),
    ("seventeen signatures", "multiple", "more than 16", lambda v: judge({"a": v.pgp("stranger") * 17}, v.pins("anna"))),
    ("an archive that is not in the sums", "partial", "nobody signed it", lambda v: _one(v, archives=(archive("amd64", AMD, name="db-1.2.tar.gz"),))),
    ("an archive that is not here", "partial", "but not here", lambda v: _one(v, archives=(archive(), archive("arm64", None)))),
    ("no archive at all", "partial", "no archive", lambda v: _one(v, archives=())),
    ("less than the list where all of it is wanted", "partial", "db-1.1-linux-arm64.tar.gz", lambda v: _one(v, archives=(archive(),), complete=True)),
    ("an archive that was changed", "altered", "SHA256SUMS says", lambda v: _one(v, archives=(archive(content=AMD + b"!"),))),
    ("an archive under another's name", "altered", "SHA256SUMS says", lambda v: _one(v, archives=(archive(content=ARM),))),
    ("signed nonsense for sums", "sums", "line 1 that is not a sha256", lambda v: judge({"a": v.pgp("anna", content=b"hello")}, v.pins("anna"), content=b"hello")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "said", "made"), [row[1:] for row in BAD], ids=[r[0] for r in BAD]
)
def test_an_attack_is_refused_under_its_name(
    vendor: Vendor, rule: str, said: str, made: Callable[[Vendor], VendorImport]
) -> None:
    found = made(vendor)
    assert not found.ok
    assert found.rule == rule, (found.said, found.signatures)
    assert said in found.said
    assert found.said.isprintable()


BEFORE: list[tuple[str, str, Callable[[Vendor, VendorImport], VendorImport]]] = [
    ("an older version", "1.2 was imported before", lambda v, two: judge({"a": v.pgp("anna")}, v.pins("anna"), before=(two.model_copy(update={"version": "1.2", "signed_by": two.signed_by[:1]}),))),
    ("an old archive sold as a new one", "is called by another version than 1.2", lambda v, _: judge({"a": v.pgp("anna")}, v.pins("anna"), version="1.2")),
    ("the archives of an older release", "was imported before, as 1.0", lambda v, two: _one(v, archives=(archive(),), before=(two.model_copy(update={"signed_by": two.signed_by[:1]}),))),
    ("fewer keys", "1 pinned key signed it; 1.0 was signed by 2", lambda v, two: judge({"a": v.pgp("anna")}, v.pins("anna"), before=(two,))),
    ("a weaker kind", "signed by minisign at best; 1.0 was by openpgp", lambda v, two: judge({"a": minisigned("mia", sums()), "b": v.ssh("sam")}, {"p": minisign_public("mia"), **v.ssh_pin("sam")}, before=(two,))),
]  # fmt: skip


@pytest.fixture(scope="module")
def two_signed(vendor: Vendor) -> VendorImport:
    return judge(
        {"a": vendor.pgp("anna", "bert")}, vendor.pins("anna", "bert"), needed=2
    ).model_copy(update={"version": "1.0"})


@pytest.mark.parametrize(("said", "made"), [row[1:] for row in BEFORE], ids=[r[0] for r in BEFORE])
def test_less_than_what_was_imported_before_is_a_downgrade(
    vendor: Vendor,
    two_signed: VendorImport,
    said: str,
    made: Callable[[Vendor, VendorImport], VendorImport],
) -> None:
    found = made(vendor, two_signed)
    assert found.rule == "downgraded"
    assert said in found.said


def test_a_downgrade_is_taken_when_a_person_says_why_and_that_is_kept(
    vendor: Vendor, two_signed: VendorImport
) -> None:
    found = _one(vendor, before=(two_signed,), in_spite="bert left the company")
    assert found.ok
    assert found.in_spite == "bert left the company"
    assert not _one(vendor, in_spite="no need").in_spite


def test_neither_a_refused_import_nor_another_component_is_a_past(
    vendor: Vendor, two_signed: VendorImport
) -> None:
    refused = two_signed.model_copy(update={"rule": "altered"})
    other = two_signed.model_copy(update={"component": "other"})
    assert _one(vendor, before=(refused, other)).ok


def test_files_of_the_list_that_are_not_wanted_are_counted(vendor: Vendor) -> None:
    found = _one(vendor, archives=(archive(),))
    assert found.ok
    assert found.not_imported == 1
    assert "1 more file" in found.said


def test_a_verdict_survives_being_written_and_read(two_signed: VendorImport) -> None:
    assert VendorImport.model_validate_json(two_signed.model_dump_json()) == two_signed


PINS: list[tuple[str, str, Callable[[Vendor], dict[str, bytes]]]] = [
    ("none", "no vendor's key", lambda v: {}),
    ("no key", "cannot be read", lambda v: {"p": b"hello"}),
    ("an empty file", "no key in it", lambda v: {"p": b"\n"}),
    ("the same key twice", "hold the same key", lambda v: {"a": v.gpg.public("anna"), "b": v.gpg.public("anna")}),
    ("an SSH private key", "holds a private key", lambda v: {"p": ssh_key(v.folder, "sam").read_bytes()}),
    ("an OpenPGP private key", "holds a private key", lambda v: {"p": v.gpg.run("--armor", "--export-secret-keys", "anna@vendor.example")}),
    ("a private key that is not armored", "holds a private key", lambda v: {"p": v.gpg.run("--export-secret-keys", "anna@vendor.example")}),
    ("a wildcard namespace", "not all plain names", lambda v: v.ssh_pin("sam", 'namespaces="*"')),
    ("an authority", "cannot be kept", lambda v: v.ssh_pin("sam", "cert-authority")),
    ("a time that is none", "no time", lambda v: v.ssh_pin("sam", 'valid-before="soon"')),
    ("a short RSA key", "2048 bits", lambda v: {"p": ssh_key(v.folder, "short", "-t", "rsa", "-b", "2048").with_suffix(".pub").read_bytes()}),
]  # fmt: skip


@pytest.mark.parametrize(("said", "made"), [row[1:] for row in PINS], ids=[row[0] for row in PINS])
def test_what_is_no_usable_public_key_cannot_be_pinned(
    vendor: Vendor, said: str, made: Callable[[Vendor], dict[str, bytes]]
) -> None:
    with pytest.raises(OrderError, match=said):
        read_pins(made(vendor))


def test_every_certificate_of_a_file_is_a_pin(vendor: Vendor) -> None:
    one_file = vendor.gpg.public("anna") + vendor.gpg.public("bert")
    assert len(read_pins({"keyring.asc": one_file})) == 2
    both = vendor.gpg.run("--export", "anna@vendor.example", "bert@vendor.example")
    assert len(read_pins({"keyring.pgp": both})) == 2


def test_one_key_in_two_formats_is_one_holder() -> None:
    """A minisign key's numbers, written as an SSH key: two formats, one secret."""
    raw = minisign_public("mia").split(b"\n")[1]
    numbers = base64.b64decode(raw)[10:]
    line = Ed25519PublicKey.from_public_bytes(numbers).public_bytes(
        Encoding.OpenSSH, PublicFormat.OpenSSH
    )
    with pytest.raises(OrderError, match="hold the same key"):
        read_pins({"a.pub": minisign_public("mia"), "b.pub": line})


def test_more_keys_cannot_be_asked_for_than_are_pinned(vendor: Vendor) -> None:
    with pytest.raises(OrderError, match="2 pinned keys cannot have signed"):
        _one(vendor, needed=2)


@pytest.mark.parametrize("kind", ["openpgp", "openpgp-bare", "minisign", "ssh"])
def test_no_damaged_signature_and_no_damaged_list_is_taken(vendor: Vendor, kind: str) -> None:
    chance = random.Random(f"kedge {kind}")
    signature, pins = {
        "openpgp": lambda: (vendor.pgp("anna"), vendor.pins("anna")),
        "openpgp-bare": lambda: (
            vendor.pgp("anna", options=("--no-armor",)),
            vendor.pins("anna"),
        ),
        "minisign": lambda: (minisigned("mia", sums()), {"p": minisign_public("mia")}),
        "ssh": lambda: (vendor.ssh("sam"), vendor.ssh_pin("sam")),
    }[kind]()
    good = _packets(kind, signature)
    rules: set[str] = set()
    for number in range(400):
        made = bytearray(signature if number % 2 else sums())
        at = chance.randrange(len(made))
        if chance.randrange(2):
            made[at] ^= 1 << chance.randrange(8)
        else:
            del made[at : at + chance.choice((1, 1, 9))]
        if number % 2:
            if _packets(kind, bytes(made)) == good:
                continue  # a comment that nobody signs, or the frame around the same packet
            found = judge({"s": bytes(made)}, pins)
        else:
            found = judge({"s": signature}, pins, content=bytes(made))
        assert not found.ok, bytes(made)
        rules.add(found.rule)
    assert {"wrong", "unreadable"} <= rules


def _signed_part(body: bytes) -> object:
    """What is signed of a v4 signature packet, and the signature's numbers (RFC 9580, 5.2.3).

    Left out are the area that is not hashed and the hash's first two bytes, which nothing depends on.
    """
    hashed = 6 + int.from_bytes(body[4:6], "big")
    at = hashed + 2 + int.from_bytes(body[hashed : hashed + 2], "big") + 2
    numbers: list[int] = []
    while at < len(body):
        length = (int.from_bytes(body[at : at + 2], "big") + 7) // 8
        numbers.append(int.from_bytes(body[at + 2 : at + 2 + length], "big"))
        at += 2 + length
    return body[:hashed], numbers


def _packets(kind: str, signature: bytes) -> object:
    """What a signature file says: without the comment that is not signed, without armor."""
    try:
        if kind.startswith("openpgp"):
            return [_signed_part(one.body) for one in PacketPile.from_bytes(signature)]
        if kind == "minisign":
            lines = signature.rstrip(b"\n").split(b"\n")
            return lines[1:] if len(lines) == 4 else signature
        return signature.strip()
    except (RuntimeError, ValueError):
        return signature


SUMS: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "is empty"),
    ("comments alone", b"# hello\n\n", "is empty"),
    ("a name twice", sums() + sums(), "twice"),
    ("a folder in a name", b"a" * 64 + b"  ../db.tar.gz\n", "line 1"),
    ("an escaped name", b"\\" + b"a" * 64 + b"  a\\nb\n", "line 1"),
    ("a short digest", b"a" * 63 + b"  db.tar.gz\n", "line 1"),
    ("no UTF-8", b"\xff", "UTF-8"),
    ("signed inside", b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n", "signature inside"),
    ("too long", b"#" * (1 << 20) + b"\n", "longer than"),
    ("too many lines", b"\n" * 10_001, "more than 10000 lines"),
]


@pytest.mark.parametrize(("content", "said"), [row[1:] for row in SUMS], ids=[r[0] for r in SUMS])
def test_a_list_that_could_mean_two_things_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_sums(content)


def test_lists_in_both_styles_are_read() -> None:
    digest = "A" * 64
    text = f"# sums\r\n{digest}  a.tar\r\n{digest} *./b.tar\nSHA256 (c d.tar) = {digest}\n"
    assert read_sums(text.encode()) == dict.fromkeys(("a.tar", "b.tar", "c d.tar"), "a" * 64)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.9.0", "1.10.0"), ("1.0.0-rc.1", "1.0.0"), ("1.9", "1.10"), ("1.1", "1.1.1"), ("1.1rc1", "1.1"),
        ("2024-01-31", "2024-02-01"), ("7.0", "10"), ("1.0.0-alpha", "1.0.0-beta"), ("1.1rc1", "1.1rc2"),
    ],
)  # fmt: skip
def test_versions_are_compared_number_by_number(older: str, newer: str) -> None:
    assert is_older(older, newer)
    assert not is_older(newer, older)
    assert not is_older(older, older)


@pytest.mark.parametrize(
    ("file", "version"),
    [
        ("etcd-v3.5.1-linux-amd64.tar.gz", "3.5.1"),
        ("db-1.1-glibc-2.17.tar.gz", "1.1.0"),
        ("db-1.1.0-rc.1.tar.gz", "1.1.0-rc.1"),
        ("geth-linux-amd64-1.13.5-916d6a44.tar.gz", "1.13.5"),
        ("node-linux-x64.tar.gz", "18.1.0"),
        ("db-2024.tar.gz", "7"),
    ],
)
def test_a_file_may_be_of_a_version_that_its_name_does_not_deny(file: str, version: str) -> None:
    assert _may_be(file, version)


@pytest.mark.parametrize("name", ["etcd-v3.5.0-linux.tar.gz", "etcd-v3.5.10.tar.gz", "db-3.5.tar"])
def test_a_file_that_is_called_by_another_version_is_not_of_this_one(name: str) -> None:
    assert not _may_be(name, "3.5.1")
