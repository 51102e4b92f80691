"""A verifier written from the page alone agrees with ours about files, chains, checkpoints and signatures."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kedge.drivers.checkpoints import ensure_key
from kedge.trust.signers_file import export_signers
from tests.spine import stranger
from tests.spine.conftest import Stage
from tests.spine.forgery import Entry, changed, relinked
from tests.spine.records import Kept, kept_run

pytestmark = pytest.mark.temporal


@pytest.fixture
async def kept(stage: Stage) -> Kept:
    """See :func:`kept_run`."""
    return await kept_run(stage)


def _edited(entries: list[Entry], place: int) -> None:
    entries[place]["record"]["said"] = "nothing happened"


def _taken_out(entries: list[Entry], place: int) -> None:
    del entries[place]


def _swapped(entries: list[Entry], place: int) -> None:
    entries[place - 1], entries[place] = entries[place], entries[place - 1]


def _put_in(entries: list[Entry], place: int) -> None:
    entries.insert(place, {**copy.deepcopy(entries[place]), "key": "made-up"})


CHANGES: list[Callable[[list[Entry], int], None]] = [_edited, _taken_out, _swapped, _put_in]


async def test_a_verifier_written_from_the_page_alone_agrees(kept: Kept, tmp_path: Path) -> None:
    people, workers, file = (tmp_path / name for name in ("people", "workers", "run.evidence"))
    people.write_text(export_signers(kept.policy.people))
    named = f'worker namespaces="kedge-checkpoint" {kept.key.public.line}\n'
    workers.write_text(named)

    async def asked(lines: list[bytes]) -> tuple[int, str]:
        file.write_bytes(b"".join(lines))
        # Isolated and without site packages: it has nothing but the standard library.
        call = [sys.executable, "-I", "-S", stranger.__file__, str(file), str(people), str(workers)]
        done = await asyncio.to_thread(
            subprocess.run, call, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert await asked(kept.lines) == (0, "it holds\n")
    for place in range(1, kept.count - 1, 5):
        for change in CHANGES:

            def here(
                entries: list[Entry],
                place: int = place,
                change: Callable[[list[Entry], int], None] = change,
            ) -> None:
                change(entries, place)

            for lines in (changed(kept.lines, here), relinked(kept.lines, here)):
                assert not kept.verified(lines).ok
                code, said = await asked(lines)
                assert (code, said.count("\n")) == (1, 1), (place, change, said)
    # With another worker's key, and with somebody else's name under an order.
    other = ensure_key(tmp_path / "other")
    forged = relinked(kept.lines, lambda _: None, other)
    assert "does not hold" in (await asked(forged))[1]
    workers.write_text(named.replace(kept.key.public.line, other.public.line))
    assert (await asked(forged))[0] == 0

    def named_otherwise(entries: list[Entry]) -> None:
        one = next(one for one in entries if one["record"].get("person") == "bob")
        one["record"]["person"] = "ada"

    assert "that ada did not sign" in (await asked(relinked(kept.lines, named_otherwise, other)))[1]
    assert (await asked(kept.lines[:-1]))[0] == 1
