"""Archives as bounded streams of plain bytes: whatever is compressed is opened a chunk at a time.

No more than a chunk is ever in memory, so an archive that unpacks to terabytes costs nothing but the
bytes up to the cap it breaks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
import zlib
from typing import IO, Any, Callable, Iterator, Optional

from kedge.host.errors import ArchiveRefused

CHUNK = 1 << 18
MEMORY = 256 << 20


class Raw:
    """The archive's own bytes, hashed as they are read."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.digest = hashlib.sha256()

    def read(self) -> bytes:
        """The next chunk; empty at the end."""
        part = os.read(self.fd, CHUNK)
        self.digest.update(part)
        return part


class Plain:
    """A stream that was not compressed."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw

    def read(self) -> bytes:
        """The next chunk; empty at the end."""
        return self._raw.read()


class Packed:
    """A compressed stream; `make` builds a decompressor for each member (they may be joined)."""

    def __init__(self, raw: Raw, make: Callable[[], Any], errors: Any) -> None:
        self._raw = raw
        self._make = make
        self._errors = errors
        self._one = make()
        self._rest = b""
        self._over = False

    def read(self) -> bytes:
        """The next chunk of at most `CHUNK` bytes; empty at the end."""
        while not self._over:
            if self._one.eof:
                self._next_member()
                continue
            part = self._step()
            if part:
                return part
        return b""

    def _step(self) -> bytes:
        hungry = getattr(self._one, "needs_input", True)
        if not self._rest and hungry:
            self._rest = self._raw.read()
            if not self._rest:
                raise ArchiveRefused(
                    "it ends in the middle (the compressed stream is not complete)"
                )
        try:
            part: bytes = self._one.decompress(self._rest, CHUNK)
        except self._errors as error:
            raise ArchiveRefused(f"the compressed stream is broken: {error}") from error
        # zlib gives back what it did not take, the others keep it.
        self._rest = getattr(self._one, "unconsumed_tail", b"")
        return part

    def _next_member(self) -> None:
        rest = self._one.unused_data.lstrip(b"\0")
        while not rest:
            rest = self._raw.read()
            if not rest:
                self._over = True
                return
            rest = rest.lstrip(b"\0")
        self._one = self._make()
        self._rest = rest


class Unzstd:
    """A zstd stream, unpacked by the `zstd` program: the standard library reads it from Python 3.14 on only.

    The program gets the archive's bytes on its standard input, never its name, and little memory for its window.
    """

    ARGV = ("zstd", "--decompress", "--stdout", "--quiet", "--no-progress", f"--memory={MEMORY}")

    def __init__(self, raw: Raw) -> None:
        try:
            self._process = subprocess.Popen(
                self.ARGV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except FileNotFoundError as error:
            raise ArchiveRefused(
                "it is packed with zstd, and this host has no program `zstd`: install it (package zstd), "
                "or publish the archive as tar.gz or tar.xz"
            ) from error
        self._raw = raw
        self._fault: Optional[BaseException] = None
        self._feeder = threading.Thread(target=self._feed, name="zstd-feeder", daemon=True)
        self._feeder.start()

    def _feed(self) -> None:
        """Pass the archive on; a program that ended early is noticed by who reads."""
        pipe = self._pipe(self._process.stdin)
        try:
            with pipe:
                for part in iter(self._raw.read, b""):
                    pipe.write(part)
        except BrokenPipeError:
            # What the digest is taken over is all of the archive.
            for _ in iter(self._raw.read, b""):
                pass
        except OSError as error:
            self._fault = error

    @staticmethod
    def _pipe(found: Optional[IO[bytes]]) -> IO[bytes]:
        if found is None:
            raise ArchiveRefused("zstd was started without a pipe")
        return found

    def read(self) -> bytes:
        """The next chunk of at most `CHUNK` bytes; empty at the end."""
        part = self._pipe(self._process.stdout).read(CHUNK)
        return part or self._ended()

    def _ended(self) -> bytes:
        said = self._pipe(self._process.stderr).read(2000)
        code = self._process.wait()
        self._feeder.join()
        if self._fault is not None:
            raise self._fault
        if code:
            words = " ".join(said.decode("utf-8", "replace").split())[:200]
            raise ArchiveRefused(f"the zstd stream is broken: {words or f'zstd ended with {code}'}")
        return b""

    def close(self) -> None:
        """End the program where it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._feeder.join()
        for pipe in (self._process.stdout, self._process.stderr):
            self._pipe(pipe).close()


@contextlib.contextmanager
def opened(raw: Raw, start: bytes) -> Iterator[Any]:
    """The plain stream of an archive that starts with these bytes."""
    stream = _stream(raw, start)
    try:
        yield stream
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()


def _stream(raw: Raw, start: bytes) -> Any:
    if start.startswith(b"\x1f\x8b"):
        return Packed(raw, lambda: zlib.decompressobj(31), zlib.error)
    if start.startswith(b"\xfd7zXZ\0"):
        import lzma  # noqa: PLC0415 -- rarely needed, and a session should start fast

        return Packed(
            raw,
            lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MEMORY),
            (lzma.LZMAError, EOFError),
        )
    if start.startswith(b"BZh"):
        import bz2  # noqa: PLC0415 -- as above

        return Packed(raw, bz2.BZ2Decompressor, (OSError, EOFError))
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return Unzstd(raw)
    return Plain(raw)


class Reader:
    """Exact reads from a stream of chunks, with a cap on what is read in all."""

    def __init__(self, stream: Any, cap: int, tick: Callable[[], None]) -> None:
        self._stream = stream
        self._left = b""
        self._cap = cap
        self._taken = 0
        self._tick = tick

    def some(self, size: int) -> bytes:
        """Between 1 and `size` bytes; empty at the end of the stream."""
        if not self._left:
            self._tick()
            self._left = self._stream.read()
            self._taken += len(self._left)
            if self._taken > self._cap:
                raise ArchiveRefused(f"it unpacks to more than {self._cap} bytes")
        part, self._left = self._left[:size], self._left[size:]
        return part

    def put_back(self, part: bytes) -> None:
        """What was read comes again."""
        self._left = part + self._left

    def exactly(self, size: int) -> bytes:
        """`size` bytes, or ArchiveRefused when the stream ends before."""
        parts = []
        while size:
            part = self.some(size)
            if not part:
                raise ArchiveRefused("it ends in the middle")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def rest_is_zero(self) -> None:
        """Read to the end; ArchiveRefused when anything but padding follows."""
        while True:
            part = self.some(CHUNK)
            if not part:
                return
            if part.strip(b"\0"):
                raise ArchiveRefused("something follows the end of the archive")
