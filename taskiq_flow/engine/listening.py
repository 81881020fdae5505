"""MakeEvent listeners what a run does, without waiting for them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from taskiq.utils import maybe_awaitable

from taskiq_flow.cleanup import until_ended
from taskiq_flow.events import Event, Listener

logger = logging.getLogger("taskiq_flow")

LISTENER_GRACE = 5.0
"""Seconds that a listener is given, after the run, for each event that it has not taken yet."""

MakeEvent = Callable[[], Event]
"""Makes an event at the moment in which it is told."""


class Listeners:
    """The listeners of one run. Each is told every event in order, at its own pace."""

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._channels: list[MemoryObjectSendStream[MakeEvent]] = []
        self._tasks: list[asyncio.Task[None]] = []
        for listener in listeners:
            send, receive = anyio.create_memory_object_stream[MakeEvent](math.inf)
            self._channels.append(send)
            self._tasks.append(asyncio.get_running_loop().create_task(_tell(listener, receive)))

    def __bool__(self) -> bool:
        return bool(self._channels)

    def tell(self, make_event: MakeEvent) -> None:
        """Have every listener told."""
        for channel in self._channels:
            if channel.statistics().open_receive_streams:  # none: the listener was dropped
                channel.send_nowait(make_event)

    async def aclose(self) -> None:
        """Let the listeners catch up, each as long as it takes events."""
        for channel in self._channels:
            channel.close()
        await asyncio.gather(*map(_catch_up, self._tasks, self._channels))


async def _catch_up(task: asyncio.Task[None], channel: MemoryObjectSendStream[MakeEvent]) -> None:
    """Wait for a listener that takes its events; drop one that is stuck in one of them."""
    left = math.inf
    while not task.done() and (now_left := channel.statistics().current_buffer_used) < left:
        left = now_left
        await asyncio.wait([task], timeout=LISTENER_GRACE)
    if not task.done():
        logger.warning("a listener took more than %g s for an event; dropped", LISTENER_GRACE)
        task.cancel()
        await until_ended([task], LISTENER_GRACE)


async def _tell(listener: Listener, events: MemoryObjectReceiveStream[MakeEvent]) -> None:
    with events:
        async for make_event in events:
            try:
                await maybe_awaitable(listener.on_event(make_event()))
            except Exception:  # whatever it raises is its own affair
                logger.exception("listener %r raised; it is dropped for this run", listener)
                return
