"""Sending is I/O: a slow send holds back no other, and costs nothing where none is slow."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, Generic

from taskiq_flow.dataflow.ready_set import N, ReadySet

SLICE = 64
"""Nodes that are started in a row before the event loop has its turn."""

MOST_WAITING = 128
"""Sends that may wait for the broker at the same time."""


class Senders(Generic[N]):
    """Starts the nodes that a ready set gives.

    ``start`` returns what is left to be awaited of a node's start, if anything is, and that is
    awaited by an asyncio task of its own. ``fail``: told what either has raised, which is a fault
    in this package.
    """

    def __init__(
        self,
        ready: ReadySet[N],
        start: Callable[[N], Coroutine[Any, Any, None] | None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._ready = ready
        self._start = start
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        # A node is often started from within the task of another, whose context is not its own.
        self._context = contextvars.copy_context()
        self._is_starting = False
        self._continuation: asyncio.Handle | None = None
        self._stopped = False
        self.tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Start what is ready, unless that is going on: a start may make further nodes ready."""
        if not self._is_starting and self._continuation is None and not self._stopped:
            self._context.run(self._start_slice)

    def stop(self) -> None:
        """Start nothing more. Sends that wait for the broker are cancelled."""
        self._stopped = True
        if self._continuation is not None:
            self._continuation.cancel()
        for task in self.tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def _start_slice(self) -> None:
        self._is_starting = True
        try:
            for _ in range(SLICE):
                if len(self.tasks) == MOST_WAITING or self._stopped:
                    return
                node = self._ready.pop()
                if node is None:
                    return
                waiting = self._start(node)
                if waiting is not None:
                    self._await(waiting)
            self._continuation = self._loop.call_soon(self._continue)
        except BaseException as error:  # of the user's code too, an order to stop say
            self._fail(error)
            raise
        finally:
            self._is_starting = False

    def _continue(self) -> None:
        self._continuation = None
        self._start_slice()

    def _await(self, waiting: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(waiting)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)
        self.wake()
