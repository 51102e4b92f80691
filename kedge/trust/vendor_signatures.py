"""Vendors' signatures over a file, each judged by the pinned keys and the time: OpenPGP, minisign, SSH.

The mathematics and the formats are those of pysequoia, py-minisign and :mod:`kedge.trust.sshsig`. Beside them, because they
do not do it:

- pysequoia reads only the first signature of a file, so files are taken apart into their packets first;
- Sequoia asks whether a key was valid when the signature says it was made, which is for the signer to say. Here the key
  must be valid *now*, too;
- only signatures over bytes count (type ``Binary``): text signatures leave line ends open;
- minisign's signed comment may name the file (``file:``); then it has to be this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import minisign
import pysequoia
from pysequoia.packet import (
    HashAlgorithm,
    Packet,
    PacketPile,
    PublicKeyAlgorithm,
    SignatureType,
    Tag,
)

from kedge.model.upstream import SignatureKind, SignatureState, VendorSignature
from kedge.trust.refusal import RefusalError, quoted
from kedge.trust.sshsig import BEGIN, END, check, parse
from kedge.trust.vendor_pins import OpenPgpKey, Pin, minisign_id

MOST_SIGNATURE_BYTES = 64 * 1024
MOST_SIGNATURES = 16
SKEW = timedelta(minutes=5)

_PGP = re.compile(rb"-----BEGIN PGP SIGNATURE-----.*?-----END PGP SIGNATURE-----", re.DOTALL)
_WEAK_HASHES = (HashAlgorithm.MD5, HashAlgorithm.SHA1, HashAlgorithm.RipeMD)
_WEAK_KEYS = (PublicKeyAlgorithm.DSA, PublicKeyAlgorithm.ElGamalEncryptSign)


@dataclass(frozen=True)
class Signed:
    """What should have been signed: the file's bytes and its name; and when it is judged."""

    content: bytes
    name: str
    now: datetime


def judge_signatures(
    files: Mapping[str, bytes], signed: Signed, pins: Sequence[Pin]
) -> tuple[VendorSignature, ...]:
    """Every signature in the files, one after the other; total: what cannot be read is a state, not an error."""
    found: list[VendorSignature] = []
    for name, content in files.items():
        for one in _in_file(name, content, signed, pins):
            if len(found) == MOST_SIGNATURES:
                said = f"more than {MOST_SIGNATURES} signatures: the rest was not looked at"
                return (*found[:-1], _unreadable(name, said))
            found.append(one)
    return tuple(found)


def _in_file(
    name: str, content: bytes, signed: Signed, pins: Sequence[Pin]
) -> Iterator[VendorSignature]:
    if len(content) > MOST_SIGNATURE_BYTES:
        yield _unreadable(name, f"it is longer than {MOST_SIGNATURE_BYTES} bytes")
    elif content.startswith(b"untrusted comment:"):
        yield _minisign(name, content, signed, pins)
    elif content.lstrip().startswith(BEGIN.encode()):
        yield from _ssh_file(name, content, signed, pins)
    elif content[:1] >= b"\x80":
        yield from _openpgp_block(name, content, signed, pins)
    else:
        blocks = _PGP.findall(content)
        if not blocks:
            yield _unreadable(
                name, "it is neither an OpenPGP, nor a minisign, nor an SSH signature"
            )
        for block in blocks:
            yield from _openpgp_block(name, block, signed, pins)


def _unreadable(name: str, said: str) -> VendorSignature:
    return VendorSignature(file=name, kind="unknown", state="unreadable", said=said)


# -- OpenPGP ---------------------------------------------------------------------------------------


def _openpgp_block(
    name: str, block: bytes, signed: Signed, pins: Sequence[Pin]
) -> Iterator[VendorSignature]:
    try:
        packets = list(PacketPile.from_bytes(block))
    except (RuntimeError, ValueError, OSError):
        packets = []
    if not packets:
        yield _unreadable(name, "there is no OpenPGP signature in it")
    for packet in packets:
        try:
            yield _openpgp(name, packet, signed, pins)
        except (RuntimeError, ValueError, OSError) as error:
            # Asking a packet for what it has not, or has in a form that nobody knows, raises.
            said = str(error).partition("\n")[0]
            yield _unreadable(name, f"it cannot be read as a signature: {quoted(said)}")


