"""The command line's entry point: the app, and the one place where errors become exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import (
    commands_codec,
    commands_evidence,
    commands_home,
    commands_order,
    commands_order_files,
    commands_plan,
    commands_policy,
    commands_release,
    commands_run,
    commands_runbook,
    commands_upstream,
)
from cli.exits import Exit
from cli.listing import ListingGroup
from cli.session import Session, report, tell_misuse

HELP = ("-h", "--help")
ORDER = (
    "init", "up", "down", "plan", "start", "list", "status", "watch", "approve", "reject", "pause", "resume",
    "abort", "decide", "rollback", "review", "order", "policy", "release", "evidence", "runbook", "codec", "ui", "doctor",
    "demo",
)  # fmt: skip
"""How the commands are listed: in the order in which people meet them."""


class KedgeGroup(ListingGroup):
    """The root group: it lists commands in ``ORDER`` and lets no stack trace out."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All commands, in the order of the house."""
        names = list(super().list_commands(ctx))
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; an error is told in words and becomes an exit code."""
        # Click takes the words away while it finds the command.
        words = [*getattr(ctx, "_protected_args", ()), *ctx.args]
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, typer.Abort):
            session = _session(ctx)
            session.note("\ninterrupted; what was begun on the engine goes on (`kedge list`)")
            raise typer.Exit(Exit.INTERRUPTED) from None
        except typer.Exit:
            raise
        except Exception as error:
            if hasattr(error, "exit_code"):  # a usage error: typer shows it, with code 2
                if "--json" in words:
                    tell_misuse(error)
                raise
            raise typer.Exit(report(error, _session(ctx))) from None


def _session(ctx: Any) -> Session:
    session = ctx.find_root().obj
    return session if isinstance(session, Session) else Session()


app = typer.Typer(
    cls=KedgeGroup,
    name="kedge",
    help="Moves a fleet of nodes from one release to the next, and back.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": list(HELP)},
)


def _version(*, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - only when asked

        typer.echo(f"kedge {version('kedge')}")
        raise typer.Exit(Exit.DONE)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - the signature of an option's callback
    _version(wanted=wanted)


@app.callback()
def root(
    ctx: typer.Context,
    *,
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where kedge keeps its things. [default: KEDGE_HOME, else .kedge here]",
            show_default=False,
        ),
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="KEDGE_DEBUG", help="Show the stack of an error.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Say which kedge this is."
        ),
    ] = False,
) -> None:
    """Moves a fleet of nodes from one release to the next, and back."""
    ctx.obj = Session(home=home, debug=debug)


commands_home.register(app)
commands_plan.register(app)
commands_run.register(app)
commands_order.register(app)
app.add_typer(commands_order_files.app, name="order")
app.add_typer(commands_policy.app, name="policy")
app.add_typer(commands_evidence.app, name="evidence")
commands_upstream.register(commands_release.app)
app.add_typer(commands_release.app, name="release")
app.add_typer(commands_runbook.app, name="runbook")
app.add_typer(commands_codec.app, name="codec")


def main() -> None:
    """Runs ``kedge``; ends the process with one of the exit codes in :mod:`cli.exits`."""
    words = sys.argv[1:]
    if words and words[-1] in HELP:
        shown = help_text(words[:-1])
        if shown is not None:
            typer.echo(shown)
            sys.exit(Exit.DONE)
    try:
        app()
    except SystemExit as ended:
        _leave(ended.code)
        raise


def _leave(code: object) -> None:
    """Ends the process at once where the Temporal SDK was loaded.

    Its threads may call into Python while the interpreter takes itself apart, which then aborts: a command that had
    done its work ended with 134 instead of 0, once in some tens of calls.
    """
    if "temporalio.bridge.temporal_sdk_bridge" not in sys.modules:
        return
    if code is None or isinstance(code, int):
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)


def help_text(names: list[str]) -> str | None:
    """The help of the command with these names; None when they are more than names.

    Typer would first turn the root's options into values, and load pydantic for that: twice the time.
    """
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="kedge", help_option_names=list(HELP))
    for name in names:
        command = command.get_command(context, name) if hasattr(command, "get_command") else None
        if command is None:
            return None
        context = typer.Context(command, info_name=name, parent=context)
    text: str = command.get_help(context)
    return text


if __name__ == "__main__":
    main()
