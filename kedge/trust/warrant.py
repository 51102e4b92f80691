"""The last look before a host is touched: do the signed orders carry what is about to be done?

Activities call :func:`verify_warrant`, so a workflow that is wrong, old or forged can claim what it likes.
Everything about the orders is judged again but what only their moment knew: their expiry, whether their
nonce was fresh, and the digest of what was shown. Those were judged when the orders were accepted.

What a run may act on:

- an **upgrade** (``upgrade/<fleet>/<n>``): an order to start exactly this plan on this fleet;
- a **rollback** (``rollback/<fleet>/<n>``), one of three:
  an order to roll back this fleet, naming this plan;
  the order that started the plan, when the plan says that failure goes back by itself;
  an order to decide a parked item of an upgrade of this fleet and plan, with the choice ``rollback``.

The requester of a run is the person of that order, and does not count at its gates (unless both the policy
and the gate say so).
"""

from __future__ import annotations

import re

from kedge.model.base import Digest, Frozen
from kedge.model.order import Envelope, Expected, Order, OrderVerdict, Tally
from kedge.model.plan import Gate, Plan, ProgramName, Risk
from kedge.model.policy import Policy
from kedge.model.run import Warrant
from kedge.plan.guards import below, gates_before, idle, named, unguarded
from kedge.plan.risk import risk_of
from kedge.plan.wayback import way_back_at
from kedge.trust.approvals import tally
from kedge.trust.envelope import read
from kedge.trust.orders import judge
from kedge.trust.refusal import RefusalError, quoted


class WarrantVerdict(Frozen):
    """Whether the signatures carry the act, in words; ``tallies`` are the gates that were asked for."""

    ok: bool
    said: str
    requester: str = ""
    tallies: tuple[Tally, ...] = ()
    lacking: tuple[str, ...] = ()
    """The gates that were passed and whose signatures do not count any more, when only that is wrong."""


class _About(Frozen):
    """What every order of the warrant is judged with again."""

    plan: Digest
    risk: Risk
    authors: tuple[str, ...]


class _NotCarriedError(Exception):
    """Why the warrant does not carry the act; ``lacking`` are gates that lack signatures, when that is all."""

    def __init__(self, said: str, lacking: tuple[str, ...] = ()) -> None:
        super().__init__(said)
        self.lacking = lacking


def verify_warrant(  # noqa: PLR0913 - the act is said by its keywords, in the words of the run
    warrant: Warrant,
    plan: Plan,
    plan_digest: Digest,
    policy: Policy,
    *,
    fleet: str,
    wave: int | None,
    run_id: str,
    program: ProgramName = "forward",
    nodes: tuple[int, ...] = (),
    authors: tuple[str, ...] = (),
) -> WarrantVerdict:
    """Whether ``run_id`` may run ``program`` on ``nodes``. Pure and total; ``plan_digest`` is the digest of ``plan``.

    ``wave`` of an upgrade is the wave the act belongs to: the start gate and the gates of all waves up to it are
    asked for, and every node must be in it. None: before the first wave (preflight), where no node may be named;
    for the program ``finalize``, all gates are asked for.
    ``wave`` of a rollback is the number of waves begun as observed, which says which way back it is and which gate
    stands before it; a node's own wave is the least it can be. None without nodes: observing and fencing only.
    ``authors`` made the release that the plan brings: what the policy leaves to them is judged again.
    """
    tallies: list[Tally] = []
    requester = ""
    about = _About(plan=plan_digest, risk=risk_of(plan), authors=authors)
    try:
        kind = _run_kind(run_id, fleet)
        _plan_fits(plan, policy, fleet, back=kind == "rollback")
        start = _ground(warrant.start, plan, about, policy, back=kind == "rollback")
        requester = start.person
        if kind == "upgrade":
            gates = _gates_forward(plan, program, wave, nodes)
        else:
            gates = _gates_back(plan, program, wave, nodes, automatic=start.verb == "start")
        tallies += _all_approved(
            tuple(_gate(plan, name) for name in gates), warrant, about, policy, (run_id, requester)
        )
    except _NotCarriedError as why:
        return WarrantVerdict(
            ok=False,
            said=str(why),
            requester=requester,
            tallies=tuple(tallies),
            lacking=why.lacking,
        )
    through = f", through {', '.join(gates)}" if gates else ""
    said = f"{run_id} acts on the order to {start.verb} by {requester}{through}"
    return WarrantVerdict(ok=True, said=said, requester=requester, tallies=tuple(tallies))


