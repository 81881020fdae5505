"""One connection to a Redis server, beside those of its client's pool."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from taskiq_flow.transport.redis_errors import is_demoted
from taskiq_flow.transport.redis_replies import PushNotification, Replies, pack_command

Client = Redis | RedisCluster

Command = tuple[Any, ...]
"""A command's name and its arguments."""

Answered = Callable[[list[Any] | Exception], None]
"""Takes the answers of commands, or the error of all of them."""

_CLIENTS_TIMEOUT: float | None = (
    signature(AbstractConnection.__init__).parameters["socket_timeout"].default
)


def patience_of(client: Any) -> float:
    """Seconds after which a client gives up on an answer."""
    if isinstance(client, RedisCluster):
        settings = client.connection_kwargs
    else:
        settings = client.connection_pool.connection_kwargs
    seconds: float | None = settings.get("socket_timeout", _CLIENTS_TIMEOUT)
    return math.inf if seconds is None else seconds


class OwnConnection:
    """Executes commands on one connection, which is made when it is first needed.

    Taking a connection from a pool and giving it back costs more than a short command does.
    ``client``: of a single server, or behind sentinels. One caller may use it at a time.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._patience = patience_of(client)
        self._connection: Any = None
        self._replies: Replies | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._names: Sequence[str] = ()
        self._answers: list[Any] = []
        self._answered: Answered | None = None
        self._is_demoted = False  # the server said that it may not be written to
        self._sent_at = 0.0
        self._healthy_until = math.inf  # or so long behind an answer as the client's settings say
        self._timer: asyncio.TimerHandle | None = None

    async def execute_command(self, *command: Any) -> Any:
        """The server's answer. Raises what the client raises."""
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def answered(answers: list[Any] | Exception) -> None:
            if not outcome.done():  # else the caller was cancelled
                outcome.set_result(answers[0] if isinstance(answers, list) else answers)

        self.send([command[0]], self.packed(command), answered)
        try:
            answer = await outcome
        except asyncio.CancelledError:
            self.close()  # the answer, which may come yet, must not be taken for the next one
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def packed(self, command: Command) -> bytes:
        """The bytes of a command. Raises the client's ``DataError`` for what cannot be sent.

        hiredis makes them: the client's own way takes ten times as long. hiredis knows one encoding
        and not all that the client takes for bytes.
        """
        connection = self._connection or self._make()
        if connection.encoder.encoding == "utf-8":
            with contextlib.suppress(TypeError):
                return pack_command(command)
        return b"".join(connection.pack_command(*command))

    def send(self, names: Sequence[str], data: bytes, answered: Answered) -> None:
        """Send packed commands, at once where the connection is up.

        ``names``: theirs. ``answered``: called once, with the server's answers. A refused command's
        error stands in its place. It is called with an error alone if the server is away or says
        nothing.
        """
        loop = asyncio.get_running_loop()
        self._sent_at = now = loop.time()
        self._names, self._answers, self._answered = names, [], answered
        if self._timer is None and self._patience != math.inf:
            self._timer = loop.call_later(self._patience, self._look_at_time)
        if now > self._healthy_until:  # it may be dead, a new one is not
            self._disconnect()
            self._healthy_until = math.inf
        if self._replies is None:
            connection = self._connection or self._make()
            self._connecting = loop.create_task(self._connect(connection, data))
        else:
            self._replies.write(data)

    async def aclose(self) -> None:
        """Close the connection. It is made anew if a command follows."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        connecting = self._connecting
        self.close()
        if connecting is not None:
            await asyncio.wait([connecting])

    def close(self, error: Exception | None = None) -> None:
        """Close the connection. What is not answered yet fails with the error."""
        self._disconnect()
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(error or RedisConnectionError("the connection to the server was closed"))

    def _make(self) -> Any:
        """A connection of the client, which has not connected yet."""
        pool = self._client.connection_pool
        # One deadline for the whole round trip takes the place of the client's for each part.
        settings = {**pool.connection_kwargs, "socket_timeout": None}
        self._connection = pool.connection_class(**settings)
        return self._connection

    async def _connect(self, connection: Any, data: bytes) -> None:
        try:
            await connection.connect()
        except Exception as error:  # whatever the client raises
            if self._connection is connection:
                self._connecting = None
                self.close(error)
        else:
            if self._connection is connection:
                self._connecting = None
                self._replies = Replies(connection, self._hear, self.close)
                self._replies.write(data)
        finally:
            if self._connection is not connection:  # it was given up
                await connection.disconnect(nowait=True)

    def _disconnect(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = self._connection = None
        if self._replies is not None:
            self._replies.close()
            self._replies = None

    def _hear(self, reply: Any) -> None:
        """Handle an answer as ``parse_response`` of the client does."""
        if type(reply) is PushNotification:  # it is none
            return
        answered, answers, names = self._answered, self._answers, self._names
        if answered is None:
            self.close()  # nobody has asked
            return
        if isinstance(reply, Exception):
            self._is_demoted |= is_demoted(reply)
        else:
            convert = self._client.response_callbacks.get(names[len(answers)])
            if convert is not None:
                reply = convert(reply)
        answers.append(reply)
        if len(answers) == len(names):
            if self._connection.health_check_interval:
                now = asyncio.get_running_loop().time()
                self._healthy_until = now + self._connection.health_check_interval
            if self._is_demoted:
                self._is_demoted = False
                self._disconnect()
            self._answered = None
            answered(answers)

    def _look_at_time(self) -> None:
        """Give up on an answer that has not come in time."""
        self._timer = None
        if self._answered is None:
            return
        loop = asyncio.get_running_loop()
        left = self._sent_at + self._patience - loop.time()
        if left > 0:
            self._timer = loop.call_later(left, self._look_at_time)
        else:
            text = f"the server has not answered within {self._patience:g} s"
            self.close(RedisTimeoutError(text))
