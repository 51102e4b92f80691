"""Who is signed in to the codec server: challenges, one-time codes and tokens, all short-lived and in memory alone.

What is handed out is kept as its sha256 only. Each table has an upper bound; when it is full the oldest entry goes.
A restart of the server ends every session.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from kedge.model.base import canonical
from kedge.model.policy import Policy
from kedge.trust.codec_access import Challenge, Reader, reader, signed_in
from kedge.trust.refusal import RefusalError

CHALLENGE_SECONDS = 60.0
CODE_SECONDS = 120.0
MOST = 1000
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"

Kept = TypeVar("Kept")
Policies = Callable[[], Mapping[str, Policy]]


class Table(Generic[Kept]):
    """Values under secrets that were handed out, each for a time."""

    def __init__(self, clock: Callable[[], float], most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._kept: OrderedDict[bytes, tuple[float, Kept]] = OrderedDict()

    def keep(self, secret: str, value: Kept, seconds: float) -> None:
        """Keeps a value for so long."""
        self._kept[_digest(secret)] = (self._clock() + seconds, value)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def get(self, secret: str) -> Kept | None:
        """The value, or None when there is none (any more)."""
        found = self._kept.get(_digest(secret))
        if found is None:
            return None
        if found[0] <= self._clock():
            self.drop(secret)
            return None
        return found[1]

    def take(self, secret: str) -> Kept | None:
        """The value, which is gone afterwards."""
        found = self.get(secret)
        self.drop(secret)
        return found

    def drop(self, secret: str) -> None:
        """Forgets a value."""
        self._kept.pop(_digest(secret), None)


@dataclass(frozen=True, slots=True)
class Session:
    """A key that signed in, by its blob: what it may read is asked of the policies each time."""

    blob: bytes
    key: str
    person: str
    expires: str


class Sessions:
    """Sign-ins of one server. ``life`` is how long a token is good, in seconds; ``clock`` is monotonic."""

    def __init__(
        self, server: str, policies: Policies, life: float, clock: Callable[[], float]
    ) -> None:
        self.life = life
        self._server = server
        self._policies = policies
        self._challenges: Table[bytes] = Table(clock)
        self._codes: Table[Session] = Table(clock)
        self._tokens: Table[Session] = Table(clock)

    def challenge(self) -> Challenge:
        """A fresh challenge, good once."""
        made = Challenge(
            server=self._server,
            nonce=secrets.token_hex(16),
            expires=_later(CHALLENGE_SECONDS),
        )
        self._challenges.keep(made.nonce, canonical(made), CHALLENGE_SECONDS)
        return made

    def sign_in(self, nonce: str, signature: str) -> tuple[str, Session]:
        """A token for whoever signed the challenge. Raises ``RefusalError``."""
        session = self._proven(nonce, signature)
        token = secrets.token_urlsafe(32)
        self._tokens.keep(token, session, self.life)
        return token, session

    def code(self, nonce: str, signature: str) -> tuple[str, Session]:
        """A one-time code that a browser turns into a session. Raises ``RefusalError``."""
        session = self._proven(nonce, signature)
        code = "-".join("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(4))
        self._codes.keep(code, session, CODE_SECONDS)
        return code, session

    def redeem(self, code: str) -> str | None:
        """A token for a one-time code; None for one that is none, was used or is too old."""
        session = self._codes.take(code.strip().upper())
        if session is None:
            return None
        token = secrets.token_urlsafe(32)
        self._tokens.keep(token, session, self.life)
        return token

    def reader(self, token: str) -> Reader | None:
        """What the holder of a token may read now; None when it is no good. Raises ``RefusalError`` when the policies
        do not let him read any more.
        """
        session = self._tokens.get(token)
        return None if session is None else reader(self._policies(), session.blob)

    def sign_out(self, token: str) -> None:
        """Ends a session."""
        self._tokens.drop(token)

    def _proven(self, nonce: str, signature: str) -> Session:
        challenge = self._challenges.take(nonce)
        if challenge is None:
            raise RefusalError("expired", "there is no such challenge, or it was answered already", next_step="sign in again")  # fmt: skip
        blob, found = signed_in(self._policies(), challenge, signature)
        return Session(blob, found.key, found.person, _later(self.life))


def _later(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
