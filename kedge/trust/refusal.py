"""What the floor raises inside itself when a rule is broken; :func:`kedge.trust.orders.judge` makes it a verdict."""

from __future__ import annotations

from kedge.model import outside
from kedge.model.errors import OrderError
from kedge.model.order import Rule


class RefusalError(OrderError):
    """An order or signature that does not count; ``rule`` says which rule it broke."""

    type = "RefusalError"

    def __init__(self, rule: Rule, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.rule: Rule = rule

    @property
    def said(self) -> str:
        """The message, and what to do next where there is something."""
        return f"{self.message}; {self.next_step}" if self.next_step else self.message


def quoted(text: str, limit: int = 80) -> str:
    """A value from outside, fit to stand in a sentence: short, in quotation marks, one visible line."""
    return outside.quoted(text, limit)
