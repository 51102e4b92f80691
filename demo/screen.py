"""What the viewer sees: a calm transcript, the same on a terminal and in a file but for the colours."""

from __future__ import annotations

import sys
import textwrap
import threading
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 110


class Screen:
    """Prints; never draws over what it printed. May be used by several threads at once."""

    def __init__(self, console: Console | None = None) -> None:
        """``console`` is for tests; otherwise standard output, whatever it is."""
        width = None if sys.stdout.isatty() else PLAIN_WIDTH
        self.console = console or Console(width=width, highlight=False, markup=False)
        self._lock = threading.Lock()

    def act(self, title: str) -> None:
        """A new part of the show."""
        self._print(Text(), Rule(Text(f" {title} ", style="bold"), align="left", style="cyan"))

    def say(self, text: str) -> None:
        """A paragraph to the viewer."""
        self._print(Text(), Padding(Text(text), (0, 0, 0, 1)))

    def command(self, line: str) -> None:
        """What a person types, before it is run."""
        self._print(Text(), Text(f" $ {line}", style="bold cyan"))

    def output(self, line: str) -> None:
        """A line that a command printed. Escape sequences of others are not passed on."""
        clean = "".join(sign for sign in line.rstrip() if sign >= " " or sign == "\t")
        for part in self._fitting(clean):
            text = Text("   │ ", style="dim")
            text.append(part, style="default not dim")
            self._print(text, wrap=False)

    def _fitting(self, line: str) -> list[str]:
        """A line as it fits beside the margin: a terminal would break it within words, and below the margin.

        In a file lines stay whole, and a word that is too long stays whole everywhere: people copy digests.
        """
        width = self.console.width - 5
        if not self.console.is_terminal or len(line) <= width:
            return [line]
        inset = " " * min(len(line) - len(line.lstrip()) + 2, width // 2)
        return textwrap.wrap(
            line, width, subsequent_indent=inset, break_long_words=False, break_on_hyphens=False,
            drop_whitespace=True, replace_whitespace=False,
        )  # fmt: skip

    def excerpt(self, name: str, lines: Iterable[str]) -> None:
        """Some lines of a document, as they stand there."""
        self._print(Text(), Text(f"   {name}", style="dim"))
        for line in lines:
            self.output(line)

    def took(self, seconds: float, code: int) -> None:
        """How a command ended."""
        said = f"{seconds:.1f} s" if code == 0 else f"{seconds:.1f} s, exit code {code}"
        self._print(Text(f"   └ {said}", style="dim"))

    def did(self, text: str) -> None:
        """Something that the demo itself does to the world."""
        self._marked("▸", text, "yellow")

    def strike(self, text: str) -> None:
        """Violence."""
        self._print(Text())
        self._marked("✗", text, "bold red")

    def seen(self, text: str) -> None:
        """A figure that the demo measured itself."""
        self._marked("✓", text, "green")

    def wrong(self, text: str) -> None:
        """Something that is not as it should be."""
        self._marked("✗", text, "bold red")

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
        """Figures in columns; the first ``left`` of them are words."""
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for place, head in enumerate(heads):
            table.add_column(head, justify="left" if place < left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self._print(Padding(table, (0, 0, 0, 3)))

    def _marked(self, mark: str, text: str, style: str) -> None:
        """A mark, and beside it a text whose lines stay beside it."""
        grid = Table.grid()
        grid.add_column(no_wrap=True)
        grid.add_column()
        grid.add_row(Text(f"   {mark} ", style=style), Text(text, style=style))
        self._print(grid)

    def _print(self, *what: object, wrap: bool = True) -> None:
        with self._lock:
            for one in what:
                self.console.print(one, soft_wrap=not wrap)
