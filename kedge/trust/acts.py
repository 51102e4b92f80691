"""Acts held against what carries them: leases, warrants with their gates, and releases, judged again from the record.

:class:`Acts` is the second half of :mod:`kedge.trust.retrial`: it believes the orders that were accepted there, and
nothing that the record says came of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedge.model.base import Digest
from kedge.model.plan import Plan
from kedge.model.run import Warrant
from kedge.trust.docket import Docket
from kedge.trust.effects import KnownPlan
from kedge.trust.envelope import order_digest, read
from kedge.trust.orders import signer_of
from kedge.trust.refusal import RefusalError, quoted
from kedge.trust.released import retry
from kedge.trust.warrant import verify_warrant
from kedge.trust.wholeness import acts_as


class Acts:
    """Judges what was done in the records of one fleet, in their order."""

    def __init__(self, docket: Docket) -> None:
        self._docket = docket
        self._warrants: dict[tuple[str, int, str], dict[str, Any]] = {}
        self._allowed: set[tuple[Any, ...]] = set()
        self._carried: dict[tuple[Any, ...], str | None] = {}
        self._released: dict[str, list[Mapping[str, Any]]] = {}
        """By run: what was verified of a release for it."""
        self._proven: dict[tuple[str, frozenset[str], int], str | None] = {}
        self._rests: dict[str, set[Digest]] = {}
        """By run: attestations that its release rests on and that were not judged again."""
        self._wordless: set[str] = set()
        """Runs whose release was verified, and no metadata kept by which that can be judged again."""
        self._lineages: dict[Any, Any] = {}
        """What metadata were found to say, read once each (:func:`kedge.trust.custody.judge_custody`)."""

    def lease(self, seq: int, record: Mapping[str, Any]) -> None:
        """An order was spent under an epoch: it stays that one."""
        order, run, epoch = record.get("order"), record.get("run"), record.get("epoch")
        if not isinstance(order, str) or not isinstance(run, str) or not isinstance(epoch, int):
            self._docket.wrong("lease", seq, "this is no record of a lease")
            return
        known = self._docket.accepted.get(order)
        if known is None and self._docket.first == 1:
            self._docket.wrong(
                "lease", seq, f"{run} acts on an order that was not accepted in this record"
            )
        if known is not None and known.verdict.verb in ("start", "rollback"):
            self._docket.requesters[run] = known.verdict.person
        if record.get("verb") is not None:
            highest = max((one[1] for one in self._docket.leases.values()), default=0)
            if epoch <= highest:
                said = f"its epoch {epoch} is not above {highest}, which was granted before"
                self._docket.wrong("lease", seq, said)
        if order in self._docket.leases:
            self._docket.wrong("lease", seq, "the order was spent before, under another lease")
        under = record.get("policies")
        first = under[0] if isinstance(under, list) and under else ""
        self._docket.leases[order] = (run, epoch, str(first))

    def allowed(self, seq: int, record: Mapping[str, Any]) -> None:
        """A worker found that the signatures carry an act: they do so again."""
        run, epoch, program = record.get("run"), record.get("epoch"), record.get("program")
        if (
            not isinstance(run, str)
            or not isinstance(epoch, int)
            or not isinstance(program, str)
            or not _is_wave(record.get("wave"))
            or not all(isinstance(record.get(name), str) for name in ("plan", "warrant"))
            or not isinstance(record.get("policies"), list)
        ):
            self._docket.wrong("warrant", seq, "this is no record of what a run may do")
            return
        self._warrants[run, epoch, program] = dict(record)
        why = self._may(record, _numbers(record.get("nodes")))
        if why is not None:
            self._docket.wrong("gate" if "gate" in why else "warrant", seq, why)
            return
        self._allowed.add((run, epoch, program, record.get("wave")))

    def acted(self, seq: int, record: Mapping[str, Any], plan: KnownPlan | None) -> None:
        """A leg was run: what carries it stands before it. A node of an earlier wave goes by that wave's own gates."""
        run, program, wave = str(record.get("run")), str(record.get("program")), record.get("wave")
        epoch = _epoch_of(record)
        if not _is_wave(wave):
            self._docket.wrong("gate", seq, "this is no record of what was done in a wave")
            return
        name = str(record.get("node"))
        node = None if plan is None else plan.places.get(name)
        if program == "forward" and plan is not None:
            own = plan.waves.get(name)
            if own is None or not isinstance(wave, int) or own > wave:
                self._docket.wrong(
                    "gate",
                    seq,
                    f"{record.get('node')} is not in wave {wave} of the plan, nor before",
                )
                return
            wave = own
        where = f"{run} {program}" + ("" if wave is None else f" in wave {wave}")
        if (run, epoch, program, wave) not in self._allowed:
            self._docket.wrong(
                "gate", seq, f"{where} acted before anything in the record allowed it"
            )
            return
        why = self._unreleased(run, program, plan)
        if why is not None:
            self._docket.wrong("release", seq, f"{where} acted {why}")
        if program in ("back", "restore") and plan is not None and node is not None:
            basis = self._warrants[run, int(epoch or 0), program]
            # What stands before a way back depends on the wave of a node: one of each is looked at.
            own = plan.waves.get(name)
            one = node if own is None else plan.plan.waves[own].nodes[0]
            why = self._may({**basis, "wave": wave}, (one,))
            if why is not None:
                self._docket.wrong("gate", seq, f"{where}: {why}")

    def released(self, seq: int, record: Mapping[str, Any]) -> None:
        """A worker verified the release of a run: it is the plan's, and what it was built by is in the file."""
        run = record.get("run")
        if record.get("ok") is not True or not isinstance(run, str):
            return
        if record.get("custody") is None:
            self._wordless.add(run)
        else:
            # TUF's library takes a third of a second to load: only a file with metadata pays.
            from kedge.trust.custody import judge_custody  # noqa: PLC0415

            why = judge_custody(record, self._docket.papers.documents, self._lineages)
            if why is not None:
                self._docket.wrong(
                    "release", seq, f"the release was not signed as the record says: {why}"
                )
                return
        authors = record.get("authors")
        if isinstance(authors, list):
            self._docket.authors[str(record.get("document"))] = tuple(str(one) for one in authors)
        if not run:
            return
        basis = [one for (of, _, _), one in self._warrants.items() if of == run]
        plan = self._docket.papers.plan(str(basis[-1].get("plan"))) if basis else None
        if plan is not None and record.get("document") != plan.plan.after.document:
            self._docket.wrong(
                "release", seq, f"what was verified is not the release that {run} moves to"
            )
            return
        attestations = record.get("attestations")
        for digest in attestations if isinstance(attestations, list) else ():
            if str(digest) not in self._docket.papers.documents:
                self._docket.wrong(
                    "document", seq, f"the attestation {str(digest)[:12]} is not in the file"
                )
        self._released.setdefault(run, []).append(record)

    def _unreleased(self, run: str, program: str, plan: KnownPlan | None) -> str | None:
        """What is missing where a policy of a run wants signed releases; None where nothing is."""
        if program not in ("forward", "finalize"):
            return None
        named = frozenset(
            str(digest)
            for (of, _, _), one in self._warrants.items()
            if of == run
            for digest in one.get("policies") or ()
        )
        seen = self._released.get(run, [])
        asked = (run, named, len(seen))
        if asked not in self._proven:
            policies = (self._docket.papers.trusted.get(digest) for digest in sorted(named))
            rules = [one.releases for one in policies if one is not None and one.releases]
            found = [retry(one, seen, plan, self._docket.papers.documents) for one in rules]
            self._proven[asked] = next((one.why for one in found if one.why is not None), None)
            for one in found:
                self._rests.setdefault(run, set()).update(one.rests)
        return self._proven[asked]

    def plan_of(self, record: Mapping[str, Any]) -> KnownPlan | None:
        """The plan that the run of a record follows."""
        epoch = _epoch_of(record)
        if epoch is None:
            return None
        basis = self._warrants.get((str(record.get("run")), epoch, str(record.get("program"))))
        return None if basis is None else self._docket.papers.plan(str(basis.get("plan")))

    def _may(self, record: Mapping[str, Any], nodes: tuple[int, ...]) -> str | None:
        """Why the warrant of a record does not carry its act; None when it does."""
        run, program, wave = str(record["run"]), record["program"], record.get("wave")
        digests = tuple(str(one) for one in record.get("policies") or ())
        asked = (run, program, wave, nodes, digests, record.get("warrant"), record.get("plan"))
        if asked not in self._carried:
            self._carried[asked] = self._reason(record, run, nodes, digests)
        return self._carried[asked]

    def _reason(
        self, record: Mapping[str, Any], run: str, nodes: tuple[int, ...], digests: tuple[str, ...]
    ) -> str | None:
        plan = self._docket.papers.plan(str(record.get("plan")))
        warrant = self._docket.papers.warrant(str(record.get("warrant")))
        if plan is None or warrant is None:
            what = "plan" if plan is None else "warrant"
            return f"the {what} that {run} acts on is not in the file"
        if not digests:
            return f"the record does not say by which policy {run} may act"
        missing = self._missing(warrant)
        if missing is not None:
            return missing
        wave = record.get("wave")
        if (
            record["program"] == "forward"
            and isinstance(wave, int)
            and 0 <= wave < len(plan.plan.waves)
        ):
            nodes = plan.plan.waves[wave].nodes
        unleased = self._unleased(record, run, warrant)
        if unleased is not None:
            return unleased
        began = self._began_by(warrant, plan.plan)
        if self._docket.without(began, digests):
            return f"{run} was not held against the policy that it began under ({str(began)[:12]})"
        for digest in digests:
            policy = self._docket.papers.trusted.get(digest)
            if policy is None:
                return f"the policy {digest[:12]} does not follow from the pinned one"
            self._docket.policies.add(digest)
            verdict = verify_warrant(
                warrant,
                plan.plan,
                str(record.get("plan")),
                policy,
                fleet=self._docket.fleet,
                wave=wave,
                run_id=run,
                program=record["program"],
                nodes=nodes,
                authors=self._docket.authors.get(plan.plan.after.document, ()),
            )
            if not verdict.ok:
                return verdict.said
        return None

    def _unleased(self, record: Mapping[str, Any], run: str, warrant: Warrant) -> str | None:
        """Why the order of a warrant was not spent for this run and epoch; None when it was."""
        lease = self._docket.leases.get(order_digest(warrant.start))
        if lease is None:
            # It may have been spent before the part of the record that is here.
            said = f"nothing in the record says that {run} has the lease of its order"
            return said if self._docket.first == 1 else None
        if lease[0] not in acts_as(run):
            return f"the order of {run} was spent by {quoted(lease[0])}"
        if lease[1] != record.get("epoch"):
            return f"the order of {run} was spent in epoch {lease[1]}, it acted in {record.get('epoch')}"
        return None

    def _began_by(self, warrant: Warrant, plan: Plan) -> Digest | None:
        try:
            ordered = read(warrant.start).verb == "rollback"
        except RefusalError:
            return plan.policy.digest
        lease = self._docket.leases.get(order_digest(warrant.start))
        if ordered:
            return None if lease is None else lease[2]
        return plan.policy.digest

    def _missing(self, warrant: Warrant) -> str | None:
        """A signature in the warrant that was not accepted in the record."""
        if self._docket.first > 1:
            # The order may have been given before the part of the record that is here.
            return None
        for envelope in (
            warrant.start,
            *(one for some in warrant.approvals.values() for one in some),
        ):
            known = self._docket.accepted.get(order_digest(envelope))
            # Whoever else signs the same bytes did not give this order.
            if known is None or signer_of(envelope) != known.verdict.key:
                return "the warrant has a signature that was not accepted in this record"
        return None

    def owed(self) -> tuple[str, ...]:
        """What was built by whom, and signed by the repository's keys, as far as it is a worker's word."""
        rests = [
            f"the release of {run} rests on sigstore bundles that were not judged again "
            f"({', '.join(one[:12] for one in sorted(digests)[:5])}): their trusted root is not in the file; "
            "take them out of it and verify them with cosign and the root that the policy names"
            for run, digests in self._rests.items()
            if digests
        ]
        words = [
            f"that the release of {run} was signed by the repository's keys is its worker's word: "
            "the repository's metadata are not in the file"
            for run in sorted(self._wordless - {""})
        ]
        return (*rests, *words)


def _is_wave(value: object) -> bool:
    """Whether that may be the number of a wave, or none."""
    return value is None or type(value) is int


def _epoch_of(record: Mapping[str, Any]) -> int | None:
    """The epoch of a leg's token."""
    token = record.get("token")
    first = token[0] if isinstance(token, list) and token else None
    return first if type(first) is int else None


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(one for one in value if type(one) is int) if isinstance(value, list) else ()