def plan_obeys(plan: Plan, policy: Policy, *, back: bool = False) -> tuple[str, ...]:
    """What in the plan is less than the policy asks for; empty when nothing is.

    A plan is compiled by who asks for the run, on any machine: the worker looks again with its own policy. For the way
    ``back`` only the gates on it are looked at: a policy that asks more of a way forward that was gone already must
    not close the way back.
    """
    wrong: list[str] = []
    least = policy.minimums(risk_of(plan))
    returning = {way.gate for way in plan.way_back}
    if plan.environment != policy.environment:
        wrong.append(f"the plan is for {plan.environment}, the policy for {policy.environment}")
    if not back and least.start == "required" and plan.start_gate is None:
        wrong.append("the policy requires a gate before the first step, and the plan has none")
    for gate in plan.gates:
        if back and gate.name not in returning:
            continue
        wrong += below(gate, least.every)
        if gate.requester_counts and not policy.requester_may_approve:
            wrong.append(f"the gate {gate.name} lets the requester count, the policy does not")
    if plan.commit is not None and not back:
        wrong += below(named(plan, plan.commit.gate), least.point_of_no_return)
    if not back:
        wrong += unguarded(plan, least.point_of_no_return)
        wrong += idle(plan)
    for way in plan.way_back:
        if way.kind == "restore" and way.gate is not None:
            wrong += below(named(plan, way.gate), least.data_loss)
    gates = [plan.start_gate, *plan.moved_gates, *(wave.gate for wave in plan.waves)]
    wrong += [
        f"the plan names a gate {name} and does not have it"
        for name in gates
        if name is not None and named(plan, name) is None
    ]
    return tuple(dict.fromkeys(wrong))


def _run_kind(run_id: str, fleet: str) -> str:
    matched = re.fullmatch(r"(upgrade|rollback)/([a-z0-9._-]+)/[a-z0-9.-]+", run_id)
    if matched is None or matched[2] != fleet:
        raise _NotCarriedError(f"{quoted(run_id)} is not a run of the fleet {fleet}")
    return matched[1]


def _plan_fits(plan: Plan, policy: Policy, fleet: str, *, back: bool) -> None:
    if plan.fleet.name != fleet:
        raise _NotCarriedError(f"the plan is for the fleet {plan.fleet.name}, not for {fleet}")
    wrong = plan_obeys(plan, policy, back=back)
    if wrong:
        raise _NotCarriedError("; ".join(wrong))


def _ground(
    envelope: Envelope, plan: Plan, about: _About, policy: Policy, *, back: bool
) -> OrderVerdict:
    """The verdict about the order this run acts on, when it is one of those that carry a run of this kind."""
    order = _readable(envelope)
    fleet = plan.fleet.name
    target = f"fleet/{fleet}"
    if not back:
        allowed = order.verb == "start"
    elif order.verb == "decide":
        # Which upgrade it was is bound by the signature; that it was one of this fleet and plan is looked at here.
        allowed = order.choice == "rollback" and order.target.startswith(f"upgrade/{fleet}/")
        target = order.target
    else:
        allowed = order.verb == "rollback" or (
            order.verb == "start" and plan.on_failure == "rollback"
        )
    if not allowed:
        what = "rolls back" if back else "starts"
        raise _NotCarriedError(
            f"an order to {order.verb} {quoted(order.target)} is not one that {what} this plan"
        )
    # Judged at its own moment: whether it had expired was judged when it was accepted.
    expected = Expected(
        verbs=(order.verb,),
        target=target,
        plan=about.plan,
        risk=about.risk,
        authors=about.authors,
        subjects={order.subject: order.shown},
        choices={order.subject: ("rollback",)} if order.verb == "decide" else {},
        now=order.issued,
    )
    verdict = judge(envelope, expected, policy)
    if not verdict.accepted:
        raise _NotCarriedError(
            f"the order to {order.verb} does not carry this run ({verdict.rule}): {verdict.said}"
        )
    return verdict


def _readable(envelope: Envelope) -> Order:
    try:
        return read(envelope)
    except RefusalError as refusal:
        raise _NotCarriedError(
            f"the order of the warrant ({refusal.rule}): {refusal.said}"
        ) from refusal


