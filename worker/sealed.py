"""What a workflow of a home that seals believes, and as what its own words are sealed.

Temporal hands a workflow whatever its history has. Anybody who reaches the frontend can start workflows and send signals,
and whoever polls the task queue can answer for an activity. So each payload is judged by what it was sealed as
(:mod:`kedge.trust.payload_kinds`):

- A workflow's arguments are from its parent or its own former history. Clients start ``Fleet``, ``Ensure`` and ``Look``, with
  the name that stands in the workflow's id, and nothing else.
- Clients signal and update with signed orders (``order``, ``submit_order``). Other signals are from workflows.
- A result or a failure of an activity or a child names the request that it answers. Whatever does not counts as an
  answer that never came: a failure of the type :data:`FORGED`, on which the workflow asks again. What Temporal itself
  says (a time-out, a cancellation) has no seal, and is believed as that.

The judgement is the same whenever the history is replayed. It runs outside of the sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import WorkflowInstance
from temporalio.workflow import Info

from kedge.model.errors import FORGED, CodecError
from kedge.trust import payload_kinds as kinds
from worker.codec import REFUSED, chain, failure_kinds, label, label_of, refusal
from worker.logs import get_logger

_NULL = {"encoding": b"binary/null"}


@dataclass(frozen=True)
class FromClients:
    """What clients may say: the workflows they start, by type, with the beginning of such an id; signals; updates."""

    starts: Mapping[str, str]
    signals: frozenset[str]
    updates: frozenset[str]

    def may_start(self, kind: str, identity: str, arguments: Iterable[Payload]) -> bool:
        """Whether a client may start this: a workflow about one name, which its id has too."""
        begins = self.starts.get(kind)
        said = [payload.data for payload in arguments]
        if begins is None or len(said) != 1:
            return False
        try:
            return bool(identity == f"{begins}{json.loads(said[0])}")
        except (ValueError, RecursionError):
            return False


ORDERS = FromClients(
    starts={"Fleet": "fleet/", "Ensure": "ensure/", "Look": "look/"},
    signals=frozenset({"order"}),
    updates=frozenset({"submit_order"}),
)


class Seals:
    """The judge of one run of a workflow: it knows the names of the run's requests."""

    def __init__(
        self, info: Info, rules: FromClients = ORDERS, grace: Callable[[], bool] = lambda: False
    ) -> None:
        """``grace`` says whether what was written in the open is still read."""
        self._info = info
        self._rules = rules
        self._grace = grace
        self._seed = 0
        self._request = ""
        """The name of the request by which a parent started this workflow; empty where a client did."""
        self._answers: dict[str, str] = {}

    # -- what comes -------------------------------------------------------------------------------------------------

    def admit(self, act: WorkflowActivation) -> CodecError | None:
        """Turns what is not believed into its refusal, in place; an error where the workflow's input is not believed."""
        for job in list(act.jobs):
            match job.WhichOneof("variant"):
                case "initialize_workflow":
                    self._seed = job.initialize_workflow.randomness_seed
                    refused = self._input(list(job.initialize_workflow.arguments))
                    if refused is not None:
                        return refused
                case "update_random_seed":
                    self._seed = job.update_random_seed.randomness_seed
                case "signal_workflow":
                    if not self._signal(job.signal_workflow):
                        act.jobs.remove(job)
                case "do_update":
                    self._from_client(job.do_update.input, allowed=job.do_update.name in self._rules.updates)  # fmt: skip
                case "query_workflow":
                    self._question(job.query_workflow)
                case "resolve_activity":
                    self._activity(act, job.resolve_activity)
                case "resolve_child_workflow_execution":
                    self._child(act, job.resolve_child_workflow_execution)
                case _:
                    pass
        return None

    def _input(self, arguments: list[Payload]) -> CodecError | None:
        info = self._info
        labels = {label_of(one) for one in arguments}
        own = kinds.workflow_input(info.workflow_type)
        if labels <= {(kinds.CLIENT, "")}:
            if self._rules.may_start(info.workflow_type, info.workflow_id, arguments):
                return None
        elif len(labels) == 1 and next(iter(labels))[0] == own:
            self._request = next(iter(labels))[1]
            return None
        elif all(kind == kinds.GRACE for kind, _ in labels):
            return None
        for one in arguments:
            if one.metadata.get("encoding") == REFUSED:
                said = json.loads(one.data)
                return CodecError(said["kind"], said["said"], next_step=said["next"])
        return CodecError(
            "WrongKind",
            f"nobody but a workflow starts {info.workflow_type} with this",
            next_step="start and roll back with `kedge`: a signed order to the fleet does it",
        )

    def _signal(self, job: Any) -> bool:
        """Whether the workflow hears a signal."""
        if job.signal_name in self._rules.signals:
            self._from_client(job.input, allowed=True)
            return True
        wanted = {(kinds.signal_input(job.signal_name), ""), (kinds.GRACE, "")}
        if job.input and all(label_of(one) in wanted for one in job.input):
            return True
        get_logger("codec").warning("a signal is not from a workflow, and is dropped", signal=job.signal_name, workflow=self._info.workflow_id)  # fmt: skip
        return False

    def _from_client(self, payloads: Any, *, allowed: bool) -> None:
        """Leaves what clients sealed; whatever was sealed as something else becomes a note of that."""
        for one in payloads:
            kind, _ = label_of(one)
            fits = allowed and kind in (kinds.CLIENT, kinds.GRACE)
            if not fits and one.metadata.get("encoding") != REFUSED:
                one.CopyFrom(refusal(CodecError(
                    "WrongKind",
                    f"a payload is sealed as {kind[:100]!r}, and clients send signed orders alone",
                )))  # fmt: skip

    def _question(self, job: Any) -> None:
        """The nonce of a question is for who answers it: the handler does not see it."""
        if len(job.arguments) == 1 and kinds.is_question(job.arguments[0].data):
            self._answers[job.query_id] = kinds.question_name(job.arguments[0].data)
            del job.arguments[:]

    def _activity(self, act: WorkflowActivation, job: Any) -> None:
        name = kinds.request_name(self._seed, "activity", job.seq)
        result, said = job.result, ""
        match result.WhichOneof("status"):
            case "completed" if not self._answers_to(result.completed.result, name):
                said = "who answered for this activity has not the workers' keys, or answered something else"
                outer = Failure(message="Activity task failed")
                outer.activity_failure_info.SetInParent()
            case "failed" if not self._authentic(result.failed.failure, name):
                said = "who failed this activity has not the workers' keys, or was asked something else"
                outer = Failure()
                outer.CopyFrom(result.failed.failure)
            case _:
                return
        result.failed.failure.CopyFrom(self._forged(act, outer, said))

    def _child(self, act: WorkflowActivation, job: Any) -> None:
        name = kinds.request_name(self._seed, "child", job.seq)
        result, said = job.result, ""
        match result.WhichOneof("status"):
            case "completed" if not self._ended_by(result.completed.result, name):
                said = "who ended this workflow has not the workers' keys, or ended another one"
                outer = Failure(message="Child Workflow execution failed")
                outer.child_workflow_execution_failure_info.SetInParent()
            case "failed" if not self._authentic(result.failed.failure, name):
                said = "who failed this workflow has not the workers' keys, or failed another one"
                outer = Failure()
                outer.CopyFrom(result.failed.failure)
            case _:
                return
        result.failed.failure.CopyFrom(self._forged(act, outer, said))

    def _answers_to(self, payload: Payload, name: str) -> bool:
        kind, request = label_of(payload)
        if kind == kinds.GRACE:
            return True
        # What was asked in the open is answered without a name.
        return kind == kinds.RESULT and (request == name or (not request and self._grace()))

    def _ended_by(self, payload: Payload, name: str) -> bool:
        kind, request = label_of(payload)
        if kind == kinds.GRACE:
            return True
        named = request == name or (not request and self._grace())
        return kind.startswith("workflow-result/") and named

    def _authentic(self, failure: Failure, name: str) -> bool:
        return authentic(failure, name) or self._grace()

    def _forged(self, act: WorkflowActivation, outer: Failure, said: str) -> Failure:
        if not act.is_replaying:
            get_logger("codec").error("an answer is forged", reason=said, workflow=self._info.workflow_id)  # fmt: skip
        outer.ClearField("encoded_attributes")
        outer.cause.Clear()
        outer.cause.message = said
        outer.cause.application_failure_info.type = FORGED
        return outer

    # -- what goes --------------------------------------------------------------------------------------------------

    def label(self, completion: WorkflowActivationCompletion) -> None:
        """Says as what each payload of a completion is sealed. What is not said here is a note."""
        for command in completion.successful.commands:
            variant = command.WhichOneof("variant")
            label_command = self._LABELS.get(variant or "")
            if label_command is not None:
                label_command(self, getattr(command, str(variant)))

    def _label_activity(self, command: Any) -> None:
        name = kinds.request_name(self._seed, "activity", command.seq)
        label(command.arguments, kinds.activity_input(command.activity_type), name)

    def _label_child(self, command: Any) -> None:
        name = kinds.request_name(self._seed, "child", command.seq)
        label(command.input, kinds.workflow_input(command.workflow_type), name)

    def _label_signal(self, command: Any) -> None:
        if not command.args:
            # Without a payload nothing says that it is from a workflow.
            command.args.add(metadata=_NULL)
        label(command.args, kinds.signal_input(command.signal_name), "")

    def _label_renewal(self, command: Any) -> None:
        kind = command.workflow_type or self._info.workflow_type
        label(command.arguments, kinds.workflow_input(kind), self._request)

    def _label_result(self, command: Any) -> None:
        kind = self._info.workflow_type
        own = kinds.ANSWER if kind in self._rules.starts else kinds.workflow_result(kind)
        if not command.HasField("result"):
            command.result.CopyFrom(Payload(metadata=_NULL))
        label([command.result], own, self._request)

    def _label_end(self, command: Any) -> None:
        for one in chain(command.failure):
            words, details = failure_kinds(one)
            if self._info.workflow_type in self._rules.starts:
                words = details = kinds.NOTE
            _label_failure(one, words, details, self._request)

    def _label_update(self, command: Any) -> None:
        if command.HasField("completed"):
            label([command.completed], kinds.ANSWER, "")
        elif command.HasField("rejected"):
            _label_note(command.rejected)

    def _label_query(self, command: Any) -> None:
        name = self._answers.pop(command.query_id, "")
        if command.HasField("succeeded"):
            label([command.succeeded.response], kinds.ANSWER, name)
        else:
            _label_note(command.failed)

    _LABELS: Mapping[str, Callable[[Seals, Any], None]] = {
        "schedule_activity": _label_activity,
        "schedule_local_activity": _label_activity,
        "start_child_workflow_execution": _label_child,
        "signal_external_workflow_execution": _label_signal,
        "continue_as_new_workflow_execution": _label_renewal,
        "complete_workflow_execution": _label_result,
        "fail_workflow_execution": _label_end,
        "update_response": _label_update,
        "respond_to_query": _label_query,
    }


