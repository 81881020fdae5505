"""Only this file decides whether a request is served at all."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Callable, Collection
from http.cookies import CookieError, SimpleCookie
from secrets import compare_digest
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 64 * 1024
"""Bytes of a request's body, and of a message of a WebSocket."""

MOST_CONNECTIONS, MOST_OF_ADDRESS = 256, 32
"""Requests and WebSockets that are open at once: in all, and from one address."""

_LEAST_TOKEN = 16
"""Characters of a token, so that nobody guesses it."""

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

SESSION = "/api/v1/session"
"""Where the token is exchanged for a cookie."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}

Refusal = tuple[int, str]
"""A status, and what the client is told."""


class Token:
    """The secret that clients need. Browsers exchange it for a cookie, others send it as a bearer.

    The cookie does not have the token, and its name tells servers on one host apart.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self.cookie = f"taskiq_flow_{self._derived('name')[:8]}"
        self.cookie_value = self._derived("cookie")

    def is_valid(self, given: str) -> bool:
        """Whether this is the token."""
        return compare_digest(given.encode("utf-8", "replace"), self._token)

    def admits(self, headers: Headers) -> bool:
        """Whether a request has the token or the cookie."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.is_valid(given.strip())
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        value = "" if found is None else found.value
        return compare_digest(value.encode("utf-8", "replace"), self.cookie_value.encode())

    def _derived(self, purpose: str) -> str:
        return hmac.new(self._token, purpose.encode(), hashlib.sha256).hexdigest()


def token_of(text: str | None) -> Token | None:
    """The token that the user gives. Raises ``ValueError`` for one that is short."""
    if text is not None and len(text) < _LEAST_TOKEN:
        raise ValueError(
            f"the token has {len(text)} characters; give at least {_LEAST_TOKEN}, such as "
            "secrets.token_urlsafe() makes"
        )
    return None if text is None else Token(text)


def _is_of_runs(path: str) -> bool:
    """Whether a path of ``runs_app`` tells something of runs; the pages by themselves do not."""
    return path != SESSION and (path.startswith("/api/") or path == "/ws")


class Guard:
    """Refuses requests by their host, origin, token and size, and by how many there are.

    It adds headers to each response. ``hosts``: names and addresses, without ports, under which
    the application may be asked for. Another name may be one that somebody else's page has
    directed to this address, to read from it (DNS rebinding). ``needs_token``: given a path,
    whether only those with the token are served.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str],
        token: Token | None,
        needs_token: Callable[[str], bool] = _is_of_runs,
    ) -> None:
        self._app = app
        self._hosts = {host.lower().strip("[]") for host in hosts}
        self._token = token
        self._needs_token = needs_token
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": path_as_sent(scope)}
        address = (scope.get("client") or ("",))[0]
        headers = Headers(scope=scope)
        refusal = self._refuse_source(scope, headers, address) or _refuse_content(scope, headers)
        if refusal is not None:
            await _refuse(scope, send, refusal)
            return
        self._open[address] += 1
        try:
            await self._app(scope, _limited(scope, receive), _with_headers(send))
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]

    def _refuse_source(self, scope: Scope, headers: Headers, address: str) -> Refusal | None:
        """Who asks may not."""
        host = headers.get("host", "")
        if _name_of(host) not in self._hosts:
            return 403, f"{host!r} is not among the allowed hosts; add it to allowed_hosts="
        if self._open.total() >= MOST_CONNECTIONS:
            return 503, f"{MOST_CONNECTIONS} connections are open; try again later"
        if self._open[address] >= MOST_OF_ADDRESS:
            return 429, f"{MOST_OF_ADDRESS} connections of this address are open; close some"
        if _writes(scope) and not _is_same_origin(headers, host):
            return 403, "the request comes from a page of another origin"
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        token = self._token
        if token is not None and self._needs_token(path) and not token.admits(headers):
            return 401, "the token is missing or wrong; open the address that has #token="
        return None


def guard_of(
    allowed_hosts: Collection[str],
    token: Token | None,
    needs_token: Callable[[str], bool] = _is_of_runs,
) -> Middleware:
    """The guard of an application. Raises ``TypeError`` for one host in place of a list."""
    if isinstance(allowed_hosts, str):
        raise TypeError(f"allowed_hosts is {allowed_hosts!r}; give a list of names")
    return Middleware(Guard, hosts=allowed_hosts, token=token, needs_token=needs_token)


def _refuse_content(scope: Scope, headers: Headers) -> Refusal | None:
    """What is sent is too large, or of another kind."""
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > len(str(MOST_BYTES)) or int(length) > MOST_BYTES:
        return 413, f"the body is too large; at most {MOST_BYTES} bytes are read"
    has_body = length.strip("0") != "" or "transfer-encoding" in headers
    is_told = has_body or "content-type" in headers
    if _writes(scope) and scope["type"] == "http" and is_told and not _is_json(headers):
        return 415, "the body has to be JSON; send it as application/json"
    return None


def path_as_sent(scope: Scope) -> str:
    """The path of a request as it was sent, so that names may have a slash in them."""
    raw: bytes | None = scope.get("raw_path")
    root: str = scope.get("root_path", "")
    sent = "" if raw is None else raw.partition(b"?")[0].decode("latin-1")
    return sent if sent.startswith(root) and sent else quote(scope["path"], safe="/:@!$&'()*+,;=~")


def _name_of(host: str) -> str:
    """The name or the address in a ``Host`` header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _writes(scope: Scope) -> bool:
    return scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")


def _is_same_origin(headers: Headers, host: str) -> bool:
    """Whether a page of ours asks, or no page at all: browsers tell the origin with each write."""
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "same-origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return False
    return site in ("same-origin", "none")


def _is_json(headers: Headers) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def _limited(scope: Scope, receive: Receive) -> Receive:
    """Refuse a body that is larger than it said, or did not say how large it is."""
    if scope["type"] == "websocket":
        return receive
    read = 0

    async def receive_some() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > MOST_BYTES:
            raise HTTPException(413, f"the body is too large; at most {MOST_BYTES} bytes are read")
        return message

    return receive_some


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return send_with_headers


async def _refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    status, text = refusal
    body = json.dumps({"error": {"type": "Refused", "message": text}}).encode()
    headers = {**HEADERS, "content-type": "application/json", "content-length": str(len(body))}
    if status == 413:  # noqa: PLR2004 - the rest of the body is not read
        headers["connection"] = "close"
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
