"""The connection to Temporal: the embedded engine's, or a cluster elsewhere.

Elsewhere is described as for every other Temporal tool: profiles in its configuration file and
``TEMPORAL_*`` variables, TLS and API keys with them (see Temporal's environment configuration).
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Sequence
from datetime import timedelta

from temporalio.client import Client, Interceptor
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.runtime import Runtime

from worker.codec import converter_of
from worker.engine import Engine
from worker.engine_api import profile_of
from worker.settings import EMBEDDED_NAMESPACE, Settings

CONNECT_SECONDS = 10.0


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
    """A client with the data converter of these settings (:mod:`worker.codec`), connected.

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
    converter = converter_of(settings)
    config = connect_config(settings)
    address = config.get("target_host", "localhost:7233")
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
