"""The files that the embedded engine is started from, and the profile by which clients find it.

All of them are written anew at each start, with mode 0600: ``<home>/engine/server.json`` (the server's configuration;
JSON is YAML), ``dynamic.json`` (its limits), and ``temporal.toml``, a profile of Temporal's own environment
configuration: with ``TEMPORAL_CONFIG_FILE`` naming it, the stock ``temporal`` command line reaches the engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedge.drivers.files import write_atomic
from worker.certificates import SERVER_NAME, Certificates
from worker.settings import EMBEDDED_NAMESPACE

HOST = "127.0.0.1"
REFRESH = "60s"
"""So often the engine looks whether its certificate was renewed."""
DATABASE = "temporal.db"
CONFIGURATION = "server.json"
PROFILE = "temporal.toml"
_DYNAMIC = "dynamic.json"

SERVICES = ("frontend", "history", "matching", "worker")
PORTS = (
    *("frontend", "history", "matching", "worker"),
    *("frontend-membership", "history-membership", "matching-membership", "worker-membership"),
)
"""Every port the engine listens on, by what listens there."""

DYNAMIC_CONFIG: dict[str, Any] = {
    # The server's defaults are for many clients of a cluster: one shard with one writer at a time, and limits that a
    # wave of a few hundred nodes reaches.
    "history.shardIOConcurrency": 8,
    "history.rps": 50_000,
    "history.persistenceMaxQPS": 45_000,
    "history.hostLevelCacheMaxSize": 8096,
    "frontend.rps": 50_000,
    "frontend.persistenceMaxQPS": 10_000,
    "frontend.namespaceRPS": 50_000,
    "frontend.namespaceRPS.visibility": 100,
    "frontend.namespaceCount": 10_000,
    "matching.rps": 50_000,
    # A worker that ends a workflow task gets activities it has just asked for with the answer, which saves a poll and
    # a transaction.
    "system.enableActivityEagerExecution": True,
    # Search attributes are made right after the first start, and used at once.
    "system.forceSearchAttributesCacheRefreshOnRead": True,
}


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """The files of one engine, in ``folder``."""

    folder: Path

    @property
    def database(self) -> Path:
        """Everything Temporal keeps."""
        return self.folder / DATABASE

    @property
    def profile(self) -> Path:
        """Where clients read how to connect."""
        return self.folder / PROFILE

    @property
    def certificates(self) -> Path:
        """The folder of the certificates."""
        return self.folder / "tls"

    def write(self, ports: dict[str, int], certificates: Certificates) -> None:
        """Writes the configuration for these ports, by the names of ``PORTS``."""
        values = {key: [{"value": value}] for key, value in DYNAMIC_CONFIG.items()}
        self._write(_DYNAMIC, json.dumps(values, indent=1))
        configuration = _configuration(ports, certificates, self.folder / _DYNAMIC)
        self._write(CONFIGURATION, json.dumps(configuration, indent=1))
        self._write(PROFILE, _profile(ports["frontend"], certificates))

    def _write(self, name: str, content: str) -> None:
        write_atomic(self.folder / name, content.encode())


def _configuration(
    ports: dict[str, int], certificates: Certificates, dynamic: Path
) -> dict[str, Any]:
    disabled = {"history": {"state": "disabled"}, "visibility": {"state": "disabled"}}
    return {
        "log": {"stdout": True, "level": "warn"},
        "persistence": {
            # One file for both, as the dev server had it: both names share one connection.
            "defaultStore": "home",
            "visibilityStore": "home",
            "numHistoryShards": 1,
            "datastores": {"home": {"sql": _database()}},
        },
        "global": {
            "membership": {"maxJoinDuration": "30s", "broadcastAddress": HOST},
            "tls": _tls(certificates),
        },
        "services": {name: {"rpc": _rpc(name, ports)} for name in SERVICES},
        "clusterMetadata": {
            "enableGlobalNamespace": False,
            "failoverVersionIncrement": 10,
            "masterClusterName": "active",
            "currentClusterName": "active",
            "clusterInformation": {
                "active": {
                    "enabled": True,
                    "initialFailoverVersion": 1,
                    "rpcName": "frontend",
                    "rpcAddress": f"{HOST}:{ports['frontend']}",
                }
            },
        },
        "dcRedirectionPolicy": {"policy": "noop"},
        "archival": disabled,
        "namespaceDefaults": {"archival": disabled},
        "dynamicConfigClient": {"filepath": str(dynamic), "pollInterval": "60s"},
    }


def _database() -> dict[str, Any]:
    return {
        "pluginName": "sqlite",
        # Beside the folder the server is started in: the name is part of an address, and a home may have any name.
        "databaseName": DATABASE,
        "connectAddr": "localhost",
        "connectProtocol": "tcp",
        # setup: the schema is made when the file is new. WAL with FULL (2): what was committed survives a kill, and a
        # loss of power too.
        "connectAttributes": {
            "mode": "rwc",
            "setup": "true",
            "journal_mode": "WAL",
            "synchronous": "2",
            "busy_timeout": "5000",
        },
        "maxConns": 1,
        "maxIdleConns": 1,
        "maxConnLifetime": "1h",
    }


def _rpc(name: str, ports: dict[str, int]) -> dict[str, Any]:
    return {
        "grpcPort": ports[name],
        "membershipPort": ports[f"{name}-membership"],
        "bindOnLocalHost": True,
        # The HTTP API would be one more thing that web pages can send requests to.
        "httpPort": 0,
    }


def _tls(certificates: Certificates) -> dict[str, Any]:
    authority, server = str(certificates.authority), str(certificates.server)
    verifies = {"serverName": SERVER_NAME, "rootCaFiles": [authority]}
    both = {
        "server": {
            "certFile": server,
            "keyFile": server,
            "requireClientAuth": True,
            "clientCaFiles": [authority],
        },
        "client": verifies,
    }
    return {
        "internode": both,
        "frontend": both,
        "systemWorker": {"certFile": server, "keyFile": server, "client": verifies},
        # A renewed certificate is taken up without a restart.
        "refreshInterval": REFRESH,
    }


def _profile(port: int, certificates: Certificates) -> str:
    client = json.dumps(str(certificates.client))
    return (
        "# How Temporal's own tools reach this home's engine: TEMPORAL_CONFIG_FILE=<this file>. Written at each start.\n"
        "[profile.default]\n"
        f'address = "{HOST}:{port}"\n'
        f'namespace = "{EMBEDDED_NAMESPACE}"\n\n'
        "[profile.default.tls]\n"
        f"client_cert_path = {client}\n"
        f"client_key_path = {client}\n"
        f"server_ca_cert_path = {json.dumps(str(certificates.authority))}\n"
        f'server_name = "{SERVER_NAME}"\n'
    )
