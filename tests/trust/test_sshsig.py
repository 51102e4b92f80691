"""SSH signatures: stock OpenSSH on the other side, both ways, and everything that must not pass."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from kedge.model.errors import OrderError
from kedge.model.order import Rule
from kedge.model.policy import Person
from kedge.trust.keys import parse_public_key
from kedge.trust.orders import bytes_to_sign, judge, seal
from kedge.trust.refusal import RefusalError
from kedge.trust.signers_file import export_signers
from kedge.trust.sshsig import MAGIC, armor, check, compose, parse, signed_bytes, unarmor
from kedge.trust.wire import Reader, WireError, mpint, string, uint32
from tests.trust import world

KINDS = [
    ("ed25519", []),
    ("ecdsa", ["-b", "256"]),
    ("ecdsa", ["-b", "384"]),
    ("ecdsa", ["-b", "521"]),
    ("rsa", ["-b", "3072"]),
]
MESSAGE = bytes_to_sign(world.order())


def keygen(
    *arguments: str | Path, given: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["ssh-keygen", *map(str, arguments)],
        input=given,
        capture_output=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize(("kind", "size"), KINDS, ids=[f"{k} {' '.join(s)}" for k, s in KINDS])
@pytest.mark.parametrize("hash_name", ["sha512", "sha256"])
def test_what_stock_ssh_keygen_signs_is_accepted(
    tmp_path: Path, kind: str, size: list[str], hash_name: str
) -> None:
    key, order = tmp_path / "key", tmp_path / "order.json"
    order.write_bytes(MESSAGE)
    assert keygen("-q", "-t", kind, *size, "-N", "", "-f", key).returncode == 0
    assert (
        keygen(
            "-Y", "sign", "-O", f"hashalg={hash_name}", "-n", "kedge-order", "-f", key, order
        ).returncode
        == 0
    )
    envelope = seal(order.read_bytes(), (tmp_path / "order.json.sig").read_text())
    line = key.with_suffix(".pub").read_text().strip()
    carol = Person(name="carol", roles=("sre",), keys=(line,))
    found = judge(envelope, world.expected(), world.policy(people=_with(carol)), gate=world.gate())
    assert found.accepted, found.said
    assert found.key == keygen("-l", "-f", key).stdout.split()[1].decode()


@pytest.mark.parametrize(
    "kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "ssh-rsa"]
)
def test_stock_ssh_keygen_verifies_what_we_sign(tmp_path: Path, kind: str) -> None:
    carol = Person(name="carol", roles=("sre",), keys=(world.public("carol", kind),))
    (tmp_path / "signers").write_text(export_signers([carol]))
    (tmp_path / "sig").write_text(world.sign(MESSAGE, world.private("carol", kind)))
    verify = (
        "-Y",
        "verify",
        "-f",
        tmp_path / "signers",
        "-I",
        "carol",
        "-n",
        "kedge-order",
        "-s",
        tmp_path / "sig",
    )
    assert keygen(*verify, given=MESSAGE).returncode == 0
    assert keygen(*verify, given=MESSAGE + b" ").returncode != 0


@pytest.mark.parametrize("curve", [False, True], ids=["sk-ed25519", "sk-ecdsa"])
def test_stock_ssh_keygen_agrees_about_hardware_keys(tmp_path: Path, curve: bool) -> None:  # noqa: FBT001 - a table
    """The signature that the tests synthesize is one that OpenSSH itself takes for a hardware key's."""
    token = world.HardwareKey(curve=curve)
    carol = Person(name="carol", roles=("sre",), keys=(token.line,))
    (tmp_path / "signers").write_text(export_signers([carol]))
    (tmp_path / "sig").write_text(token.sign(MESSAGE))
    verify = (
        "-Y",
        "verify",
        "-f",
        tmp_path / "signers",
        "-I",
        "carol",
        "-n",
        "kedge-order",
        "-s",
        tmp_path / "sig",
    )
    assert keygen(*verify, given=MESSAGE).returncode == 0


@pytest.mark.parametrize("curve", [False, True], ids=["sk-ed25519", "sk-ecdsa"])
@pytest.mark.parametrize(
    ("flags", "rule"), [(0x01, "accepted"), (0x05, "accepted"), (0x00, "touch"), (0x04, "touch")]
)  # fmt: skip
def test_a_hardware_key_must_have_been_touched(curve: bool, flags: int, rule: Rule) -> None:  # noqa: FBT001 - a table
    token = world.HardwareKey(curve=curve)
    carol = Person(name="carol", roles=("sre",), keys=(token.line,))
    envelope = seal(MESSAGE, token.sign(MESSAGE, flags=flags))
    found = judge(envelope, world.expected(), world.policy(people=_with(carol)), gate=world.gate())
    assert found.rule == rule, found.said
    assert (found.touched, found.pin_given) == (bool(flags & 1), bool(flags & 4))


