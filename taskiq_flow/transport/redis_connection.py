"""One connection to a Redis server, beside those of its client's pool.

With ``redis.py`` and ``redis_broker.py``, one of the files that know Redis's client.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from inspect import signature
from typing import Any

from redis.asyncio import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

try:
    from hiredis import pack_command
except ImportError:  # the client does without it as well
    pack_command = None  # type: ignore[assignment]

Command = tuple[Any, ...]
"""A command's name and its arguments."""

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
        self._connection: AbstractConnection | None = None

    async def execute_command(self, *command: Any) -> Any:
        """The server's answer. Raises what the client raises."""
        (answer,) = await self.execute([command])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """The server's answers, in one round trip. A refused command's error stands in its place.

        Raises what the client raises if the server is away or says nothing.
        """
        pool = self._client.connection_pool
        if self._connection is None:
            # One deadline for the whole round trip takes the place of the client's for each part.
            settings = {**pool.connection_kwargs, "socket_timeout": None}
            self._connection = pool.connection_class(**settings)
        connection: Any = self._connection
        try:
            async with asyncio.timeout(None if self._patience == math.inf else self._patience):
                if connection.is_connected and await connection.can_read():
                    await connection.disconnect(nowait=True)  # the server has closed it
                if not connection.is_connected:  # asking takes less than connecting once more
                    await connection.connect()
                await connection.send_packed_command(_packed(connection, commands))
                return [await self._answer(connection, command[0]) for command in commands]
        except TimeoutError:
            raise RedisTimeoutError(
                f"the server has not answered within {self._patience:g} s"
            ) from None

    async def _answer(self, connection: AbstractConnection, name: str) -> Any:
        """What ``parse_response`` of the client returns, which asks about options on its way."""
        try:
            answer = await connection.read_response()
        except ResponseError as error:
            return error
        convert = self._client.response_callbacks.get(name)
        return answer if convert is None else convert(answer)

    async def aclose(self) -> None:
        """Close the connection. It is made anew if a command follows."""
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)


def _packed(connection: Any, commands: Sequence[Command]) -> list[bytes]:
    """The bytes of commands, made by hiredis: the client's own way takes ten times as long.

    hiredis knows one encoding and not all that the client takes for bytes.
    """
    if pack_command is not None and connection.encoder.encoding == "utf-8":
        with contextlib.suppress(TypeError):
            return [pack_command(command) for command in commands]
    packed: list[bytes] = connection.pack_commands(commands)
    return packed
