"""Sending as I/O: a slow send holds back no other, and costs nothing where none is slow.

One sender takes ready nodes and sends them in a row. When it gets stuck in a send, another takes
over, and the first one ends with its send. So there are as many tasks as sends that wait, and a
broker that never makes anybody wait is served by one.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Generic

from taskiq_flow.dataflow.ready_set import N, ReadySet

SLICE = 64
"""Sends in a row before the tasks that were sent, and the reader, have their turn."""

MOST_SENDERS = 128
"""Sends that may wait for the broker at the same time."""


class Senders(Generic[N]):
    """Sends the nodes that a ready set gives, with ``send``, which may not raise."""

    def __init__(self, ready: ReadySet[N], send: Callable[[N], Awaitable[None]]) -> None:
        self._ready = ready
        self._send = send
        self._loop = asyncio.get_running_loop()
        # Senders are woken from within tasks that have ended, whose context is not theirs to send.
        self._context = contextvars.copy_context()
        self._taker: asyncio.Task[None] | None = None
        self._taker_is_stuck = False
        self._idle: asyncio.Future[None] | None = None  # what the taker waits for, without work
        self._stopped = False
        self.tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """See to it that somebody sends what is ready."""
        if self._idle is not None:
            if self._ready.may_start and not self._idle.done():
                self._idle.set_result(None)
        elif self._taker is None or self._taker_is_stuck:
            self._replace_taker()

    def stop(self) -> None:
        """Send nothing more; sends that wait for the broker are cancelled."""
        self._stopped = True
        for task in self.tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def _replace_taker(self) -> None:
        if self._ready.may_start and len(self.tasks) < MOST_SENDERS and not self._stopped:
            self._taker_is_stuck = False
            self._taker = self._loop.create_task(self._take(), context=self._context.copy())
            self.tasks.add(self._taker)

    async def _take(self) -> None:
        me = asyncio.current_task()
        try:
            while await self._send_slice(me):
                if self._ready.may_start:
                    await asyncio.sleep(0)
                else:
                    await self._wait_for_work()
        finally:
            self.tasks.discard(me)
            if self._taker is me:
                self._taker = None
            self.wake()

    async def _wait_for_work(self) -> None:
        self._idle = self._loop.create_future()
        try:
            await self._idle
        finally:
            self._idle = None

    async def _send_slice(self, me: asyncio.Task[None] | None) -> bool:
        """Send some nodes in a row. Returns whether this sender is to go on taking."""
        watched = False
        for _ in range(SLICE):
            node = None if self._stopped else self._ready.pop()
            if node is None:
                break
            if not watched and self._ready.may_start:
                self._loop.call_soon(self.wake)  # comes to pass once this sender waits
                watched = True
            self._taker_is_stuck = True
            await self._send(node)
            if self._taker is not me:
                return False
            self._taker_is_stuck = False
        return not self._stopped
