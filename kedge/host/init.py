"""`init`: the first commands of a node that has no data yet, once, before its daemon is started for the first time.

`.kedge/init.json` says in which round these commands are: a round begins on an empty `data/` alone, and only a later one,
on a `data/` that somebody emptied, does anything of it again. Within a round a command is what `run` makes of it: intent,
runner, outcome, under a key of the round (`init/<round>/<at>`). An outcome is kept whatever it is, so that one that failed
stays failed until the data it left are gone. Rule 16 of `docs/host-protocol.md`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, NoReturn, Optional

from kedge.host import commands, files, observe, places, points, runs, users
from kedge.host.context import Context as Inner
from kedge.host.errors import CommandFailed, Conflict, Fault, Unresolved
from kedge.host.layout import Node

if TYPE_CHECKING:
    from kedge.host.context import Context

# A file system of its own has this folder from the start; there are no data in it.
NO_DATA = ("lost+found",)
NAMED = 4


class Round(NamedTuple):
    """How far the commands came: the number of the round, whether all were done, why one failed, and for which keys."""

    number: int
    whole: bool
    failed: str
    keys: List[str]


NONE = Round(0, whole=True, failed="", keys=[])


def decide(at: int, last: Round, *, empty: bool, mine: bool) -> Optional[int]:
    """The round in which the command at that place is done; None when it is not done on what is there.

    A round begins with its first command, on an empty `data/`, and never while another one is open. `mine`: this very
    operation was begun in the last round, by an attempt that was killed.
    """
    if mine:
        return last.number
    fresh = at == 0 and empty
    if last.whole:
        return last.number + 1 if fresh else None
    return last.number + 1 if last.failed and fresh else last.number


def init(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """One of the first commands, or why it is not done here."""
    node = ctx.node
    if observe.running(node)[0] is not None:
        raise Conflict("the node's daemon runs: `init` is for a node that has no data yet")
    last, names = _last(node), _names(node)
    mine = ctx.key in last.keys
    number = decide(op["at"], last, empty=not names, mine=mine)
    if number is None:
        return {"ran": False}
    if number == last.number and last.failed:
        raise CommandFailed(_what_next(node, last.failed, names), {"step": op["name"]})
    user = commands.user_of(node)
    users.reaches(user, node.root)
    if not mine:
        keys = [*(last.keys if number == last.number else []), ctx.key]
        last = Round(number, whole=False, failed="", keys=keys)
        _keep(ctx, last)
        points.reach("init.begun")
    with ctx.fence.act():
        users.give_data(ctx, user)
    result = _run(ctx, op, last)
    if op["at"] == op["of"] - 1:
        _keep(ctx, last._replace(whole=True))
    return {"ran": True, **result}


def _run(ctx: Context, op: Dict[str, Any], this: Round) -> Dict[str, Any]:
    key = f"init/{this.number}/{op['at']}"
    inner = Inner(ctx.node, ctx.fence, ctx.pulse, key, ctx.name)
    inner.before, inner.told, inner.let_go = ctx.before, ctx.told, ctx.let_go
    try:
        return runs.run(inner, {**op, "anew": 0, "kept": True})
    except (CommandFailed, Unresolved) as fault:
        _failed(ctx, op, this, fault)


def _failed(ctx: Context, op: Dict[str, Any], this: Round, fault: Fault) -> NoReturn:
    """Say what failed and what to do; keep that, unless the command certainly had no effect."""
    lines = str(fault.detail.get("output", "")).strip().splitlines()
    why = f"{fault.message}: {lines[-1][:300]}" if lines else fault.message
    said = f"the init step {op['name']} did not succeed: {why}"
    if fault.detail.get("effect", True):
        _keep(ctx, this._replace(failed=ctx.told.text(said)))
    detail = {**fault.detail, "step": op["name"]}
    raise type(fault)(_what_next(ctx.node, said, _names(ctx.node)), detail) from fault


def _what_next(node: Node, said: str, names: List[str]) -> str:
    if not names:
        return f"{said}. data/ is empty: correct `init` in the Fleet, then `kedge up --fleet FILE`"
    more = ", …" if len(names) > NAMED else ""
    return (
        f"{said}. It left data behind ({', '.join(names[:NAMED])}{more}): correct `init` in the Fleet, empty"
        f" {node.data}, then `kedge up --fleet FILE` begins `init` again; or take `init` out of the Fleet, and the"
        " daemon starts on what is there"
    )


def _last(node: Node) -> Round:
    kept = files.read_json(node.initial)
    if not isinstance(kept, dict):
        return NONE
    keys = [str(key) for key in kept["keys"]]
    return Round(int(kept["round"]), bool(kept["whole"]), str(kept["failed"]), keys)


def _keep(ctx: Context, one: Round) -> None:
    told = {
        "round": one.number,
        "whole": one.whole,
        "failed": one.failed[:1000],
        "keys": one.keys,
    }
    with ctx.fence.act():
        files.write_atomic(ctx.node.initial, files.to_json(told))


def _names(node: Node) -> List[str]:
    """What is in `data/`, or where it leads. A node without that folder gets one."""
    if not places.exists(node.data):
        places.make(node.data, 0o755)
    with places.followed(node.data) as data:
        return sorted(name for name in os.listdir(data.fd) if name not in NO_DATA)
