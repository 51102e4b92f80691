"""Policies pinned in files, with every version that was ever pinned and the signatures under it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from kedge.drivers.files import read_bounded, store_error, write_atomic
from kedge.drivers.owners import check_owners, make_folder
from kedge.model.base import Digest, canonical
from kedge.model.errors import DriverError
from kedge.model.policy import Policy
from kedge.model.signed_policy import KeptPolicy, PinnedBy, SignedPolicy
from kedge.trust.policies import policy_text, text_digest

MAX_DOCUMENT = 4 * 1024 * 1024
"""The largest pinned policy with its signatures, in bytes."""

_SAFE_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_KEPT = re.compile(r"[0-9]{6}\.json")


class FilePolicyPins:
    """:class:`kedge.drivers.ports.PolicyPins` in ``<folder>/<fleet>.json`` (the policy that is pinned, mode 0600) and
    ``<folder>/<fleet>/<number>.json`` (each one that ever was, with its signatures).

    A pin that everybody may write is refused: who can write it decides who may sign. So is one that is not
    the last of those kept: it was put back, or changed by hand.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def policy(self, fleet: str) -> Policy:
        """See :meth:`kedge.drivers.ports.PolicyPins.policy`."""
        return await asyncio.to_thread(self._policy, fleet)

    async def pinned(self, fleet: str) -> KeptPolicy:
        """See :meth:`kedge.drivers.ports.PolicyPins.pinned`."""
        return await asyncio.to_thread(self._pinned, fleet)

    async def kept(self, fleet: str) -> tuple[KeptPolicy, ...]:
        """See :meth:`kedge.drivers.ports.PolicyPins.kept`."""
        return await asyncio.to_thread(lambda: tuple(self._kept(fleet)))

    async def pin(
        self, fleet: str, policy: Policy, *, signatures: tuple[str, ...] | None = None
    ) -> Digest:
        """See :meth:`kedge.drivers.ports.PolicyPins.pin`."""
        document = SignedPolicy(policy=policy_text(policy), signatures=signatures or ())
        try:
            await asyncio.to_thread(self._pin, fleet, document, signed=signatures is not None)
        except OSError as error:
            raise store_error(f"pin the policy of {fleet}", error) from error
        return text_digest(document.policy)

    def _policy(self, fleet: str) -> Policy:
        try:
            return Policy.model_validate_json(self._pinned(fleet).document.policy)
        except ValidationError as error:
            raise DriverError(
                "StoreError",
                f"the policy pinned for {fleet} cannot be read: {error.errors()[0]['msg']}",
                retryable=False,
                next_step="Pin the policy again.",
            ) from error

    def _pinned(self, fleet: str) -> KeptPolicy:
        path = self._file(fleet)
        try:
            content, last = self._read(path), self._last(fleet)
            if last is not None and content != last.document.policy.encode():
                # Somebody may be pinning just now: the version is written first.
                with self._alone(fleet):
                    content, last = self._read(path), self._last(fleet)
        except OSError as error:
            raise store_error(f"read the policy pinned for {fleet}", error) from error
        if content is None and last is not None:
            raise DriverError(
                "StoreError",
                f"{path} is gone, and {last.seq} version(s) of it are kept: it was taken away by hand",
                retryable=False,
                next_step="`kedge policy pin` with the last version puts it back",
            )
        if content is None:
            raise DriverError(
                "NotFound",
                f"no policy is pinned here for the fleet {fleet}",
                retryable=False,
                next_step="`kedge up --fleet FILE --policy FILE` pins one on this machine",
            )
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise DriverError(
                "StoreError",
                f"the policy pinned for {fleet} cannot be read: it is no text",
                retryable=False,
                next_step="Pin the policy again.",
            ) from error
        if last is None:
            # Pinned before versions were kept: it is the first.
            return KeptPolicy(seq=1, by="first", at="", document=SignedPolicy(policy=text))
        if last.document.policy != text:
            raise DriverError(
                "StoreError",
                f"{path} is not the policy that was pinned last (number {last.seq}): it was put back, or changed by hand",
                retryable=False,
                next_step="`kedge policy show FLEET` shows every version; pin the right one again with `kedge policy pin`",
            )
        return last

    def _pin(self, fleet: str, document: SignedPolicy, *, signed: bool) -> None:
        with self._alone(fleet):
            path, last = self._file(fleet), self._last(fleet)
            if last is None:
                before = self._read(path)
                if before is not None and before.decode("utf-8", "replace") != document.policy:
                    # It was pinned before versions were kept.
                    old = SignedPolicy(policy=before.decode("utf-8", "replace"))
                    last = KeptPolicy(seq=1, by="first", at=_now(), document=old)
                    self._keep(fleet, last)
            if last is None or last.document.policy != document.policy:
                by: PinnedBy = "first" if last is None else "signed" if signed else "owner"
                number = 1 if last is None else last.seq + 1
                self._keep(fleet, KeptPolicy(seq=number, by=by, at=_now(), document=document))
            # The version first: a pin without one would look as if it were changed by hand.
            write_atomic(path, document.policy.encode())

    @contextmanager
    def _alone(self, fleet: str) -> Iterator[None]:
        folder = self._chain(fleet)
        make_folder(folder)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _keep(self, fleet: str, kept: KeptPolicy) -> None:
        write_atomic(self._chain(fleet) / f"{kept.seq:06}.json", canonical(kept))

    def _last(self, fleet: str) -> KeptPolicy | None:
        names = self._names(fleet)
        return self._version(fleet, names[-1]) if names else None

    def _kept(self, fleet: str) -> Iterator[KeptPolicy]:
        names = self._names(fleet)
        for name in names:
            yield self._version(fleet, name)
        if not names:
            yield self._pinned(fleet)

    def _names(self, fleet: str) -> list[str]:
        try:
            return sorted(
                entry.name for entry in self._chain(fleet).iterdir() if _KEPT.fullmatch(entry.name)
            )
        except FileNotFoundError:
            return []

    def _version(self, fleet: str, name: str) -> KeptPolicy:
        path = self._chain(fleet) / name
        content = self._read(path)
        try:
            kept = KeptPolicy.model_validate_json(content or b"")
        except ValidationError as error:
            raise DriverError(
                "StoreError",
                f"{path} is no version of a policy: {error.errors()[0]['msg']}",
                retryable=False,
                next_step="Bring the file back from a backup; it was not written like this.",
            ) from error
        if f"{kept.seq:06}.json" != name:
            raise DriverError(
                "StoreError", f"{path} says that it is number {kept.seq}", retryable=False
            )
        return kept

    def _read(self, path: Path) -> bytes | None:
        content = read_bounded(path, MAX_DOCUMENT)
        check_owners(path)
        return content

    def _file(self, fleet: str) -> Path:
        return self._chain(fleet).with_name(f"{fleet}.json")

    def _chain(self, fleet: str) -> Path:
        if not _SAFE_NAME.fullmatch(fleet):
            raise DriverError(
                "StoreError", f"{fleet!r} is not a name that a file may have", retryable=False
            )
        return self._folder / fleet


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
