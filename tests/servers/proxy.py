"""A TCP proxy between a client and a server, with the faults of a network."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from tests.servers.process import free_port

CHUNK = 65536


class Proxy:
    """Passes on what is sent to its port and what is answered, until it is told otherwise."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = free_port()
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._one_sided: set[asyncio.Task[None]] = set()
        self._dropping = False
        self._delay = 0.0
        self.has_dropped = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        await self.cut()

    def drop(self) -> None:
        """Swallow from now on what is sent; the connections stay open."""
        self._dropping = True

    def delay(self, seconds: float) -> None:
        """Pass on each chunk only after a time."""
        self._delay = seconds

    async def cut(self) -> None:
        """Close all connections; new ones are welcome."""
        connections = dict(self._connections)
        for connection, client in connections.items():
            connection.cancel()
            client.transport.abort()
        await asyncio.gather(*connections, return_exceptions=True)

    def lose_clients(self) -> None:
        """Close the clients' sides of all connections. The server's sides stay open."""
        self._one_sided |= self._connections.keys()
        for client in self._connections.values():
            client.transport.abort()

    def refuse(self) -> None:
        """Take no new connections; those there are stay open."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def heal(self) -> None:
        """Take connections and pass on all that is sent, at once."""
        self._dropping = False
        self._delay = 0.0
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.ensure_future(self._serve(reader, writer))
        self._connections[connection] = writer
        connection.add_done_callback(self._connections.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on both ways until one side closes."""
        with contextlib.suppress(OSError), contextlib.closing(writer.transport):
            server_reader, server_writer = await asyncio.open_connection(
                "127.0.0.1",
                self.target_port,
            )
            with contextlib.closing(server_writer.transport):
                ways = [
                    asyncio.ensure_future(self._pass_on(reader, server_writer)),
                    asyncio.ensure_future(self._pass_on(server_reader, writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                    if asyncio.current_task() in self._one_sided:
                        await asyncio.Event().wait()
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK):
            if self._dropping:
                self.has_dropped.set()
                continue
            await asyncio.sleep(self._delay)
            writer.write(chunk)
            await writer.drain()
