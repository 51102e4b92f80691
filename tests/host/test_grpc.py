"""The health service of gRPC: a real server by TLS, and servers that answer whatever they like."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.host import grpc_health, hpack, http2
from kedge.host.dial import Broken
from worker.engine import Engine

WORKFLOWS = "temporal.api.workflowservice.v1.WorkflowService"


def probe(host: Any, grpc: dict[str, Any], key: str = "") -> tuple[str, str]:
    """The verdict of a look, and its sentence."""
    spec = {"grpc": {"timeout": 5, **grpc}}
    said = host.call({"key": f"p{key}{host.token}", "op": "probe", "probe": spec})
    if said.ok:
        return "pass", ""
    assert said.error["type"] == "ProbeFailed", said.error
    return said.error["detail"]["verdict"], said.error["message"]


@pytest.mark.temporal
def test_the_health_service_of_a_real_server_behind_client_certificates(
    host: Any, engine: Engine
) -> None:
    """Temporal's own server is written in Go with grpc-go; its frontend serves holders of client certificates alone."""
    state = engine.state()
    assert state is not None
    profile = tomllib.loads(state.profile.read_text())["profile"]["default"]
    folder, address = Path(profile["tls"]["server_ca_cert_path"]).parent, profile["address"]
    tls = {
        "ca": str(folder / "ca.pem"), "certificate": str(folder / "client.pem"),
        "server_name": "kedge-engine",
    }  # fmt: skip
    url = f"grpcs://{address}"
    assert probe(host, {"url": url, "service": WORKFLOWS, "tls": tls}) == ("pass", "")
    verdict, said = probe(host, {"url": url, "service": "no.such.Service", "tls": tls})
    assert verdict == "unknown"
    assert "does not know this service: check `service`" in said or "UNKNOWN" in said
    verdict, said = probe(host, {"url": url, "tls": {**tls, "certificate": None}})
    assert verdict == "unknown"
    assert "client certificate" in said
    verdict, said = probe(host, {"url": url, "tls": {**tls, "server_name": None}})
    assert "it is not for 127.0.0.1" in said
    verdict, said = probe(host, {"url": f"grpc://{address}"})
    assert verdict == "unknown"


