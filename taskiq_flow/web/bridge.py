"""What hooks are told of pipelines, over a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Collection
from dataclasses import fields
from secrets import token_hex
from typing import Any

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from taskiq_flow.errors import ConfigurationError
from taskiq_flow.listeners.hook_events import HookEvent
from taskiq_flow.listeners.hooks import HookManager
from taskiq_flow.previews import preview, printable, shown_error
from taskiq_flow.web.app import HANDLERS
from taskiq_flow.web.frames import ALL, MOST_CHARACTERS, MOST_IN_FRAME, Frame, Line, encoded
from taskiq_flow.web.guard import LOCAL_HOSTS, guard_of, token_of
from taskiq_flow.web.news import News
from taskiq_flow.web.socket import Socket
from taskiq_flow.web.window import FRAME_SECONDS, MOST_EVENTS


def setup_websocket_bridge(
    hooks: HookManager,
    *,
    token: str | None = None,
    allowed_hosts: Collection[str] = LOCAL_HOSTS,
) -> Starlette:
    """An application whose WebSocket ``/ws`` tells what ``hooks`` tells from now on, as JSON.

    Serve it, mount it in another one, or give it to ``create_visualization_api``, which adds the
    routes of pipelines to it. Clients send ``{"type": "subscribe", "pipeline_id": ID}``, or ``"*"``
    for all pipelines. ``token``, ``allowed_hosts``: as for ``runs_app``; a token is sent as
    ``Authorization: Bearer TOKEN``.

    Raises ``TypeError`` and ``ValueError``.

    >>> from taskiq_flow.web import create_visualization_api, setup_websocket_bridge
    >>> broker, hooks = InMemoryBroker(), HookManager()
    >>> api = create_visualization_api(broker, setup_websocket_bridge(hooks))
    >>> api.add_pipeline("nightly", Pipeline(broker).call_next(abs).with_hooks(hooks))
    >>> [route.path for route in api.app.routes][:3]
    ['/ws', '/health', '/pipelines']
    """
    if not isinstance(hooks, HookManager):
        raise TypeError(f"hooks is {hooks!r}; give a HookManager")
    guard = guard_of(allowed_hosts, token_of(token), needs_token=lambda _path: True)
    bridge = Bridge()
    app = Starlette(
        routes=[WebSocketRoute("/ws", bridge.serve, middleware=[guard])],
        exception_handlers=HANDLERS,
    )
    app.state.bridge = bridge
    app.state.has_token = token is not None
    hooks.add_hook(bridge)
    return app


class Bridge:
    """A hook that holds the newest events, encoded. Clients are cursors into them.

    One event loop serves it. Hooks may be called in others, and in several threads.
    """

    def __init__(self) -> None:
        self._name = token_hex(4)  # numbers of an earlier process are not taken for ours
        self._floor = self._last = 0
        self._lines: list[tuple[str, Line]] = []  # the first one has the number floor + 1
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = News()
        self._is_due = False

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one client."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop is not self._loop:
                self._loop, self._is_due, self._news = loop, False, News()
        await Socket(websocket, self.frames, _refuse_cancel).serve()

    def _tell(self, event: HookEvent) -> None:
        content = _content(event)
        with self._lock:
            self._last += 1
            line = encoded({"id": self._id(self._last), **content})
            self._lines.append((content["pipeline_id"], (self._last, line)))
            if len(self._lines) > MOST_EVENTS:
                dropped = MOST_EVENTS // 10  # many at once, as each time the others are moved
                del self._lines[:dropped]
                self._floor += dropped
            if self._loop is not None and not self._is_due:
                self._is_due = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there
                    self._loop.call_soon_threadsafe(
                        self._loop.call_later, FRAME_SECONDS, self._notify
                    )

    on_pipeline_start = on_step_start = on_step_complete = _tell
    on_step_error = on_pipeline_complete = on_pipeline_error = _tell

    async def frames(self, pipeline_id: str, given: str | None) -> AsyncGenerator[Frame, None]:
        """The events of a pipeline, or of all, that come after the one that a client has seen.

        Without one, those that are held come first. A ``reset`` precedes them if it is unknown.
        """
        cursor = self._floor if given is None else self._number(given)
        if cursor is None:
            cursor = self._floor
            yield self._notice("reset", pipeline_id, cursor)
        while True:
            missed, lines, cursor = self._next(pipeline_id, cursor)
            if missed:
                yield self._notice("gap", pipeline_id, cursor, missed=missed)
            elif lines:
                yield Frame(lines)
            elif cursor == self._last:
                await self._news.wait()

    def _next(self, pipeline_id: str, cursor: int) -> tuple[int, list[Line], int]:
        """How many events are not held any more; else those of the next frame; the new cursor."""
        with self._lock:
            if cursor < self._floor:
                return self._floor - cursor, [], self._floor
            start = cursor - self._floor
            found = self._lines[start : start + MOST_IN_FRAME]
        lines: list[Line] = []
        size = 0
        for of, line in found:
            cursor = line[0]
            if pipeline_id in (ALL, of):
                lines.append(line)
                size += len(line[1])
                if size >= MOST_CHARACTERS:
                    break
        return 0, lines, cursor

    def _notice(self, kind: str, pipeline_id: str, number: int, **more: int) -> Frame:
        content = {"id": self._id(number), "type": kind, "pipeline_id": pipeline_id, **more}
        return Frame([(number, encoded(content))])

    def _id(self, number: int) -> str:
        return f"{self._name}-{number}"

    def _number(self, given: str) -> int | None:
        """The number of an event of ours, given its id."""
        name, _, digits = given.partition("-")
        is_number = digits.isdecimal() and len(digits) <= len(str(self._last))
        if name != self._name or not is_number or int(digits) > self._last:
            return None
        return int(digits)

    def _notify(self) -> None:
        with self._lock:
            self._is_due = False
        self._news.tell()


def _content(event: HookEvent) -> dict[str, Any]:
    """An event as JSON: previews in place of values, as in the status of a pipeline."""
    content = {field.name: getattr(event, field.name) for field in fields(event)}
    for name, value in content.items():
        if name in ("input", "result"):
            content[name] = None if value is None else preview(value)
        elif isinstance(value, BaseException):
            content[name] = shown_error(value)
        elif isinstance(value, str):
            content[name] = printable(value)
    return {"type": event.type, **content, "timestamp": event.timestamp.isoformat()}


async def _refuse_cancel(_run_id: str) -> bool:
    raise ConfigurationError("nothing is cancelled here; subscribe to a pipeline, or unsubscribe")
