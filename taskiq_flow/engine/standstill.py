"""Notices that nothing moves though tasks were sent: others hold the places that they need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

STANDSTILL = 5.0
"""Seconds in which nothing moves."""


class Standstill:
    """Looks after the tasks of one run that were sent to workers and have not begun.

    ``end``: called when some have not, and nothing has moved for ``STANDSTILL`` seconds. Returns
    whether somebody still waits.
    """

    def __init__(self, end: Callable[[], bool]) -> None:
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._not_begun: set[Hashable] = set()
        self._moves = 0
        self._timer: asyncio.TimerHandle | None = None

    def sent(self, task: Hashable) -> None:
        """A task is sent."""
        self._not_begun.add(task)

    def begun(self, task: Hashable) -> None:
        """A worker has begun a task. It says so with each heartbeat."""
        if task in self._not_begun:
            self.moved(task)

    def moved(self, task: Hashable) -> None:
        """A task has begun, has given something, or has ended."""
        self._moves += 1
        self._not_begun.discard(task)

    def watch(self) -> None:
        """Somebody begins to wait in a place of a worker."""
        if self._timer is None:
            self._timer = self._loop.call_later(STANDSTILL, self._look, self._moves)

    def stop(self) -> None:
        """The run is over."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, moves: int) -> None:
        self._timer = None
        stands_still = bool(self._not_begun) and moves == self._moves
        if not stands_still or self._end():
            self.watch()