def test_the_flags_of_a_hardware_key_are_under_its_signature() -> None:
    token = world.HardwareKey(curve=False)
    blob = bytearray(unarmor(token.sign(MESSAGE, flags=0x00)))
    assert blob[-5] == 0
    blob[-5] = 0x01
    with pytest.raises(RefusalError) as refusal:
        check(parse(armor(bytes(blob))), parse_public_key(token.line), MESSAGE)
    assert refusal.value.rule == "signature"


def test_a_pin_is_required_where_that_is_asked_for() -> None:
    token = world.HardwareKey(curve=True)
    key = parse_public_key(token.line)
    check(parse(token.sign(MESSAGE, flags=0x05)), key, MESSAGE, require_pin=True)
    with pytest.raises(RefusalError) as refusal:
        check(parse(token.sign(MESSAGE, flags=0x01)), key, MESSAGE, require_pin=True)
    assert refusal.value.rule == "pin"


def test_a_hardware_key_made_for_a_web_page_may_not_sign() -> None:
    token = world.HardwareKey(curve=False, application=b"https://example.org")
    with pytest.raises(OrderError, match="not made for SSH"):
        parse_public_key(token.line)


GOOD = world.sign(MESSAGE, world.private("carol"))
BLOB = unarmor(GOOD)
KEY = string(b"ssh-ed25519") + string(b"k" * 32)


def _blob(
    *,
    magic: bytes = MAGIC,
    version: int = 1,
    reserved: bytes = b"",
    inner: bytes | None = None,
    end: bytes = b"",
) -> str:
    inner = string(b"ssh-ed25519") + string(b"s" * 64) if inner is None else inner
    return armor(
        magic + uint32(version) + string(KEY) + string(b"kedge-order") + string(reserved) + string(b"sha512")
        + string(inner) + end
    )  # fmt: skip


FORMS: list[tuple[str, str]] = [
    ("nothing", ""),
    ("only the first line", "-----BEGIN SSH SIGNATURE-----"),
    ("a header without a body", "-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----\n"),
    ("an OpenPGP header", GOOD.replace("SSH", "PGP")),
    ("text before it", "see below\n" + GOOD),
    ("text behind it", GOOD + "x"),
    ("two newlines behind it", GOOD + "\n"),
    ("carriage returns", GOOD.replace("\n", "\r\n")),
    ("a space in the base64 text", GOOD.replace("U1NI", "U1N I", 1)),
    ("an empty line in it", GOOD.replace("\n", "\n\n", 1)),
    ("lines of other widths", GOOD.replace("U1NI", "U1NI\n", 1)),
    ("letters of another script", GOOD.replace("U1NI", "U1N\u0406", 1)),
    ("base64 for URLs", GOOD.replace("U1NI", "U1-_", 1)),
    ("padding missing", armor(BLOB + b"x").replace("=", "")),
    ("bits left over in the padding", GOOD.replace("\n-----END", "A\n-----END") if "=" not in GOOD else GOOD.replace("=", "=", 1) + " "),
    ("another magic", _blob(magic=b"SSHSIH")),
    ("version 0", _blob(version=0)),
    ("version 2", _blob(version=2)),
    ("a reserved field that is not empty", _blob(reserved=b"x")),
    ("a byte too many", _blob(end=b"\x00")),
    ("a byte too many in the inner signature", _blob(inner=string(b"ssh-ed25519") + string(b"s" * 64) + b"\x00")),
    ("a hardware signature without flags", _blob(inner=string(b"sk-ssh-ed25519@openssh.com") + string(b"s" * 64))),
    ("a length beyond the end", armor(MAGIC + uint32(1) + uint32(0xFFFFFFFF))),
    ("too long", armor(b"x" * 20_000)),
]  # fmt: skip


@pytest.mark.parametrize("text", [text for _, text in FORMS], ids=[name for name, _ in FORMS])
def test_a_text_that_is_not_one_sshsig_is_refused_as_signature(text: str) -> None:
    with pytest.raises(RefusalError) as refusal:
        parse(text)
    assert refusal.value.rule == "signature"


def test_a_signature_without_its_last_newline_is_the_same_signature() -> None:
    assert parse(GOOD.rstrip("\n")) == parse(GOOD)


def test_lines_as_asyncssh_wraps_them_are_accepted() -> None:
    text = base64.b64encode(BLOB).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    assert (
        unarmor("\n".join(["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----"]))
        == BLOB
    )


