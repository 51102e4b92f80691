"""How a group lists its commands in its help: each with its first sentence, whole."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

_WHOLE = 1000
"""Characters that a first sentence may have: more than any has. The column that is left wraps it."""


class ListingGroup(TyperGroup):
    """Typer's own list cuts sentences off in the middle, where the terminal is 80 columns wide."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The section with the commands."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(_WHOLE))
            for name, command in found
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
