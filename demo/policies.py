"""The policy of the show, written as a person would write it: who may say what, with which key, and what is demanded."""

from __future__ import annotations

import json
from collections.abc import Mapping

from demo.keys import PEOPLE, Person
from kedge.model.base import Digest

POLICY = "policy.yaml"


def policy_text(keys: Mapping[str, str], root: Digest, witness: str) -> str:
    """The Policy document. ``keys`` are public key lines by person, ``root`` the digest of the repository's first root
    metadata, ``witness`` the public line of the worker's checkpoint key.
    """
    people = "\n".join(_person(person, keys[person.name]) for person in PEOPLE)
    return f"""\
kind: Policy
name: demo
environment: demo

people:
{people}

may:
  start: [operator]
  approve: [sre, db-owner]
  reject: [sre, db-owner]
  pause: [operator, on-call]
  resume: [operator, on-call]
  abort: [operator, on-call]
  decide: [operator, on-call]
  rollback: [db-owner]

{break_glass()}
{demands(root, witness)}"""


def break_glass() -> str:
    """What somebody may do alone in an emergency, and what that owes."""
    return """\
break_glass: # what who is on call may say alone in an emergency
  roles: [on-call]
  verbs: [rollback, pause]
  reason_min: 20 # letters
  review: {threshold: 1, roles: [sre, db-owner]} # and nothing is started until somebody else signed for it
"""


def demands(root: Digest, witness: str) -> str:
    """What the policy demands of releases and of the record."""
    return f"""\
releases: {{root: {root}}} # only what is in this repository
evidence:
  signers: [{json.dumps(witness)}] # the worker's own key: it signs the record as that grows
"""


def _person(person: Person, key: str) -> str:
    return (
        f"  - name: {person.name} # {person.what}\n"
        f"    roles: [{', '.join(person.roles)}]\n"
        f"    keys: [{json.dumps(key)}]"
    )
