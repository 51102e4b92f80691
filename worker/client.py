"""The connection to Temporal: the embedded engine's, or a cluster elsewhere.

Elsewhere is described as for every other Temporal tool: profiles in its configuration file and
``TEMPORAL_*`` variables, TLS and API keys with them (see Temporal's environment configuration).
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client, Interceptor
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.runtime import Runtime

from worker import certificates
from worker.certificates import CertificateError
from worker.engine import Engine
from worker.engine_api import profile_of, speaks
from worker.engine_files import EngineFiles
from worker.logs import get_logger
from worker.rings import converter_of
from worker.settings import EMBEDDED_NAMESPACE, Settings

CONNECT_SECONDS = 10.0
CERTIFICATE_SECONDS = 60.0
"""So often a worker looks whether the embedded engine's certificates end soon, or were renewed."""


class EngineUnreachableError(Exception):
    """Temporal cannot be reached; the message ends in what to do next."""


def connect_config(settings: Settings) -> ClientConnectConfig:
    """Where and how to connect. It may hold an API key: not for logs.

    Raises ``EngineUnreachableError`` when the embedded engine does not run, or when Temporal's own
    configuration cannot be read.
    """
    if settings.embedded:
        state = Engine(settings).state()
        if state is None:
            raise EngineUnreachableError(
                f"the embedded engine of {settings.home} is not running; next: `kedge up`"
            )
        try:
            return profile_of(state.profile)
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineUnreachableError(
                f"the profile of the embedded engine, {state.profile}, cannot be used: {_place_of(error)}; "
                "next: `kedge down`, then `kedge up` writes it anew"
            ) from None
    source = settings.temporal_config_file
    try:
        config = ClientConfig.load_client_connect_config(
            settings.temporal_profile, config_file=None if source is None else str(source)
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise EngineUnreachableError(
            f"Temporal's configuration cannot be used: {_place_of(error)}; next: mend the profile, or "
            "unset TEMPORAL_PROFILE and TEMPORAL_CONFIG_FILE to use the embedded engine"
        ) from None
    if settings.temporal_address is not None:
        config["target_host"] = settings.temporal_address
    if settings.temporal_namespace is not None:
        config["namespace"] = settings.temporal_namespace
    return config


def _place_of(error: Exception) -> str:
    """What is wrong with Temporal's configuration, by its place: the library quotes the line, and an API key may be in it."""
    first = str(error).strip().partition("\n")[0]
    return re.sub(r"\"[^\"]*\"?|(?<=string ).*", "…", first)[:300]


async def connect(
    settings: Settings,
    *,
    interceptors: Sequence[Interceptor] = (),
    identity: str | None = None,
    runtime: Runtime | None = None,
    patience: float = 0.0,
) -> Client:
    """A client with the data converter of these settings (:mod:`worker.rings`), connected.

    One try takes at most ``CONNECT_SECONDS``; tries are repeated for ``patience`` seconds (a
    worker waits for an engine that is starting, a person does not). Raises
    ``EngineUnreachableError``, and ``CodecError`` when the ring of payload keys cannot be used. Keep the ``runtime`` of a process in one place: it carries metrics.
    """
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        try:
            return await _connect_once(settings, interceptors, identity, runtime)
        except EngineUnreachableError:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            await asyncio.sleep(0.25)


async def _connect_once(
    settings: Settings,
    interceptors: Sequence[Interceptor],
    identity: str | None,
    runtime: Runtime | None,
) -> Client:
    config = connect_config(settings)
    profile = EngineFiles(settings.engine_dir).profile
    converter = converter_of(settings)
    address = config.get("target_host", "localhost:7233")
    if settings.embedded and not await asyncio.to_thread(speaks, profile):
        raise EngineUnreachableError(
            f"the embedded engine on {address} does not answer; next: `kedge up` starts it, `kedge doctor` looks closer"
        )
    try:
        return await Client.connect(
            address,
            namespace=config.get("namespace", EMBEDDED_NAMESPACE),
            api_key=config.get("api_key"),
            tls=config.get("tls"),
            rpc_metadata=dict(config.get("rpc_metadata", {})),
            data_converter=converter,
            interceptors=interceptors,
            identity=identity or f"{os.getpid()}@{socket.gethostname()}",
            runtime=runtime,
            connect_timeout=timedelta(seconds=CONNECT_SECONDS),
        )
    except (RuntimeError, ValueError, OSError) as error:
        if settings.embedded:
            step = "`kedge up` starts it, `kedge doctor` looks closer"
        else:
            step = "check the address, the profile and the network; `kedge doctor` looks closer"
        raise EngineUnreachableError(
            f"no Temporal server answers on {address.rpartition('@')[2]}: {error}; next: {step}"
        ) from error


async def follow_certificate(settings: Settings, take_up: Callable[[Client], None]) -> None:
    """Renews the embedded engine's certificates in time, and connects anew once the client's is another one.

    A worker may run for longer than a certificate is good. ``take_up`` gets each new client. Runs until it is cancelled.
    """
    if not settings.embedded:
        return
    folder = EngineFiles(settings.engine_dir).certificates
    held = await asyncio.to_thread(_client_certificate, folder)
    while True:
        await asyncio.sleep(CERTIFICATE_SECONDS)
        try:
            found = await asyncio.to_thread(_client_certificate, folder)
            if found == held:
                continue
            take_up(await connect(settings))
        except (CertificateError, EngineUnreachableError, OSError) as error:
            get_logger("worker").warning("cannot renew the connection yet", reason=str(error))
            continue
        held = found
        get_logger("worker").info("connected with the renewed certificate")


def _client_certificate(folder: Path) -> bytes:
    return certificates.ensure(folder).client.read_bytes()
