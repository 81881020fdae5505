"""Serves the application by uvicorn, for one machine or for a few people."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from taskiq_flow.errors import ConfigurationError
from taskiq_flow.web.guard import MOST_BYTES, MOST_CONNECTIONS

HEADER_SECONDS = 10.0
"""A client that has not sent the headers of a request for so long is disconnected."""

GONE_SECONDS = 30.0
"""A client that acknowledges or takes nothing for so long is disconnected, where TCP knows how."""

_GRACEFUL_SECONDS = 5

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""The signals that end a process, by their names. No system has all of them."""


class _Protocol(H11Protocol):
    """Refuses clients that send their headers slowly, which keeps a connection open."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        _notice_when_gone(transport.get_extra_info("socket"))
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._deadline is None:
            self._watch()

    def _watch(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._refuse)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self) -> None:
        self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n")
        self.transport.close()


def _notice_when_gone(connection: socket.socket | None) -> None:
    """Close a connection whose client has vanished without a word, as a machine without power does.

    TCP itself would go on for a quarter of an hour. All streams send a sign of life every few
    seconds, which such a client does not acknowledge.
    """
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = round(GONE_SECONDS * 1000)
        with contextlib.suppress(OSError):  # of a socket that is no TCP
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class Server(uvicorn.Server):
    """Ends all streams before it waits for the connections to be closed.

    Stops at SIGHUP as well, and at no signal that is ignored.
    """

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host,
                port,
                http=_Protocol,
                ws="websockets-sansio",
                ws_max_size=MOST_BYTES,
                ws_max_queue=4,
                ws_per_message_deflate=False,
                limit_concurrency=MOST_CONNECTIONS,
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_level="warning",
                timeout_graceful_shutdown=_GRACEFUL_SECONDS,
            )
        )
        self._app = app

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal, and then have it do what it does without a server."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        captured: list[int] = []

        def capture(number: int, frame: FrameType | None) -> None:
            captured.append(number)
            self.handle_exit(number, frame)

        known = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        heeded = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, capture) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        for number in captured:
            signal.raise_signal(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        if (hub := getattr(self._app.state, "hub", None)) is not None:
            hub.close()
        await super().shutdown(sockets)


def serve(
    app: Starlette,
    host: str = "127.0.0.1",
    port: int = 8421,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve an application of this package until Ctrl-C, or SIGTERM or SIGHUP ends the process.

    ``app``: of ``runs_app``, or ``create_visualization_api(...).app``. ``port``: 0 for one that is
    free. ``on_ready``: called with the address once it can be opened, such as
    ``"http://127.0.0.1:8421"``. Raises ``ConfigurationError`` for an address that other machines
    can reach if the application has no token, and ``OSError`` if the port is taken.
    """
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve_async(app, host, port, on_ready=on_ready))


async def serve_async(
    app: Starlette,
    host: str = "127.0.0.1",
    port: int = 8421,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Like ``serve``, within an event loop that runs already."""
    check_address(app, host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening:
        server = Server(app, host, port)
        serving = asyncio.get_running_loop().create_task(server.serve([listening]))
        try:
            while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn tells nobody
                await asyncio.sleep(0.01)
            if on_ready is not None and server.started:
                shown = f"[{host}]" if ":" in host else host
                on_ready(f"http://{shown}:{listening.getsockname()[1]}")
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            await serving
            raise


def check_address(app: Starlette, host: str) -> None:
    """Refuse an address that other machines reach, if nobody needs a token."""
    if not is_local(host) and not app.state.has_token:
        raise ConfigurationError(
            f"other machines reach the address {host!r}, and the application has no token; give "
            "runs_app(token=secrets.token_urlsafe(), allowed_hosts=[...]), or serve on 127.0.0.1"
        )


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
