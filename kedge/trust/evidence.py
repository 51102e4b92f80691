"""The record of a fleet verified: chain, checkpoints, orders judged again, acts against their signatures, effects.

Needed are the record and what it names by digest (:class:`kedge.trust.evidence_file.Parts`), and the policies that are
pinned: neither network, nor database, nor Temporal, nor a clock. Everything is looked at, and each fault is said with its
place; behind the first break of the chain nothing is believed any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from kedge.model.base import Digest, canonical, digest_of
from kedge.model.errors import OrderError
from kedge.model.evidence import (
    Checkpoint,
    Document,
    EvidenceReport,
    Finding,
    Happening,
)
from kedge.model.policy import Policy
from kedge.model.signed_policy import MAX_POLICY, SignedPolicy
from kedge.trust.chain import EvidenceEntry, EvidenceHead, genesis, verify
from kedge.trust.checkpoints import verify_checkpoint
from kedge.trust.docket import Papers
from kedge.trust.effects import Ledger, compare
from kedge.trust.evidence_file import Parts
from kedge.trust.policies import (
    PolicyRefusedError,
    follow,
    policy_text,
    read_policy,
    text_digest,
)
from kedge.trust.retrial import Court
from kedge.trust.story import happening
from kedge.trust.wholeness import flaws
from kedge.trust.witnesses import Witnesses

MAX_CHANGES = 1000
"""Changes of policies that are looked at in one file."""


@dataclass(frozen=True)
class Asked:
    """What a record is held against. ``pinned`` are policies taken for true, by digest; ``roots`` digests of such that
    the record itself may bring. ``known`` are ends of the chain that were written down elsewhere, ``journals`` the
    journals of hosts by name. ``live``: it goes on being written, so a tail without a checkpoint is nothing odd.
    """

    pinned: Mapping[Digest, Policy] = field(default_factory=dict)
    roots: frozenset[Digest] = frozenset()
    known: Mapping[int, Digest] = field(default_factory=dict)
    journals: Mapping[str, bytes] = field(default_factory=dict)
    live: bool = False


def trusted_policies(
    documents: Mapping[Digest, Document], asked: Asked
) -> tuple[dict[Digest, Policy], list[Finding]]:
    """The policies that may be judged by: those that are pinned, the versions that follow from them by the signatures that
    each asked for, and the versions that they themselves name as the ones before them.
    """
    findings: list[Finding] = []
    trusted = {
        text_digest(policy_text(policy)): SignedPolicy(policy=policy_text(policy))
        for policy in asked.pinned.values()
    }
    for digest in asked.roots:
        document = documents.get(digest)
        if document is not None and len(document.content) <= MAX_POLICY:
            trusted[digest] = SignedPolicy(policy=document.content)
    trusted = follow(trusted, _changes(documents))
    found: dict[Digest, Policy] = {}
    waiting = [document.policy for document in trusted.values()]
    while waiting:
        text = waiting.pop()
        digest = text_digest(text)
        try:
            policy = read_policy(text)
        except PolicyRefusedError as refusal:
            said = f"{digest[:12]} is pinned, and is no policy: {refusal.message}"
            findings.append(Finding(kind="policy", said=said))
            continue
        # A policy of an earlier format is judged by in its present form, which has a digest of its own.
        found[digest] = found[digest_of(policy)] = policy
        before = documents.get(policy.previous or "")
        if before is not None and before.digest not in found:
            waiting.append(before.content)
    return found, findings


def _changes(documents: Mapping[Digest, Document]) -> list[SignedPolicy]:
    """The versions of policies that are in the file with their signatures."""
    found: list[SignedPolicy] = []
    for document in documents.values():
        if document.what == "policy-change" and len(found) < MAX_CHANGES:
            with contextlib.suppress(ValidationError):
                found.append(SignedPolicy.model_validate_json(document.content))
    return found


def policy_changes(
    entries: Iterable[EvidenceEntry], documents: Mapping[Digest, str]
) -> list[Document]:
    """The changes of policies that records tell of, each as a document of its own; ``documents`` are texts by digest."""
    found: dict[Digest, Document] = {}
    for entry in entries:
        record = entry.record
        if not isinstance(record, dict) or record.get("what") != "policy":
            continue
        text, signatures = documents.get(str(record.get("text"))), record.get("signatures")
        if text is None or not isinstance(signatures, list):
            continue
        with contextlib.suppress(ValidationError, ValueError):
            change = SignedPolicy(policy=text, signatures=tuple(str(one) for one in signatures))
            content = canonical(change).decode()
            digest = text_digest(content)
            found[digest] = Document(digest=digest, what="policy-change", content=content)
    return list(found.values())


def verify_parts(parts: Parts, asked: Asked) -> EvidenceReport:
    """What comes of verifying a file. Total: whatever stands in it, this is an answer."""
    if parts.header is None:
        return _nothing(parts.findings)
    header = parts.header
    known = dict(asked.known)
    after = EvidenceHead(header.after.seq, header.after.hash)
    if after.seq == 0:
        known.setdefault(0, genesis(header.fleet))
    trial = _Trial(header.fleet, header.run, after, parts, asked, known)
    trial.lines()
    trial.header()
    return trial.report()


class _Trial:
    """One verification, from the chain to the words."""

    def __init__(
        self,
        fleet: str,
        run: str,
        after: EvidenceHead,
        parts: Parts,
        asked: Asked,
        known: dict[int, Digest],
    ) -> None:
        self._fleet, self._run, self._after = fleet, run, after
        self._parts, self._asked, self._known = parts, asked, known
        self.findings: list[Finding] = []
        self.unproven: list[str] = []
        self._trusted, problems = trusted_policies(parts.documents, asked)
        self._problems = problems
        self._signed = 0
        self._witnesses: list[str] = []
        self._whole = 0
        """How many records hold, from the beginning of the part on."""
        self._checkpoints()
        self._chain()

    # -- the chain ---------------------------------------------------------------------------------------------------

    def _checkpoints(self) -> None:
        """Checkpoints of witnesses are hashes that are known; two that contradict each other are a fork.

        They are sorted before the chain is walked, by what its records say of the policy: where the chain then breaks, the
        file does not hold anyway, and a record that only claims a change of the policy can but take checkpoints away.
        """
        witnesses = Witnesses(self._trusted, self._parts.entries, self._after.seq)
        for checkpoint, line in self._parts.checkpoints:
            try:
                key = verify_checkpoint(checkpoint)
            except (OrderError, ValueError) as error:
                said = f"the checkpoint at {checkpoint.seq} does not hold: {error}"
                self.findings.append(
                    Finding(kind="checkpoint", said=said, seq=checkpoint.seq, line=line or None)
                )
                continue
            if checkpoint.fleet != self._fleet:
                said = f"the checkpoint at {checkpoint.seq} is of the fleet {checkpoint.fleet}"
                self.findings.append(
                    Finding(kind="checkpoint", said=said, seq=checkpoint.seq, line=line or None)
                )
                continue
            if witnesses.counts(key, checkpoint.seq):
                self._witness(checkpoint, key.fingerprint)
        self.unproven += witnesses.unproven()

    def _witness(self, checkpoint: Checkpoint, fingerprint: str) -> None:
        before = self._known.setdefault(checkpoint.seq, checkpoint.hash)
        if before != checkpoint.hash:
            said = f"two ends of the record are known at {checkpoint.seq}, {before[:12]} and {checkpoint.hash[:12]}: it was forked"
            self.findings.append(Finding(kind="forked", said=said, seq=checkpoint.seq))
        self._signed = max(self._signed, checkpoint.seq)
        if fingerprint not in self._witnesses:
            self._witnesses.append(fingerprint)

    def _chain(self) -> None:
        entries, after = self._parts.entries, self._after
        # What was known before the part begins cannot be compared with it.
        known = {seq: digest for seq, digest in self._known.items() if seq >= after.seq}
        verdict = verify(self._fleet, (one.link() for one in entries), known=known, after=after)
        numbered = [place for place, one in enumerate(entries) if one.seq != after.seq + place + 1]
        self._whole = len(entries)
        if verdict.place is not None and verdict.fault is not None:
            self._whole = verdict.place
            self._broken(verdict.fault, verdict.place, verdict.said)
        elif numbered:
            self._whole = numbered[0]
            said = f"it says of itself that it is number {entries[numbered[0]].seq}"
            self._broken("edited", numbered[0], said)

    def _broken(self, fault: Any, place: int, said: str) -> None:
        seq = self._after.seq + place + 1
        line = self._parts.lines[place] if place < len(self._parts.lines) else None
        why = said.partition(": ")[2].partition(": ")[2] or said
        self.findings.append(Finding(kind=fault, said=f"record {seq}: {why}", seq=seq, line=line))

    # -- the file ----------------------------------------------------------------------------------------------------

    def lines(self) -> None:
        """What was found while the file was read stands first, where it is about a line of its own."""
        self.findings = [*self._parts.findings, *self.findings, *self._problems]

    def header(self) -> None:
        """The header says what follows."""
        header = self._parts.header
        if header is None:
            return
        last = self._parts.entries[-1] if self._parts.entries else None
        end = (last.seq, last.hash) if last is not None else (self._after.seq, self._after.hash)
        if end[0] < header.end.seq:
            said = f"the file says that it goes to record {header.end.seq}; it ends behind {end[0]}"
            self.findings.append(Finding(kind="truncated", said=said, seq=end[0] + 1))
        elif end != (header.end.seq, header.end.hash):
            said = f"the file says that it ends in record {header.end.seq} ({header.end.hash[:12]}); it does not"
            self.findings.append(Finding(kind="unreadable", said=said, line=1))
        counts = (len(self._parts.documents), len(self._parts.checkpoints))
        if counts != (header.documents, header.checkpoints) and not self.findings:
            said = f"the header counts {header.documents} documents and {header.checkpoints} checkpoints; there are {counts[0]} and {counts[1]}"
            self.findings.append(Finding(kind="unreadable", said=said, line=1))
        for seq in sorted(seq for seq in self._asked.known if seq < self._after.seq)[:5]:
            self.unproven.append(
                f"the file begins behind record {self._after.seq}: the end that was noted at {seq} was compared with nothing; "
                "export it with --whole"
            )
        if self._after.seq and self._after.seq not in self._known:
            self.unproven.append(
                f"the file begins behind record {self._after.seq}, and no checkpoint of a known key says how that ended"
            )

    # -- what it says ------------------------------------------------------------------------------------------------

    def report(self) -> EvidenceReport:
        """Everything together."""
        entries = self._parts.entries[: self._whole]
        hashes = {entry.seq: entry.hash for entry in entries} | {self._after.seq: self._after.hash}
        papers = Papers(self._parts.documents, self._trusted)
        court = Court(self._fleet, papers, hashes, self._after.seq + 1)
        ledger = Ledger()
        story: list[Happening] = []
        ended = False
        for entry in entries:
            story.append(happening(entry.seq, entry.key, entry.record))
            if isinstance(entry.record, dict):
                try:
                    self._one(entry, entry.record, court, ledger)
                    court.admissions.take(entry)
                except Exception as error:  # noqa: BLE001 - the last line: what cannot be judged does not hold
                    said = f"what it says makes no sense ({type(error).__name__})"
                    self.findings.append(Finding(kind="unreadable", said=said, seq=entry.seq))
                ended = ended or ends(entry.record, self._run)
        self.findings += [*court.findings, *ledger.findings]
        if self._parts.header is not None and self._whole == len(self._parts.entries):
            self.findings += flaws(self._parts.header, self._parts)
        self.unproven += court.owed()
        self._journals(ledger)
        self._tail(ended)
        head = self._parts.entries[-1] if self._parts.entries else None
        return EvidenceReport(
            ok=not self.findings,
            ended=ended,
            fleet=self._fleet,
            run=self._run,
            first=self._after.seq + 1,
            last=head.seq if head is not None else self._after.seq,
            head=head.hash if head is not None else self._after.hash,
            records=len(self._parts.entries),
            checkpoints=len(self._parts.checkpoints),
            signed=self._signed,
            witnesses=tuple(self._witnesses),
            policies=tuple(sorted(court.policies)),
            orders=court.orders,
            refused=court.refused,
            steps=ledger.steps,
            nodes=len(ledger.nodes),
            findings=tuple(self.findings),
            unproven=tuple(self.unproven),
            story=tuple(story),
        )

    def _one(
        self, entry: EvidenceEntry, record: Mapping[str, Any], court: Court, ledger: Ledger
    ) -> None:
        what = record.get("what")
        if what == "order":
            court.order(entry.seq, entry.key, record)
        elif what == "lease":
            court.acts.lease(entry.seq, record)
        elif what == "policy":
            court.policy(entry.seq, record)
        elif what == "asked":
            court.asked(entry.seq, record)
        elif what == "release":
            court.acts.released(entry.seq, record)
        elif what == "allowed":
            court.acts.allowed(entry.seq, record)
        elif what == "leg":
            plan = court.acts.plan_of(record)
            if record.get("steps"):
                court.acts.acted(entry.seq, record, plan)
            ledger.leg(entry.seq, record, plan)
        elif what == "looked":
            nodes = record.get("nodes")
            for name, seen in nodes.items() if isinstance(nodes, dict) else ():
                journal = seen.get("journal") if isinstance(seen, dict) else None
                ledger.sight(entry.seq, name, journal, record.get("token"))

    def _journals(self, ledger: Ledger) -> None:
        for name, journal in self._asked.journals.items():
            if name not in ledger.nodes:
                self.unproven.append(
                    f"the record says nothing of {name}: its journal was not compared"
                )
                continue
            compared = compare(ledger.nodes[name], journal, whole=self._after.seq == 0)
            self.findings += compared.findings
            if compared.unheard:
                self.unproven.append(
                    f"{len(compared.unheard)} steps are in the journal of {name} alone, such as {compared.unheard[0]}: "
                    "no worker heard their end"
                )

    def _tail(self, ended: bool) -> None:  # noqa: FBT001 - one question
        last = self._after.seq + len(self._parts.entries)
        if self._run and not ended and not self.findings:
            self.unproven.append(
                f"{self._run} does not end in here: it still went on, or what came later was left out"
            )
        if not self._witnesses and not self._signers():
            return
        if self._signed < last:
            said = f"records {self._signed + 1} to {last} stand behind the last checkpoint: nobody vouches for them"
            if self._asked.live:
                self.unproven.append(said)
            else:
                self.findings.append(Finding(kind="unsigned", said=said, seq=self._signed + 1))

    def _signers(self) -> bool:
        return any(policy.evidence is not None for policy in self._trusted.values())


def ends(record: Mapping[str, Any], run: str) -> bool:
    """Whether a record is the end of this run: one that the record itself bears out, whatever the run says."""
    return bool(run) and record.get("run") == run and record.get("what") == "end"


def _nothing(findings: list[Finding]) -> EvidenceReport:
    return EvidenceReport(
        ok=False, ended=False, fleet="", run="", first=0, last=0, head="", records=0, checkpoints=0, signed=0,
        findings=tuple(findings),
    )  # fmt: skip
