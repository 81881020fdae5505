"""One subscription to a channel of a Redis server, on a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from taskiq_flow.transport.redis_replies import Replies

SILENCE = 10.0
"""Seconds of silence after which the server is asked for a sign of life, and later given up."""


class Subscription:
    """Listens to a channel until its connection breaks. ``hear``: called with each message.

    ``connection``: of the client, not connected yet.
    """

    def __init__(self, connection: Any, channel: str, hear: Callable[[bytes], None]) -> None:
        self._connection = connection
        self._channel = channel
        self._hear = hear
        self._replies: Replies | None = None
        self._is_silent = True
        loop = asyncio.get_running_loop()
        self._confirmed: asyncio.Future[None] = loop.create_future()
        self._broken: asyncio.Future[Exception] = loop.create_future()

    async def open(self) -> None:
        """Connect and subscribe. Raises the client's error."""
        await self._connection.connect()
        self._replies = Replies(self._connection, self._take, self._break)
        self._ask()
        either: list[asyncio.Future[Any]] = [self._confirmed, self._broken]
        await asyncio.wait(either, timeout=SILENCE, return_when=asyncio.FIRST_COMPLETED)
        if self._broken.done():
            raise self._broken.result()
        if not self._confirmed.done():
            raise RedisConnectionError("the subscription was not confirmed")

    async def listen(self) -> None:
        """Hear the messages, and raise the error when the connection breaks.

        If no message comes, the server has to confirm the subscription again.
        """
        was_silent = False
        while True:
            self._is_silent = True
            await asyncio.wait([self._broken], timeout=SILENCE)
            if self._broken.done():
                raise self._broken.result()
            if self._is_silent and was_silent:
                raise RedisConnectionError(f"no word from the server for {2 * SILENCE:g} s")
            if self._is_silent:
                self._ask()
            was_silent = self._is_silent

    async def aclose(self) -> None:
        """Close the connection."""
        if self._replies is None:
            await self._connection.disconnect(nowait=True)
        else:
            self._replies.close()

    def _ask(self) -> None:
        if self._replies is not None:
            self._replies.write(b"".join(self._connection.pack_command("SUBSCRIBE", self._channel)))

    def _take(self, reply: Any) -> None:
        self._is_silent = False
        if isinstance(reply, Exception):
            self._break(reply)
        elif reply[0] in _MESSAGE:
            self._hear(reply[2])
        elif not self._confirmed.done():
            self._confirmed.set_result(None)

    def _break(self, error: Exception) -> None:
        if not self._broken.done():
            self._broken.set_result(error)


_MESSAGE = (b"message", "message")
"""How a message on a channel begins; a string where the client decodes."""
