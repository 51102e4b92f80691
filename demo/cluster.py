"""etcd as its users see it: members, and the HTTP/JSON gateway that each of them serves."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"


class GatewayError(Exception):
    """The member did not answer, or not with what was asked for. What became of a put is then unknown."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member: its name and its two ports on this machine."""

    name: str
    client_port: int
    peer_port: int


@dataclass(frozen=True, slots=True)
class Page:
    """Part of the keys of a prefix, in order; ``more`` says that there are further ones behind them."""

    pairs: tuple[tuple[str, str], ...]
    more: bool


class Gateway:
    """One connection to one member, made when it is needed and made anew after an error.

    Not for several threads at once.
    """

    def __init__(self, port: int, *, seconds: float = 2.0) -> None:
        """``seconds`` is how long one answer may take."""
        self._port = port
        self._seconds = seconds
        self._connection: http.client.HTTPConnection | None = None

    def put(self, key: str, value: str) -> int:
        """Writes; returns the revision once a majority has it on disk. Raises ``GatewayError``."""
        answer = self._post("/v3/kv/put", {"key": _encode(key), "value": _encode(value)})
        return int(answer["header"]["revision"])

    def page(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        """Keys of a prefix behind ``after``, read linearizably through this member. Raises ``GatewayError``."""
        first = after + "\0" if after else prefix
        asked = {
            "key": _encode(first),
            "range_end": _encode(prefix[:-1] + chr(ord(prefix[-1]) + 1)),
            "limit": str(limit),
        }
        answer = self._post("/v3/kv/range", asked)
        pairs = tuple(
            (_decode(one["key"]), _decode(one.get("value", ""))) for one in answer.get("kvs", ())
        )
        return Page(pairs=pairs, more=bool(answer.get("more")))

    def versions(self) -> tuple[str, str]:
        """Version of this member, and of the cluster as it sees it. Raises ``GatewayError``."""
        answer = self._request("GET", "/version", None)
        return str(answer.get("etcdserver", "")), str(answer.get("etcdcluster", ""))

    def leads(self) -> bool:
        """Whether this member is the leader now. Raises ``GatewayError``."""
        answer = self._post("/v3/maintenance/status", {})
        return bool(answer.get("leader")) and answer["leader"] == answer["header"]["member_id"]

    def close(self) -> None:
        """Drops the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, path: str, asked: Mapping[str, str]) -> dict[str, Any]:
        return self._request("POST", path, json.dumps(asked).encode())

    def _request(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(HOST, self._port, timeout=self._seconds)
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            self._connection.request(method, path, body, headers)
            reply = self._connection.getresponse()
            return _answer(reply.status, reply.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            # What is left of an answer on this connection belongs to nobody any more.
            self.close()
            raise GatewayError(f"{type(error).__name__}: {error}") from error


def _answer(status: int, content: bytes) -> dict[str, Any]:
    if status != http.client.OK:
        raise ValueError(f"status {status}: {content[:200]!r}")
    answer = json.loads(content)
    if not isinstance(answer, dict):
        raise ValueError(f"the answer is no object: {content[:200]!r}")  # noqa: TRY004 - of the world, not of a caller
    return answer


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    return base64.b64decode(text).decode()
