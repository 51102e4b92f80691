"""The composition root: drivers, ground, activities, workflows, one Temporal worker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.client import Client
from temporalio.converter import DataConverter
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxRestrictions

from activities.every import every_activity
from activities.ground import Ground
from kedge import __version__
from kedge.drivers.registry import Drivers, DriverSettings, open_drivers
from kedge.trust.payload_kinds import of_a_result
from worker.codec import ClientCodec, KeyRings, client_converter, worker_converter
from worker.points import PointsInterceptor
from worker.sandbox import BoundRunner, ContextFreeRunner
from worker.settings import Settings
from worker.telemetry import LoggingInterceptor
from workflows.every import EVERY_WORKFLOW

PURE = (
    "kedge",
    "activities",
    "pydantic",
    "rfc8785",
    "cryptography",
    "asyncssh",
    "structlog",
    "yaml",
)
"""Loaded once, outside the sandbox: values and pure functions that workflows share with everybody."""


def drivers_of(settings: Settings) -> Drivers:
    """The drivers of this process, as its settings say."""
    return open_drivers(
        DriverSettings(
            home=settings.home,
            releases=settings.release_dirs,
            repository=settings.release_repository,
            policies=settings.policy_dir,
            local_limit=settings.local_limit,
            sim_in_memory=settings.sim_in_memory,
            sim_pace=settings.sim_pace,
            evidence_url=settings.evidence_url,
            checkpoint_key=settings.checkpoint_key,
            checkpoint_records=settings.checkpoint_records,
            checkpoint_seconds=settings.checkpoint_seconds,
        )
    )


def ground_of(drivers: Drivers, client: Client) -> Ground:
    """What activities stand on."""
    return Ground(
        transport=drivers.transport,
        blobs=drivers.blobs,
        artifacts=drivers.artifacts,
        evidence=drivers.evidence,
        pins=drivers.pins,
        fleets=drivers.fleets,
        releases=drivers.releases,
        client=asking_client(client),
    )


def restrictions() -> SandboxRestrictions:
    """What workflow code may do."""
    return SandboxRestrictions.default.with_passthrough_modules(*PURE)


def with_converter(client: Client, converter: DataConverter) -> Client:
    """The same connection, used with another data converter."""
    config: dict[str, Any] = {**client.config(), "data_converter": converter}
    return Client(**config)


def runner_of(rings: KeyRings | None) -> ContextFreeRunner | BoundRunner:
    """What workflows run in: with rings, behind the judge of their payloads."""
    if rings is None or rings.workers is None:
        return ContextFreeRunner(restrictions=restrictions())
    workers = rings.workers
    runner = BoundRunner(restrictions=restrictions())
    runner.grace = lambda: workers.ring().reads_plaintext(datetime.now(UTC))
    return runner


def rings_of_client(client: Client) -> KeyRings | None:
    """The rings that a client seals with; None where payloads are in the open."""
    codec = client.data_converter.payload_codec
    return codec.rings if isinstance(codec, ClientCodec) else None


def asking_client(client: Client) -> Client:
    """The client of activities: they read ends of runs, and believe workers about them, not clients."""
    rings = rings_of_client(client)
    return client if rings is None else with_converter(client, client_converter(rings, reads=of_a_result))  # fmt: skip


def worker_of(
    settings: Settings, client: Client, drivers: Drivers, ground: Ground | None = None
) -> Worker:
    """A worker with every workflow and activity, ready to run; on ``ground``, where there is one already.

    Raises ``CodecError`` where the workers' ring is missing.
    """
    rings = rings_of_client(client)
    ground = ground or ground_of(drivers, client)
    return Worker(
        client if rings is None else with_converter(client, worker_converter(rings)),
        task_queue=settings.task_queue,
        # Without one the SDK hashes every loaded module, and compiles those that have no bytecode: seconds at a start.
        build_id=f"kedge-{__version__}",
        workflows=EVERY_WORKFLOW,
        activities=every_activity(ground),
        workflow_runner=runner_of(rings),
        interceptors=[LoggingInterceptor(), PointsInterceptor()],
        max_concurrent_activities=settings.max_concurrent_activities,
        max_concurrent_workflow_tasks=settings.max_concurrent_workflow_tasks,
        max_cached_workflows=500,
        graceful_shutdown_timeout=timedelta(seconds=settings.graceful_shutdown_seconds),
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=settings.sticky_queue_seconds),
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
    )
