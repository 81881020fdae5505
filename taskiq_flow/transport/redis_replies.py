"""What a Redis server says on one connection, read as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

try:
    import hiredis
except ImportError as error:  # which Redis's client can do without
    raise ImportError(
        "hiredis is not installed, with which the answers of Redis are read; install "
        "taskiq-flow[redis], or redis[hiredis]"
    ) from error
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

PushNotification: type = hiredis.PushNotification
"""What the server says unasked, where its protocol tells that from an answer."""

pack_command: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
"""Makes the bytes of a command. Raises ``TypeError`` for an argument that it does not know."""

_NOTHING_YET = object()


class Replies(asyncio.Protocol):
    """Reads a connection of the client in the client's place, once that has connected.

    The client reads from a stream, which wakes its reader in a later turn of the event loop, and
    sets a deadline for each reply. Here, ``hear`` is called with each reply as soon as its
    bytes are there. ``lost``: called once, with the error, if the connection is gone
    before ``close``.
    """

    def __init__(
        self,
        connection: Any,
        hear: Callable[[Any], None],
        lost: Callable[[Exception], None],
    ) -> None:
        self._connection = connection
        self._hear = hear
        self._lost = lost
        self._is_closed = False
        encoder = connection.encoder
        decoding: dict[str, Any] = {}
        if encoder.decode_responses:
            decoding = {"encoding": encoder.encoding, "errors": encoder.encoding_errors}
        self._reader: Any = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,  # noqa: SLF001 - it has no public name
            notEnoughData=_NOTHING_YET,
            **decoding,
        )
        transport = connection._writer.transport  # noqa: SLF001 - likewise
        transport.set_protocol(self)
        self.write: Callable[[bytes], None] = transport.write

    def data_received(self, data: bytes) -> None:
        """Hand over the replies that are complete."""
        reader = self._reader
        try:
            reader.feed(data)
            while not self._is_closed and (reply := reader.gets()) is not _NOTHING_YET:
                self._hear(reply)
        except (InvalidResponse, UnicodeDecodeError) as error:
            self._give_up(error)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell that nothing more will be heard."""
        reason = "it was closed by the server" if error is None else str(error)
        self._give_up(RedisConnectionError(f"the connection to the server is lost: {reason}"))

    def _give_up(self, error: Exception) -> None:
        if not self._is_closed:
            self.close()
            self._lost(error)

    def close(self) -> None:
        """Close the connection. The client's object can connect again."""
        self._is_closed = True
        self._connection._close()  # noqa: SLF001 - the public way waits, as an asyncio task