def _gates_forward(
    plan: Plan, program: ProgramName, wave: int | None, nodes: tuple[int, ...]
) -> tuple[str, ...]:
    """The gates before an act of an upgrade, in the order in which they are met."""
    if program not in {"forward", "finalize"}:
        raise _NotCarriedError(f"an upgrade does not run the program {program}; a rollback does")
    if program == "finalize":
        begun = len(plan.waves) + 1
    elif wave is None:
        if nodes:
            raise _NotCarriedError("nodes go forward in a wave, and none was named")
        return ()
    elif not 0 <= wave < len(plan.waves):
        raise _NotCarriedError(f"the plan has no wave {wave}")
    else:
        begun = wave + 1
        strangers = set(nodes) - set(plan.waves[wave].nodes)
        if strangers:
            raise _NotCarriedError(
                f"nodes {sorted(strangers)[:5]} are not in wave {wave} of the plan"
            )
    return gates_before(plan, begun)


def _gates_back(
    plan: Plan, program: ProgramName, begun: int | None, nodes: tuple[int, ...], *, automatic: bool
) -> tuple[str, ...]:
    """The gates before the way back from where the fleet is.

    ``restore`` loses writes, so it needs the gate of every way back that restores, wherever the fleet is said to
    be. ``back`` needs the gate of the way back from there. By itself a run goes through no gate, and for it a node's
    own wave counts as begun: a node further on may merely have died, but then a person can order it back.
    """
    if begun is None and not nodes:
        return ()
    if program not in {"back", "restore"}:
        raise _NotCarriedError(f"a rollback does not run the program {program}; an upgrade does")
    touched = set(nodes)
    strangers = touched - set(range(len(plan.nodes)))
    if strangers:
        raise _NotCarriedError(f"nodes {sorted(strangers)[:5]} are not in the plan")
    least = max((at for at, wave in enumerate(plan.waves) if touched & set(wave.nodes)), default=0)
    if begun is None:
        begun = least
    way = way_back_at(plan.way_back, max(least, begun) if automatic else begun)
    if way.kind == "forbidden":
        raise _NotCarriedError(f"there is no way back from there: {way.lost}")
    ways = [way]
    if program == "restore":
        ways = [one for one in plan.way_back if one.kind == "restore"]
        if not ways:
            raise _NotCarriedError("the plan has no way back that restores")
    gates = tuple(dict.fromkeys(one.gate for one in ways if one.gate is not None))
    if automatic and gates:
        raise _NotCarriedError(
            f"the way back asks for the gate {gates[0]}, so it is not taken without an order"
        )
    return gates


def _gate(plan: Plan, name: str) -> Gate:
    gate = named(plan, name)
    if gate is None:
        raise _NotCarriedError(f"the plan names a gate {name} and does not have it")
    return gate


def _all_approved(
    gates: tuple[Gate, ...],
    warrant: Warrant,
    about: _About,
    policy: Policy,
    of: tuple[str, str],
) -> list[Tally]:
    """The tallies of all gates; when some are not met, all of those are told at once."""
    found: list[Tally] = []
    lacking: list[_NotCarriedError] = []
    for gate in gates:
        try:
            found.append(_approved(gate, warrant.approvals.get(gate.name, ()), about, policy, *of))
        except _NotCarriedError as why:
            lacking.append(why)
    if lacking:
        names = tuple(name for one in lacking for name in one.lacking)
        raise _NotCarriedError("; ".join(str(one) for one in lacking), names)
    return found


def _approved(
    gate: Gate,
    envelopes: tuple[Envelope, ...],
    about: _About,
    policy: Policy,
    run_id: str,
    requester: str,
) -> Tally:
    """The gate's tally over the approvals in the warrant, when it is met."""
    signed: tuple[OrderVerdict, ...] = ()
    refusals: list[str] = []
    for envelope in envelopes:
        order = _readable(envelope)
        expected = Expected(
            verbs=("approve",),
            target=run_id,
            plan=about.plan,
            risk=about.risk,
            authors=about.authors,
            subjects={gate.name: order.shown},
            requester=requester,
            spent=tuple(one.nonce for one in signed),
            now=order.issued,
        )
        verdict = judge(envelope, expected, policy, gate=gate, signed=signed)
        if verdict.accepted:
            signed = (*signed, verdict)
        else:
            refusals.append(f"{verdict.person}: {verdict.rule}: {verdict.said}")
    result = tally(gate, signed)
    if not result.met:
        roles = f" (roles {', '.join(result.missing_roles)})" if result.missing_roles else ""
        because = f"; refused: {'; '.join(refusals[:3])}" if refusals else ""
        raise _NotCarriedError(
            f"the gate {gate.name} lacks {result.missing} signature(s){roles}{because}",
            (gate.name,),
        )
    return result
