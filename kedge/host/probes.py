"""Look at a condition: over HTTP or gRPC, by a command, by a connection, at the service; alone or combined.

Fail-closed: what could not be looked at is never a pass, and no reason to skip a step either.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from kedge.host import (
    commands,
    credentials,
    dial,
    files,
    grpc_health,
    http1,
    locks,
    metrics,
    observe,
    outside,
    processes,
    services,
    verdicts,
    waits,
)
from kedge.host.dial import Broken, Limit, Refused, Target
from kedge.host.errors import Fault, NotHealthy, ProbeFailed, ReaderGone
from kedge.host.verdicts import FAIL, PASS, UNKNOWN, Verdict

if TYPE_CHECKING:
    from kedge.host.context import Context

RUNS_KEPT = 16
# How long a condition may take to be compared: a pattern can take a text for ever.
JUDGE_SECONDS = 1.0


def look(ctx: Context, spec: Dict[str, Any]) -> Verdict:
    """The verdict of a probe now. Raises only what ends the session (Fenced, a reader that is gone)."""
    kind = spec["kind"]
    if kind in ("all", "any", "not"):
        return _combined(ctx, spec)
    looked: Dict[str, Any] = {
        "http": _http,
        "grpc": _grpc,
        "command": _command,
        "tcp": _tcp,
        "service": _service,
    }
    try:
        found: Verdict = looked[kind](ctx, spec)
    except (Fault, ReaderGone):
        raise
    except Broken as error:
        return Verdict(UNKNOWN, f"{_named(spec)}: {str(error)[:600]}", None, {})
    except Exception as error:  # noqa: BLE001 -- whatever a daemon answers is a verdict, and never ends the session
        said = str(error) or type(error).__name__
        if isinstance(error, OSError):
            said = error.strerror or said
            if error.errno:
                said = os.strerror(error.errno)
        return Verdict(UNKNOWN, f"{_named(spec)}: {said[:300]}", None, {})
    return found


def _named(spec: Dict[str, Any]) -> str:
    if spec["kind"] == "http":
        return f"{spec['method']} {spec['url']}"
    if spec["kind"] == "grpc":
        return f"{spec['url']} {spec['service'] or ''}".rstrip()
    if spec["kind"] == "command":
        return " ".join(spec["argv"])[:120]
    if spec["kind"] == "service":
        return "the daemon's service"
    return f"{spec['kind']} {Target(spec.get('host', ''), spec.get('port', 0))}"


def _combined(ctx: Context, spec: Dict[str, Any]) -> Verdict:
    """Every part is looked at: what was seen and captured belongs to the record."""
    found = [look(ctx, part) for part in spec["parts"]]
    told = [one.verdict for one in found]
    if spec["kind"] == "all":
        verdict = verdicts.every(told)
    elif spec["kind"] == "any":
        verdict = verdicts.either(told)
    else:
        verdict = {PASS: FAIL, FAIL: PASS}.get(told[0], UNKNOWN)
    captured = {name: value for one in found for name, value in one.captured.items()}
    bad = [one.why for one in found if one.verdict != PASS]
    why = "; ".join(bad)
    if spec["kind"] == "not" and not bad:
        part = spec["parts"][0]
        why = f"{_named(part) if 'parts' not in part else 'a condition'}: it holds, and must not"
    return Verdict(
        verdict, "" if verdict == PASS else why[:600], [one.saw for one in found], captured
    )


def _http(ctx: Context, spec: Dict[str, Any]) -> Verdict:
    page = metrics.Page(spec["metric"]) if spec["metric"] is not None else None
    answer = http1.ask(credentials.filled(ctx, spec), ctx.pulse, page)
    if answer.status not in spec["status"]:
        return _wrong_status(spec, answer)
    if page is not None:
        return judge(ctx, spec, {"value": page.value()}, {"value": spec["metric"]})
    if not spec["expect"] and not spec["capture"]:
        return Verdict(PASS, "", {"status": answer.status}, {})
    if spec["text"]:
        return judge(ctx, spec, {"text": answer.body.decode("utf-8", "replace").strip()})
    try:
        body = outside.parsed(answer.body)
    except ValueError as error:
        return _no_json(spec, answer, error)
    return judge(ctx, spec, body)


def _wrong_status(spec: Dict[str, Any], answer: http1.Answer) -> Verdict:
    shown = verdicts.shown(answer.body.decode("utf-8", "replace"))
    wanted = " or ".join(str(one) for one in spec["status"][:8])
    why = f"{_named(spec)}: status {answer.status}, expected {wanted}"
    location = answer.headers.get("location")
    if 300 <= answer.status < 400 and location:
        why = f"{why}: it redirects to {location[:200]}, and redirects are not followed: write that address"
    elif shown.strip():
        why = f"{why}: {' '.join(shown.split())[:120]!r}"
    if answer.status in (401, 403):
        why = f"{why}: check what the request shows, by `headers`, `basic_auth` or `certificate`"
    return Verdict(FAIL, why, {"status": answer.status, "body": shown}, {})


def _no_json(spec: Dict[str, Any], answer: http1.Answer, error: ValueError) -> Verdict:
    """An answer that was to be JSON and is none is called what it says it is."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip()[:60]
    text = answer.body.decode("utf-8", "replace").strip()
    shown = verdicts.shown(text)
    if not text:
        why = "the answer is empty, expected JSON"
    elif kind.endswith("json"):
        what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)[:80]
        why = f"the answer is called {kind} and is no JSON ({what}): {text[:80]!r}"
    elif text.startswith(("# HELP", "# TYPE")) or "openmetrics" in kind:
        why = "the answer is a page of metrics, expected JSON: name a series with `metric`"
    else:
        called = kind or "a text without a content type"
        why = f"the answer is {called}, expected JSON (for text write `parse: text`): {text[:80]!r}"
    return Verdict(UNKNOWN, f"{_named(spec)}: {why}", {"body": shown}, {})


