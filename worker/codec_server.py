"""The codec server: opens sealed payloads for Temporal's UI and command line, for people whom the policy lets read.

``/encode`` and ``/decode`` are as Temporal's tools call them (POST, ``{"payloads": […]}`` in protobuf's JSON). Everything
else is about signing in: ``/challenge`` and ``/login`` for a token by SSH key, ``/`` and ``/session`` for browsers.

Rules: a request needs a token, as ``Authorization: Bearer`` or as the cookie of a browser; a browser's request must come
from an origin that was named, or from here; the name in ``Host`` must be one of the server's own, so that no other name
can be pointed here; bodies are bounded. Who may read one fleet sees the payloads of its workflows; others stay sealed.
Nothing of a payload is ever logged. What ``/encode`` seals is a client's word, whoever asks: orders, which carry
signatures of their own, and nothing that a workflow takes for a worker's.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from temporalio.api.common.v1 import Payload

from kedge.model.base import Frozen, canonical
from kedge.model.bounds import check_values
from kedge.model.errors import CodecError, KedgeError
from kedge.trust import payload_kinds as kinds
from kedge.trust.codec_access import Reader, fleet_of
from kedge.trust.refusal import RefusalError
from worker.codec import ENCODING, ClientCodec, KeyRings, unlabelled
from worker.codec_sessions import Sessions
from worker.logs import get_logger

MAX_BODY = 16 * 1024 * 1024
"""The largest request, in bytes: a page of a history."""
MAX_PAYLOADS = 10_000
MAX_VALUES = 16 * MAX_PAYLOADS
"""Values of one request: a payload has some ten."""
BODY_SECONDS = 20.0
_SMALL = 65_536
_COOKIE = "kedge_codec"
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>kedge codec</title>
<style>body{{font:16px/1.5 system-ui;max-width:40em;margin:4em auto;padding:0 1em}}input,button{{font:inherit;padding:.3em}}
code{{background:#eee;padding:.1em .3em}}</style><h1>kedge codec server</h1>{body}</html>"""
_FORM = """<p>{said}</p><form method="post" action="/session"><label>One-time code
<input name="code" autocomplete="one-time-code" autofocus size="24"></label> <button>Sign in</button></form>
<p>Get one with <code>kedge codec login --key KEY --code</code>.</p>"""
_IN = """<p>{said}</p><form method="post" action="/session/end"><button>Sign out</button></form>"""
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": browsers then call the origin of this very page null.
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
}


class Login(Frozen):
    """The answer to a challenge; ``code`` asks for a one-time code instead of a token."""

    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    signature: Annotated[str, Field(pattern=r"^[\x01-\x7f]*$")]
    code: bool = False


@dataclass(frozen=True)
class Rules:
    """``url`` is the server's own address; ``origins`` are those of UIs that may call it; ``hosts`` its names."""

    url: str
    origins: frozenset[str] = frozenset()
    hosts: frozenset[str] = field(default_factory=frozenset)

    @property
    def secure(self) -> bool:
        """Whether browsers reach it by TLS only."""
        return self.url.startswith("https://")


class _RefusedError(Exception):
    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status
        self.said = said


def application(
    rings: KeyRings, sessions: Sessions, rules: Rules, look: Callable[[], Awaitable[None]]
) -> Starlette:
    """The server as an ASGI application; ``look`` reads the policies anew."""
    server = CodecServer(rings, sessions, rules, look)
    routes = [
        Route(path, server.answered(act), methods=methods)
        for path, act, methods in (
            ("/encode", server.encode, ["POST"]),
            ("/decode", server.decode, ["POST"]),
            ("/challenge", server.challenge, ["POST"]),
            ("/login", server.login, ["POST"]),
            ("/session", server.open_session, ["POST"]),
            ("/session/end", server.end_session, ["POST"]),
            ("/", server.page, ["GET"]),
        )
    ]
    routes += [
        Route(path, server.preflight, methods=["OPTIONS"]) for path in ("/encode", "/decode")
    ]
    return Starlette(routes=routes)


