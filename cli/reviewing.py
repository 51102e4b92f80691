"""``kedge review``: what is owed after somebody broke the glass, and a signature under it."""

from __future__ import annotations

from rich.text import Text

from cli import words
from cli.answers import KEY
from cli.ordering import give
from cli.session import Session
from cli.signing import Signing
from desk.orders import fleet_target, review_words
from kedge.model.outside import lines as lines_of
from kedge.model.review import Review


def review_run(session: Session, run: str, signing: Signing) -> None:
    """Signs for a run that somebody broke the glass for; without a key it shows what its fleet owes."""
    subject = run if run.count("/") == 2 else ""
    if signing.key is None and signing.agent is None:
        show_owed(session, run)
        return
    give(session, "review", run, signing, subject=subject)


def show_owed(session: Session, run: str) -> None:
    """The reviews that a fleet owes."""
    fleet = fleet_target(run).removeprefix("fleet/")
    status = session.run(session.desk().fleet_or_new(fleet))
    lines = owed_lines(status.reviews, session.program)
    session.say(*(lines or [Text(f"fleet {fleet} owes no review")]))
    session.document(
        {
            "fleet": fleet,
            "reviews": [
                {**review.model_dump(mode="json"), "shown": review.shown}
                for review in status.reviews
            ],
        }
    )


def owed_lines(reviews: tuple[Review, ...], program: tuple[str, ...]) -> list[Text]:
    """Open reviews in words, each with the command that signs for it."""
    lines: list[Text] = []
    for review in map(lines_of, reviews):
        lines.append(
            Text(f"   review owed for {review.run}, since {review.since}", style="bold red")
        )
        lines += [Text(f"      {said}") for said in review_words(review)]
        signed = [verdict.person for verdict in review.signed]
        if signed:
            lines.append(Text(f"      signed by {', '.join(signed)}", style="dim"))
        command = words.command(*program, "review", review.run, "--key", KEY)
        lines.append(Text(f"      somebody else signs for it: {command}", style="yellow"))
    return lines
