"""The SSH wire encoding (RFC 4251, section 5), read strictly.

There is exactly one accepted encoding of a value: nothing missing, nothing left over, no integer
with needless leading zeros. Two different byte strings therefore never mean the same signature.
"""

from __future__ import annotations


class WireError(ValueError):
    """The bytes are not the encoding that was expected."""


class Reader:
    """Reads one value after the other; every method raises :class:`WireError` when it is not there."""

    def __init__(self, blob: bytes) -> None:
        self._blob = blob
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        end = self._at + count
        if end > len(self._blob):
            raise WireError(f"ends after {len(self._blob)} bytes where {end} were announced")
        piece = self._blob[self._at : end]
        self._at = end
        return piece

    def byte(self) -> int:
        """One octet."""
        return self.take(1)[0]

    def uint32(self) -> int:
        """Four octets, most significant first."""
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        """A length and that many octets."""
        return self.take(self.uint32())

    def positive(self) -> int:
        """An ``mpint`` above zero in its shortest form."""
        piece = self.string()
        if not piece or piece[0] & 0x80:
            raise WireError("an integer that must be positive is not")
        if piece[0] == 0 and (len(piece) == 1 or not piece[1] & 0x80):
            raise WireError("an integer is not in its shortest form")
        return int.from_bytes(piece, "big")

    def end(self) -> None:
        """Nothing may follow."""
        if self._at != len(self._blob):
            raise WireError(f"{len(self._blob) - self._at} bytes follow where nothing may follow")


def uint32(value: int) -> bytes:
    """Four octets, most significant first."""
    return value.to_bytes(4, "big")


def string(piece: bytes) -> bytes:
    """A length and the octets."""
    return uint32(len(piece)) + piece


def mpint(value: int) -> bytes:
    """A non-negative integer in its shortest form, with its length."""
    return string(value.to_bytes(value.bit_length() // 8 + 1, "big") if value else b"")
