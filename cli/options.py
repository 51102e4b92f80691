"""Options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import naming

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id, such as upgrade/etcd/1.", callback=naming.a_run
    ),
]
FleetArgument = Annotated[
    str, typer.Argument(metavar="FLEET", help="A fleet's name.", callback=naming.a_fleet)
]
RunOrFleetArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id, or a fleet's name.", callback=naming.a_run_or_fleet
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="One JSON document on standard output; words go to standard error."
    ),
]
FleetFile = Annotated[
    Path, typer.Option("--fleet", metavar="FILE", help="The Fleet document.", show_default=False)
]
ReleaseFile = Annotated[
    Path,
    typer.Option(
        "--release",
        metavar="RELEASE",
        help="The release to go to: a Release document, or a signed one by its name, etcd@3.5.1.",
        show_default=False,
    ),
]
RunbookFile = Annotated[
    Path,
    typer.Option("--runbook", metavar="FILE", help="The Runbook document.", show_default=False),
]
PolicyFile = Annotated[
    Path, typer.Option("--policy", metavar="FILE", help="The Policy document.", show_default=False)
]
FromFile = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="The Release document the fleet runs now, when it is not the one its Fleet document names.",
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="Sign with this OpenSSH private key."),
]
AgentOption = Annotated[
    str | None,
    typer.Option(
        "--agent",
        metavar="KEY",
        help="Sign with this key of the ssh-agent: its fingerprint (SHA256:…) or its .pub file.",
    ),
]
PersonOption = Annotated[
    str,
    typer.Option(
        "--person",
        metavar="NAME",
        envvar="KEDGE_PERSON",
        help="Who signs. Otherwise the person to whom the policy gives the key.",
    ),
]
CommentOption = Annotated[
    str, typer.Option("--comment", metavar="TEXT", help="Why; it is signed and kept as evidence.")
]
TicketOption = Annotated[
    str,
    typer.Option(
        "--ticket",
        metavar="TICKET",
        envvar="KEDGE_TICKET",
        help="The change ticket, where the policy asks for one; it is signed and kept as evidence.",
    ),
]
GlassOption = Annotated[
    bool,
    typer.Option(
        "--break-glass",
        help="An emergency: beyond your roles, with the reason in --comment. The policy says who may; "
        "somebody else has to review it afterwards.",
    ),
]
AsOwnerOption = Annotated[
    bool,
    typer.Option(
        "--as-owner",
        help="Pin a policy that does not follow from the pinned one, as who has this machine. The workers write it down.",
    ),
]
ValidOption = Annotated[
    str,
    typer.Option(
        "--valid",
        metavar="TIME",
        help="How long the order is valid, such as 15m or 2h. Otherwise as the policy allows.",
    ),
]
YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Sign without asking, also on a terminal.")
]
GateOption = Annotated[
    str,
    typer.Option(
        "--gate", metavar="GATE", help="The gate. May be left out: the run waits at one at a time."
    ),
]
ItemOption = Annotated[
    str,
    typer.Option(
        "--item", metavar="ITEM", help="The parked item. May be left out when just one is parked."
    ),
]
ChoiceOption = Annotated[
    str,
    typer.Option(
        "--choice", metavar="CHOICE", help="One of retry, skip, rollback, abort, as far as offered."
    ),
]
