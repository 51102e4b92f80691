"""How much memory a text from outside may cost, known before it is parsed."""

from __future__ import annotations

MOST_VALUES = 1_000_000
"""Values of one JSON text from outside: some hundred megabytes at the very most, whatever they are."""

_SIGNS = (b",", b":", b"[", b"{")


def most_values(text: bytes) -> int:
    """As many values as a JSON text may have at the very most: one behind each sign that begins or parts values.

    Signs inside of strings are counted too. It costs no memory.
    """
    return 1 + sum(map(text.count, _SIGNS))


def check_values(text: bytes, most: int = MOST_VALUES) -> None:
    """Raises ``ValueError`` for a text that may have more values than that."""
    if most_values(text) > most:
        raise ValueError(f"has more than {most} values")
