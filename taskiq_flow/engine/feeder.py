"""Reading a source of nodes while a run goes on, no faster than there is room for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Generic, TypeVar

from aiostream import streamcontext

N = TypeVar("N")


class Feeder(Generic[N]):
    """Feeds a run. ``take``: takes in a node; ``ended``: called once, behind the last one.

    While ``unfinished`` gives ``window`` nodes or more, the source is not read; ``None`` for no
    such bound. What the source raises is given to ``fail``, as it is.
    """

    def __init__(
        self,
        source: AsyncIterable[N],
        window: int | None,
        *,
        take: Callable[[N], None],
        unfinished: Callable[[], int],
        ended: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._source = source
        self._window = window
        self._take = take
        self._unfinished = unfinished
        self._ended = ended
        self._fail = fail
        self._room: asyncio.Future[None] | None = None
        self.is_feeding = True
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to read."""
        self.tasks.append(asyncio.get_running_loop().create_task(self._feed()))

    def make_room(self) -> None:
        """Look again whether there is room."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def stop(self) -> None:
        """Read nothing more."""
        self.is_feeding = False
        for task in self.tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def _feed(self) -> None:
        try:
            async with streamcontext(self._source) as nodes:
                async for node in nodes:
                    self._take(node)
                    while self._window and self._unfinished() >= self._window:
                        self._room = asyncio.get_running_loop().create_future()
                        await self._room
        except BaseException as error:  # the source's own, which the reader gets as it is
            self._fail(error)
            raise
        self.is_feeding = False
        self._ended()
