"""Commands of many tasks to a Redis server in few round trips."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from taskiq_flow.transport.redis_connection import OwnConnection

MOST_BYTES = 1024 * 1024
"""Bytes of values in one batch. A command with more is sent alone, by the client."""


class _Command(NamedTuple):
    """A command that is sent or will be. ``size``: bytes of its values."""

    name: str
    data: bytes
    size: int
    answer: asyncio.Future[Any]


class Batches:
    """Executes commands on one connection. Those that come meanwhile are sent together next.

    A round trip for each command costs more than the rest of what is done for a task. ``client``:
    of a single server, not of a cluster.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection = OwnConnection(client)
        self._waiting: deque[_Command] = deque()
        self._sent: Sequence[_Command] = ()  # and not answered

    async def execute(self, *command: Any, size: int) -> Any:
        """The server's answer. Raises what the client raises. ``size``: bytes of its values."""
        if size > MOST_BYTES:
            return await self._client.execute_command(*command)
        return await self.submit(*command, size=size)

    def submit(self, *command: Any, size: int) -> asyncio.Future[Any]:
        """Send a command, at once if none is on its way. The future has the server's answer.

        A command whose future is cancelled before that is not sent. ``size``: bytes of its values,
        ``MOST_BYTES`` at the most. Raises the client's ``DataError`` for what cannot be sent.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # that of the connection has ended, if there was one
            self._loop, self._connection = loop, OwnConnection(self._client)
            self._waiting, self._sent = deque(), ()
        answer: asyncio.Future[Any] = loop.create_future()
        sent = _Command(command[0], self._connection.packed(command), size, answer)
        if self._sent:
            self._waiting.append(sent)
        else:
            self._sent = (sent,)
            self._connection.send((sent.name,), sent.data, self._answered)
        return answer

    async def aclose(self) -> None:
        """Close the connection. It is made anew if a command follows.

        What is not answered fails, sent or not. The connection of an event loop that has ended can
        only be let go of.
        """
        if self._loop is asyncio.get_running_loop():
            self._sent = (*self._sent, *self._waiting)  # else they would open it once more
            self._waiting.clear()
            await self._connection.aclose()
        else:
            self._loop, self._connection = None, OwnConnection(self._client)

    def _answered(self, answers: list[Any] | Exception) -> None:
        """Hand over the answers, and send what has come meanwhile."""
        sent, self._sent = self._sent, ()
        if isinstance(answers, Exception):  # of the connection, and so of all commands
            answers = [answers] * len(sent)
        for command, answer in zip(sent, answers, strict=True):
            if command.answer.done():  # its caller was cancelled
                continue
            if isinstance(answer, Exception):
                command.answer.set_exception(answer)
                command.answer.exception()  # counts as seen, also if its caller is cancelled now
            else:
                command.answer.set_result(answer)
        if self._waiting and (batch := self._next_batch()):
            self._sent = batch
            data = b"".join([command.data for command in batch])
            self._connection.send([command.name for command in batch], data, self._answered)

    def _next_batch(self) -> list[_Command]:
        """The next commands that are sent together, without those whose callers were cancelled."""
        batch: list[_Command] = []
        bytes_left = MOST_BYTES
        while self._waiting and self._waiting[0].size <= bytes_left:
            command = self._waiting.popleft()
            if not command.answer.done():
                batch.append(command)
                bytes_left -= command.size
        return batch
