"""Where kedge keeps its things and how it reaches Temporal.

A value is taken from the first of: an argument, ``KEDGE_<NAME>``, the standard Temporal variables
(``TEMPORAL_ADDRESS``, ``TEMPORAL_NAMESPACE``, ``TEMPORAL_PROFILE``, ``TEMPORAL_CONFIG_FILE``), the
file ``<home>/kedge.toml``, the default here. API keys and TLS keys are never settings: they are
read from Temporal's own profile or variables at the moment of connecting. So are the keys of the payload codec, from
their files or from ``KEDGE_CODEC_KEYS`` and ``KEDGE_CODEC_CLIENT_KEYS``.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SourceError

Port = Annotated[int, Field(ge=1, le=65535)]
LogFormat = Literal["json", "console"]
Payloads = Literal["sealed", "open"]
LogLevel = Literal["debug", "info", "warning", "error"]

CONFIG_FILE = "kedge.toml"
DEFAULT_HOME = Path(".kedge")
EMBEDDED_NAMESPACE = "default"

_STANDARD_VARIABLES = {
    "TEMPORAL_ADDRESS": "temporal_address",
    "TEMPORAL_NAMESPACE": "temporal_namespace",
    "TEMPORAL_PROFILE": "temporal_profile",
    "TEMPORAL_CONFIG_FILE": "temporal_config_file",
}


_SECRET_OPTION = re.compile(r"password|secret|scram_")
"""Options of a PostgreSQL address that are secrets: password, sslpassword, oauth_client_secret, scram_client_key, …"""


class SettingsError(Exception):
    """The settings cannot be used; one line per mistake, each with what would be right."""


class Settings(BaseSettings):
    """All that a kedge process is told from outside. Build it with ``Settings.load``."""

    model_config = SettingsConfigDict(env_prefix="KEDGE_", extra="forbid", frozen=True)

    home: Path = DEFAULT_HOME
    """Everything kedge keeps: the engine's database, state files, logs, stores. Made absolute."""

    temporal_binary: Path | None = None
    """The ``temporal-server`` to start the embedded engine from; otherwise it is looked for."""
    engine_port: Port | None = None
    """The embedded engine's port on 127.0.0.1; a free one is chosen and kept when not set."""

    temporal_address: str | None = None
    """``host:port`` of a cluster elsewhere. Set: the embedded engine is not used."""
    temporal_namespace: str | None = None
    temporal_profile: str | None = None
    """A profile of Temporal's own configuration file. Set: the embedded engine is not used."""
    temporal_config_file: Path | None = None
    """Temporal's own configuration file. Set: the embedded engine is not used."""

    task_queue: str = Field(default="kedge", min_length=1, max_length=200)
    max_concurrent_activities: int = Field(default=100, ge=1, le=2000)
    max_concurrent_workflow_tasks: int = Field(default=50, ge=2, le=2000)
    graceful_shutdown_seconds: float = Field(default=10.0, ge=0, le=3600)
    """How long a stopping worker lets running activities come to an end of their own."""
    sticky_queue_seconds: float = Field(default=3.0, gt=0, le=60)
    """How long a workflow waits for the worker that had it before another may take it up.

    It bounds how fast a run goes on after its worker was killed; Temporal's own default is 10 s.
    """

    release_dirs: tuple[Path, ...] = ()
    """Folders in which relative artifact paths of releases are looked for."""
    release_repository: str | None = None
    """The signed release repository: a folder, or an address (http or https). Made absolute."""
    local_limit: int | None = Field(default=None, ge=0, le=1000)
    """Sessions with nodes on this machine at a time; no limit of its own when not set. 0: a worker that is on no
    machine of nodes, such as one in a container, whose daemons no other worker would see."""
    sim_in_memory: bool = False
    """Simulated hosts are forgotten when the worker ends; otherwise they are kept in ``<home>/sim``."""
    sim_pace: float = Field(default=0.0, ge=0, le=10)
    """Real seconds that one simulated second takes."""

    policy_pins: Path | None = None
    """The folder of policies pinned on this machine; ``<home>/policies`` when not set."""

    evidence_url: str | None = Field(default=None, max_length=2000)
    """The PostgreSQL database that keeps the evidence, such as ``postgresql://kedge@db.internal/kedge``; a file in the
    home when not set. Its password comes from ``PGPASSWORD``, ``PGPASSFILE`` or a service file, never from here."""
    checkpoint_records: int = Field(default=1000, ge=1, le=1_000_000)
    """After so many records the worker signs a checkpoint, besides those at gates and at ends of runs."""
    checkpoint_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """A record waits no longer for one than this."""
    payloads: Payloads = "sealed"
    """What Temporal is given: ``sealed`` payloads, or ``open`` ones, which whoever reaches Temporal reads and forges."""
    codec_ring: Path | None = None
    """The workers' ring of payload keys; ``<home>/trust/codec.json`` when not set. Set: it must be there."""
    codec_client_ring: Path | None = None
    """The clients' ring of payload keys; ``<home>/trust/codec-clients.json`` when not set. Set: it must be there."""

    log_format: LogFormat = "json"
    log_level: LogLevel = "info"

    @classmethod
    def load(cls, home: Path | None = None, **given: Any) -> Settings:
        """Reads the settings; ``home`` and ``given`` win over everything else.

        Raises ``SettingsError`` with every mistake at once. No value that was set is repeated in
        the message.
        """
        if home is not None:
            given["home"] = home
        try:
            return cls(**given)
        except ValidationError as error:
            lines = [_sentence(dict(mistake)) for mistake in error.errors(include_input=False)]
        except tomllib.TOMLDecodeError as error:
            lines = [f"{CONFIG_FILE} is not TOML: {error}"]
        except (OSError, UnicodeDecodeError) as error:
            lines = [f"{CONFIG_FILE} cannot be read: {error}"]
        except SourceError as error:
            lines = [f'{error}: a list is written as JSON, such as ["/srv/releases"]']
        raise SettingsError("\n".join(lines))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Orders the sources as the module says; the file is found through the home."""
        home = init_settings().get("home") or env_settings().get("home") or DEFAULT_HOME
        standard = {
            name: os.environ[variable]
            for variable, name in _STANDARD_VARIABLES.items()
            if os.environ.get(variable)
        }
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, init_kwargs=standard),
            TomlConfigSettingsSource(settings_cls, toml_file=Path(home) / CONFIG_FILE),
        )

    @field_validator(
        "home", "temporal_binary", "temporal_config_file", "policy_pins", "codec_ring", "codec_client_ring"
    )  # fmt: skip
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        """Makes a path absolute, so that it means the same to every process it is handed to."""
        return None if value is None else Path(os.path.abspath(value.expanduser()))  # noqa: PTH100 - resolve() would follow links

    @field_validator("release_repository")
    @classmethod
    def _folder_or_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if value.startswith(("http://", "https://")):
            # Anywhere, since a password may have a slash in it; and what stands behind a "?" may be a token.
            if re.search(r"[@?#]", value):
                raise ValueError(
                    "should have no name, password or token in it, and so none of @ ? #: addresses are shown"
                )
            _sound_ports(value)
            return value
        if "://" in value or not value:
            raise ValueError(
                "should be a folder, or an address that begins with http:// or https://"
            )
        return os.path.abspath(Path(value).expanduser())  # noqa: PTH100 - resolve() would follow links

    @field_validator("temporal_address")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        if value is not None:
            host, _, port = value.rpartition(":")
            if not host or "@" in host or not port.isdecimal() or not 0 < int(port) <= 65535:
                raise ValueError("should be host:port, such as temporal.internal:7233")
        return value

    @field_validator("evidence_url")
    @classmethod
    def _without_password(cls, value: str | None) -> str | None:
        """What is in a setting is in environments of processes, and in what ``kedge doctor`` shows."""
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("postgresql", "postgres"):
            raise ValueError("should be postgresql://user@host:port/database")
        named = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
        user = parts.netloc.rpartition("@")[0]
        # A password with a slash or the like in it makes everything behind that something else.
        elsewhere = "@" in user + parts.path + parts.query or "#" in value
        if ":" in unquote(user) or elsewhere or any(map(_SECRET_OPTION.search, named)):
            raise ValueError(
                "names a password; put that into PGPASSWORD or the file that PGPASSFILE names, and leave it out here"
            )
        _sound_ports(value)
        return value

    @property
    def embedded(self) -> bool:
        """Whether kedge runs a Temporal server of its own: nothing names another one."""
        return (
            self.temporal_address is None
            and self.temporal_profile is None
            and self.temporal_config_file is None
        )

    @property
    def run_dir(self) -> Path:
        """State files of running processes: ``<home>/run``."""
        return self.home / "run"

    @property
    def log_dir(self) -> Path:
        """Logs of the engine and the worker: ``<home>/logs``."""
        return self.home / "logs"

    @property
    def engine_dir(self) -> Path:
        """The embedded engine's database: ``<home>/engine``."""
        return self.home / "engine"

    @property
    def policy_dir(self) -> Path:
        """Where this machine's pinned policies are."""
        return self.policy_pins or self.home / "policies"

    @property
    def checkpoint_key(self) -> Path:
        """The worker's own key, with which it signs checkpoints of the evidence."""
        return self.home / "trust" / "checkpoint_key"

    def child_environment(self) -> Mapping[str, str]:
        """The environment for a process that must see these same settings.

        Values that were handed over as arguments are passed on as ``KEDGE_`` variables; the rest
        of the environment, Temporal's own variables with it, is inherited.
        """
        environment = dict(os.environ)
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple):
                environment[f"KEDGE_{name.upper()}"] = json.dumps([str(one) for one in value])
            elif value is not None:
                environment[f"KEDGE_{name.upper()}"] = str(value)
        return environment


def _sound_ports(address: str) -> None:
    """Refuses what stands where a port does and is none: it may be the beginning of a password."""
    for host in urlsplit(address).netloc.rpartition("@")[2].split(","):
        if not re.fullmatch(r"(\[[0-9A-Fa-f:.]*\]|[^\[\]:]*)(:[0-9]*)?", host):
            raise ValueError("should have a number for its port, and no password")


def _sentence(mistake: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in mistake["loc"]) or "settings"
    if mistake["type"] == "extra_forbidden":
        known = ", ".join(sorted(Settings.model_fields))
        return f"setting {name}: there is no such setting; there are: {known}"
    what = str(mistake["msg"]).removeprefix("Value error, ")
    where = f"KEDGE_{name.upper()}, or {name} in {CONFIG_FILE}"
    return f"setting {name}: {what[:1].lower()}{what[1:]} (set it as {where})"
