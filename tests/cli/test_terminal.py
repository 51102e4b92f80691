"""What others wrote is shown on a terminal and never obeyed, whichever command shows it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from typer.testing import CliRunner

from cli.main import app
from cli.session import Session
from cli.terminal import Terminal
from kedge.model.base import Json
from kedge.model.evidence import ExportHeader
from kedge.model.order import EvidenceSeen
from kedge.trust import evidence_file
from kedge.trust.chain import EvidenceEntry, genesis, link, linked
from kedge.trust.policies import policy_text
from tests.trust import world

WIPES = "\x1b[1A\x1b[2K\x1b[1;32m"
FORGED = f"{WIPES}\n ✓ 812 records, none changed\r\x9b2K\u202e\ud800"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
"""What a terminal obeys, or what turns text round; the end of a line is not among it."""


def evidence(path: Path, record: dict[str, Json]) -> Path:
    """A file whose chain holds, with one record that anybody may have written."""
    before = genesis("db")
    only = EvidenceEntry(1, "k", record, before, link(before, linked("k", record)))
    header = ExportHeader(
        fleet="db", run="upgrade/db/1", after=EvidenceSeen(seq=0, hash=before),
        end=EvidenceSeen(seq=1, hash=only.hash), documents=0, checkpoints=0,
    )  # fmt: skip
    path.write_bytes(b"".join(evidence_file.write(header, [], [only], [])))
    return path


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["in words", "as JSON"])
def test_a_file_of_evidence_does_not_write_its_own_verdict(
    words: list[str], tmp_path: Path
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(policy_text(world.policy()))
    name = FORGED.replace("\ud800", "")
    lease: dict[str, Json] = {"what": "lease", "order": "a" * 64, "run": name, "epoch": 7}
    file = evidence(tmp_path / "made.evidence", lease)
    told = CliRunner().invoke(
        app, ["evidence", "verify", str(file), "--policy", str(policy), *words]
    )
    assert told.exit_code == 3, told.output
    assert "812 records" in told.output
    assert OBEYED.search(told.output) is None
    assert not [line for line in told.output.splitlines() if line.startswith(" ✓")]
    if words:
        said = json.loads(told.stdout)["findings"][0]["said"]
        assert said.startswith(name), "escaped in the text, and the same when it is read"


def within(kind: str) -> RenderableType:
    if kind == "a table":
        table = Table(FORGED)
        table.add_row(Text(FORGED))
        return table
    if kind == "a tree":
        tree = Tree(FORGED)
        tree.add(Text(FORGED))
        return tree
    return FORGED if kind == "a text" else Text(FORGED, style="bold")


@pytest.mark.parametrize("kind", ["a text", "a styled text", "a table", "a tree"])
def test_everything_that_is_said_is_shown_without_what_a_terminal_obeys(kind: str) -> None:
    seen = io.StringIO()
    Terminal(file=seen, width=200, force_terminal=True, color_system=None).print(
        within(kind), markup=False, highlight=False
    )
    assert "812 records" in seen.getvalue()
    assert OBEYED.search(seen.getvalue()) is None, ascii(seen.getvalue())


def test_remarks_and_documents_are_shown_without_it_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = Session(json=True)
    session.note(FORGED)
    session.say(FORGED)
    session.document({"said": FORGED})
    seen = capsys.readouterr()
    assert OBEYED.search(seen.out + seen.err) is None, ascii(seen)
    assert json.loads(seen.out) == {"said": FORGED}


def test_where_a_terminal_breaks_a_line_its_rest_stands_below_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = io.StringIO()
    console = Terminal(file=seen, width=40, force_terminal=True, color_system=None)
    monkeypatch.setattr("cli.session._console", lambda *, stderr: console)  # noqa: ARG005
    Session().say(
        Text("plan " + "word " * 12),
        Text("   1 stop  " + "word " * 12, style="bold"),
        Text("     " + "d" * 64),
    )
    lines = seen.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert [line[:4] for line in lines] == ["plan", "word", "   1", "   w", "    ", "    "]


def test_no_face_draws_on_a_console_of_its_own() -> None:
    faces = Path(__file__).parents[2] / "cli"
    own = [
        path.name
        for path in faces.glob("*.py")
        if path.name != "terminal.py"
        and re.search(r"(?<![\w.])(Console|print)\(", path.read_text())
    ]
    assert own == []
