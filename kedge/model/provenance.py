"""Provenance: which builders a policy believes, how many of them must agree, and what came of it.

Rules the model itself keeps (so that no verification has to):

* a builder's key is one OpenSSH public key line or one PEM block (``PUBLIC KEY``); it is kept as the OpenSSH line, so
  that both spellings are the same document. Ed25519, ECDSA on the NIST curves, RSA from 3072 bits on. Hardware (``sk-``)
  keys cannot sign envelopes, certificates are no keys: both are refused;
* the same key *material* stands under one builder, once: who holds one key cannot be two independent builders;
* no more builders must agree than there are;
* a ``*`` in a source stands behind the host's name, for one part of the path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kedge.model.base import Digest, Frozen
from kedge.model.notation import Problem, refuse

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

RSA_LEAST = 3072
MOST_BUILDERS = 16
MOST_KEYS = 4
_CURVES = {"secp256r1", "secp384r1", "secp521r1"}
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]{1,4000}-----END PUBLIC KEY-----")
_LINE = re.compile(r"((?:ssh|ecdsa)-[a-z0-9-]{1,40}) +([A-Za-z0-9+/]{1,6000}={0,2})(?: .*)?")

# Only printable ASCII: identifiers are compared byte by byte and read by people.
Uri = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9+.-]*:[!-;=?-~]{1,500}$",
        description="an address or other URI, such as https://ci.example.org/builders/linux",
    ),
]


def builder_key(text: str) -> tuple[str, bytes]:
    """The OpenSSH line of a public key and its material (type and bare numbers); ``ValueError`` says what is wrong.

    Two texts with the same material are the same key, whichever way they are written.
    """
    # Heavy, and most policies have no builders.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    given = text.strip().replace("\r\n", "\n")
    pem = given.startswith("-----")
    found = (_PEM if pem else _LINE).fullmatch(given)
    if found is None:
        raise ValueError(
            "must be one PEM block, -----BEGIN PUBLIC KEY----- …"
            if pem
            else "must be one line (ssh-ed25519, ecdsa-sha2-… or ssh-rsa, base64, comment) or a PEM block"
        )
    try:
        if pem:
            key: object = serialization.load_pem_public_key(given.encode())
        else:
            key = serialization.load_ssh_public_key(f"{found[1]} {found[2]}".encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("cannot be read as a public key") from error
    return _material(key)


def _material(key: object) -> tuple[str, bytes]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415

    if isinstance(key, ed25519.Ed25519PublicKey):
        return _openssh(key), b"ed25519" + key.public_bytes_raw()
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        numbers = key.public_numbers()
        return _openssh(key), f"{key.curve.name} {numbers.x:x} {numbers.y:x}".encode()
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_LEAST:
            raise ValueError(f"is an RSA key of {key.key_size} bits; it needs {RSA_LEAST}")
        return _openssh(key), f"rsa {key.public_numbers().n:x}".encode()
    raise ValueError("must be an Ed25519, ECDSA (P-256, P-384, P-521) or RSA key")


def _openssh(key: PublicKeyTypes) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _key(text: str) -> str:
    try:
        return builder_key(text)[0]
    except ValueError as error:
        said = str(error).replace("{", "(").replace("}", ")")[:300]
        raise PydanticCustomError("kedge_key", "{said}", {"said": f"not usable: {said}"}) from error


BuilderKey = Annotated[
    str,
    Field(
        max_length=8192,
        description="a public key: an OpenSSH line (type, base64, comment) or a PEM block",
    ),
    AfterValidator(_key),
]

_AGE = re.compile(r"([0-9]{1,4})(h|d)")


def _age(value: object, info: ValidationInfo) -> object:
    found = _AGE.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        return float(found[1]) * (3600.0 if found[2] == "h" else 86400.0)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (info.context or {}).get("document"):
        raise PydanticCustomError("kedge_age", "must be an age in hours or days: 12h, 90d")
    return value


Age = Annotated[
    float,
    BeforeValidator(_age),
    Field(gt=0, le=9999 * 86400, allow_inf_nan=False),
    WithJsonSchema(
        {"type": "string", "pattern": "^[0-9]{1,4}(h|d)$", "description": "an age: 12h, 90d"}
    ),
]
"""Seconds, written as ``12h`` or ``90d``."""


def _source(text: str) -> str:
    before, star, _ = text.partition("*")
    if star and before.count("/") < 3:
        raise PydanticCustomError(
            "kedge_source",
            "a '*' may stand behind the host's name only: git+https://example.org/team/*",
        )
    if "**" in text:
        raise PydanticCustomError("kedge_source", "'*' stands for one part of a path; no '**'")
    if {".", ".."} & set(text.split("/")):
        raise PydanticCustomError("kedge_source", "has a part '.' or '..'; write where it leads")
    return text


SourcePattern = Annotated[Uri, AfterValidator(_source)]


class BuilderIdentity(Frozen):
    """A builder without a key of its own: what a certificate of the pinned trusted root says about it.

    ``issuer`` is the OIDC issuer in full; ``subject`` the certificate's one subject alternative name, in which a ``*`` may
    stand for one part of a path, since some name the release's tag there.
    """

    issuer: Uri
    subject: Annotated[str, Field(pattern=r"^[!-~]{1,500}$"), AfterValidator(_source)]


class Builder(Frozen):
    """Somebody who builds: ``id`` as its provenance says it, and the keys with which only it signs.

    ``identity`` instead of keys: keyless signatures (sigstore bundles); ``id`` may then have a ``*`` as in sources.
    """

    id: Annotated[Uri, AfterValidator(_source)]
    keys: Annotated[tuple[BuilderKey, ...], Field(max_length=MOST_KEYS)] = ()
    identity: BuilderIdentity | None = None


class ProvenanceRules(Frozen):
    """What must be shown about how an artifact was built before anything runs it.

    ``sources`` are exact, or have a ``*`` for one part of the path. ``builders_agree``: so many different builders must
    have arrived at the artifact's digest. ``max_age`` is how long ago a build may have ended; None: any time.
    ``trusted_root`` is the sha256 of the sigstore trusted root that builders with an ``identity`` are judged by.
    """

    builders: Annotated[tuple[Builder, ...], Field(min_length=1, max_length=MOST_BUILDERS)]
    sources: Annotated[tuple[SourcePattern, ...], Field(min_length=1, max_length=64)]
    build_types: Annotated[tuple[Uri, ...], Field(min_length=1, max_length=64)]
    builders_agree: Annotated[int, Field(ge=1, le=MOST_BUILDERS)]
    max_age: Age | None = None
    trusted_root: Digest | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        problems: list[Problem] = []
        names: dict[str, int] = {}
        holders: dict[bytes, str] = {}
        identities: dict[BuilderIdentity, str] = {}
        for index, builder in enumerate(self.builders):
            here: tuple[str | int, ...] = ("builders", index)
            if builder.id in names:
                said = (
                    f"is builder {names[builder.id] + 1} already; one entry each, with all its keys"
                )
                problems.append(((*here, "id"), said))
            names.setdefault(builder.id, index)
            if not builder.keys and builder.identity is None:
                problems.append((here, "has neither keys nor an identity: nobody could sign as it"))
            if builder.keys and "*" in builder.id:
                problems.append(((*here, "id"), "names one builder where it has keys: no '*'"))
            for place, line in enumerate(builder.keys):
                material = builder_key(line)[1]
                if material in holders:
                    said = f"is the same key as one of {holders[material]}; a key is of one builder, once"
                    problems.append(((*here, "keys", place), said))
                holders.setdefault(material, builder.id)
            if builder.identity is None:
                continue
            if builder.identity in identities:
                said = f"is the identity of {identities[builder.identity]} already"
                problems.append(((*here, "identity"), said))
            identities.setdefault(builder.identity, builder.id)
            if self.trusted_root is None:
                problems.append(((*here, "identity"), "needs trusted_root beside builders"))
        if self.builders_agree > len(names):
            said = f"{self.builders_agree} builders cannot agree where only {len(names)} are named"
            problems.append((("builders_agree",), said))
        return problems


ProvenanceRule = Literal[
    "counted",
    "unreadable",
    "payload-type",
    "bundle",
    "signature",
    "statement",
    "predicate-type",
    "builder",
    "build-type",
    "source",
    "time",
    "subject",
    "repeated",
]
"""Why an envelope counts, or does not. ``docs/provenance.md`` says what each means."""


class EnvelopeVerdict(Frozen):
    """One envelope for one artifact.

    What stands beside ``rule`` and ``said`` is what the envelope claims, empty where it was not got so far; it is
    proven only where ``counted``. ``keys`` are the fingerprints of the policy's keys that signed.
    """

    name: str
    digest: Digest
    rule: ProvenanceRule
    said: str
    builder: str = ""
    build_type: str = ""
    sources: tuple[str, ...] = ()
    finished: str = ""
    keys: tuple[str, ...] = ()

    @property
    def counted(self) -> bool:
        """Whether it is one of those that agree."""
        return self.rule == "counted"


class ProvenanceVerdict(Frozen):
    """Whether enough builders arrived at one artifact's digest.

    ``agreed`` are the ids of the builders that count; ``dissent`` those that are believed, built the same from the
    policy's sources, and arrived at other bytes: worth a look even where enough agree.
    """

    ok: bool
    said: str
    subject: Digest
    needed: int
    agreed: tuple[str, ...]
    dissent: tuple[str, ...] = ()
    envelopes: tuple[EnvelopeVerdict, ...] = ()
