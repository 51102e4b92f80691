"""Running the codec server of a home, and signing in to one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import json
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from desk import ui_state
from desk.desk import Desk
from desk.listening import impatient, listen, myself, quiet
from desk.orders import Signer
from desk.signing import agent_key
from kedge.drivers.ports import Fleets, PolicyPins
from kedge.drivers.signers import sign_with_agent, sign_with_key
from kedge.model.base import Frozen, canonical
from kedge.model.errors import CodecError, DriverError, EngineError, OrderError
from kedge.model.policy import Policy
from kedge.trust.codec_access import LOGIN, Challenge
from worker import processes
from worker.codec_server import Rules, application
from worker.codec_sessions import Sessions
from worker.logs import get_logger
from worker.processes import ProcessIdentity
from worker.rings import rings_of
from worker.settings import Settings

LONGEST_LIFE = 12 * 3600.0
POLICIES_SECONDS = 2.0
"""So long pinned policies are remembered: a key that was taken out reads no longer than this."""
STALE = 30.0
"""Policies that were read longer ago than this let nobody read."""
LATELY = 0.2
"""Who signs in is judged by policies that were read no longer ago than this."""
MAX_ANSWER = 65_536
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_ADDRESS = re.compile(
    r"https://([A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
)
"""What people call it behind a proxy. TLS only: a cookie would go over the network as it is."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Serving(Frozen):
    """How a codec server is run: its ``host`` and ``port`` (0: a free one), the ``origins`` of UIs that call it, the
    ``life`` of a token in seconds, and for other hosts than this machine a certificate and its key.
    """

    host: str = "127.0.0.1"
    port: int = 0
    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    life: float = 3600.0
    certificate: Path | None = None
    key: Path | None = None


class ServerState(BaseModel):
    """The codec server that runs, so that ``kedge codec login`` finds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessIdentity
    url: str


class SignedIn(Frozen):
    """What a sign-in gave: a ``token`` or a one-time ``code``, good until ``expires``."""

    server: str
    person: str
    expires: str
    kind: Literal["token", "code"]
    secret: str


class PinnedPolicies:
    """The policies pinned in a home, by fleet, looked at again after ``POLICIES_SECONDS``."""

    def __init__(self, fleets: Fleets, pins: PolicyPins) -> None:
        self._fleets = fleets
        self._pins = pins
        self._at = self._read = -STALE
        self._found: dict[str, Policy] = {}

    def __call__(self) -> Mapping[str, Policy]:
        """The policies as they were at the last look; none when that is ``STALE``: looking failed, or hangs."""
        return self._found if time.monotonic() - self._read < STALE else {}

    async def look(self, older: float = 0.0) -> None:
        """Reads them, when the last look is ``older`` than so many seconds. A policy that cannot be read lets nobody
        read, and so do all of them while the fleets cannot be read.
        """
        if time.monotonic() - self._at < older:
            return
        self._at = time.monotonic()
        found: dict[str, Policy] = {}
        try:
            for record in await self._fleets.every():
                with contextlib.suppress(DriverError, OSError):
                    found[record.fleet] = await self._pins.policy(record.fleet)
        except (DriverError, OSError) as error:
            found = {}
            get_logger("codec-server").error("no policy can be read, so nobody may read", reason=str(error))  # fmt: skip
        self._found, self._read = found, time.monotonic()


def state_file(settings: Settings) -> Path:
    """Where a running server says its address."""
    return settings.run_dir / "codec-server.json"


async def serve(desk: Desk, how: Serving, say: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT. Raises ``CodecError``, or ``EngineError`` when the address cannot be used."""
    import uvicorn  # noqa: PLC0415 - for who serves

    rings = rings_of(desk.settings)
    if rings is None:
        raise CodecError("NoRing", "payloads are in the open here, and so there is nothing to open", next_step="unset KEDGE_PAYLOADS, and payloads are sealed")  # fmt: skip
    _check(how)
    listener = listen(how.host, how.port, "the codec server")
    rules = _rules(desk.settings, how, listener.getsockname()[1])
    policies = PinnedPolicies(desk.fleets, desk.pins)
    await policies.look()
    sessions = Sessions(rules.url, policies, how.life, time.monotonic)
    config = uvicorn.Config(
        application(rings, sessions, rules, functools.partial(policies.look, LATELY)),
        log_config=None, access_log=False, server_header=False, date_header=False,
        lifespan="off", ws="none", http=impatient(), limit_concurrency=64, timeout_keep_alive=5,
        h11_max_incomplete_event_size=32_768, proxy_headers=False,
        ssl_certfile=how.certificate, ssl_keyfile=how.key,
    )  # fmt: skip
    server = quiet(uvicorn.Server)(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
    processes.write_state(state_file(desk.settings), ServerState(process=myself(), url=rules.url))
    say(f"the codec server listens on {rules.url}")
    for origin in sorted(rules.origins):
        say(f"the UI at {origin} may call it")
    looking = asyncio.create_task(_look_again(policies))
    try:
        await server.serve(sockets=[listener])
    finally:
        looking.cancel()
        listener.close()
        state_file(desk.settings).unlink(missing_ok=True)


async def _look_again(policies: PinnedPolicies) -> None:
    while True:
        await asyncio.sleep(POLICIES_SECONDS)
        await policies.look()


def _check(how: Serving) -> None:
    if (how.certificate is None) != (how.key is None):
        raise CodecError("RingRefused", "a certificate and its key come together", next_step="--tls-cert FILE --tls-key FILE")  # fmt: skip
    if how.certificate is None and not _loopback(how.host):
        raise CodecError(
            "RingRefused",
            f"{how.host} can be reached from other machines, and what is opened would go over the network as it is",
            next_step="give it a certificate (--tls-cert, --tls-key), or serve on 127.0.0.1 behind a proxy that has one",
        )
    for name in how.names:
        if not (_ADDRESS if "://" in name else _HOST).fullmatch(name):
            raise CodecError(
                "RingRefused",
                f"{name[:200]} is not a name by which the server can be called",
                next_step="a host's name, or behind a proxy its whole address: --name https://codec.internal",
            )
    if not 60 <= how.life <= LONGEST_LIFE:
        raise CodecError("RingRefused", "a token is good for one minute to twelve hours", next_step="such as --life 1h")  # fmt: skip


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _rules(settings: Settings, how: Serving, port: int) -> Rules:
    scheme = "https" if how.certificate is not None else "http"
    names = [
        name if "://" in name else f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}"
        for name in how.names or (how.host,)
    ]
    called = [*names, *((f"{scheme}://localhost:{port}",) if _loopback(how.host) else ())]
    return Rules(
        url=f"{names[0].partition('://')[0]}://{next(_hosts(names[0].lower()))}",
        origins=frozenset(how.origins or _engine_origins(settings)),
        hosts=frozenset(host for url in called for host in _hosts(url.lower())),
    )


