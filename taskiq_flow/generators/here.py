"""The items of a generator that runs in the process of its engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Generator
from typing import Any, Protocol

from taskiq_flow.generators.driver import drive, drive_in_thread
from taskiq_flow.generators.grant import Grant
from taskiq_flow.values.isolation import Take


class Takes(Protocol):
    """Who takes the items: a node in flight."""

    def items(self, task_id: str, first: int, items: list[Any], digest: bytes) -> None:
        """Items have been made."""


class SinkHere:
    """Passes each item on at once, as a ``Sink``.

    ``take``: makes of an item one that its generator does not change any more.
    """

    def __init__(self, task_id: str, takes: Takes, grant: Grant, take: Take) -> None:
        self._loop = asyncio.get_running_loop()
        self.grant = grant
        self.taken = take
        self._task_id = task_id
        self._takes = takes
        self._room: asyncio.Future[None] | None = None
        self._is_closed = False

    async def drive(self, items: AsyncGenerator[Any, Any]) -> int:
        """Pass on the items of an async generator. Returns how many there are."""
        return await drive(items, self)

    def drive_in_thread(self, items: Generator[Any, Any, Any]) -> int:
        """Pass on the items of a generator that runs in the thread of the caller."""
        return drive_in_thread(items, self, self._loop)

    def push(self, index: int, item: Any, digest: bytes) -> None:
        """Pass one item on."""
        if not self._is_closed:
            self._takes.items(self._task_id, index, [item], digest)

    async def room(self, count: int) -> None:
        """Wait until more than ``count`` items may be made."""
        while count >= self.grant.may or self._is_closed:
            if self._is_closed:
                raise asyncio.CancelledError
            if self._room is None:
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)

    async def finish(self, count: int) -> None:
        """All items were taken as they were passed on."""

    def grant_more(self, grant: Grant) -> None:
        """The engine has taken items, or has room for more."""
        self.grant = grant
        self._wake()

    def close(self) -> None:
        """Nobody takes any more items: the generator is closed at its next one."""
        self._is_closed = True
        self.grant = Grant(self.grant.have, self.grant.digest, -math.inf)
        self._wake()

    def _wake(self) -> None:
        if self._room is not None:
            self._room.set_result(None)
            self._room = None
