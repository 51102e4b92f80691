"""What records name by digest: nobody who is refused takes a policy out of the file."""

from __future__ import annotations

from kedge.model.base import Json
from kedge.trust.chain import EvidenceEntry
from kedge.trust.evidence import policy_changes
from kedge.trust.policies import policy_text, text_digest
from kedge.trust.wholeness import named_documents
from tests.trust import world

TEXT = policy_text(world.policy())
DIGEST = text_digest(TEXT)
PINNED: dict[str, Json] = {
    "what": "policy", "policies": [DIGEST], "text": DIGEST, "signatures": [],
}  # fmt: skip
REFUSED: dict[str, Json] = {"what": "order", "accepted": False, "plan": DIGEST}


def test_a_policy_stays_one_whatever_an_order_that_was_refused_calls_its_plan() -> None:
    for records in ([REFUSED, PINNED], [PINNED, REFUSED]):
        entries = [EvidenceEntry(at, f"k{at}", one, "", "") for at, one in enumerate(records, 1)]
        named = named_documents(entries)
        assert named == {DIGEST: "policy"}
        texts = {digest: TEXT for digest, what in named.items() if what == "policy"}
        assert [one.what for one in policy_changes(entries, texts)] == ["policy-change"]
