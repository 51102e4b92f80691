"""What the engine is asked once it runs: whether it serves its namespace, and to make what is missing there.

Asked through the profile that clients use, so an engine that answers here answers them too.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import tomllib
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    ListSearchAttributesRequest,
)
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.service import RPCError, RPCStatusCode

RETENTION = timedelta(days=1)
"""How long Temporal keeps the history of a run that ended; the evidence stays."""
_CALL = timedelta(seconds=5)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How HTTP/2 begins: a fixed line, then settings, here none."""
_SETTINGS = b"\4"

Answer = TypeVar("Answer")


def profile_of(path: Path) -> ClientConnectConfig:
    """How to connect, from a home's own profile: no variable of Temporal's has a say in it."""
    return ClientConfig.load_client_connect_config(
        "default", config_file=str(path), disable_env=True
    )


async def client_of(path: Path, **options: Any) -> Client:
    """A client by a home's own profile. Raises ``RuntimeError``, ``ValueError`` or ``OSError``."""
    return await Client.connect(**{**profile_of(path), "connect_timeout": _CALL, **options})


def speaks(path: Path) -> bool:
    """Whether the engine takes the client certificate and speaks HTTP/2.

    Asked before the SDK is: an attempt of the SDK's that hangs lives on for a while, and a process that ends meanwhile
    is aborted by it.
    """
    try:
        profile = tomllib.loads(path.read_text(encoding="utf-8"))["profile"]["default"]
        host, _, port = profile["address"].rpartition(":")
        tls = profile["tls"]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(tls["server_ca_cert_path"])
        context.load_cert_chain(tls["client_cert_path"], tls["client_key_path"])
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((host, int(port)), timeout=_CALL.total_seconds()) as reached,
            context.wrap_socket(reached, server_hostname=tls["server_name"]) as served,
        ):
            served.sendall(_PREFACE)
            # The fourth byte of a frame is its kind: the first one of every server tells its settings.
            return served.recv(9)[3:4] == _SETTINGS
    except (OSError, ValueError, KeyError, TypeError):
        return False


def prepare(path: Path, attributes: tuple[str, ...]) -> bool:
    """Makes the namespace and its search attributes where they are missing; False while the engine does not answer."""
    return _apart(_prepare(path, attributes))


def answers(path: Path, attributes: tuple[str, ...]) -> bool:
    """Whether the engine serves its namespace with these search attributes. Changes nothing."""
    return _apart(_answers(path, attributes))


async def _answers(path: Path, attributes: tuple[str, ...]) -> bool:
    if not speaks(path):
        return False
    try:
        client = await client_of(path)
        return await _lacks(client, attributes) == []
    except (RPCError, RuntimeError, ValueError, OSError):
        return False


async def _prepare(path: Path, attributes: tuple[str, ...]) -> bool:
    if not speaks(path):
        return False
    try:
        client = await client_of(path)
        await _register(client)
        lacking = await _lacks(client, attributes)
        if lacking:
            keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
            await client.operator_service.add_search_attributes(
                AddSearchAttributesRequest(
                    namespace=client.namespace, search_attributes=dict.fromkeys(lacking, keyword)
                ),
                timeout=_CALL,
            )
        return await _lacks(client, attributes) == []
    except (RPCError, RuntimeError, ValueError, OSError):
        return False


async def _register(client: Client) -> None:
    # Not by asking first: for a second the server would remember that there is none.
    kept = Duration()
    kept.FromTimedelta(RETENTION)
    try:
        await client.workflow_service.register_namespace(
            RegisterNamespaceRequest(
                namespace=client.namespace, workflow_execution_retention_period=kept
            ),
            timeout=_CALL,
        )
    except RPCError as error:
        if error.status != RPCStatusCode.ALREADY_EXISTS:
            raise


async def _lacks(client: Client, attributes: tuple[str, ...]) -> list[str]:
    known = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace), timeout=_CALL
    )
    return [name for name in attributes if name not in known.custom_attributes]


def _apart(asked: Coroutine[Any, Any, Answer]) -> Answer:
    """Runs it in a thread of its own: who asks may be in an event loop, or in none."""
    found: list[Answer] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(asked))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asks
            failed.append(error)

    thread = threading.Thread(target=run, name="ask-engine", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
