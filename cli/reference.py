"""``docs/cli.md`` from the app itself: ``python -m cli.reference`` writes it, a test compares it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from cli.exits import MEANINGS
from cli.main import app

TARGET = Path(__file__).resolve().parent.parent / "docs" / "cli.md"

INTRODUCTION = """# The command line

Written by `python -m cli.reference` from the commands themselves; do not edit it by hand.

After `make setup` (`make demo` and `make test` do it, too) the command is `.venv/bin/kedge`. Options of `kedge` itself stand before the
command: `kedge --home /srv/kedge status upgrade/etcd/1`.

## What scripts may rely on

- **Exit codes** are those in the table below, for every command.
- **`--json`**: standard output carries exactly one JSON document, everything else goes to standard error. A
  command that fails prints `{"error": {"type", "message", "next", "exit"}}`; documents with mistakes add
  `"problems"`, refused orders add `"rule"`, and beside `"error"` the whole `"verdict"`.
- **`kedge start`** and **`kedge rollback`** print the new run's id as the last line of standard output; with
  `--json` it is `{"run": "upgrade/etcd/1"}`. A run's id contains no spaces.
- **Without a terminal** nothing is asked: naming a key is the consent. On a terminal what is signed is shown first
  and `--yes` skips the question.
- **Names**: `type` of an error and `rule` of a refusal are stable; sentences are not.

## Exit codes

| code | meaning |
|---|---|
"""

SHAPES = """
## What `--json` prints

| command | document |
|---|---|
| `init` | `{"folder", "home", "person", "fingerprint", "root", "items": [{"what", "path", "use", "state"}], "next"}`; `state` is `made`, `there`, or `open` where somebody has to say how |
| `up` | `{"place": {"home", "address", "ui", "engine_pid", "worker_pid", "logs", "checkpoint_key", "started"}, "fleets": [{"fleet", "nodes", "installed", "started", "running", "stopped", "problems", "choices"}]}` |
| `down` | `{"worker", "engine"}`: how each ended |
| `plan` | `{"digest", "plan", "explanation"}` |
| `start`, `rollback` | `{"run"}` |
| `list` | `{"runs": [{"run", "kind", "fleet", "phase", "release", "waiting_for", "started", "ended"}]}` |
| `status RUN` | the run: `run, fleet, kind, plan, epoch, phase, said, requester, before, after, waves, wave, nodes, nodes_done, failures, waiting, child, started, ended, outcome, successor, orders, steps, replayed, seconds`, and `answers` (the commands that answer what it waits for) and `rollback` |
| `status FLEET` | the fleet: `fleet, epoch, holder, last, plan, release, release_document, runs, verdicts, reviews, known` |
| `watch` | the run as it was at the end, as in `status RUN`; changes go to standard error as they come |
| `approve` | `{"run", "verdict", "tally", "open"}`: `tally` is null and `open` false once the gate has its signatures |
| `reject`, `pause`, `resume`, `abort`, `decide`, `order send` | `{"run", "verdict"}` |
| `order request` | `{"file", "order", "showing", "sign", "send"}` |
| `order show` | `{"order"}`, with a signature also `"key"` |
| `release init`, `add`, `sign`, `publish`, `revoke`, `rotate` | `{"folder", "drafts": [{"role", "version", "draft", "expires", "threshold", "missing", "signed", "unsigned"}], "published", "root", "signed"}` |
| `release verify` | `{"location", "root", "releases", "files", "bytes", "expires"}` |
| `release list` | `{"releases": [{"name", "revoked", "added", "author"}]}`; with `--drafts` `{"roles"}`, as the drafts above |
| `release show` | the release: `name, root, document, target, digest, artifacts, authors, attestations, vendor, added, versions, expires` |
| `release trust` | `{"root"}` |
| `release provenance` | `{"component", "version", "policy", "rules", "verdicts": {"linux/amd64": {"ok", "said", "subject", "needed", "agreed", "dissent", "envelopes"}}, "root", "vendor", "vendor_again", "ok"}` |
| `release attest` | `{"file", "subjects", "key"}` |
| `release import` | `{"verdict", "changed"}`: `changed` is null where it was refused, else as for `release add` |
| `evidence show` | `{"records": [{"seq", "at", "what", "said", "run", "who", "signed", "details"}]}` |
| `evidence export` | `{"file", "bytes", "fleet", "run", "first", "last", "documents", "checkpoints", "ended"}` |
| `evidence verify` | `{"ok", "ended", "fleet", "run", "first", "last", "head", "records", "checkpoints", "signed", "witnesses", "policies", "orders", "refused", "steps", "nodes", "findings": [{"kind", "said", "seq", "line"}], "unproven", "story"}`; exit code 3 with findings, 7 when the run goes on behind the file's end |
| `evidence check` | `{"fleets": […]}`: the same for each, without the story |
| `runbook lint` | `{"files", "problems"}` |
| `runbook schema` | the schema, or all of them by name |
| `codec login` | `{"server", "person", "expires", "kind", "secret"}`; `kind` is `token` or `code` |
| `codec init`, `show`, `rotate`, `retire`, `grace` | `{"where", "clients", "required", "keys": [{"id", "ring", "use", "made"}], "plaintext_until"}`; `ring` is `workers` or `clients`, `use` is `seals` or `reads`; `where` and `clients` say where the two rings are |
| `doctor` | `{"checks": [{"name", "verdict", "said", "next_step"}]}`; `verdict` is `ok`, `wrong` or `unknown`; exit code 5 when the engine or a worker is missing, 2 for anything else that is wrong |

A `verdict` is `{"accepted", "rule", "said", "digest", "verb", "target", "subject", "choice", "person", "roles", "key", …}`;
a `tally` is `{"gate", "threshold", "signed", "missing", "missing_roles", "met"}`.

## Commands
"""


def text() -> str:
    """The whole page."""
    codes = "".join(f"| {int(code)} | {meaning} |\n" for code, meaning in MEANINGS.items())
    root: Any = typer.main.get_command(app)
    pages = "\n".join(_pages(root, "kedge"))
    return f"{INTRODUCTION}{codes}{SHAPES}\n{pages}"


def _pages(command: Any, path: str) -> Iterator[str]:
    """A section for a command, then those of its subcommands, in the order of the help."""
    context = typer.Context(command, info_name=path, terminal_width=100, max_content_width=100)
    # The environment would otherwise decide how wide lines are.
    shown = command.get_help(context).replace("\r", "")
    yield f"### {path}\n\n```text\n{shown.rstrip()}\n```\n"
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            yield from _pages(command.get_command(context, name), f"{path} {name}")


def main() -> int:
    """Writes the page; with ``--check`` only says whether it is up to date."""
    fresh = text()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.exists() and TARGET.read_text(encoding="utf-8") == fresh else 1
    TARGET.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
