"""What a daemon will need on this host, looked at while the one before still serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional

from kedge.host import family, sockets, users

if TYPE_CHECKING:
    from kedge.host.context import Context


def fits(ctx: Context, needs: Optional[Dict[str, Any]]) -> None:
    """Whether a daemon with these needs could run here, found while the one before still serves. Conflict."""
    if needs is None:
        return
    users.reaches(users.of(ctx.node, needs["user"]), ctx.node.root)
    if needs["ports"]:
        sockets.free(needs["ports"], [one.pid for one in family.of_daemon(ctx.node).every])
