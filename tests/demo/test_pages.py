"""What the pages say that a test can look at: excerpts are from what they name, lists are whole."""

from __future__ import annotations

import re
from pathlib import Path

from cli.exits import MEANINGS

CHECKOUT = Path(__file__).parents[2]
README = CHECKOUT / "README.md"


def test_the_runbook_in_the_readme_is_the_real_one() -> None:
    text = README.read_text(encoding="utf-8")
    excerpt = re.search(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert excerpt is not None
    real = iter((CHECKOUT / "runbooks" / "etcd-minor.yaml").read_text().splitlines())
    for line in excerpt[1].splitlines():
        # In order: an iterator that went past a line does not find it any more.
        assert line.strip() in {"", "…"} or line in real, line


def test_every_decision_is_in_the_list() -> None:
    folder = CHECKOUT / "docs" / "adr"
    listed = re.findall(r"\]\((\d{4}-[^)]+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("0*.md"))


def test_the_readme_has_every_exit_code_that_scripts_meet() -> None:
    text = README.read_text(encoding="utf-8")
    sentence = text[text.index("Exit codes: 0 done") :].partition("\n\n")[0]
    told = {int(code) for code in re.findall(r"(?<=\s)(\d)(?= )", sentence)}
    assert told == {int(code) for code in MEANINGS if 1 != int(code) < 100}
