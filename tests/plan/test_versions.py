"""Versions in ranges: distributors' suffixes are pre-releases, and a refusal says so."""

from __future__ import annotations

import pytest

from kedge.plan.company import in_range, suffix_hint

OUTSIDE = [("1.25.0-rc.1", "1.x"), ("3.5.9-1", "3.5.x"), ("1.28.3-gke.100", "1.28.x")]


@pytest.mark.parametrize(("version", "wanted"), OUTSIDE)
def test_a_suffix_is_said_to_be_a_pre_release_with_a_range_that_has_it(
    version: str, wanted: str
) -> None:
    assert not in_range(version, wanted)
    hint = suffix_hint(version, wanted)
    assert "pre-release" in hint
    written = hint.rpartition('write "')[2].rstrip('")')
    assert in_range(version, written)


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("1.2.3", "2.x"), ("1.2.3-rc.1", "2.x"), ("1.2.3", "1.x"), ("a1b2c3d", "1.x"), ("1.2.3+a-b", "2.x")],
)  # fmt: skip
def test_nothing_is_said_of_a_suffix_that_is_not_the_reason(version: str, wanted: str) -> None:
    assert suffix_hint(version, wanted) == ""
