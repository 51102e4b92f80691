"""What is wrong with a release repository, by the name of the attack that it would be.

TUF's library says that a length, a version or a signature does not fit. What that would be if somebody meant it follows from
what was asked for and what came instead: an older file, one of another time, another release's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TargetFile

from kedge.drivers.files import store_error
from kedge.drivers.tuf_fetch import Fetched, RepositoryRefusalError
from kedge.model.errors import DriverError
from kedge.model.trusted import (
    NOT_TRUSTED,
    REFUSED,
    STALE,
    UNKNOWN,
    Attack,
    ReleaseName,
)

_SIGNED_BY = re.compile(r"was signed by (\d+)/(\d+) keys")

T = TypeVar("T")


class Naming:
    """Of one repository: ``last`` is what was fetched from it last."""

    def __init__(self, location: str, last: Fetched) -> None:
        self._location = location
        self._last = last
        self.digests: dict[str, str] = {}
        """The files that are listed, by digest: who serves one of them for another is told by its name."""

    def named(
        self, work: Callable[[], T], name: ReleaseName | None, *, target: TargetFile | None = None
    ) -> T:
        """Does the work; what it raises becomes a ``DriverError`` that names the attack."""
        try:
            return work()
        except DriverError:
            raise
        except (RepositoryError, DownloadError) as error:
            raise self._explained(error, name, target) from error
        except OSError as error:
            raise store_error("keep what is known of the release repository", error) from error
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            # Metadata of the right form with values that are not: the library does not look at each of them.
            said = f"its metadata makes no sense: {type(error).__name__}"
            raise self._explained(
                RepositoryRefusalError("arbitrary-software", said), name, target
            ) from error

    def _explained(
        self,
        error: RepositoryError | DownloadError,
        name: ReleaseName | None,
        target: TargetFile | None,
    ) -> DriverError:
        if isinstance(error, ExpiredMetadataError):
            return _stale(f"the release repository has not been renewed: {error}")
        if isinstance(error, DownloadError) and not isinstance(error, DownloadLengthMismatchError):
            return unreachable(self._location, error)
        if "not part of snapshot" in str(error):
            return DriverError(
                UNKNOWN, "the component is announced, but nothing of it is published", retryable=False,
                next_step="kedge release publish, by whoever has its keys",
            )  # fmt: skip
        attack, said = self._attack(error, target)
        about = f"{name}: " if name is not None else ""
        return DriverError(
            REFUSED,
            f"{about}the release repository is refused ({attack}): {said}",
            retryable=False,
            detail={"attack": attack},
            next_step="Nothing was taken from it. Ask who runs it; `kedge release verify` looks at all of it.",
        )

    def _attack(self, error: Exception, target: TargetFile | None) -> tuple[Attack, str]:
        """The name of what was tried, and a sentence."""
        if isinstance(error, RepositoryRefusalError):
            return error.attack, str(error)
        if isinstance(error, DownloadLengthMismatchError):
            return "endless-data", str(error)
        if isinstance(error, UnsignedMetadataError):
            found = _SIGNED_BY.search(str(error))
            some = found is not None and int(found[1]) > 0
            return ("key-compromise" if some else "arbitrary-software"), str(error)
        if isinstance(error, LengthOrHashMismatchError):
            return self._content_attack(error, target)
        if isinstance(error, BadVersionNumberError):
            return self._version_attack(), str(error)
        missing = "missing info for" in str(error)
        said = str(error) or f"{self._last.name} cannot be what it stands for"
        return ("mix-and-match" if missing else "arbitrary-software"), said

    def _content_attack(
        self, error: LengthOrHashMismatchError, target: TargetFile | None
    ) -> tuple[Attack, str]:
        last = self._last
        if target is None:
            return "mix-and-match", f"{last.name} is not the one that was signed for: {error}"
        other = self.digests.get(last.digest)
        if other is not None:
            return "wrong-software", f"instead of {target.path} comes {other}"
        return "arbitrary-software", f"{target.path}: {error}"

    def _version_attack(self) -> Attack:
        """Of a wrong version: an older one, a file under another's name, or a leap of the root."""
        last = self._last
        number, _, _ = last.name.partition(".")
        if last.name.endswith(".root.json"):
            return "rollback" if last.version < int(number) else "fast-forward"
        if number.isdigit() and int(number) != last.version:
            return "mix-and-match"
        return "rollback"


def not_trusted(said: str) -> DriverError:
    """It is signed, but not the one that is meant."""
    return DriverError(NOT_TRUSTED, said, retryable=False)


def _stale(said: str) -> DriverError:
    return DriverError(
        STALE, f"{said}: what is newest cannot be known (freeze)", retryable=False,
        detail={"attack": "freeze"},
        next_step="kedge release publish --renew, by whoever has the keys; or the way to the repository is held",
    )  # fmt: skip


def unreachable(location: str, error: DownloadError) -> DriverError:
    """It does not answer, or not with the file that was asked for."""
    gone = isinstance(error, DownloadHTTPError)
    return DriverError(
        "Unreachable",
        f"the release repository {location} "
        + (
            f"does not give a file: {error}"
            if gone
            else f"does not answer: {str(error) or 'too slow'}"
        ),
        retryable=True,
        next_step="check release_repository in the settings, and that it is served",
    )