def _hosts(url: str) -> Iterator[str]:
    """How browsers and others write a server's name in ``Host``: without the port where it is the scheme's own."""
    parts = urlsplit(url)
    default = ":443" if parts.scheme == "https" else ":80"
    bare = parts.netloc.removesuffix(default)
    yield bare
    if bare != parts.netloc or parts.port is None:
        yield bare + default


def _engine_origins(settings: Settings) -> tuple[str, ...]:
    """The embedded engine's own UI (`kedge ui`), where it runs."""
    state = ui_state.running(settings) if settings.embedded else None
    return () if state is None else (state.origin,)


# -- signing in ---------------------------------------------------------------------------------------------------


def address(settings: Settings, given: str) -> str:
    """The server to sign in to: the one that is named, else the one that runs in this home. Raises ``EngineError``."""
    if given:
        return given.rstrip("/")
    state = processes.read_state(state_file(settings), ServerState)
    if state is None or not processes.is_alive(state.process):
        raise EngineError(
            f"no codec server runs in {settings.home}",
            next_step="`kedge codec serve` starts one; --server URL names one elsewhere",
        )
    return state.url


async def login(
    server: str, signer: Signer, passphrase: Callable[[], str] | None, *, code: bool
) -> SignedIn:
    """Signs in with an SSH key. Raises ``EngineError`` (no server there, or it refused), ``DriverError`` for the key."""
    asked = await asyncio.to_thread(_post, f"{server}/challenge", {})
    try:
        challenge = Challenge.model_validate(asked)
    except ValidationError as error:
        raise EngineError(f"what answers on {server} is no codec server") from error
    if challenge.server != server:
        raise OrderError(
            f"the server calls itself {challenge.server}, not {server}: nothing was signed",
            next_step="name it as it calls itself, if that is the one you mean",
        )
    content = canonical(challenge)
    if signer.key is not None:
        # In this thread and not in one of its own: it may ask for a passphrase, and Ctrl-C has to end that.
        signature = sign_with_key(signer.key, content, passphrase, namespace=LOGIN)
    else:
        signature = await sign_with_agent(agent_key(signer.agent or ""), content, namespace=LOGIN)
    told = {"nonce": challenge.nonce, "signature": signature, "code": code}
    answer = await asyncio.to_thread(_post, f"{server}/login", told)
    kind: Literal["token", "code"] = "code" if code else "token"
    try:
        return SignedIn(
            server=server, person=answer["person"], expires=answer["expires"],
            kind=kind, secret=answer[kind],
        )  # fmt: skip
    except (KeyError, TypeError, ValidationError) as error:
        raise EngineError(f"{server} gave an answer that is none") from error


def _post(url: str, told: dict[str, Any]) -> Any:
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked below
        url, json.dumps(told).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    if request.type not in ("http", "https"):
        raise EngineError(f"{url} is not an http or https address")
    try:
        with _DIRECT.open(request, timeout=20) as answer:
            return json.loads(answer.read(MAX_ANSWER))
    except urllib.error.HTTPError as error:
        said = ""
        with contextlib.suppress(ValueError, AttributeError):
            said = str(json.loads(error.read(MAX_ANSWER)).get("error", ""))
        raise EngineError(
            f"the codec server refused ({error.code}): {said[:500] or error.reason}",
            next_step="the policy's codec.readers says which roles may read; the server's log names the rule",
        ) from error
    except (OSError, ValueError) as error:
        raise EngineError(f"{url} does not answer as a codec server: {error}", next_step="kedge codec serve") from error  # fmt: skip
