"""Where words reach a terminal: what others wrote is shown there, and never obeyed.

Names, comments and sentences come from records, hosts and repositories. In a file that somebody made, the name of a run
may be the escapes that wipe the line above and write another verdict in its place.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from kedge.model.outside import visible


class Terminal(Console):
    """A console that renders everything without what a terminal would obey, but for what it draws itself."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of a renderable, those of renderables within it included."""
        for one in super().render(renderable, options):
            # Colours and links are in the style; what moves the cursor is a segment of its own, made by the console.
            yield one if one.control else one._replace(text=visible(one.text))
