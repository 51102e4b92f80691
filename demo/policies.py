"""The policy of the show, as its people make it out of the one that ``kedge init`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from demo.keys import PEOPLE, Person
from kedge.model.base import Digest

POLICY, NEXT_POLICY = "policy.yaml", "policy-2.yaml"


@dataclass(frozen=True, slots=True)
class Change:
    """What the second version changes. ``previous`` is the digest of the first, ``revoked`` the fingerprint of a key."""

    previous: Digest
    revoked: str


def policy_text(
    keys: Mapping[str, str], root: Digest, witness: str, change: Change | None = None
) -> str:
    """The Policy document. ``keys`` are public key lines by person; ``root``, the repository's first root metadata, and
    ``witness``, the worker's checkpoint key, are those that ``kedge init`` wrote.
    """
    return f"""\
kind: Policy
name: demo
environment: demo
{version(change)}
{people(keys)}
{powers()}
releases: {{root: {root}}} # nothing else can be moved to
evidence:
  signers: [{json.dumps(witness)}] # the worker's own key signs the record
"""


def version(change: Change | None) -> str:
    """Which version it is, and what came with it."""
    if change is None:
        return "version: 1\n"
    return f"""\
version: 2
previous: "{change.previous}" # what `kedge policy show` says of version 1
revoked: {{keys: [{json.dumps(change.revoked)}]}} # was on the laptop that was stolen
"""


def people(keys: Mapping[str, str]) -> str:
    """Who there is."""
    lines = "\n".join(_person(person, keys[person.name]) for person in PEOPLE)
    return f"""\
people:
{lines}
"""


def powers() -> str:
    """Who may say what, and how power is shared."""
    return """\
may:
  start: [operator]
  approve: [sre, db-owner]
  reject: [sre, db-owner]
  pause: [operator, on-call]
  resume: [operator, on-call]
  abort: [operator, on-call]
  decide: [operator, on-call]
  rollback: [db-owner]
change: {threshold: 2, roles: [sre, db-owner], each_of: [db-owner]} # who signs the next version of this
gates:
  every: {threshold: 2} # two people at every gate, whatever a runbook says; who asks does not count
break_glass: # what who is on call may say alone in an emergency
  roles: [on-call]
  verbs: [rollback, pause]
  reason_min: 20 # letters
  review: {threshold: 1, roles: [sre, db-owner]} # nothing is started until somebody else signed for it
"""


def _person(person: Person, key: str) -> str:
    return f"  - {{name: {person.name}, roles: [{', '.join(person.roles)}], keys: [{json.dumps(key)}]}}"
