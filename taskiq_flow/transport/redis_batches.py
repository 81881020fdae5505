"""Sends the commands of many asyncio tasks to one Redis server in few round trips."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple

from taskiq_flow.transport.redis_connection import Command, OwnConnection

MOST_BYTES = 1024 * 1024
"""Bytes of values in one batch. A command with more is sent alone, by the client."""


class _Waiting(NamedTuple):
    """A command that waits to be sent. ``size``: bytes of its values."""

    command: Command
    size: int
    answer: asyncio.Future[Any]


class Batches:
    """Executes commands on one connection. Those that come meanwhile are sent together next.

    A round trip for each command costs more than the rest of what is done for a task. ``client``:
    of a single server, not of a cluster.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._connection = OwnConnection(client)
        self._waiting: deque[_Waiting] = deque()
        self._is_busy = False
        self._sending: asyncio.Task[None] | None = None

    async def execute(self, *command: Any, size: int) -> Any:
        """The server's answer. Raises what the client raises. ``size``: bytes of its values."""
        if size > MOST_BYTES:
            return await self._client.execute_command(*command)
        loop = asyncio.get_running_loop()
        if self._is_busy:
            waiting = _Waiting(command, size, loop.create_future())
            self._waiting.append(waiting)
            return await waiting.answer
        self._is_busy = True
        try:
            return await self._connection.execute_command(*command)
        finally:
            if self._waiting:
                self._sending = loop.create_task(self._send_waiting())
            else:
                self._is_busy = False

    async def aclose(self) -> None:
        """Close the connection. It is made anew if a command follows."""
        await self._connection.aclose()

    async def _send_waiting(self) -> None:
        try:
            while batch := self._next_batch():
                await self._send(batch)
        finally:
            self._is_busy = False
            for waiting in self._waiting:  # there are some only if this task was cancelled
                waiting.answer.cancel()
            self._waiting.clear()

    def _next_batch(self) -> list[_Waiting]:
        """The next commands that are sent together, without those whose callers were cancelled."""
        batch: list[_Waiting] = []
        bytes_left = MOST_BYTES
        while self._waiting and self._waiting[0].size <= bytes_left:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
                bytes_left -= waiting.size
        return batch

    async def _send(self, batch: list[_Waiting]) -> None:
        answers: list[Any]
        try:
            answers = await self._connection.execute([waiting.command for waiting in batch])
        except Exception as error:  # of the connection, and so of all commands
            answers = [error] * len(batch)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answer.cancel()
            raise
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():  # its caller was cancelled
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
                waiting.answer.exception()  # counts as seen, also if its caller is cancelled now
            else:
                waiting.answer.set_result(answer)
