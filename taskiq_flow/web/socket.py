"""The WebSocket: one connection that watches several runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect

from taskiq_flow.errors import ConfigurationError, JournalError, RunNotFoundError
from taskiq_flow.previews import printable
from taskiq_flow.web.frames import ALL, Frame, encoded
from taskiq_flow.web.guard import MOST_BYTES
from taskiq_flow.web.messages import message_of
from taskiq_flow.web.streams import STUCK_SECONDS

MOST_WATCHED = 32
"""Runs that one connection watches."""

Watch = Callable[[str, str | None], AsyncGenerator[Frame | None, None]]
"""Given the id of a run, and the event that a client has seen last: the frames that follow."""

Cancel = Callable[[str], Awaitable[bool]]
"""Asks for the end of a run, and returns whether this was new."""

_TOO_LARGE, _GOING_AWAY = 1009, 1001


class Socket:
    """Serves one connection. A message of ours has one JSON object in each of its lines."""

    def __init__(self, websocket: WebSocket, frames: Watch, cancel: Cancel) -> None:
        self._websocket = websocket
        self._frames = frames
        self._request_cancel = cancel
        self._watched: dict[str, anyio.CancelScope] = {}
        self._lock = asyncio.Lock()

    async def serve(self) -> None:
        """Serve the connection until the client has closed it."""
        await self._websocket.accept()
        try:
            async with anyio.create_task_group() as tasks:
                await self._receive(tasks)
                tasks.cancel_scope.cancel()
        except* (WebSocketDisconnect, TimeoutError, OSError):
            pass  # the client is gone, or takes nothing

    async def _receive(self, tasks: TaskGroup) -> None:
        async for text in self._websocket.iter_text():
            if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
                await self._websocket.close(_TOO_LARGE)
                return
            try:
                message = _understood(json.loads(text))
            except (ValueError, RecursionError) as error:
                await self._answer({"op": "error", "message": str(error)})
                continue
            await self._obey(message, tasks)

    async def _obey(self, message: dict[str, Any], tasks: TaskGroup) -> None:
        match message["op"]:
            case "subscribe":
                await self._subscribe(message["run"], message.get("after"), tasks)
            case "unsubscribe":
                if (scope := self._watched.pop(message["run"], None)) is not None:
                    scope.cancel()
            case "cancel":
                await self._cancel(message["run"])

    async def _subscribe(self, run_id: str, after: object, tasks: TaskGroup) -> None:
        if run_id in self._watched:
            return
        if len(self._watched) >= MOST_WATCHED:
            text = f"{MOST_WATCHED} runs are watched; unsubscribe from one first"
            await self._answer({"op": "error", "run": run_id, "message": text})
            return
        scope = self._watched[run_id] = anyio.CancelScope()
        tasks.start_soon(self._watch, run_id, after, scope)

    async def _watch(self, run_id: str, after: object, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await self._send_frames(run_id, after)
                await self._answer({"op": "ended", "run": run_id})
            except (RunNotFoundError, JournalError) as error:
                await self._answer({"op": "error", "run": run_id, "message": message_of(error)})
        if self._watched.get(run_id) is scope:
            del self._watched[run_id]

    async def _send_frames(self, run_id: str, after: object) -> None:
        found = self._frames(run_id, None if after is None else str(after))
        async with aclosing(found) as frames:
            async for frame in frames:
                if frame is not None:
                    await self._send(frame.encoded("lines").decode())

    async def _cancel(self, run_id: str) -> None:
        try:
            is_asked = await self._request_cancel(run_id)
        except (RunNotFoundError, JournalError, ConfigurationError) as error:
            await self._answer({"op": "error", "run": run_id, "message": message_of(error)})
            return
        await self._answer({"op": "cancel", "run": run_id, "requested": is_asked})

    async def _answer(self, content: dict[str, Any]) -> None:
        await self._send(encoded(content) + "\n")

    async def _send(self, text: str) -> None:
        async with asyncio.timeout(STUCK_SECONDS), self._lock:
            await self._websocket.send_text(text)


def _understood(message: object) -> dict[str, Any]:
    """A message, also one of the older form ``{"type": ..., "pipeline_id": ...}``.

    Raises ``ValueError`` for others.
    """
    if not isinstance(message, dict):
        raise ValueError(  # noqa: TRY004 - what a client sends is data, whatever its type
            'a message is a JSON object such as {"op": "subscribe", "run": "r1"}'
        )
    operation = message.get("op", message.get("type"))
    if operation not in ("subscribe", "unsubscribe", "cancel"):
        raise ValueError(f"op is {operation!r}; give subscribe, unsubscribe or cancel")
    run_id = message.get("run", message.get("pipeline_id"))
    if not isinstance(run_id, str):
        raise ValueError(  # noqa: TRY004 - likewise
            f"run is {run_id!r}; give the id of a run, or {ALL!r} for the list"
        )
    if run_id != printable(run_id):
        raise ValueError("run is no Unicode text; give the id of a run")
    return {"op": operation, "run": run_id, "after": message.get("after")}