class CodecServer:
    """The answers to requests."""

    def __init__(
        self, rings: KeyRings, sessions: Sessions, rules: Rules, look: Callable[[], Awaitable[None]]
    ) -> None:
        self._look = look
        self._rings = rings
        self._sessions = sessions
        self._rules = rules
        self._log = get_logger("codec-server")

    def answered(
        self, act: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint whose refusals become answers; none of them says anything of a payload."""

        async def answer(request: Request) -> Response:
            try:
                self._check_host(request)
                self._check_origin(request)
                response = await act(request)
            except _RefusedError as refused:
                response = _said(refused.status, refused.said)
            except RefusalError as refusal:
                self._log.warning("refused", rule=refusal.rule, path=request.url.path)
                response = _said(403, refusal.said)
            except KedgeError as error:
                self._log.error("cannot answer", kind=error.type, reason=error.message)
                response = _said(500, error.message)
            except ClientDisconnect:
                response = _said(400, "the request broke off")
            return self._with_headers(request, response)

        return answer

    # -- payloads ---------------------------------------------------------------------------------------------------

    async def decode(self, request: Request) -> Response:
        """Opens payloads of fleets that the reader may read; all others come back as they were."""
        reader = self._reader(request)
        payloads = await self._payloads(request)
        codec = ClientCodec(self._rings)
        opened = [self._opened(codec, payload, reader) for payload in payloads]
        self._log.info("opened", person=reader.person, key=reader.key, payloads=len(opened))
        return _listed(opened)

    def _opened(self, codec: ClientCodec, payload: Payload, reader: Reader) -> Payload:
        if payload.metadata.get("encoding") != ENCODING:
            return payload
        fleet = fleet_of(payload.metadata.get("encryption-for", b"").decode("utf-8", "replace"))
        if fleet and fleet not in reader.fleets:
            return payload
        try:
            return unlabelled(codec.strictly_opened(payload))
        except CodecError as error:
            note = json.dumps({"kedge_refused": error.message}).encode()
            return Payload(metadata={"encoding": b"json/plain"}, data=note)

    async def encode(self, request: Request) -> Response:
        """Seals payloads for the namespace: Temporal's tools do not say for which workflow."""
        reader = self._reader(request)
        payloads = await self._payloads(request)
        namespace = request.headers.get("x-namespace", "")
        if namespace and not _NAMESPACE.fullmatch(namespace):
            raise _RefusedError(400, "X-Namespace is not the name of a namespace")
        codec = ClientCodec(self._rings, namespace)
        self._log.info("sealed", person=reader.person, key=reader.key, payloads=len(payloads))
        return _listed([codec.sealed(payload, kinds.CLIENT, "") for payload in payloads])

    async def _payloads(self, request: Request) -> list[Payload]:
        body = await self._json(request, MAX_BODY)
        # Temporal's tools leave the key out where there are none: a query without arguments, say.
        given = body.get("payloads", []) if isinstance(body, dict) else None
        if not isinstance(given, list) or len(given) > MAX_PAYLOADS:
            raise _RefusedError(400, 'the body is {"payloads": [...]}')
        try:
            return [ParseDict(one, Payload(), max_recursion_depth=10) for one in given]
        except (ParseError, ValueError, TypeError, AttributeError):
            raise _RefusedError(400, "a payload is not of Temporal's form") from None

    # -- signing in -------------------------------------------------------------------------------------------------

    async def challenge(self, request: Request) -> Response:
        """What is to be signed."""
        await self._json(request, _SMALL)
        await self._look()
        # The very bytes to sign: whoever signs by hand needs nothing but these.
        return Response(canonical(self._sessions.challenge()), media_type="application/json")

    async def login(self, request: Request) -> Response:
        """A token, or a one-time code, for a signed challenge."""
        try:
            asked = Login.model_validate(await self._json(request, _SMALL))
        except ValidationError:
            raise _RefusedError(400, 'the body is {"nonce", "signature"}') from None
        hand_out = self._sessions.code if asked.code else self._sessions.sign_in
        given, session = hand_out(asked.nonce, asked.signature)
        self._log.info("signed in", person=session.person, key=session.key, browser=asked.code)
        kind = "code" if asked.code else "token"
        told = {"person": session.person, "key": session.key, "expires": session.expires}
        return JSONResponse({kind: given, **told})

    async def page(self, request: Request) -> Response:
        """The page on which a browser signs in and out."""
        try:
            reader = self._reader(request)
        except (_RefusedError, RefusalError):
            return _page(_FORM.format(said="Nobody is signed in here."))
        fleets = ", ".join(sorted(reader.fleets))
        said = f"Signed in as {html.escape(reader.person)}, for {html.escape(fleets)}."
        return _page(_IN.format(said=said))

    async def open_session(self, request: Request) -> Response:
        """Turns a one-time code into a cookie."""
        fields = _fields(await self._body(request, _SMALL))
        token = self._sessions.redeem(fields.get("code", ""))
        if token is None:
            return _page(_FORM.format(said="That code is none, was used, or is too old."), 403)
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(
            _COOKIE, token, max_age=int(self._sessions.life), path="/", httponly=True,
            samesite="strict", secure=self._rules.secure,
        )  # fmt: skip
        return response

    async def end_session(self, request: Request) -> Response:
        """Ends a browser's session."""
        self._sessions.sign_out(request.cookies.get(_COOKIE, ""))
        response = RedirectResponse("/", status_code=303)
        response.delete_cookie(_COOKIE, path="/")
        return response

    def _reader(self, request: Request) -> Reader:
        """Who asks. Raises ``_RefusedError`` (401), ``RefusalError`` when the policies changed."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            token = request.cookies.get(_COOKIE, "")
        reader = self._sessions.reader(token.strip()) if token else None
        if reader is None:
            raise _RefusedError(401, "sign in first: kedge codec login --key KEY")
        return reader

    # -- requests ---------------------------------------------------------------------------------------------------

    def _check_host(self, request: Request) -> None:
        if request.headers.get("host", "").lower() not in self._rules.hosts:
            raise _RefusedError(421, "this server has another name")

    def _check_origin(self, request: Request) -> None:
        """A page of an origin that nobody named gets nothing, whatever cookies its reader's browser sends along."""
        origin = request.headers.get("origin")
        # By whichever of its names this server was called: that one was looked at before.
        own = f"{self._rules.url.partition('://')[0]}://{request.headers.get('host', '').lower()}"
        if origin is not None and origin not in {*self._rules.origins, self._rules.url, own}:
            raise _RefusedError(403, f"the origin {origin[:200]} was not named with --origin")

    async def preflight(self, request: Request) -> Response:
        """What a browser asks before it sends a request of another origin."""
        if request.headers.get("host", "").lower() not in self._rules.hosts:
            return _said(421, "this server has another name")
        if request.headers.get("origin") not in self._rules.origins:
            return _said(403, "this origin was not named with --origin")
        return self._with_headers(request, Response(status_code=204))

    def _with_headers(self, request: Request, response: Response) -> Response:
        response.headers.update(_HEADERS)
        origin = request.headers.get("origin")
        response.headers["Vary"] = "Origin"
        if origin in self._rules.origins:
            response.headers["Access-Control-Allow-Origin"] = str(origin)
            response.headers["Access-Control-Allow-Credentials"] = "true"
            response.headers["Access-Control-Allow-Methods"] = "POST, OPTIONS"
            response.headers["Access-Control-Allow-Headers"] = (
                "Authorization, Content-Type, X-Namespace"
            )
            response.headers["Access-Control-Max-Age"] = "600"
        return response

    async def _json(self, request: Request, limit: int) -> Any:
        body = await self._body(request, limit)
        try:
            check_values(body, MAX_VALUES)
            return json.loads(body) if body else {}
        except (ValueError, RecursionError):
            raise _RefusedError(400, "the body is not JSON") from None

    async def _body(self, request: Request, limit: int) -> bytes:
        """The body, at most ``limit`` bytes of it, and not for ever."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise _RefusedError(413, f"a request has at most {limit} bytes")
                    parts.append(part)
        except TimeoutError:
            raise _RefusedError(408, "the request did not come to its end in time") from None
        return b"".join(parts)


def _fields(body: bytes) -> dict[str, str]:
    from urllib.parse import parse_qsl  # noqa: PLC0415 - for browsers only

    try:
        return dict(parse_qsl(body.decode("utf-8"), max_num_fields=8))
    except (ValueError, UnicodeDecodeError):
        raise _RefusedError(400, "the form cannot be read") from None


def _listed(payloads: Sequence[Payload]) -> Response:
    return JSONResponse({"payloads": [MessageToDict(payload) for payload in payloads]})


def _said(status: int, said: str) -> Response:
    return JSONResponse({"error": said}, status_code=status)


def _page(body: str, status: int = 200) -> Response:
    return HTMLResponse(_PAGE.format(body=body), status_code=status)
