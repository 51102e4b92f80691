"""A host program that says what the test wants it to say, behind the real local transport."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from kedge.drivers.local import LocalTransport

Says = Callable[[dict[str, Any]], bytes]


class Lying:
    """Listens where the transport expects its server; each connection gets what ``says`` makes of the request."""

    def __init__(self, home: Path) -> None:
        self.says: Says = honest
        self._top = Path(tempfile.mkdtemp(prefix="kedge-lying-"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._top / "s"))
        self._listener.listen(64)
        self.transport = LocalTransport(home)
        # What the transport takes for the server that it started.
        server = self.transport._server
        server._running = subprocess.Popen(
            ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        server._address = str(self._top / "s")
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(one,), daemon=True).start()

    def _answer(self, one: socket.socket) -> None:
        with one:
            asked = b""
            while not asked.endswith(b"\n"):
                part = one.recv(1 << 16)
                if not part:
                    return
                asked += part
            try:
                one.sendall(self.says(json.loads(asked)))
            except OSError:
                return

    async def close(self) -> None:
        self._listener.close()
        await self.transport.aclose()
        shutil.rmtree(self._top)


DIGEST = "a" * 64
SEEN = {
    "release": DIGEST,
    "generation": "g1",
    "running": True,
    "pid": 1,
    "running_release": DIGEST,
    "running_generation": "g1",
    "should_run": True,
}


def lines(asked: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """What an honest host program says of a request that goes well; ``more`` replaces fields of the done lines."""
    told: list[dict[str, Any]] = []
    for op in asked["ops"]:
        told.append({"ev": "begin", "key": op["key"], "op": op["op"]})
        done = {"ev": "done", "key": op["key"], "op": op["op"], "replayed": False, "skipped": False}
        told.append({**done, "result": {}, "before": SEEN, "after": SEEN, **more})
    told.append({"ev": "end", "ok": True, "observed": SEEN})
    return told


def raw(told: list[Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in told)


def honest(asked: dict[str, Any]) -> bytes:
    return raw(lines(asked))


# -- everything a node may say -------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(categories=None), max_size=60) | st.sampled_from(
    [
        "\ud800",
        "a\nb",
        "\x1b[2J",
        "\u202e",
        "\u200b",
        "\U000e0041",
        "x" * 100_000,
        "TransportLost",
        "Fenced",
    ]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(2**53), 1e308, float("inf")])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda deeper: st.lists(deeper, max_size=4) | st.dictionaries(TEXTS, deeper, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "ev", "key", "op", "result", "before", "after", "replayed", "skipped", "said", "error", "ok", "observed",
]  # fmt: skip
CHANGES = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from(FIELDS), VALUES)
    | st.tuples(st.integers(0, 30), st.sampled_from(["drop", "twice", "bytes", "fail"]), VALUES),
    max_size=4,
)


def changed(changes: list[tuple[int, str, Any]]) -> Says:
    """A host program whose lines are changed, dropped, repeated, or replaced by something else."""

    def says(asked: dict[str, Any]) -> bytes:
        told: list[Any] = list(lines(asked))
        for place, what, value in changes:
            at = place % max(1, len(told))
            if not told or not isinstance(told[at], dict):
                continue
            if what == "drop":
                del told[at]
            elif what == "twice":
                told.insert(at, told[at])
            elif what == "bytes":
                told[at] = str(value).encode("utf-8", "surrogatepass") or b"\xff"
            elif what == "fail":
                error = {
                    "type": "NotHealthy",
                    "message": str(value),
                    "retryable": True,
                    "detail": {"saw": value},
                }
                one = {
                    "ev": "failed",
                    "key": told[at].get("key"),
                    "op": told[at].get("op"),
                    "error": error,
                }
                told[at:] = [one, {"ev": "end", "ok": False, "observed": {"release": value}}]
            else:
                told[at] = {**told[at], what: value}
        return b"".join(one + b"\n" if isinstance(one, bytes) else raw([one]) for one in told)

    return says
