"""Starts nodes as they become ready. A slow send delays no other."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

SLICE = 48
"""Nodes that are started in a row before other callbacks of the event loop have their turn.

Each has a dozen objects until it ends. Together they are fewer than the 700 new ones for which the
garbage collector runs, so most often all of them are gone again before it looks.
"""

FIRST_SLICE = 4
"""Nodes that are started before others have their turn for the first time. Each further slice is
twice as long, up to ``SLICE``: so the first tasks begin while others are still sent."""

MOST_WAITING = 128
"""Sends that may wait for the broker at the same time."""


class UnderWay(NamedTuple):
    """A start that goes on by itself until ``future`` is done, which needs no asyncio task.

    ``end``: called with the future then. It may return what is left to be awaited.
    """

    future: asyncio.Future[Any]
    end: Callable[[asyncio.Future[Any]], Coroutine[Any, Any, None] | None]


RestOfStart = Coroutine[Any, Any, None] | UnderWay
"""The part of a node's start that takes time."""


class StartLoop:
    """Takes nodes from a ready set and starts them.

    ``pop``: gives the next node that may start, or ``None``. ``start``: starts a node. It may
    return a coroutine, which an asyncio task of its own awaits. ``fail``: called with what these
    raise. ``advance``: called to start more in a later turn of the event loop. It calls ``wake``,
    and has the reader read what was delivered meanwhile.
    """

    def __init__(
        self,
        pop: Callable[[], Any],
        start: Callable[[Any], RestOfStart | None],
        fail: Callable[[BaseException], None],
        advance: Callable[[], None],
    ) -> None:
        self._pop = pop
        self._start = start
        self._fail = fail
        self._advance = advance
        self._loop = asyncio.get_running_loop()
        # A node is often started from within the task of another, whose context is not its own.
        self._context = contextvars.copy_context()
        self._slice = FIRST_SLICE
        self._is_idle = True  # nothing is being started, or will be in the loop's next turn
        self._continuation: asyncio.Handle | None = None
        self._stopped = False
        self.tasks: set[asyncio.Future[Any]] = set()

    def wake(self) -> None:
        """Start what is ready. Does nothing while that goes on already, further up the stack."""
        if self._is_idle:
            self._context.run(self._start_slice)

    def stop(self) -> None:
        """Start nothing more. Sends that wait for the broker are cancelled."""
        self._stopped, self._is_idle = True, False
        if self._continuation is not None:
            self._continuation.cancel()
        for task in self.tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def finish(self, rest: RestOfStart) -> None:
        """See to the rest of a node's start."""
        if isinstance(rest, UnderWay):
            future = rest.future
            future.add_done_callback(partial(self._went, rest.end))
            self.tasks.add(future)
            return
        task = self._loop.create_task(rest)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _start_slice(self) -> None:
        if len(self.tasks) >= MOST_WAITING:
            return
        self._is_idle = False
        try:
            for _ in range(self._slice):
                if self._stopped or (node := self._pop()) is None:
                    break
                rest = self._start(node)
                if rest is not None:
                    self.finish(rest)
                    if len(self.tasks) >= MOST_WAITING:
                        break
            else:
                self._slice = min(2 * self._slice, SLICE)
                self._continuation = self._loop.call_soon(self._continue)
        except BaseException as error:  # of the user's code too, an order to stop say
            self._fail(error)
            raise
        finally:
            self._is_idle = self._continuation is None and not self._stopped

    def _continue(self) -> None:
        self._continuation, self._is_idle = None, True
        self._advance()

    def _went(
        self,
        end: Callable[[asyncio.Future[Any]], Coroutine[Any, Any, None] | None],
        future: asyncio.Future[Any],
    ) -> None:
        was_full = len(self.tasks) >= MOST_WAITING
        self.tasks.discard(future)
        try:
            rest = end(future)
        except BaseException as error:  # a bug of ours must end the run; otherwise it would hang
            self._fail(error)
            raise
        if rest is not None:
            self.finish(rest)
        if was_full:
            self._advance()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)
        self._advance()
