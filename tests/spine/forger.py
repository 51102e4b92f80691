"""A forger with the frontend alone: activities called from a workflow of their own, and every argument they can have.

Arguments are made from the registered signatures and their models, with what a forger can read in the engine (a live run, its
warrant, its orders) wherever a field takes it; then every field is varied, one at a time. What is registered later is in it.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from temporalio import workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.worker import Worker

ODD: dict[type, tuple[Any, ...]] = {
    int: (1, 0, -1, 2, 3, 127, 2**31, 2**53 - 1),
    float: (-1.0, 0.0, 1e9),
    bool: (False, True),
    str: ("", "x", "a/b/c", "\ud7ff" * 10),
}
"""What takes the place of a value, besides what is known of the run."""


@dataclass(frozen=True)
class Known:
    """What a forger found in the engine: whole values by their type, and others by the name of their field."""

    types: Mapping[type, tuple[Any, ...]]
    names: Mapping[str, tuple[Any, ...]]


def base_of(annotation: Any, known: Known, name: str = "") -> Any:
    """The likeliest value: the live run's own, wherever there is one."""
    return next(values_of(annotation, known, name))


def values_of(annotation: Any, known: Known, name: str = "") -> Iterator[Any]:
    """Values of a type, the likeliest first."""
    if isinstance(annotation, type) and annotation in known.types:
        yield from known.types[annotation]
        return
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        yield from values_of(args[0], known, name)
        return
    if origin in (types.UnionType, typing.Union):
        for arg in args:
            yield from values_of(arg, known, name)
        return
    of_models = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    if name in known.names and not of_models and annotation is not type(None):
        yield from known.names[name]
    if origin is Literal:
        yield from args
    elif annotation is type(None):
        yield None
    elif origin in (tuple, list):
        yield from ((), *((one,) for one in _some(args[0], known, name)))
    elif origin is dict or annotation is dict:
        yield {}
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from models_of(annotation, known)
    elif annotation in ODD:
        yield from ODD[annotation]
    else:
        yield None


def _some(annotation: Any, known: Known, name: str) -> list[Any]:
    return [one for one, _ in zip(values_of(annotation, known, name), range(3), strict=False)]


def models_of(model: type[BaseModel], known: Known) -> Iterator[Any]:
    """A model with its likeliest fields, then with every field varied, one at a time; as plain values."""
    hints = typing.get_type_hints(model, include_extras=True)
    every = {name: list(values_of(hints[name], known, name)) for name in model.model_fields}
    base = {name: plain(values[0]) for name, values in every.items()}
    model.model_validate_json(json.dumps(base))  # what no model takes would try nothing
    yield base
    for name, values in every.items():
        for value in values[1:]:
            yield base | {name: plain(value)}


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return value


def calls_of(method: Callable[..., Any], known: Known) -> list[list[Any]]:
    """Every list of arguments for a registered activity, or for the run method of a workflow."""
    hints = typing.get_type_hints(method, include_extras=True)
    names = [name for name in inspect.signature(method).parameters if name != "self"]
    every = {name: list(values_of(hints[name], known, name)) for name in names}
    base = {name: plain(values[0]) for name, values in every.items()}
    found = [list(base.values())]
    for name, values in every.items():
        found += [list((base | {name: plain(value)}).values()) for value in values[1:]]
    return found


@workflow.defn(name="Forger", sandboxed=False)
class Forger:
    """Calls an activity of somebody else's queue with many arguments, one call after the other."""

    @workflow.run
    async def run(self, name: str, queue: str, calls: list[list[Any]]) -> list[str]:
        """What came of each call: the kind of its error, or nothing."""
        found: list[str] = []
        for arguments in calls:
            try:
                await workflow.execute_activity(
                    name,
                    args=arguments,
                    task_queue=queue,
                    schedule_to_close_timeout=timedelta(seconds=6),
                    retry_policy=RetryPolicy(maximum_attempts=1),
                )
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                cause = error.__cause__
                found.append(str(getattr(cause, "type", None) or type(cause).__name__))
            else:
                found.append("")
        return found


@asynccontextmanager
async def forging(client: Client, queue: str) -> AsyncIterator[None]:
    """A worker of the forger's own, on a queue of his own."""
    async with Worker(client, task_queue=queue, workflows=[Forger]):
        yield