def test_sha1_rsa_and_other_algorithms_than_the_keys_own_are_refused() -> None:
    rsa = world.private("carol", "ssh-rsa")
    key = parse_public_key(world.public("carol", "ssh-rsa"))
    content = signed_bytes(MESSAGE)
    for algorithm, rule in (
        (b"rsa-sha2-256", None),
        (b"rsa-sha2-512", None),
        (b"ssh-rsa", "algorithm"),
    ):
        signature = parse(compose(rsa.public_data, rsa.sign(content, algorithm)))
        if rule is None:
            check(signature, key, MESSAGE)
            continue
        with pytest.raises(RefusalError) as refusal:
            check(signature, key, MESSAGE)
        assert refusal.value.rule == rule


def test_a_weak_or_unknown_hash_is_refused() -> None:
    key = parse_public_key(world.public("carol"))
    with pytest.raises(RefusalError) as refusal:
        check(
            parse(compose(key.blob, string(b"ssh-ed25519") + string(b"s" * 64), hash_name="sha1")),
            key,
            MESSAGE,
        )
    assert refusal.value.rule == "algorithm"


def test_an_rsa_signature_whose_first_byte_is_zero_is_accepted_with_and_without_it() -> None:
    """One in 256; some agents drop the zero (RFC 8332 has no padding), OpenSSH keeps it."""
    rsa = world.private("carol", "ssh-rsa")
    key = parse_public_key(world.public("carol", "ssh-rsa"))
    for number in range(5000):
        message = MESSAGE + str(number).encode()
        reader = Reader(rsa.sign(signed_bytes(message), b"rsa-sha2-512"))
        algorithm, raw = reader.string(), reader.string()
        if raw[0] == 0:
            for form in (raw, raw.lstrip(b"\x00")):
                check(parse(compose(key.blob, string(algorithm) + string(form))), key, message)
            with pytest.raises(RefusalError):
                check(
                    parse(compose(key.blob, string(algorithm) + string(b"\x00" + raw))),
                    key,
                    message,
                )
            return
    pytest.fail("no such signature in 5000")


KEYS: list[tuple[str, str]] = [
    ("an empty line", ""),
    ("only a kind", "ssh-ed25519"),
    ("two lines", world.public("carol") + "\n" + world.public("bob")),
    ("options before it", 'command="x" ' + world.public("carol")),
    ("a kind that is not the one inside", world.public("carol").replace("ssh-ed25519", "ssh-rsa", 1)),
    ("a byte missing", "ssh-ed25519 " + base64.b64encode(string(b"ssh-ed25519") + string(b"k" * 31)).decode()),
    ("a byte too many", "ssh-ed25519 " + base64.b64encode(KEY + b"x").decode()),
    ("DSA", "ssh-dss " + base64.b64encode(string(b"ssh-dss") + mpint(5)).decode()),
    ("a certificate", "ssh-ed25519-cert-v01@openssh.com " + base64.b64encode(string(b"ssh-ed25519-cert-v01@openssh.com")).decode()),
    ("a point that is not on its curve", "ecdsa-sha2-nistp256 " + base64.b64encode(string(b"ecdsa-sha2-nistp256") + string(b"nistp256") + string(b"\x04" + b"x" * 64)).decode()),
    ("a curve that is not its own", "ecdsa-sha2-nistp256 " + base64.b64encode(string(b"ecdsa-sha2-nistp256") + string(b"nistp384") + string(b"\x04" + b"x" * 96)).decode()),
    ("an even RSA exponent", "ssh-rsa " + base64.b64encode(string(b"ssh-rsa") + mpint(4) + mpint((1 << 3072) - 1)).decode()),
    ("a short RSA key", "ssh-rsa " + base64.b64encode(string(b"ssh-rsa") + mpint(65537) + mpint((1 << 2048) - 1)).decode()),
    ("base64 with bits left over", "ssh-ed25519 " + base64.b64encode(KEY).decode().replace("=", "") + "B="),
]  # fmt: skip


@pytest.mark.parametrize("line", [line for _, line in KEYS], ids=[name for name, _ in KEYS])
def test_a_line_that_is_no_key_that_may_sign_is_refused(line: str) -> None:
    with pytest.raises(OrderError):
        parse_public_key(line)


@pytest.mark.parametrize(
    "encoded", ["00000000", "0000000100", "00000002007f", "0000000180", "00000003000080"]
)
def test_an_integer_has_one_encoding(encoded: str) -> None:
    with pytest.raises(WireError):
        Reader(bytes.fromhex(encoded)).positive()


def _with(carol: Person) -> tuple[Person, ...]:
    return (carol, *(person for person in world.policy().people if person.name != "carol"))
