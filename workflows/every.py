"""All workflows of a worker."""

from __future__ import annotations

from workflows.canary_widening import CanaryWidening
from workflows.ensure import Ensure
from workflows.fleet import Fleet
from workflows.look import Look
from workflows.rollback import Rollback
from workflows.upgrade import Upgrade
from workflows.wave import Wave

EVERY_WORKFLOW = [Fleet, Upgrade, CanaryWidening, Wave, Rollback, Ensure, Look]
