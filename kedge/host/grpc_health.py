"""The standard health service of gRPC servers (`grpc.health.v1.Health/Check`): one call, one status."""

from __future__ import annotations

from typing import Any, Dict, Tuple
from urllib.parse import unquote, urlsplit

from kedge.host import dial, http2
from kedge.host.dial import Broken, Limit, Target
from kedge.host.waits import Pulse

PATH = "/grpc.health.v1.Health/Check"
PORTS = {"grpc": 80, "grpcs": 443}
SERVING, NOT_SERVING = "SERVING", "NOT_SERVING"
STATUSES = ("UNKNOWN", SERVING, NOT_SERVING, "SERVICE_UNKNOWN")
CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
NEXT = {
    "UNIMPLEMENTED": "this server has no health service (grpc.health.v1)",
    "NOT_FOUND": "this server does not know this service: check `service`",
    "UNAUTHENTICATED": "this server wants to know who asks: check `headers`, or `certificate` and `key`",
    "PERMISSION_DENIED": "this server refuses who asks: check `headers`, or `certificate` and `key`",
}
# What a request sets itself.
OWN = ("te", "content-type", "grpc-timeout", "user-agent", "host")


def check(spec: Dict[str, Any], pulse: Pulse) -> str:
    """The status of a service; Broken when the server says none."""
    parts = urlsplit(spec["url"])
    target = Target(parts.hostname or "", parts.port or PORTS[parts.scheme], spec["socket"])
    tls = (spec["tls"], "h2") if parts.scheme == "grpcs" else None
    line = dial.opened(target, tls, Limit.of(spec["timeout"]), pulse)
    headers = [
        (":method", "POST"), (":scheme", "https" if tls else "http"), (":path", PATH),
        (":authority", parts.netloc), ("te", "trailers"), ("content-type", "application/grpc"),
        ("user-agent", "kedge"), ("grpc-timeout", f"{max(1, int(spec['timeout'] * 1000))}m"),
        *((name.lower(), value) for name, value in spec["headers"].items() if name.lower() not in OWN),
    ]  # fmt: skip
    try:
        return status(http2.call(line, headers, _request(spec["service"] or "")))
    finally:
        line.close()


def _request(service: str) -> bytes:
    """The message as gRPC sends it: not compressed, its length, and the one field of the request."""
    raw = service.encode()
    if len(raw) > 1 << 12:
        raise Broken("`service` is too long")
    field = b"\x0a" + _varint(len(raw)) + raw if raw else b""
    return b"\0" + len(field).to_bytes(4, "big") + field


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + _varint(value // 128)


def status(reply: http2.Reply) -> str:
    """What a reply says of the service; Broken when it is no good reply of gRPC."""
    headers = reply.headers
    kind = headers.get("content-type", "")
    if headers.get(":status") != "200" or not kind.startswith("application/grpc"):
        told = f"HTTP status {headers.get(':status', 'none')}, {kind[:60] or 'no content type'}"
        raise Broken(f"the answer is not gRPC: {told}")
    code = headers.get("grpc-status", "")
    if code != "0":
        raise Broken(_refused(code, headers.get("grpc-message", "")))
    return STATUSES[_message(reply.body)]


def _refused(code: str, message: str) -> str:
    if not code.isdigit() or int(code) >= len(CODES):
        return f"the answer has no gRPC status: {code[:20]!r}"
    name = CODES[int(code)]
    said = unquote(message)[:200]
    return (
        f"gRPC status {name}"
        + (f": {NEXT[name]}" if name in NEXT else "")
        + (f" ({said})" if said else "")
    )


def _message(body: bytes) -> int:
    """The number of the status in the one message of a reply."""
    if len(body) < 5 or len(body) != 5 + int.from_bytes(body[1:5], "big"):
        raise Broken("the answer is not one whole message")
    if body[0]:
        raise Broken("the answer is compressed, which was not asked for")
    found = 0
    raw, at = body[5:], 0
    while at < len(raw):
        tag, at = _read(raw, at)
        if tag & 7 == 0:
            value, at = _read(raw, at)
            found = value if tag >> 3 == 1 else found
        elif tag & 7 == 2:
            size, at = _read(raw, at)
            at += size
        else:
            at += {1: 8, 5: 4}.get(tag & 7, len(raw) + 1)
        if at > len(raw):
            raise Broken("the message of the answer is cut off")
    if found >= len(STATUSES):
        raise Broken(f"the answer has the status {found}, which is none of the health service's")
    return found


def _read(raw: bytes, at: int) -> Tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(raw):
            break
        value |= (raw[at] & 127) << shift
        at += 1
        if raw[at - 1] < 128:
            return value, at
    raise Broken("the message of the answer is cut off")
