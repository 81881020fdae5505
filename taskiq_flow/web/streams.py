"""Responses without an end: frames as they come, to clients that may be slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from taskiq_flow.web.frames import Form, Frame

STUCK_SECONDS = 10.0
"""A client that takes nothing for so long is disconnected."""

MEDIA_TYPES: dict[Form, str] = {"lines": "application/x-ndjson", "sse": "text/event-stream"}

_SIGN_OF_LIFE: dict[Form, bytes] = {"lines": b"\n", "sse": b":\n\n"}
_HEAD: dict[Form, bytes] = {"lines": b"", "sse": b"retry: 1000\n\n"}


class FrameResponse(Response):
    """Sends frames until there are no more, the client is gone, or it takes nothing."""

    def __init__(self, frames: AsyncGenerator[Frame | None, None], form: Form) -> None:
        self._frames = frames
        self._form = form
        self.status_code = 200
        self.background = None
        self.media_type = MEDIA_TYPES[form]
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        try:
            async with anyio.create_task_group() as tasks:

                async def watch() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    tasks.cancel_scope.cancel()

                tasks.start_soon(watch)
                await self._send_all(send)
                tasks.cancel_scope.cancel()
        except* TimeoutError:
            pass  # the client is stuck; the server closes a connection whose response has no end

    async def _send_all(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        async with aclosing(self._bodies()) as bodies, asyncio.timeout(None) as limit:
            async for body in bodies:
                limit.reschedule(clock() + STUCK_SECONDS)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                limit.reschedule(None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _bodies(self) -> AsyncGenerator[bytes, None]:
        yield _HEAD[self._form]
        async with aclosing(self._frames) as frames:
            async for frame in frames:
                yield _SIGN_OF_LIFE[self._form] if frame is None else frame.encoded(self._form)