def _grpc(ctx: Context, spec: Dict[str, Any]) -> Verdict:
    status = grpc_health.check(credentials.filled(ctx, spec), ctx.pulse)
    if status == grpc_health.SERVING:
        return Verdict(PASS, "", {"status": status}, {})
    verdict = FAIL if status == grpc_health.NOT_SERVING else UNKNOWN
    why = f"{_named(spec)}: status is {status}, expected {grpc_health.SERVING}"
    return Verdict(verdict, why, {"status": status}, {})


def _command(ctx: Context, spec: Dict[str, Any]) -> Verdict:
    one = _spawned(ctx, spec)
    try:
        ended = commands.follow(
            one, spec["timeout"], commands.OUTPUT_MAX, ctx.pulse.rest, tail=False
        )
    finally:
        if one.poll() is None:
            commands.end(one, _slept)
    shown = verdicts.shown(ended.output.decode("utf-8", "replace").strip())
    if ended.exit is None:
        why = f"{_named(spec)}: still running after {spec['timeout']:g} s"
        return Verdict(UNKNOWN, why, {"output": shown}, {})
    if ended.exit not in spec["exit"]:
        wanted = " or ".join(str(one) for one in spec["exit"][:8])
        printed = f": {' '.join(str(shown).split())[:120]!r}" if shown else ""
        why = f"{_named(spec)}: exit {ended.exit}, expected {wanted}{printed}"
        return Verdict(FAIL, why, {"exit": ended.exit, "output": shown}, {})
    if spec["parse"] is None and not spec["expect"] and not spec["capture"]:
        return Verdict(PASS, "", {"exit": ended.exit, "output": shown}, {})
    if ended.cut:
        return Verdict(UNKNOWN, f"{_named(spec)}: the output is too large", None, {})
    if spec["parse"] == "json":
        try:
            body = outside.parsed(ended.output)
        except ValueError as error:
            why = f"{_named(spec)}: printed no JSON ({str(error)[:80]}): {str(shown)[:120]!r}"
            return Verdict(UNKNOWN, why, {"output": shown}, {})
        return judge(ctx, spec, body)
    found = judge(ctx, spec, {"text": ended.output.decode("utf-8", "replace").strip()})
    if found.verdict == UNKNOWN and set(spec["expect"]) - {"text"} and _is_json(ended.output):
        return found._replace(
            why=f"{_named(spec)}: printed JSON, read as text: add `parse: json`: {str(shown)[:120]!r}"
        )
    return found


