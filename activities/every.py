"""All activities of a worker, built over one ground."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activities.bringing_up import BringingUpActivities
from activities.ground import Ground
from activities.legs import LegActivities
from activities.nodes import NodeActivities
from activities.orders import OrderActivities
from activities.plans import PlanActivities
from activities.runs import RunActivities
from activities.serving import ServingActivities


def every_activity(ground: Ground) -> list[Callable[..., Any]]:
    """The activities to register."""
    plans, orders, runs = PlanActivities(ground), OrderActivities(ground), RunActivities(ground)
    legs, nodes = LegActivities(ground), NodeActivities(ground)
    bringing_up = BringingUpActivities(ground)
    return [
        plans.plan_facts,
        plans.choose_way_back,
        orders.judge_order,
        orders.judge_fleet_order,
        orders.fleet_of_record,
        orders.judge_glass,
        orders.open_reviews,
        orders.keep_verdict,
        orders.write_warrant,
        orders.record,
        runs.end_run,
        runs.run_end,
        runs.run_end_soon,
        legs.run_leg,
        legs.run_legs,
        nodes.observe_nodes,
        nodes.open_wave,
        nodes.check_nodes,
        ServingActivities(ground).look_nodes,
        bringing_up.ensure_fleet,
        bringing_up.look_at_fleet,
    ]
