"""The policy of the show, as its people make it out of the one that ``kedge init`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping

from demo.keys import PEOPLE, Person
from kedge.model.base import Digest

POLICY = "policy.yaml"


def policy_text(keys: Mapping[str, str], root: Digest, witness: str) -> str:
    """The Policy document. ``keys`` are public key lines by person; ``root``, the repository's first root metadata, and
    ``witness``, the worker's checkpoint key, are those that ``kedge init`` wrote.
    """
    return f"""\
kind: Policy
name: demo
environment: demo

{people(keys)}
{powers()}
releases: {{root: {root}}} # nothing else can be moved to
evidence:
  signers: [{json.dumps(witness)}] # the worker's own key signs the record
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
