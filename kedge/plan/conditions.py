"""From a runbook's conditions to probes as the host program takes them, facts in their places."""

from __future__ import annotations

from kedge.model.base import Json
from kedge.model.probe import CommandCall, Fact, GrpcCall, HttpCall, Probe, Request
from kedge.plan.template import bound

Facts = dict[str, Fact]


def probe_json(probe: Probe, facts: Facts, *, captured: bool = True) -> dict[str, Json] | None:
    """A probe as the host program takes it, facts put in their place.

    Without ``captured``, conditions on captured values are left out: on the way back another run asks, which
    captured nothing. None when nothing is left.
    """
    if probe.fact is not None:
        made = probe_json(facts[probe.fact], facts, captured=captured)
        filled = bound(made, probe.arguments)
        return filled if isinstance(filled, dict) else None
    for key, parts in (("all", probe.all), ("any", probe.any)):
        if parts is not None:
            inner = [
                made
                for part in parts
                if (made := probe_json(part, facts, captured=captured)) is not None
            ]
            whole: list[Json] = [*inner]
            return {key: whole} if whole else None
    if probe.negated is not None:
        made = probe_json(probe.negated, facts, captured=captured)
        return None if made is None else {"not": made}
    result = _call_json(probe)
    expect = {
        path: wanted
        for path, wanted in probe.expect.items()
        if captured or not _is_captured(wanted)
    }
    if expect:
        result["expect"] = expect
    if probe.capture and captured:
        result["capture"] = dict(probe.capture)
    return result


def _call_json(probe: Probe) -> dict[str, Json]:
    if probe.http is not None:
        paths = {*probe.expect, *probe.capture.values()}
        text = probe.http.parse == "text" or (probe.http.parse is None and paths == {"text"})
        text = text and probe.http.metric is None
        return {"http": _http_json(probe.http, text=text)}
    if probe.grpc is not None:
        return {"grpc": _grpc_json(probe.grpc)}
    if probe.command is not None:
        return {"command": _command_json(probe.command)}
    if probe.tcp is not None:
        return {
            "tcp": {"host": probe.tcp.host, "port": probe.tcp.port, "timeout": probe.tcp.timeout}
        }
    return {"service": {"running": probe.service is None or probe.service.running}}


def _http_json(call: HttpCall, *, text: bool) -> dict[str, Json]:
    sends = call.body is not None or call.json_body is not None
    made: dict[str, Json] = {
        "url": call.url,
        "method": call.method or ("POST" if sends else "GET"),
        "timeout": call.timeout,
        "status": list(call.status),
    }
    headers = dict(call.headers)
    if call.json_body is not None:
        made["json"] = call.json_body
        headers.setdefault("Content-Type", "application/json")
    elif call.body is not None:
        made["body"] = call.body
    if text:
        made["text"] = True
    if call.metric is not None:
        made["metric"] = call.metric
    return {**made, **_request_json(call, headers)}


def _grpc_json(call: GrpcCall) -> dict[str, Json]:
    made: dict[str, Json] = {"url": call.url, "timeout": call.timeout}
    if call.service is not None:
        made["service"] = call.service
    return {**made, **_request_json(call, dict(call.headers))}


def _request_json(call: Request, headers: dict[str, str]) -> dict[str, Json]:
    """What every request may say, as far as it is said."""
    made: dict[str, Json] = {}
    if headers:
        made["headers"] = {**headers}
    if call.basic_auth is not None:
        made["basic_auth"] = call.basic_auth.model_dump()
    tls = {
        name: getattr(call, name)
        for name in ("ca", "certificate", "key", "server_name")
        if getattr(call, name) is not None
    }
    if tls:
        made["tls"] = tls
    if call.socket is not None:
        made["socket"] = call.socket
    return made


def _command_json(call: CommandCall) -> dict[str, Json]:
    made: dict[str, Json] = {
        "argv": list(call.argv),
        "timeout": call.timeout,
        "exit": list(call.exit),
    }
    if call.env:
        made["env"] = {**call.env}
    if call.cwd is not None:
        made["cwd"] = call.cwd
    if call.parse == "json":
        made["parse"] = "json"
    return made


def _is_captured(wanted: Json) -> bool:
    if not isinstance(wanted, dict):
        return False
    return "captured" in wanted or any(
        isinstance(value, dict) and "captured" in value for value in wanted.values()
    )