def _openpgp(name: str, packet: Packet, signed: Signed, pins: Sequence[Pin]) -> VendorSignature:
    if packet.tag != Tag.Signature:
        return _unreadable(name, f"there is a {packet.tag} in it, which is no signature")
    issuer = packet.issuer_fingerprint or packet.issuer_key_id or ""
    holder = _holder(issuer, pins)
    state: SignatureState = "unknown-key"
    said = f"the OpenPGP key {issuer or 'without a name'} is not pinned"
    if holder is not None:
        state, said = _openpgp_state(packet, *holder, signed)
    return VendorSignature(
        file=name,
        kind="openpgp",
        state=state,
        said=said,
        key=holder[0].fingerprint if holder is not None else "",
        made=_text(packet.signature_created),
    )


def _openpgp_state(
    packet: Packet, pin: Pin, key: OpenPgpKey, signed: Signed
) -> tuple[SignatureState, str]:
    made, ends = packet.signature_created, packet.signature_expiration_time
    who = f"the OpenPGP key {key.fingerprint[-16:].upper()}"
    if packet.signature_type != SignatureType.Binary:
        return "unreadable", f"{who} signed text, or something else, but not a file"
    if packet.hash_algorithm in _WEAK_HASHES or packet.key_algorithm in _WEAK_KEYS:
        how = f"{packet.hash_algorithm} and {packet.key_algorithm}"
        return "weak", f"{who} signed with {how}, which prove nothing any more"
    if key.revoked:
        return "revoked", f"{who} was revoked by its holder"
    if made is None or made > signed.now + SKEW:
        return "early", f"{who} says that it signed in the future, {_text(made)}"
    if ends is not None and ends <= signed.now:
        # Sequoia does not look at the mathematics of a signature that ran out, so neither is said here.
        return "expired", f"the signature of {who} ran out on {_text(ends)}"
    holds = _openpgp_holds(packet, pin, signed.content)
    if key.expires is not None and key.expires <= signed.now and (holds or made > key.expires):
        return "expired", f"{who} ran out on {_text(key.expires)}"
    if not holds:
        return "wrong", f"the signature of {who} does not fit {signed.name}"
    return "good", f"{who} of {_user(pin)} signed on {_text(made)}"


def _holder(issuer: str, pins: Sequence[Pin]) -> tuple[Pin, OpenPgpKey] | None:
    """The pinned key of a fingerprint, or of a key id, as old signatures name it."""
    wanted = issuer.lower()
    if len(wanted) < 16:
        return None
    for pin in pins:
        for key in pin.keys:
            if key.fingerprint.lower().endswith(wanted):
                return pin, key
    return None


def _openpgp_holds(packet: Packet, pin: Pin, content: bytes) -> bool:
    cert = pin.cert
    if cert is None:
        return False
    try:
        signature = pysequoia.Sig.from_bytes(bytes(packet))
        verified = pysequoia.verify(bytes=content, store=lambda _: [cert], signature=signature)
    except (RuntimeError, ValueError, OSError):
        return False
    return any(one.certificate == pin.fingerprint for one in verified.valid_sigs)


def _user(pin: Pin) -> str:
    users = pin.cert.user_ids if pin.cert is not None else []
    return quoted(str(users[0])) if users else "no name"


# -- minisign --------------------------------------------------------------------------------------

_COMMENT_TIME = re.compile(r"(?:^|\t)timestamp:([0-9]{1,11})(?=\t|$)")
_COMMENT_FILE = re.compile(r"(?:^|\t)file:([^\t]+)(?=\t|$)")


