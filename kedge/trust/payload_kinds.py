"""What a sealed payload is, and which of two rings its kind is sealed with.

The **workers' ring** seals whatever a workflow or an activity acts on: inputs of workflows and activities, their results
and failures, signals between workflows. The **clients' ring** seals what clients send (:data:`CLIENT`) and what is for
people's eyes (:data:`ANSWER`, :data:`NOTE`). Whoever holds the clients' ring alone can order, ask and read answers, and
makes nothing that a worker takes for a worker's word.

A payload's kind is part of what it is bound to, so a payload of one kind is never taken for another.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Use = Literal["workers", "clients"]
USES: tuple[Use, ...] = ("workers", "clients")

CLIENT = "client"
"""What a client sends: an order, a fleet's name, the nonce of a question."""
ANSWER = "answer"
"""The answer to an update or a query, and the result of a workflow that clients start."""
NOTE = "note"
"""For people's eyes: heartbeats, summaries, memos, words of refusals. No worker reads it."""
RESULT = "result"
"""What an activity returned."""
GRACE = "grace"
"""Read in a time of grace, from before there were kinds: nothing is known of it. No payload is sealed as this."""

_OF_CLIENTS = frozenset({CLIENT, ANSWER, NOTE})


def workflow_input(kind: str) -> str:
    """The arguments of a workflow of that type, from its parent or from its own former history."""
    return f"workflow/{kind}"


def workflow_result(kind: str) -> str:
    """What a workflow of that type returned."""
    return f"workflow-result/{kind}"


def activity_input(kind: str) -> str:
    """The arguments of an activity of that type."""
    return f"activity/{kind}"


def signal_input(name: str) -> str:
    """What one workflow signals to another."""
    return f"signal/{name}"


def failure(kind: str, *, final: bool) -> str:
    """The words of a failure, bound to what Temporal keeps of it in the open: its type, and whether it is final."""
    return f"failure/{'final' if final else 'retryable'}/{kind}"


def details(kind: str, *, final: bool) -> str:
    """The details of a failure, bound to the same."""
    return f"details/{'final' if final else 'retryable'}/{kind}"


def ring_of(kind: str) -> Use:
    """The ring that seals and opens payloads of this kind."""
    return "clients" if kind in _OF_CLIENTS else "workers"


def of_a_result(kind: str) -> bool:
    """Whether a payload is of a workflow's end: its result, or its failure."""
    return kind.startswith(("workflow-result/", "failure/", "details/"))


def request_name(seed: int, what: str, place: int) -> str:
    """The digest that names a request of a workflow: of its run's seed, of what is asked, and of the request's number.

    It is the same whenever the history is replayed, and no other request of any run has it.
    """
    return hashlib.sha256(f"kedge-request\0{seed}\0{what}\0{place}".encode()).hexdigest()[:32]


_QUESTION = "kedge-question/"


def question(nonce: str) -> str:
    """What a client sends along with a query, so that only the answer to it is taken."""
    return _QUESTION + nonce


def is_question(sent: bytes) -> bool:
    """Whether what came with a query is such a nonce, as JSON."""
    return sent.startswith(b'"' + _QUESTION.encode())


def question_name(nonce: bytes) -> str:
    """The digest that names a client's question, by its nonce as JSON."""
    return hashlib.sha256(b"kedge-question\0" + nonce).hexdigest()[:32]
