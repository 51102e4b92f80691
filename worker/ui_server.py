"""What stands in front of Temporal's web UI: a sign-in, and no request of another site.

The UI itself (``kedge-temporal-ui``) listens on a Unix socket in a folder of this user's alone. Browsers cannot call
that; they call this. Rules, in order, for every request:

1. ``Host`` is one of the server's own names, so that no other name can be pointed here (DNS rebinding);
2. the path begins with a word that only whoever started the server was told. The cookie belongs to that path: browsers
   send cookies to every port of a machine, and so would hand it to another user's server otherwise;
3. a browser says that the request comes from here or from nobody (``Sec-Fetch-Site``, ``Origin``), never from a page of
   another origin;
4. the cookie of a sign-in. A sign-in takes the one-time code that the terminal shows.

The UI can read, and ask workflows to answer queries; it changes nothing: what moves a migration is a signed order.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from worker.codec_sessions import Table

MAX_BODY = 4 * 1024 * 1024
LIFE = 8 * 3600.0
"""A sign-in is good for so many seconds."""
_COOKIE = "kedge_ui"
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_SECONDS = 90.0
"""Temporal's long polls end before that."""
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_QUERY = re.compile(r"/api/v1/namespaces/[^/]+/workflows/[^?]+/query/[^?]+")
"""The one thing that is asked with POST."""
_TO_UI = ("accept", "accept-language", "caller-type", "content-type")
_FROM_UI = ("content-type", "cache-control", "etag", "last-modified")
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Temporal UI</title>
<style>body{{font:16px/1.5 system-ui;max-width:40em;margin:4em auto;padding:0 1em}}input,button{{font:inherit;padding:.3em}}
</style><h1>Temporal UI of this kedge home</h1><p>{said}</p>
<form method="post" action="{base}/sign-in"><label>One-time code <input name="code" autocomplete="one-time-code"
autofocus size="24"></label> <button>Sign in</button></form><p>The terminal in which <code>kedge ui</code> runs shows one.</p></html>"""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    # Not "no-referrer": browsers then call the origin of this very page null.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # The stock UI starts with a script in its page. A codec server is of another origin.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' http: https:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
}


@dataclass(frozen=True, slots=True)
class UiRules:
    """``hosts`` are the names by which the server is called, ``base`` the path that everything is under."""

    hosts: frozenset[str]
    base: str


class _RefusedError(Exception):
    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status
        self.said = said


class SignIns:
    """The one code that is good now, and the sessions that came of codes, in memory alone."""

    def __init__(self, clock: Callable[[], float], tell: Callable[[str], None]) -> None:
        """``tell`` shows a new code to whoever runs the server: at once, and whenever one was used."""
        self._sessions: Table[str] = Table(clock)
        self._tell = tell
        self._code = ""
        self.renew()

    def renew(self) -> None:
        """Another code; the one before is no good any more."""
        groups = ("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(4))
        self._code = "-".join(groups)
        self._tell(self._code)

    def redeem(self, code: str) -> str | None:
        """A session's token for the code; None for what is none."""
        if not hmac.compare_digest(code.strip().upper().encode(), self._code.encode()):
            return None
        token = secrets.token_urlsafe(32)
        self._sessions.keep(token, token, LIFE)
        self.renew()
        return token

    def holds(self, token: str) -> bool:
        """Whether that is a session's."""
        return bool(token) and self._sessions.get(token) is not None


def ui_application(rules: UiRules, sign_ins: SignIns, ui: httpx.AsyncClient) -> Starlette:
    """The server as an ASGI application; ``ui`` is a client of the socket."""
    server = _UiServer(rules, sign_ins, ui)
    return Starlette(routes=[Route("/{path:path}", server.answer, methods=_METHODS)])


class _UiServer:
    def __init__(self, rules: UiRules, sign_ins: SignIns, ui: httpx.AsyncClient) -> None:
        self._rules = rules
        self._sign_ins = sign_ins
        self._ui = ui

    async def answer(self, request: Request) -> Response:
        try:
            self._check(request)
            response = await self._answer(request)
        except _RefusedError as refused:
            response = PlainTextResponse(refused.said, refused.status)
        except ClientDisconnect:
            response = PlainTextResponse("the request broke off", 400)
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _check(self, request: Request) -> None:
        """Refuses what no page of ours sends."""
        host = request.headers.get("host", "").lower()
        if host not in self._rules.hosts:
            raise _RefusedError(421, "this server has another name")
        path = request.url.path
        base = self._rules.base
        if not hmac.compare_digest(path[: len(base) + 1].ljust(len(base) + 1, "/").encode(), f"{base}/".encode()):  # fmt: skip
            raise _RefusedError(404, "nothing is here")
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise _RefusedError(403, "a page of another site asks; open the address yourself")
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            raise _RefusedError(403, "a page of another origin asks")

    async def _answer(self, request: Request) -> Response:
        path = request.url.path.removeprefix(self._rules.base)
        if path == "/sign-in" and request.method == "POST":
            return await self._sign_in(request)
        if not self._sign_ins.holds(request.cookies.get(_COOKIE, "")):
            if request.method == "GET" and not path.startswith("/api/"):
                return self._page("Nobody is signed in here.", 401)
            raise _RefusedError(401, "sign in first")
        if request.method not in ("GET", "HEAD") and not (
            request.method == "POST" and _QUERY.fullmatch(path)
        ):
            raise _RefusedError(405, "this UI only reads; what moves a migration is an order")
        return await self._forwarded(request)

    async def _sign_in(self, request: Request) -> Response:
        from urllib.parse import parse_qs  # noqa: PLC0415 - for this form only

        fields = parse_qs((await _body(request)).decode("utf-8", "replace"), max_num_fields=4)
        token = self._sign_ins.redeem(fields.get("code", [""])[0])
        if token is None:
            return self._page("That is not the code, or it was used.", 403)
        response = RedirectResponse(f"{self._rules.base}/", status_code=303)
        response.set_cookie(
            _COOKIE, token, max_age=int(LIFE), path=self._rules.base, httponly=True, samesite="strict"
        )  # fmt: skip
        return response

    def _page(self, said: str, status: int) -> Response:
        return HTMLResponse(_PAGE.format(said=said, base=self._rules.base), status)

    async def _forwarded(self, request: Request) -> Response:
        """What the UI answers. Of the headers, only those it has a use for go either way: no cookie, no authority."""
        raw = request.scope["raw_path"]
        query = request.scope["query_string"]
        asked = self._ui.build_request(
            request.method,
            httpx.URL("http://ui", raw_path=raw + (b"?" + query if query else b"")),
            headers=_chosen(request.headers, _TO_UI),
            content=await _body(request) if request.method == "POST" else None,
        )
        try:
            answer = await self._ui.send(asked, stream=True)
        except httpx.HTTPError as error:
            raise _RefusedError(502, "Temporal's UI does not answer") from error
        return StreamingResponse(
            _parts(answer), answer.status_code, _chosen(answer.headers, _FROM_UI)
        )


def client_of_socket(socket: str) -> httpx.AsyncClient:
    """A client of the UI's Unix socket."""
    transport = httpx.AsyncHTTPTransport(uds=socket)
    return httpx.AsyncClient(transport=transport, timeout=_SECONDS, trust_env=False)


async def _parts(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_bytes():
            yield part
    finally:
        await answer.aclose()


async def _body(request: Request) -> bytes:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY:
            raise _RefusedError(413, f"a request has at most {MAX_BODY} bytes")
    return bytes(content)


def _chosen(headers: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: headers[name] for name in names if name in headers}
