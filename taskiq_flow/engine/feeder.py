"""Reading an async source while a run goes on, no faster than there is room for its values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Any

from aiostream import streamcontext


class Feeder:
    """Reads one source. ``take``: takes in a value; ``ended``: called once, after the last one.

    The source is read only while ``has_room`` says so. What it raises is given to ``fail``, as it
    is.
    """

    def __init__(
        self,
        source: AsyncIterable[Any],
        *,
        take: Callable[[Any], None],
        has_room: Callable[[], bool],
        ended: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._source = source
        self._take = take
        self._has_room = has_room
        self._ended = ended
        self._fail = fail
        self._room: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Begin to read."""
        self.task = asyncio.get_running_loop().create_task(self._feed())

    def make_room(self) -> None:
        """Look again whether there is room."""
        if self._room is not None and not self._room.done() and self._has_room():
            self._room.set_result(None)

    def stop(self) -> None:
        """Read nothing more. The value that is taken at this moment may be what ends the run."""
        self._is_stopped = True
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    async def _feed(self) -> None:
        try:
            async with streamcontext(self._source) as values:
                async for value in values:
                    self._take(value)
                    if self._is_stopped:
                        return
                    while not self._has_room():
                        self._room = asyncio.get_running_loop().create_future()
                        await self._room
        except BaseException as error:  # the source's own, which the reader gets as it is
            self._fail(error)
            raise
        self._ended()
