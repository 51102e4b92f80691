"""No history passes 10,000 events: attempts are bounded, and so are the nodes of one child."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kedge.model.base import MOST_ATTEMPTS
from kedge.model.run import LegFacts
from kedge.model.runbook import Retry
from workflows.wave import ATTEMPTS_A_CHILD, CHUNK, chunk_of


def legs(*attempts: int) -> tuple[LegFacts, ...]:
    """Legs that are tried as often as that."""
    return tuple(LegFacts(timeout=1, backoff=1, attempts=count) for count in attempts)


@pytest.mark.parametrize("attempts", [(1,), (3,), (3, 3), (5, 5, 5), (20,), (20,) * 30])
def test_a_child_never_comes_to_more_attempts_than_a_history_holds(
    attempts: tuple[int, ...],
) -> None:
    nodes = chunk_of(legs(*attempts))
    assert 1 <= nodes <= CHUNK
    assert nodes == 1 or nodes * sum(attempts) <= ATTEMPTS_A_CHILD


def test_an_ordinary_leg_fills_a_child() -> None:
    assert chunk_of(legs(3)) == CHUNK


def test_more_attempts_than_a_history_holds_are_an_error_of_the_document() -> None:
    assert Retry.model_validate({"attempts": MOST_ATTEMPTS, "backoff": "1s"}).attempts == 20
    with pytest.raises(ValidationError, match="less than or equal to 20"):
        Retry.model_validate({"attempts": MOST_ATTEMPTS + 1, "backoff": "1s"})
