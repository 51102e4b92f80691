"""The policy that ``kedge init`` writes: for one person, with everything in it that a second one changes."""

from __future__ import annotations

import json

from kedge.model.base import Digest, Frozen


class FirstPolicy(Frozen):
    """What stands in it. ``key`` and ``witness`` are public key lines."""

    name: str
    environment: str
    person: str
    key: str
    root: Digest
    witness: str


def policy_text(first: FirstPolicy) -> str:
    """The document, with comments for who opens it next."""
    values = {
        # In quotes: a folder may be called `no`, or 2026, and that is no text in YAML.
        "name": json.dumps(first.name),
        "environment": json.dumps(first.environment),
        "person": json.dumps(first.person),
        "key": json.dumps(first.key),
        "root": json.dumps(first.root),
        "witness": json.dumps(first.witness),
    }
    text = _TEXT
    for name, value in values.items():
        text = text.replace(f"<{name}>", value)
    return text


_TEXT = """\
# Who may say what, and with which keys. Written by `kedge init`, yours to change: `kedge policy lint policy.yaml` checks
# it, `kedge policy explain policy.yaml` says it in words. docs/policy.md says all that may stand here.
kind: Policy
version: 1
name: <name>
environment: <environment>  # fleets that this is for say the same

people:
  - name: <person>
    roles: [operator, approver, on-call, maintainer]
    keys:
      - <key>
  # A second person: take the signs away and put in the line of the .pub file. Then set what stands under "alone" to
  # false, and `change` to 2. `kedge policy sign policy.yaml --for FLEET` makes the next version of it.
  # - name: ben
  #   roles: [approver, on-call, maintainer]
  #   keys:
  #     - "ssh-ed25519 AAAA... ben"

may:
  start: [operator]
  pause: [operator, on-call]
  resume: [operator, on-call]
  abort: [operator, on-call]
  decide: [operator, on-call]
  approve: [approver]
  reject: [approver]
  rollback: [on-call]

# Who signs the next version of this policy. With two people: 2, so that neither changes it alone.
change: {threshold: 1, roles: [maintainer]}

# How many different people a gate needs at least, whatever a runbook says. Beside who asked for the run, once nobody is
# alone: with two people 1 is both of them, with three make it 2.
gates:
  every: {threshold: 1}
  point_of_no_return: {threshold: 1}
  data_loss: {threshold: 1}

# Alone: who asks for a run, or made its release, signs for it as well. With two people: false.
requester_may_approve: true
separation: {author_may_approve: true}

# How long a signed order is good for.
max_lifetime: 1h

# Nothing runs but releases that this repository lists: `kedge release list`.
releases:
  root: <root>

# Whose signatures under the record count: this machine's worker. Another machine has a line of its own.
evidence:
  signers:
    - <witness>
  named: required  # who signs says up to where the record was seen

# Who may read, in Temporal's web page, what was sealed: `kedge codec serve`.
codec:
  readers: [operator, on-call]
"""