def _label_note(failure: Failure) -> None:
    for one in chain(failure):
        _label_failure(one, kinds.NOTE, kinds.NOTE, "")


def _label_failure(failure: Failure, words: str, details: str, request: str) -> None:
    if failure.HasField("encoded_attributes"):
        label([failure.encoded_attributes], words, request)
    label(failure.application_failure_info.details.payloads, details, request)


def _is(payload: Payload, kind: str, request: str) -> bool:
    return label_of(payload) in ((kind, request), (kinds.GRACE, ""))


def authentic(failure: Failure, request: str) -> bool:
    """Whether all that a failure says of what happened in a worker was sealed there, for this request.

    What Temporal says itself (time-outs, cancellations, that an activity failed) has no seal and needs none.
    """
    for one in chain(failure):
        if one.WhichOneof("failure_info") != "application_failure_info":
            continue
        words, details = failure_kinds(one)
        sealed = one.HasField("encoded_attributes") and _is(one.encoded_attributes, words, request)
        told = one.application_failure_info.details.payloads
        if not sealed or not all(_is(each, details, request) for each in told):
            return False
    return True


class SealedInstance(WorkflowInstance):
    """A workflow's instance behind its judge."""

    def __init__(self, inner: WorkflowInstance, seals: Seals) -> None:
        self._inner = inner
        self._seals = seals
        self._refused: CodecError | None = None

    def activate(self, act: Any) -> Any:
        """Judges what comes, lets the workflow act, and labels what goes.

        A workflow whose input is not believed fails. Where its history has more than that, its key or its time of grace
        is missing: then only its task fails, for somebody may bring them.
        """
        self._refused = self._seals.admit(act) or self._refused
        if self._refused is None:
            completion = self._inner.activate(act)
            self._seals.label(completion)
            return completion
        if act.is_replaying:
            raise self._refused
        completion = WorkflowActivationCompletion()
        completion.successful.SetInParent()
        if any(job.WhichOneof("variant") == "initialize_workflow" for job in act.jobs):
            failure = completion.successful.commands.add().fail_workflow_execution.failure
            failure.message = self._refused.message
            failure.application_failure_info.type = FORGED
            failure.application_failure_info.non_retryable = True
        return completion

    def get_serialization_context(self, command_info: Any) -> Any:
        """See base class."""
        return self._inner.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: Any) -> Any:
        """See base class."""
        return self._inner.get_external_store_context(command_info)

    def get_info(self) -> Info:
        """See base class."""
        return self._inner.get_info()

    def get_thread_id(self) -> int | None:
        """See base class."""
        return self._inner.get_thread_id()