def _spawned(ctx: Context, spec: Dict[str, Any]) -> commands.Command:
    try:
        return commands.spawn(ctx.node, spec, commands.user_of(ctx.node))
    except FileNotFoundError as error:
        where = f"no folder {spec['cwd']}" if spec["cwd"] else "not in the release and not on PATH"
        raise Broken(f"there is no program {spec['argv'][0]} here: {where}") from error
    except PermissionError as error:
        raise Broken(f"{spec['argv'][0]} may not be executed by the daemon's user") from error


def _is_json(output: bytes) -> bool:
    try:
        return isinstance(outside.parsed(output), (dict, list))
    except ValueError:
        return False


def _slept(seconds: float, _fd: int) -> bool:
    """A rest that looks at nothing: for ending a command when the session itself ends."""
    time.sleep(seconds)
    return False


def _tcp(ctx: Context, spec: Dict[str, Any]) -> Verdict:
    target = Target(spec["host"], spec["port"])
    try:
        dial.connected(target, Limit.of(spec["timeout"]), ctx.pulse).close()
    except Refused as error:
        # Refused is an answer: nobody listens there.
        return Verdict(FAIL, f"{_named(spec)}: {error}", {"open": False}, {})
    return Verdict(PASS, "", {"open": True}, {})


def _service(ctx: Context, spec: Dict[str, Any]) -> Verdict:
    seen = observe.brief(ctx.node)
    saw = {"running": seen["running"], "release": seen["running_release"]}
    wanted = {key: value for key, value in spec.items() if key in saw and value is not None}
    wrong = [key for key, value in wanted.items() if saw[key] != value]
    if not wanted:
        return Verdict(UNKNOWN, "the probe asks nothing of the service", saw, {})
    if wrong:
        return Verdict(FAIL, f"the service's {wrong[0]} is {saw[wrong[0]]}", saw, {})
    return Verdict(PASS, "", saw, {})


def judge(
    ctx: Context, spec: Dict[str, Any], body: Any, names: Optional[Dict[str, str]] = None
) -> Verdict:
    """The verdict on a body by the probe's expectations; then what it captures. `names`: what paths are called."""
    known = captured_of(ctx)
    saw: Dict[str, Any] = {}
    told: List[str] = []
    why: List[str] = []
    for path, matcher in spec["expect"].items():
        values = verdicts.at_path(body, path)
        with waits.limited(JUDGE_SECONDS):
            found = verdicts.every([verdicts.match(one, matcher, known) for one in values])
        seen = [verdicts.shown(one) for one in values]
        saw[path] = seen[0] if len(seen) == 1 else seen[:16]
        told.append(found)
        if found != PASS:
            wanted = verdicts.expected(matcher, known)
            if values[0] is verdicts.MISSING:
                hint = verdicts.hint(body, path)
                why.append(f"{path} is not in the answer, expected {wanted}{hint}")
            else:
                name = (names or {}).get(path, path)
                why.append(f"{name} is {verdicts.worded(saw[path])[:120]}, expected {wanted}")
    captured: Dict[str, Any] = {}
    for name, path in spec["capture"].items():
        value = verdicts.at_path(body, path)[0]
        if value is verdicts.MISSING or value is None or isinstance(value, (dict, list)):
            told.append(UNKNOWN)
            gone = value is verdicts.MISSING
            what = (
                f"is not in the answer{verdicts.hint(body, path)}" if gone else "is no single value"
            )
            why.append(f"{path} {what} and has no value to capture")
        elif ctx.told.text(str(value)) != str(value):
            # It would be kept in the open, and be no secret any more.
            told.append(UNKNOWN)
            why.append(f"{path} holds a secret and is not captured")
        else:
            captured[name] = verdicts.shown(value)
    verdict = verdicts.every(told) if told else PASS
    return Verdict(verdict, f"{_named(spec)}: {'; '.join(why)[:400]}" if why else "", saw, captured)


