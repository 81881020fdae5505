"""What the tests of the web have: served applications, runs of an example, streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from taskiq import InMemoryBroker
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from taskiq_flow import ExecutionEngine, Journal, RunReader
from taskiq_flow.web.server import serve_async
from tests.journal.nightly import graph
from tests.waiting import LONGEST, until

Content = dict[str, Any]


@dataclass
class Site:
    """A served application. ``base``: its address."""

    base: str
    client: httpx2.AsyncClient

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.base.removeprefix("http://").split(":")
        return host, int(port)

    async def get(self, path: str, **options: Any) -> httpx2.Response:
        return await self.client.get(path, **options)

    async def json(self, path: str, **options: Any) -> Any:
        response = await self.client.get(path, **options)
        assert response.status_code == 200, response.text
        return response.json()

    async def until_there(self, path: str) -> None:
        """Wait until the path is answered."""

        async def is_there() -> bool:
            return (await self.get(path)).status_code == 200

        await until(is_there, f"{path} is answered")

    async def post(self, path: str, content: object = None, **headers: str) -> httpx2.Response:
        return await self.client.post(path, json=content or {}, headers=headers)


Serve = Callable[[Starlette], Awaitable[Site]]


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[str]:
    """Serve an application, and stop."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve_async(app, port=0, on_ready=ready.set_result))
    try:
        yield await ready
    finally:
        task.cancel()
        await asyncio.wait([task])


INPUTS = {"numbers": [2, 3, 4], "number": 5, "text": "ebb"}


async def run_example(journal: Journal, run_id: str = "r1") -> None:
    engine = ExecutionEngine(InMemoryBroker(), graph().build(), journal=journal, on_error="collect")
    await engine.execute(INPUTS, run_id=run_id)


async def log_of(journal: Journal, run_id: str) -> list[Content]:
    """All events as they go over the wire."""
    return [event.to_dict() async for event in RunReader(journal).events(run_id)]


async def lines_of(site: Site, path: str, **options: Any) -> list[Content]:
    """The lines of a stream until it ends."""
    async with site.client.stream("GET", path, **options) as response:
        assert response.status_code == 200, response.status_code
        return [json.loads(line) async for line in response.aiter_lines() if line]


class Client:
    """A client of a WebSocket whose messages have a JSON object in each of their lines."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self._lines: list[str] = []

    async def ask(self, **message: Any) -> None:
        await self.connection.send(json.dumps(message))

    async def line(self) -> Any:
        async with asyncio.timeout(LONGEST):
            while not self._lines:
                self._lines = str(await self.connection.recv()).splitlines()
        return json.loads(self._lines.pop(0))

    async def close_code_after(self, text: str) -> int | None:
        """The code with which the server closes the connection when it is sent this."""
        with pytest.raises(ConnectionClosed) as caught:
            await self.connection.send(text)
            await self.line()
        return None if caught.value.rcvd is None else caught.value.rcvd.code

    async def until_ended(self) -> list[Content]:
        lines = [await self.line()]
        while lines[-1].get("op") != "ended":
            lines.append(await self.line())
        return lines[:-1]


@asynccontextmanager
async def connected(base: str, path: str = "/ws", **headers: str) -> AsyncIterator[Client]:
    """A client of an application whose address is ``base``."""
    address = base.replace("http", "ws", 1) + path
    async with connect(address, proxy=None, additional_headers=headers) as connection:
        yield Client(connection)
