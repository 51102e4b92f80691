"""What the record allows, asked by the activities: admissions, looks, the way back, and the ends of runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from temporalio import activity

from activities.ground import KEPT_WARRANTS, Ground
from activities.recorded import Pairs, moment
from activities.records import step_name
from kedge.model.base import Digest, Json
from kedge.model.errors import DriverError
from kedge.model.plan import Plan
from kedge.model.run import EndRequest, EndVerdict, LegRequest, Observed, Run
from kedge.plan.sights import sorted_sights
from kedge.plan.wayback import Return
from kedge.trust.admission import (
    Admitted,
    Ask,
    Looking,
    Refused,
    Side,
    Verdict,
    admit,
    left_on,
    may_bake,
    may_fence,
    missing_nodes,
    not_ended,
    overtaken,
    unbaked,
)
from kedge.trust.chain import EvidenceHead
from kedge.trust.envelope import order_digest, read
from kedge.trust.run_history import FleetHistory

T = TypeVar("T")
REFUSALS = frozenset({"NotAdmitted", "Held", "Full"})
"""Why the record lets nothing begin: that is no failure of a node."""
Token = tuple[int, int, int]


@dataclass(frozen=True)
class FailedBefore:
    """The recorded failure of a leg, at a step, that nobody decided about since; ``reported`` by the host."""

    error: DriverError
    step: str
    reported: bool


@dataclass(frozen=True)
class Basis:
    """The order that a run acts on, as its warrant says; the record says whether it was spent for that run."""

    order: Digest
    automatic: bool


class Admissions:
    """Questions to the record of a fleet, each answered under its lock, by what stands there at that moment."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._bases: OrderedDict[Digest, Basis] = OrderedDict()
        """By the digest of the warrant: what its bytes say never changes. Whether that order was spent is asked anew."""

    async def basis(self, run: Run) -> Basis:
        """Raises ``DriverError`` where the warrant is not in the store."""
        found = self._bases.get(run.warrant)
        if found is None:
            start = (await self._ground.warrant(run)).start
            found = Basis(order_digest(start), read(start).verb == "start")
            self._bases[run.warrant] = found
            while len(self._bases) > KEPT_WARRANTS:
                self._bases.popitem(last=False)
        return found

    async def admit(
        self, request: LegRequest, nodes: tuple[int, ...]
    ) -> dict[int, Admitted | FailedBefore | DriverError | None]:
        """By node: its admission, why there is none, how the leg failed when the record has it as failed, or None where
        it has it as done.
        """
        run, plan = request.run, await self._ground.plan(request.run.plan)
        basis = await self.basis(run)
        names = {plan.nodes[node].name: node for node in nodes}
        ask = Ask(
            run=run.id,
            epoch=run.epoch,
            plan=run.plan,
            order=basis.order,
            automatic=basis.automatic,
            program=request.program,
            wave=request.wave,
            leg=request.leg,
            nodes=tuple(names),
            # The same activity again goes on under its admission; a new one stands above whatever came before.
            anew=activity.info().attempt == 1,
        )
        verdict = await self._ground.recorded.ask(
            run.fleet, lambda history, head: _paired(admit(history, plan, ask, head.seq, moment()))
        )
        return {
            names[name]: _answer(found) if isinstance(found, Refused) else found
            for name, found in verdict.items()
        }

    async def begun(self, run: Run) -> int:
        """How many waves were begun, by the last decision about a way back. Raises ``DriverError`` without one."""
        found = await self.read(run.fleet, lambda history: history.run(run.id, run.epoch).returning)
        if found is None:
            said = f"the record has no decision about the way back of {run.id}"
            raise DriverError("NotAdmitted", said, retryable=False)
        begun = found[1].get("begun")
        return begun if type(begun) is int else 0

    async def bake(self, run: Run, wave: int) -> Looking:
        """Whom a look of a bake is at. Raises ``DriverError`` where the record allows none."""
        plan, basis = await self._ground.plan(run.plan), await self.basis(run)
        of = (run.id, run.epoch, basis.order)
        found = await self.read(run.fleet, lambda history: may_bake(history, plan, wave, of))
        if isinstance(found, Refused):
            raise _refusal(found)
        return found

    async def tokens(self, run: Run, names: tuple[str, ...]) -> dict[str, Token]:
        """With which token nodes are looked at: as high as the last leg that ended there, so that a look fences nobody."""
        return await self.read(
            run.fleet,
            lambda history: {name: _token(history, run, name) for name in names},
        )

    async def overtaken(self, run: Run) -> bool:
        """Whether a newer lease has the hosts, by the record."""
        return await self.read(run.fleet, lambda history: overtaken(history, run.epoch))

    async def tokens_of(self, run: Run, plan: Plan, nodes: Iterable[int]) -> dict[int, Token]:
        """The same by index."""
        names = {plan.nodes[node].name: node for node in nodes}
        return {
            names[name]: token for name, token in (await self.tokens(run, tuple(names))).items()
        }

    async def baked(self, run: Run, wave: int) -> bool:
        """Whether the looks in the record cover a wave's bake over its whole time."""
        plan = await self._ground.plan(run.plan)
        why = await self.read(
            run.fleet, lambda history: unbaked(history.run(run.id, run.epoch), plan, wave)
        )
        return why is None

    async def absent(self, run: Run, plan: Plan) -> tuple[int, ...]:
        """The nodes that did not serve when they were last seen, by whichever worker."""
        names = await self.read(
            run.fleet, lambda history: set(history.run(run.id, run.epoch).absent)
        )
        return tuple(index for index, node in enumerate(plan.nodes) if node.name in names)

    async def marks(self, run: Run) -> set[str]:
        """Which programs were begun, in the upgrade that is looked at, that hosts do not show any more."""

        def begun(history: FleetHistory) -> set[str]:
            upgrade = history.snapshots(run.epoch)
            return {what for plan, of, what in history.begun if (plan, of) == (run.plan, upgrade)}

        return await self.read(run.fleet, begun)

    async def seen(self, run: Run, plan: Plan) -> tuple[Observed, tuple[int, ...]]:
        """What this run saw of every node since it last touched it, by the record, and the nodes that people gave up."""
        begun = await self.marks(run)

        def sights(
            history: FleetHistory,
        ) -> tuple[dict[str, Mapping[str, Json]], set[str], set[str]]:
            known = history.run(run.id, run.epoch)
            seen = {name: sight for name, (_, sight) in known.sights.items()}
            return seen, set(known.bad), set(known.excused)

        found, bad, excused = await self.read(run.fleet, sights)
        names = {node.name: index for index, node in enumerate(plan.nodes)}
        sorted_ = sorted_sights(plan, {names[name]: found[name] for name in names if name in found})
        missing = [index for name, index in names.items() if name not in found or name in bad]
        seen = sorted_.model_copy(
            update={
                "unreachable": tuple(missing),
                "finalized": "finalize-begun" in begun,
                "restored": "restore-begun" in begun,
            }
        )
        return seen, tuple(names[name] for name in names if name in excused)

    async def fence(self, run: Run) -> int:
        """The place in the fence of a rollback that begins to look: above everything admitted before. Raises
        ``DriverError`` where nothing makes the run go back.
        """
        plan, basis = await self._ground.plan(run.plan), await self.basis(run)
        of = (run.id, run.epoch, basis.order)

        def decide(history: FleetHistory, seq: int) -> tuple[int | Refused, list[tuple[str, Json]]]:
            refused = may_fence(history, plan, of, automatic=basis.automatic)
            if refused is not None:
                return refused, []
            key = f"fence/{run.id}@{run.epoch}/{seq + 1}"
            record: dict[str, Json] = {
                **moment(),
                "what": "fence",
                "run": run.id,
                "epoch": run.epoch,
                "plan": run.plan,
                "order": basis.order,
            }
            return seq + 1, [(key, record)]

        found = await self._ground.recorded.ask(
            run.fleet, lambda history, head: decide(history, head.seq)
        )
        if isinstance(found, Refused):
            raise _refusal(found)
        return found

    async def decided(self, run: Run, choice: Return) -> Return:
        """A way back that was decided from looks in the record: nodes may go it once it stands there. Where nothing makes
        the run go back it is refused.
        """
        plan, basis = await self._ground.plan(run.plan), await self.basis(run)
        names = [node.name for node in plan.nodes]
        of = (run.id, run.epoch, basis.order)

        def decide(history: FleetHistory, head: EvidenceHead) -> tuple[Return, Pairs]:
            refused = may_fence(history, plan, of, automatic=basis.automatic)
            if refused is not None:
                return Return(verdict="refuse", said=refused.said), []
            record: dict[str, Json] = {
                **moment(),
                "what": "return",
                "run": run.id,
                "epoch": run.epoch,
                "plan": run.plan,
                **choice.model_dump(mode="json"),
                "waves": [[names[node] for node in wave] for wave in choice.waves],
            }
            return choice, [(f"return/{run.id}@{run.epoch}/{head.seq + 1}", record)]

        return await self._ground.recorded.ask(run.fleet, decide)

    async def end(self, request: EndRequest) -> EndVerdict:
        """Write down how a run ended, when the record bears that out."""
        run, plan = request.run, await self._ground.plan(request.run.plan)

        def decide(history: FleetHistory, _: EvidenceHead) -> tuple[EndVerdict, Pairs]:
            known = history.run(run.id, run.epoch)
            if known.ended is not None:
                same = known.ended.get("outcome") == request.outcome
                said = "" if same else f"the record has it as {known.ended.get('outcome')}"
                return EndVerdict(ok=same, said=said, release=_side(known.ended.get("left"))), []
            why = not_ended(history, plan, run.id, run.epoch, request.outcome)
            if why is not None:
                gone = missing_nodes(known, plan) if request.outcome == "done" else ()
                index = {node.name: at for at, node in enumerate(plan.nodes)}
                return EndVerdict(
                    ok=False, said=why, missing=tuple(index[name] for name in gone)
                ), []
            left = left_on(history, plan, run.id, run.epoch, request.outcome)
            record: dict[str, Json] = {
                **moment(),
                "what": "end",
                "run": run.id,
                "epoch": run.epoch,
                "plan": run.plan,
                "outcome": request.outcome,
                "said": request.said[:2000],
                "left": left,
            }
            key = f"end/{run.id}@{run.epoch}"
            return EndVerdict(ok=True, release=left), [(key, record)]

        return await self._ground.recorded.ask(run.fleet, decide)

    async def ended(self, fleet: str, run: str) -> tuple[str, str | None, Plan] | None:
        """How a run ended by the record, on which side of its plan, and the plan; None: it did not."""

        def last(history: FleetHistory) -> dict[str, Json] | None:
            known = history.last(run)
            return dict(known.ended) if known is not None and known.ended is not None else None

        found = await self.read(fleet, last)
        if found is None:
            return None
        plan = await self._ground.plan(str(found.get("plan")))
        return str(found.get("outcome")), _side(found.get("left")), plan

    async def read(self, fleet: str, look: Callable[[FleetHistory], T]) -> T:
        """The answer to a question that appends nothing."""
        return await self._ground.recorded.ask(fleet, lambda history, _: (look(history), ()))


def _paired(
    verdict: Verdict,
) -> tuple[dict[str, Admitted | Refused | None], list[tuple[str, Json]]]:
    return verdict.nodes, [(key, record) for key, record in verdict.records]


def _answer(refused: Refused) -> FailedBefore | DriverError:
    """An activity may end without its caller hearing how (its worker died): tried again, it tells what is recorded."""
    node = refused.failed
    failure = None if node is None else node.failure
    if node is None or failure is None or failure.get("type") == "Fenced":
        return _refusal(refused)
    error = DriverError(str(failure.get("type")), str(failure.get("message")), retryable=False)
    return FailedBefore(error, step_name(str(failure.get("key"))), node.reported)


def _refusal(refused: Refused) -> DriverError:
    return DriverError(refused.kind, refused.said, retryable=False)


def _token(history: FleetHistory, run: Run, name: str) -> Token:
    known = history.run(run.id, run.epoch)
    tokens = [track.nodes[name].token for track in known.tracks.values() if name in track.nodes]
    best = max((one for one in tokens if len(one) == 3), default=(run.epoch, 0, 1))
    return best[0], best[1], best[2]


def _side(value: object) -> Side | None:
    match value:
        case "before" | "after":
            return value
    return None
