"""Archives at web addresses, from a real HTTP server that is slow, breaks off, redirects and lies."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kedge.drivers.artifacts import VerifiedArtifacts
from kedge.drivers.web_source import TRIES, WebSource
from kedge.model.errors import DriverError
from kedge.model.plan import Artifact

CONTENT = bytes(range(256)) * 4096
"""1 MiB, no two places of which are taken for each other by accident."""
DIGEST = hashlib.sha256(CONTENT).hexdigest()

Answer = Callable[[BaseHTTPRequestHandler], None]


class Impatient:
    """A clock whose pauses take no time; they are counted."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.pauses.append(seconds)


class Server:
    """Answers by path; ``asked`` has path and Range of every request."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                server.asked.append((self.path, self.headers.get("Range")))
                server.answers[self.path](self)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def clock() -> Impatient:
    return Impatient()


@pytest.fixture
def artifacts(tmp_path: Path, clock: Impatient) -> VerifiedArtifacts:
    source = WebSource(tmp_path / "fetched", clock)
    return VerifiedArtifacts(tmp_path / "cache", {"http": source, "https": source})


def asked(*addresses: str) -> Artifact:
    return Artifact(
        platform="linux/amd64",
        digest=DIGEST,
        length=len(CONTENT),
        source=addresses[0],
        mirrors=addresses[1:],
    )


def whole(
    content: bytes = CONTENT, kind: str = "application/gzip", sent: int | None = None
) -> Answer:
    """All of it, ranges kept; of each answer at most ``sent`` bytes are sent before the line is cut."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        begin = 0
        if given := request.headers.get("Range"):
            begin = int(given.removeprefix("bytes=").rstrip("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content) - begin))
        request.end_headers()
        request.wfile.write(content[begin : len(content) if sent is None else begin + sent])

    return answer


def status(code: int, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


async def test_an_archive_is_fetched_once_and_kept_by_its_digest(
    server: Server, artifacts: VerifiedArtifacts, tmp_path: Path
) -> None:
    server.answers["/a.tgz"] = whole()
    path = await artifacts.fetch(asked(f"{server.address}/a.tgz"))
    assert path.read_bytes() == CONTENT
    again = VerifiedArtifacts(
        tmp_path / "other", {"http": WebSource(tmp_path / "fetched", Impatient())}
    )
    assert await again.fetch(asked(f"{server.address}/a.tgz")) == path
    assert server.asked == [("/a.tgz", None)]


async def test_a_line_that_breaks_off_is_taken_up_where_it_broke(
    server: Server, artifacts: VerifiedArtifacts
) -> None:
    server.answers["/a.tgz"] = whole(sent=400_000)
    assert (await artifacts.fetch(asked(f"{server.address}/a.tgz"))).read_bytes() == CONTENT
    assert [at for _, at in server.asked] == [None, "bytes=400000-", "bytes=800000-"]


async def test_a_mirror_goes_on_where_the_first_address_stopped(
    server: Server, artifacts: VerifiedArtifacts
) -> None:
    sent: list[int] = []

    def once(request: BaseHTTPRequestHandler) -> None:
        answer = status(503) if sent else whole(sent=300_000)
        sent.append(1)
        answer(request)

    server.answers |= {"/a.tgz": once, "/mirror.tgz": whole()}
    found = await artifacts.fetch(asked(f"{server.address}/a.tgz", f"{server.address}/mirror.tgz"))
    assert found.read_bytes() == CONTENT
    assert server.asked[-1] == ("/mirror.tgz", "bytes=300000-")
    assert len(server.asked) == TRIES + 1


async def test_a_server_without_ranges_sends_all_of_it_again(
    server: Server, artifacts: VerifiedArtifacts
) -> None:
    sent: list[int] = []

    def plain(request: BaseHTTPRequestHandler) -> None:
        del request.headers["Range"]
        sent.append(1)
        whole(sent=1000 if len(sent) == 1 else None)(request)

    server.answers["/a.tgz"] = plain
    assert (await artifacts.fetch(asked(f"{server.address}/a.tgz"))).read_bytes() == CONTENT


PAGE = b"<!DOCTYPE html><title>Please log in</title>"


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (whole(PAGE, "text/html"), "DigestMismatch", f"it sent an HTML page of {len(PAGE)} bytes"),
        (whole(CONTENT[::-1]), "DigestMismatch", "with another sha256 than the release says"),
        (whole(CONTENT + b"x"), "DigestMismatch", f"it sends more than the {len(CONTENT)} bytes"),
        (status(404), "NotFound", "HTTP status 404"),
        (status(403), "DigestMismatch", "HTTP status 403"),
        (status(503), "Unreachable", "HTTP status 503"),
        (status(302, Location="ftp://example.org/a"), "DigestMismatch", "which is not followed"),
        (status(302, Location="/a.tgz"), "DigestMismatch", "more than 5 redirects"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
async def test_what_is_not_the_archive_is_named_and_not_kept(
    server: Server, artifacts: VerifiedArtifacts, tmp_path: Path,
    answer: Answer, kind: str, message: str,
) -> None:  # fmt: skip
    server.answers["/a.tgz"] = answer
    with pytest.raises(DriverError, match="did not arrive") as caught:
        await artifacts.fetch(asked(f"{server.address}/a.tgz"))
    assert (caught.value.kind, caught.value.retryable) == (kind, kind == "Unreachable")
    assert message in caught.value.message
    assert caught.value.next_step
    left = [path for path in (tmp_path / "fetched").iterdir() if path.stat().st_size]
    assert left == []


async def test_a_mirror_that_lies_does_not_spoil_the_next_one(
    server: Server, artifacts: VerifiedArtifacts
) -> None:
    server.answers |= {"/bad": whole(CONTENT[::-1]), "/good": whole()}
    found = await artifacts.fetch(asked(f"{server.address}/bad", f"{server.address}/good"))
    assert found.read_bytes() == CONTENT


async def test_a_part_of_other_bytes_is_thrown_away_and_all_of_it_is_asked_for(
    server: Server, artifacts: VerifiedArtifacts, tmp_path: Path
) -> None:
    (tmp_path / "fetched").mkdir()
    (tmp_path / "fetched" / f"{DIGEST}.part").write_bytes(b"other bytes" * 100)
    server.answers["/a.tgz"] = whole()
    found = await artifacts.fetch(asked(f"{server.address}/a.tgz"))
    assert found.read_bytes() == CONTENT


async def test_nobody_there_is_unreachable_and_may_be_tried_later(
    artifacts: VerifiedArtifacts, clock: Impatient
) -> None:
    with pytest.raises(DriverError, match="Connection refused") as caught:
        await artifacts.fetch(asked("http://127.0.0.1:9/a.tgz"))
    assert (caught.value.kind, caught.value.retryable) == ("Unreachable", True)
    assert clock.pauses == [0.5, 1.0, 2.0, 4.0]


async def test_an_archive_that_trickles_is_given_up(
    server: Server, artifacts: VerifiedArtifacts, clock: Impatient
) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        clock.now += 100.0
        whole(sent=100)(request)

    class Late(Impatient):
        def monotonic(self) -> float:
            self.now += 61.0
            return self.now

    server.answers["/a.tgz"] = slow
    source = WebSource(Path(artifacts._cache) / "late", Late())
    with pytest.raises(DriverError, match="bytes came in") as caught:
        source.candidates_now(asked(f"{server.address}/a.tgz"))
    assert caught.value.kind == "Unreachable"