def captured_of(ctx: Context) -> Dict[str, Any]:
    """What this run captured on this node."""
    kept = files.read_json(ctx.node.captured)
    found = kept.get(ctx.run) if isinstance(kept, dict) else None
    return dict(found) if isinstance(found, dict) else {}


def keep_captured(ctx: Context, captured: Dict[str, Any]) -> None:
    """Remember captured values for later probes of this run; those of the last runs are kept."""
    if not captured:
        return
    kept = files.read_json(ctx.node.captured)
    kept = kept if isinstance(kept, dict) else {}
    mine = {**kept.pop(ctx.run, {}), **captured}
    others = list(kept.items())[-(RUNS_KEPT - 1) :]
    # Not sorted: the order of the runs says which is the oldest.
    text = json.dumps(dict([*others, (ctx.run, mine)])).encode()
    with ctx.fence.act():
        files.write_atomic(ctx.node.captured, text)


def holds(ctx: Context, spec: Dict[str, Any]) -> bool:
    """Whether a step's condition holds; ProbeFailed when that cannot be said."""
    found = look(ctx, spec)
    if found.verdict == UNKNOWN:
        raise ProbeFailed(
            f"whether to do this step cannot be said: {found.why}", {"saw": found.saw}
        )
    return found.verdict == PASS


def probe(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Look once; ProbeFailed when the condition does not hold or could not be looked at."""
    ctx.acting()
    found = look(ctx, op["probe"])
    if found.verdict != PASS:
        raise ProbeFailed(found.why, {"saw": found.saw, "verdict": found.verdict})
    keep_captured(ctx, found.captured)
    return {"saw": found.saw, "captured": found.captured}


def healthy(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Look until the condition held without a break for `for` seconds; NotHealthy after `within`."""
    ctx.acting()
    service = services.service_of(ctx.node)
    one = service.running() if op["service"] else None
    if op["service"] and one is None:
        kept = processes.told(files.read_json(ctx.node.service))
        raise services.died(ctx, service, kept or processes.Incarnation(0, 0, ""))
    watched = processes.watch(one) if one else -1
    begun = time.monotonic()
    since = None
    pauses = locks.steps(0.001, max(0.001, op["interval"]))
    try:
        while True:
            found = look(ctx, op["probe"])
            now = time.monotonic()
            if one is not None and not one.alive():
                raise services.died(ctx, service, one)
            since = (now if since is None else since) if found.verdict == PASS else None
            if since is not None and now - since >= op["for"]:
                keep_captured(ctx, found.captured)
                return {"waited": round(now - begun, 4), "saw": found.saw}
            if now - begun >= op["within"]:
                raise _unhealthy(op, found)
            ctx.pulse.said = found.why[:200] or "healthy, for how long is watched"
            pause = next(pauses)
            if since is not None:
                pause = min(pause, max(0.001, op["for"] - (now - since)))
            ctx.pulse.rest(pause, watched)
    finally:
        if watched >= 0:
            os.close(watched)


def _unhealthy(op: Dict[str, Any], found: Verdict) -> NotHealthy:
    what = found.why or f"healthy, but not yet for {op['for']:g} s"
    return NotHealthy(
        f"not healthy within {op['within']:g} s: {what}",
        {"saw": found.saw, "verdict": found.verdict},
    )
