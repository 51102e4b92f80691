"""The composition root: drivers, ground, activities, workflows, one Temporal worker."""

from __future__ import annotations

from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxRestrictions

from activities.every import every_activity
from activities.ground import Ground
from kedge import __version__
from kedge.drivers.registry import Drivers, DriverSettings, open_drivers
from worker.codec import SealingCodec
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
        client=client,
    )


def restrictions() -> SandboxRestrictions:
    """What workflow code may do."""
    return SandboxRestrictions.default.with_passthrough_modules(*PURE)


def worker_of(
    settings: Settings, client: Client, drivers: Drivers, ground: Ground | None = None
) -> Worker:
    """A worker with every workflow and activity, ready to run; on ``ground``, where there is one already."""
    seals = isinstance(client.data_converter.payload_codec, SealingCodec)
    runner = BoundRunner if seals else ContextFreeRunner
    return Worker(
        client,
        task_queue=settings.task_queue,
        # Without one the SDK hashes every loaded module, and compiles those that have no bytecode: seconds at a start.
        build_id=f"kedge-{__version__}",
        workflows=EVERY_WORKFLOW,
        activities=every_activity(ground or ground_of(drivers, client)),
        workflow_runner=runner(restrictions=restrictions()),
        interceptors=[LoggingInterceptor(), PointsInterceptor()],
        max_concurrent_activities=settings.max_concurrent_activities,
        max_concurrent_workflow_tasks=settings.max_concurrent_workflow_tasks,
        max_cached_workflows=500,
        graceful_shutdown_timeout=timedelta(seconds=settings.graceful_shutdown_seconds),
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=settings.sticky_queue_seconds),
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
    )
