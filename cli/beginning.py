"""``kedge init``: everything that one person needs, told as it is made."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from rich.text import Text

from cli.asking import passphrase_asker
from cli.session import Session
from desk import init as desk_init
from desk.init import Item, Made, Wanted


def initialise(
    session: Session, *, person: str, environment: str, key: Path | None, agent: str | None
) -> None:
    """Makes what is not there yet, and says what everything is for."""
    wanted = Wanted(folder=Path.cwd(), person=person, environment=environment, key=key, agent=agent)
    made = session.run(desk_init.init(session.desk().settings, wanted, passphrase_asker()))
    program = shlex.join(session.program)
    made = made.model_copy(update={"next": tuple(f"{program} {words}" for words in made.next)})
    _tell(session, made)
    session.document(made)


_MARKS = {"made": "+", "there": "·", "open": "!"}


def _tell(session: Session, made: Made) -> None:
    fresh = any(item.state == "made" for item in made.items)
    said = f"everything that {made.person} needs is here" + ("" if fresh else " already")
    session.say(Text(said, style="bold green"))
    width = max(len(_where(item)) for item in made.items)
    for item in made.items:
        line = Text(f"   {_MARKS[item.state]} ", style="red" if item.state == "open" else "green")
        line.append(f"{item.what:<13} ")
        line.append(f"{_where(item):<{width}}", style="bold")
        line.append(f"  {item.use}", style="dim")
        session.say(line)
    add, up, start, renew = made.next
    session.say(
        "next, with documents of your own (docs/one-person.md has small ones to copy):",
        f"   {add}",
        f"   {up}",
        f"   {start}",
        "and within two weeks, so that what the repository lists stays fresh:",
        f"   {renew}",
    )


def _where(item: Item) -> str:
    home = str(Path.home())
    return item.path.replace(home, "~", 1) if item.path.startswith(home + os.sep) else item.path
