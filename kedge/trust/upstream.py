"""From upstream: whether what a vendor published can be made a release of. Bytes and facts in, verdict out.

What is published: archives, a list of their sums (``SHA256SUMS``), and signatures over that list. The rules, in this order;
the first that is broken names the verdict:

- ``unsigned``: there is at least one signature;
- ``wrong``, ``revoked``, ``expired``, ``early``, ``weak``, ``unknown-key``, ``unreadable``: at least one is good; where
  none is, and all are bad for the same reason, this is it;
- ``multiple``: they do not go together, or are too few: several are bad for different reasons, one is *wrong* beside good
  ones (a holder signs no two lists for one release), or fewer than ``needed`` *different* pinned holders signed. Good ones
  beside others that only ran out, that nobody pinned or nobody can read are enough: vendors change keys;
- ``sums``: the list can be read: one digest and one name a line, each name once;
- ``partial``: every archive is there and in the list; with ``complete``, every file of the list is among the archives;
- ``altered``: every archive has the digest of the list;
- ``downgraded``: the archives are not called by another version, and were not imported as one: signatures say nothing about
  versions, so an old release could be sold as a new one. No release of a higher version was imported before, none that
  was signed by a stronger kind (:data:`kedge.model.upstream.RANK`) or by more holders. A person may take it in spite of
  that, and says why.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from nodesemver import compare, valid

from kedge.model.base import Digest
from kedge.model.errors import OrderError
from kedge.model.order import Instant
from kedge.model.trusted import ReleaseName
from kedge.model.upstream import (
    MOST_REASON,
    RANK,
    ImportRule,
    SignatureKind,
    VendorArchive,
    VendorImport,
    VendorSignature,
)
from kedge.trust.envelope import moment
from kedge.trust.refusal import quoted
from kedge.trust.vendor_pins import Pin
from kedge.trust.vendor_signatures import Signed, judge_signatures

MOST_SUMS_BYTES = 1 << 20
MOST_SUMS = 10_000

_GNU = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?([^/\\\x00-\x1f\x7f]{1,255})")
_BSD = re.compile(r"SHA256 \((?:\./)?([^/\\\x00-\x1f\x7f]{1,255})\) = ([0-9a-fA-F]{64})")
_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)+")


@dataclass(frozen=True)
class Published:
    """What a vendor published, as it was found. ``signatures`` are files by name, ``archives`` were hashed where they lie."""

    name: ReleaseName
    sums_name: str
    sums: bytes
    signatures: Mapping[str, bytes]
    archives: tuple[VendorArchive, ...]


@dataclass(frozen=True)
class ImportRules:
    """How many different pinned holders must have signed, whether every file of the list has to be there, what was
    imported of this component before, and why a downgrade is taken, where a person says so.
    """

    pins: tuple[Pin, ...]
    needed: int = 1
    complete: bool = False
    before: Sequence[VendorImport] = field(default=())
    in_spite: str = ""


class _RefusedError(Exception):
    def __init__(self, rule: ImportRule, said: str) -> None:
        super().__init__(said)
        self.rule: ImportRule = rule
        self.said = said


def judge_import(published: Published, rules: ImportRules, now: Instant) -> VendorImport:
    """Whether it is taken. Total over what was published; raises ``OrderError`` for rules that mean nothing."""
    if not 1 <= rules.needed <= len(rules.pins):
        raise OrderError(
            f"{rules.needed} pinned keys cannot have signed where {len(rules.pins)} are pinned",
            next_step="pin more keys, or ask for fewer",
        )
    if len(rules.in_spite) > MOST_REASON or (rules.in_spite and not rules.in_spite.strip()):
        raise OrderError(
            f"why a downgrade is taken is said in 1 to {MOST_REASON} characters",
            next_step="--in-spite REASON",
        )
    signed = Signed(published.sums, published.sums_name, moment(now))
    found = judge_signatures(published.signatures, signed, rules.pins)
    good = tuple(dict.fromkeys(one.key for one in found if one.state == "good"))
    kinds = [one.kind for one in found if one.state == "good"]
    best: SignatureKind = max(kinds, key=RANK.__getitem__, default="unknown")
    left_out = 0
    in_spite = ""
    try:
        _judge_signed(found, good, rules.needed)
        left_out = _judge_archives(published, complete=rules.complete)
        in_spite = _judge_before(published, good, best, rules)
        rule: ImportRule = "accepted"
        said = _accepted(published, good, left_out)
    except _RefusedError as error:
        rule, said = error.rule, error.said
    return VendorImport(
        component=published.name.component,
        version=published.name.version,
        rule=rule,
        said=said,
        needed=rules.needed,
        signatures=found,
        signed_by=good,
        best=best,
        sums_name=published.sums_name,
        sums=hashlib.sha256(published.sums).hexdigest(),
        archives=published.archives,
        not_imported=left_out,
        in_spite=in_spite,
        at=now,
    )


def _judge_signed(found: Sequence[VendorSignature], good: Sequence[str], needed: int) -> None:
    if not found:
        raise _RefusedError("unsigned", "there is no signature over the sums")
    wrong = [one for one in found if one.state == "wrong"]
    if good and wrong:
        raise _RefusedError(
            "multiple",
            f"{len(found)} signatures that do not go together: {_each(found)}",
        )
    if len(good) >= needed:
        return
    states = {one.state for one in found}
    if not good and len(states) == 1:
        state = found[0].state
        raise _RefusedError("wrong" if state == "good" else state, found[0].said)
    if len(found) > 1:
        raise _RefusedError(
            "multiple",
            f"{len(found)} signatures, of {len(good)} different pinned keys good ones, and {needed} needed: {_each(found)}",
        )
    raise _RefusedError("multiple", f"1 pinned key signed, {needed} needed: {found[0].said}")


def _each(found: Sequence[VendorSignature]) -> str:
    return "; ".join(f"{one.state} ({one.said})" for one in found)


def read_sums(content: bytes) -> dict[str, Digest]:
    """The digests by file name of a list as ``sha256sum`` writes it (GNU or BSD style); ``ValueError`` otherwise.

    Comment lines (``#``) and empty ones are left out. A name stands once, and is a plain file name: ``./`` before it is
    dropped, other folders and escaped names are refused.
    """
    if len(content) > MOST_SUMS_BYTES:
        raise ValueError(f"is longer than {MOST_SUMS_BYTES} bytes")
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    if len(lines) > MOST_SUMS:
        raise ValueError(f"has more than {MOST_SUMS} lines")
    if lines[0].startswith("-----BEGIN PGP SIGNED MESSAGE"):
        raise ValueError("has its signature inside; a list and a signature of their own are needed")
    found: dict[str, Digest] = {}
    for number, line in enumerate(lines, start=1):
        text = line.removesuffix("\r")
        if not text or text.startswith("#"):
            continue
        gnu, bsd = _GNU.fullmatch(text), _BSD.fullmatch(text)
        if gnu is None and bsd is None:
            raise ValueError(f"has a line {number} that is not a sha256 and a plain file name")
        digest, name = (gnu[1], gnu[2]) if gnu else (bsd[2], bsd[1])  # type: ignore[index]
        if name in found:
            raise ValueError(f"has {quoted(name)} twice")
        found[name] = digest.lower()
    if not found:
        raise ValueError("is empty")
    return found


def _judge_archives(published: Published, *, complete: bool) -> int:
    """How many files of the list are not imported."""
    try:
        sums = read_sums(published.sums)
    except ValueError as error:
        raise _RefusedError("sums", f"{published.sums_name} {error}") from error
    if not published.archives:
        raise _RefusedError("partial", "there is no archive to import")
    names = {one.name for one in published.archives}
    for one in published.archives:
        if one.name not in sums:
            said = f"{one.name} ({one.platform}) is not in {published.sums_name}: nobody signed it"
            raise _RefusedError("partial", said)
        if one.digest is None:
            raise _RefusedError(
                "partial", f"{one.name} ({one.platform}) is in {published.sums_name}, but not here"
            )
    missing = sorted(set(sums) - names)
    if complete and missing:
        shown = ", ".join(map(quoted, missing[:5]))
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise _RefusedError(
            "partial", f"{published.sums_name} lists what is not here: {shown}{more}"
        )
    for one in published.archives:
        if one.digest != sums[one.name]:
            raise _RefusedError(
                "altered",
                f"{one.name} has sha256 {one.digest}, {published.sums_name} says {sums[one.name]}",
            )
    return len(missing)


def _judge_before(
    published: Published, good: Sequence[str], best: SignatureKind, rules: ImportRules
) -> str:
    """The reason for which a downgrade is taken; empty where it is none."""
    name = published.name
    earlier = [one for one in rules.before if one.ok and one.component == name.component]
    faults = [
        f"{one.name} is called by another version than {name.version}"
        for one in published.archives
        if not _may_be(one.name, name.version)
    ]
    digests = {one.digest for one in published.archives}
    faults += [
        f"{one.name} was imported before, as {past.version}"
        for past in earlier
        for one in past.archives
        if past.version != name.version and one.digest in digests
    ]
    newest: VendorImport | None = None
    for one in earlier:
        if newest is None or is_older(newest.version, one.version):
            newest = one
    if newest is not None and is_older(name.version, newest.version):
        faults.append(f"{newest.version} was imported before, and {name.version} is older")
    if newest is not None and RANK[best] < max(RANK[one.best] for one in earlier):
        strongest = max(earlier, key=lambda one: RANK[one.best])
        faults.append(
            f"it is signed by {best} at best; {strongest.version} was by {strongest.best}, which is stronger"
        )
    if newest is not None and len(good) < len(newest.signed_by):
        keys = "1 pinned key" if len(good) == 1 else f"{len(good)} pinned keys"
        faults.append(f"{keys} signed it; {newest.version} was signed by {len(newest.signed_by)}")
    if not faults:
        return ""
    if not rules.in_spite:
        raise _RefusedError("downgraded", "; ".join(faults))
    return rules.in_spite


def _may_be(file: str, version: str) -> bool:
    """Whether a file's name names this version, or none at all; other numbers may stand there as well."""
    said = _NUMBERS.findall(file)
    wanted = _NUMBERS.findall(version)
    return not said or not wanted or any(_same(one, wanted[0]) for one in said)


def _same(one: str, other: str) -> bool:
    """``1.2`` is how some say ``1.2.0``."""
    short, long = sorted((one.split("."), other.split(".")), key=len)
    return long[: len(short)] == short and set(long[len(short) :]) <= {"0"}


def is_older(one: str, other: str) -> bool:
    """Whether a version is lower than another: as semantic versions where both are, else number by number."""
    if valid(one, loose=False) and valid(other, loose=False):
        return bool(compare(one, other, loose=False) < 0)
    for left, right in zip_longest(_parts(one), _parts(other), fillvalue=(1, 0, "")):
        if left != right:
            return left < right
    return False


def _parts(version: str) -> list[tuple[int, int, str]]:
    """Numbers as numbers; a word (``rc``) is lower than nothing at all, which is lower than a number."""
    parts = re.findall(r"[0-9]+|[A-Za-z]+", version)
    return [(2, int(part), "") if part.isdigit() else (0, 0, part.lower()) for part in parts]


def _accepted(published: Published, good: Sequence[str], left_out: int) -> str:
    keys = "key" if len(good) == 1 else "keys"
    count = len(published.archives)
    said = f"{count} archive{'' if count == 1 else 's'} as {len(good)} pinned {keys} signed"
    more = (
        "1 more file of the list is" if left_out == 1 else f"{left_out} more files of the list are"
    )
    return f"{said}; {more} not imported" if left_out else said