def _minisign(name: str, content: bytes, signed: Signed, pins: Sequence[Pin]) -> VendorSignature:
    try:
        if len(content.splitlines()) != 4:
            return _unreadable(name, "a minisign signature is four lines")
        signature = minisign.Signature.from_bytes(content)
    except (minisign.Error, ValueError) as error:
        return _unreadable(name, f"it is no minisign signature: {quoted(str(error))}")
    kind: SignatureKind = "minisign" if signature.is_prehashed() else "minisign-legacy"
    key_id = minisign_id(signature._key_id)  # noqa: SLF001 - the library has no other way to it
    stamp = _COMMENT_TIME.search(signature.trusted_comment)
    made = datetime.fromtimestamp(int(stamp[1]), UTC) if stamp else None
    pin = next((one for one in pins if one.minisign and one.fingerprint == key_id), None)

    def found(state: SignatureState, said: str) -> VendorSignature:
        return VendorSignature(
            file=name, kind=kind, state=state, said=said,
            key=pin.fingerprint if pin else "", made=_text(made),
        )  # fmt: skip

    if pin is None or pin.minisign is None:
        return found("unknown-key", f"the minisign key {key_id} is not pinned")
    try:
        pin.minisign.verify(signed.content, signature)
    except minisign.Error:
        return found(
            "wrong", f"the signature of the minisign key {key_id} does not fit {signed.name}"
        )
    meant = _COMMENT_FILE.search(signature.trusted_comment)
    if meant is not None and meant[1] != signed.name:
        said = (
            f"the minisign key {key_id} signed a file called {quoted(meant[1])}, not {signed.name}"
        )
        return found("wrong", said)
    if made is not None and made > signed.now + SKEW:
        said = f"the minisign key {key_id} says that it signed in the future, {_text(made)}"
        return found("early", said)
    when = f" on {_text(made)}" if made else ""
    return found("good", f"the minisign key {key_id} signed{when}")


# -- SSH -------------------------------------------------------------------------------------------


def _ssh_file(
    name: str, content: bytes, signed: Signed, pins: Sequence[Pin]
) -> Iterator[VendorSignature]:
    try:
        text = content.decode("ascii").strip()
    except UnicodeDecodeError:
        yield _unreadable(name, "it is no text")
        return
    for part in text.split(BEGIN)[1:]:
        if not part.strip().endswith(END):
            yield _unreadable(name, "an SSH signature in it has no end")
        else:
            yield _ssh(name, BEGIN + part.rstrip() + "\n", signed, pins)


def _ssh(name: str, text: str, signed: Signed, pins: Sequence[Pin]) -> VendorSignature:
    try:
        signature = parse(text)
    except RefusalError as error:
        return _unreadable(name, error.message)
    pin = next((one for one in pins if one.ssh and one.ssh.blob == signature.key_blob), None)

    def found(state: SignatureState, said: str) -> VendorSignature:
        return VendorSignature(
            file=name, kind="ssh", state=state, said=said, key=pin.fingerprint if pin else ""
        )

    if pin is None or pin.ssh is None:
        return found("unknown-key", "the SSH key that signed is not pinned")
    who = f"the SSH key {pin.fingerprint}"
    if signature.namespace not in pin.namespaces:
        said = (
            f"{who} signed for {quoted(signature.namespace)}, not for {' or '.join(pin.namespaces)}"
        )
        return found("wrong", said)
    try:
        check(
            signature, pin.ssh, signed.content, namespace=signature.namespace, require_touch=False
        )
    except RefusalError as error:
        if error.rule == "algorithm":
            return found("weak", f"{who}: {error.message}")
        return found("wrong", f"the signature of {who} does not fit {signed.name}")
    if pin.before is not None and pin.before <= signed.now:
        return found("expired", f"{who} was pinned until {_text(pin.before)}")
    if pin.after is not None and pin.after > signed.now:
        return found("early", f"{who} is pinned from {_text(pin.after)} on")
    return found("good", f"{who} signed")


def _text(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment is not None else ""
