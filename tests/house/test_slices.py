"""Slices of long tables: which rows run, and that a few commits run them all."""

from __future__ import annotations

import pytest

from tests.slices import kept_rows, seed_of

pytest_plugins = ["pytester"]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 50])
@pytest.mark.parametrize("parts", [1, 2, 4, 9])
def test_every_row_is_run_by_some_seed_and_each_slice_has_one(rows: int, parts: int) -> None:
    slices = [set(kept_rows(rows, parts, seed)) for seed in range(parts)]
    assert set().union(*slices) == set(range(rows))
    assert all(slices)


def test_the_seed_is_taken_from_the_commits_hash() -> None:
    assert seed_of("0ab81a8c" + "0" * 32) == 0x0AB81A8C


TABLE = """
import pytest

@pytest.mark.parametrize("row", range(8))
def test_table(row):
    print(f"row {row}")

def test_alone():
    print("alone")
"""


def test_a_slice_deselects_the_other_rows_and_says_how_it_is_run_again(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(test_rows=TABLE)
    result = pytester.runpytest_inprocess(
        "-p", "tests.slices", "-p", "no:xdist", "--slice", "4", "--slice-seed", "1", "-s"
    )
    result.assert_outcomes(passed=3, deselected=6)
    result.stdout.fnmatch_lines(["tables: every 4th row, from --slice 4 --slice-seed 1"])
    printed = result.stdout.str()
    assert [row for row in range(8) if f"row {row}" in printed] == [1, 5]
    assert "alone" in printed
