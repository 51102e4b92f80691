"""Power that is taken away: a key is revoked by a change of the policy that people sign, while a run is under way."""

from __future__ import annotations

from demo.documents import FLEET, GATE
from demo.keys import APPROVER, OTHER_APPROVER, PEOPLE, ROBBED, make_key
from demo.policies import NEXT_POLICY, POLICY, Change, policy_text, version
from demo.show import Show, ShowError
from desk.documents import read_policy
from kedge.model.base import digest_of
from kedge.trust.keys import parse_public_key

REFUSED = 3
SIGNED = "policy-2.signed.json"


def revoke(show: Show, run: str) -> None:
    """A key is stolen, revoked by two people, and of no use to the thief; ``run`` waits at its gate meanwhile."""
    screen, robbed = show.screen, ROBBED.name
    screen.say(
        f"While it waits at its gate, the laptop of {robbed.capitalize()} is stolen, with her key on it; she is {ROBBED.what}. "
        "The policy gets a second version: her old key is revoked, and she has a new one. Changing the policy takes two "
        "people as well, the owner of the database among them; the worker takes nothing that they did not sign."
    )
    screen.excerpt(f"new in {NEXT_POLICY}, with a new key for {robbed}", _second(show))
    for file, person in ((NEXT_POLICY, APPROVER), (SIGNED, OTHER_APPROVER)):
        show.kedge("policy", "sign", file, "--for", FLEET, "--key", f"keys/{person.name}")
    show.kedge("policy", "pin", FLEET, SIGNED)
    show.policy = NEXT_POLICY
    screen.say(
        "Taking power away works at once, for runs under way, too; giving some does not: this run goes by the policy it "
        "began under and by the new one. The thief signs for the gate:"
    )
    words = ["approve", run, "--gate", GATE, "--key", f"keys/{robbed}", "--person", robbed]
    show.refused_by("revoked", show.kedge(*words, codes=(REFUSED,)))


def _second(show: Show) -> list[str]:
    """Writes the second version; returns the lines that are new."""
    paths = show.paths
    first = read_policy(paths.folder / POLICY).value
    if first.releases is None or first.evidence is None:
        raise ShowError(f"{POLICY} names neither releases nor the worker's key")
    keys = {one.name: (paths.keys / f"{one.name}.pub").read_text().strip() for one in PEOPLE}
    change = Change(digest_of(first), parse_public_key(keys[ROBBED.name]).fingerprint)
    keys[ROBBED.name] = make_key(paths.keys, f"{ROBBED.name}-new")
    text = policy_text(keys, first.releases.root, first.evidence.signers[0], change)
    (paths.folder / NEXT_POLICY).write_text(text, encoding="utf-8")
    return version(change).splitlines()