@pytest.fixture
def in_the_open(engine: Engine) -> Iterator[str]:
    """The address at which that real server is reached without TLS: bytes go through, whoever sends them."""
    state = engine.state()
    assert state is not None
    profile = tomllib.loads(state.profile.read_text())["profile"]["default"]
    host, _, port = profile["address"].rpartition(":")
    context = ssl.create_default_context(cafile=profile["tls"]["server_ca_cert_path"])
    context.load_cert_chain(profile["tls"]["client_cert_path"])
    context.set_alpn_protocols(["h2"])
    listener = socket.create_server(("127.0.0.1", 0))

    def through() -> None:
        one, _ = listener.accept()
        with (
            one,
            socket.create_connection((host, int(port))) as plain,
            context.wrap_socket(plain, server_hostname="kedge-engine") as other,
        ):
            while True:
                ready, _, _ = select.select([one, other], [], [], 5)
                for source, sink in ((one, other), (other, one)):
                    if source in ready:
                        part = source.recv(1 << 16)
                        if not part:
                            return
                        sink.sendall(part)

    thread = threading.Thread(target=through, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    thread.join(5)


@pytest.mark.temporal
def test_the_health_service_of_a_real_server_in_the_open(host: Any, in_the_open: str) -> None:
    assert probe(host, {"url": f"grpc://{in_the_open}", "service": WORKFLOWS}) == ("pass", "")


# -- servers that answer whatever they like ------------------------------------------------------------------------


def frame(kind: int, flags: int, payload: bytes = b"", stream: int = 1) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


SETTINGS = frame(4, 0, b"", 0)
HEAD = b"\x88" + hpack.header("content-type", "application/grpc")
TRAILERS = hpack.header("grpc-status", "0")


def message(status: bytes = b"\x08\x01") -> bytes:
    return b"\0" + len(status).to_bytes(4, "big") + status


def answer(body: bytes = message(), head: bytes = HEAD, trailers: bytes = TRAILERS) -> bytes:
    return SETTINGS + frame(1, 4, head) + frame(0, 0, body) + frame(1, 5, trailers)


def refused(code: str, said: str = "") -> bytes:
    return SETTINGS + frame(1, 5, HEAD + hpack.header("grpc-status", code) + hpack.header("grpc-message", said))  # fmt: skip


ANSWERS: list[tuple[str, bytes, str, str]] = [
    ("serving", answer(), "pass", ""),
    ("serving, in padded parts", SETTINGS + frame(1, 4 | 32, b"\0\0\0\0\0" + HEAD) + frame(0, 8, b"\x02" + message()[:3] + b"\0\0") + frame(0, 0, message()[3:]) + frame(1, 1, TRAILERS[:4]) + frame(9, 4, TRAILERS[4:]), "pass", ""),
    ("serving, with other frames", SETTINGS + frame(6, 0, b"12345678", 0) + frame(8, 0, b"\0\0\0\1", 0) + frame(99, 0, b"x", 0) + frame(7, 0, b"\x7f\xff\xff\xff\0\0\0\0", 0) + answer()[9:], "pass", ""),
    ("serving, with unknown fields", answer(message(b"\x12\x01x\x08\x01\x19" + b"\0" * 8)), "pass", ""),
    ("not serving", answer(message(b"\x08\x02")), "fail", "status is NOT_SERVING, expected SERVING"),
    ("unknown", answer(message(b"\x08\x00")), "unknown", "status is UNKNOWN, expected SERVING"),
    ("nothing said", answer(message(b"")), "unknown", "status is UNKNOWN, expected SERVING"),
    ("a service nobody knows", answer(message(b"\x08\x03")), "unknown", "status is SERVICE_UNKNOWN"),
    ("a status that is none", answer(message(b"\x08\x09")), "unknown", "the status 9, which is none"),
    ("two messages", answer(message() + message()), "unknown", "is not one whole message"),
    ("half a message", answer(message()[:-1]), "unknown", "is not one whole message"),
    ("a compressed message", answer(b"\x01" + message()[1:]), "unknown", "is compressed"),
    ("a message cut inside", answer(message(b"\x08")), "unknown", "is cut off"),
    ("a field longer than the message", answer(message(b"\x12\x7f\x08\x01")), "unknown", "is cut off"),
    ("a field of a kind that is none", answer(message(b"\x0f\x08\x01")), "unknown", "is cut off"),
    ("a number without end", answer(message(b"\x08" + b"\xff" * 11)), "unknown", "is cut off"),
    ("no health service", refused("12", "unknown service"), "unknown", "has no health service (grpc.health.v1) (unknown service)"),
    ("an unknown service", refused("5"), "unknown", "does not know this service: check `service`"),
    ("nobody is known", refused("16", "no%20token"), "unknown", "UNAUTHENTICATED: this server wants to know who asks: check `headers`, or `certificate` and `key` (no token)"),
    ("a code that is none", refused("x"), "unknown", "has no gRPC status: 'x'"),
    ("a code beyond all", refused("99"), "unknown", "has no gRPC status: '99'"),
    ("no trailers", SETTINGS + frame(1, 4, HEAD) + frame(0, 1, message()), "unknown", "has no gRPC status"),
    ("a status before and after", answer(head=HEAD + TRAILERS), "unknown", "has grpc-status twice"),
    ("a page", answer(head=b"\x88" + hpack.header("content-type", "text/html")), "unknown", "is not gRPC: HTTP status 200, text/html"),
    ("404", SETTINGS + frame(1, 5, b"\x8d"), "unknown", "is not gRPC: HTTP status 404, no content type"),
    ("HTTP/1", b"HTTP/1.1 400 Bad Request\r\n\r\n", "unknown", "speaks HTTP/1, and gRPC needs HTTP/2"),
    ("SSH", b"SSH-2.0-OpenSSH_9\r\n", "unknown", "speaks no HTTP/2"),
    ("TLS", b"\x15\x03\x01\x00\x02\x02\x16\0\0\0", "unknown", "speaks TLS: write grpcs"),
    ("nothing", b"", "unknown", "closed the connection without an answer"),
    ("an end in the middle", answer()[:-3], "unknown", "closed the connection in the middle of its answer"),
    ("a reset", SETTINGS + frame(3, 0, b"\0\0\0\x07"), "unknown", "the call was reset: REFUSED_STREAM"),
    ("good-bye", SETTINGS + frame(7, 0, b"\0\0\0\0\0\0\0\x0btoo many", 0), "unknown", "ended the connection: ENHANCE_YOUR_CALM too many"),
    ("a push", SETTINGS + frame(5, 4, b"\0\0\0\2"), "unknown", "a frame where none may be"),
    ("a loose continuation", SETTINGS + frame(9, 4, HEAD), "unknown", "a frame where none may be"),
    ("a broken continuation", SETTINGS + frame(1, 0, HEAD) + frame(0, 0, b"x"), "unknown", "headers of the answer are cut off"),
    ("headers without end", SETTINGS + frame(1, 0, HEAD) + frame(9, 0, b"\0" * 16384) * 5, "unknown", "headers of the answer have more than 65536 bytes"),
    ("empty parts without end", SETTINGS + frame(1, 0, HEAD) + frame(9, 0) * 3, "unknown", "or empty parts"),
    ("another stream", SETTINGS + frame(1, 5, HEAD, 3), "unknown", "is to another request"),
    ("a frame too large", SETTINGS + frame(0, 0, b"x" * 16385), "unknown", "a frame of the answer has more than 16384 bytes"),
    ("a body too large", SETTINGS + frame(1, 4, HEAD) + frame(0, 0, b"x" * 16384) * 5, "unknown", "is larger than 65536 bytes"),
    ("frames without end", SETTINGS + frame(8, 0, b"\0\0\0\1", 0) * 600, "unknown", "more than 512 frames"),
    ("padding beyond the frame", SETTINGS + frame(0, 8, b"\x09x"), "unknown", "more padding than content"),
    ("padding of nothing", SETTINGS + frame(0, 8), "unknown", "a frame of the answer is cut off"),
    ("priority of nothing", SETTINGS + frame(1, 36, b"\0"), "unknown", "a frame of the answer is cut off"),
    ("a header of a table", SETTINGS + frame(1, 5, b"\xff\x00"), "unknown", "refers to a table that we do not keep"),
    ("a header cut off", SETTINGS + frame(1, 5, b"\0\x7f"), "unknown", "a header"),
    ("a header beyond the block", SETTINGS + frame(1, 5, b"\0\x05abc"), "unknown", "a header is cut off"),
    ("a number that is none", SETTINGS + frame(1, 5, b"\xff" * 12), "unknown", "a header has a number that is none"),
    ("a code of Huffman that is none", SETTINGS + frame(1, 5, b"\0\x85" + b"\xff" * 5 + b"\x01x"), "unknown", "a header has a code that is none"),
    ("a code of Huffman cut off", SETTINGS + frame(1, 5, b"\0\x81\x00\x01x"), "unknown", "a header has a code that is cut off"),
    ("too many headers", SETTINGS + frame(1, 5, b"\x88" * 300), "unknown", "more than 256 headers"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "verdict", "sentence"), ANSWERS, ids=[one[0] for one in ANSWERS])  # fmt: skip
def test_answers(
    host: Any, answering: Callable[..., str], name: str, content: bytes, verdict: str, sentence: str
) -> None:
    del name
    url = answering(content).replace("http", "grpc").removesuffix("/health")
    found, said = probe(host, {"url": url})
    assert found == verdict, said
    assert sentence in said
    if verdict == "unknown":
        inverted = {"not": {"grpc": {"url": url}}}
        said_no = host.call({"key": f"n{host.token}", "op": "probe", "probe": inverted})
        assert said_no.error["detail"]["verdict"] == "unknown"


def test_a_server_that_never_answers_is_a_time_out(
    host: Any, answering: Callable[..., str]
) -> None:
    url = answering(SETTINGS, hold=True).replace("http", "grpc").removesuffix("/health")
    verdict, said = probe(host, {"url": url, "timeout": 0.3})
    assert (verdict, "timed out after 0.3 s" in said) == ("unknown", True)


def test_the_code_of_huffman_is_that_of_rfc_7541() -> None:
    """The examples of its appendix C, and every byte."""
    table = {
        "f1e3c2e5f23a6ba0ab90f4ff": b"www.example.com",
        "a8eb10649cbf": b"no-cache",
        "25a849e95ba97d7f": b"custom-key",
        "25a849e95bb8e8b4bf": b"custom-value",
        "6402": b"302",
        "aec3771a4b": b"private",
        "d07abe941054d444a8200595040b8166e082a62d1bff": b"Mon, 21 Oct 2013 20:13:21 GMT",
        "9d29ad171863c78f0b97c8e9ae82ae43d3": b"https://www.example.com",
        "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007": b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
    }  # fmt: skip
    for code, text in table.items():
        assert hpack.unpacked(bytes.fromhex(code)) == text
    assert sum(2.0 ** -(ord(length) - 60) for length in hpack.LENGTHS) == 1 - 2.0**-30


def test_a_header_comes_back_as_it_was_sent() -> None:
    for size in (0, 1, 126, 127, 128, 255, 4096, 16000):
        assert hpack.headers(hpack.header("x", "y" * size)) == [("x", "y" * size)]
    with pytest.raises(Broken, match="too long"):
        hpack.headers(hpack.header("x", "y" * 20_000))


def test_a_reply_without_a_status_is_no_reply() -> None:
    with pytest.raises(Broken, match="is not gRPC: HTTP status none"):
        grpc_health.status(http2.Reply({"content-type": "application/grpc"}, b""))
