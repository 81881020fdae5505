"""A notifier in memory: the twin of those that speak to servers, for engines and workers here."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from taskiq import AsyncBroker, AsyncResultBackend

from taskiq_flow import FlowMiddleware
from taskiq_flow.transport.protocol import Notifier, SaveAndPublish, unnoticed


class Switchboard:
    """What joins the notifiers of one test. Notices can be held back from those they are for."""

    def __init__(self) -> None:
        self.hearers: defaultdict[str, list[Callable[[bytes], None]]] = defaultdict(list)
        self.revoked: list[str] = []
        self.hear_revoked: list[Callable[[str], None]] = []
        self.published: list[tuple[str, bytes]] = []
        self.is_up = True
        self.drops: Callable[[bytes], bool] = lambda _: False

    def tell(self, channel: str, data: bytes) -> None:
        """Have all who listen on a channel hear, whoever it is that tells."""
        for hear in tuple(self.hearers[channel]):
            hear(data)


class LocalNotifier:
    """One end of a switchboard."""

    most_bytes = 1_048_576

    def __init__(self, board: Switchboard) -> None:
        self.on_unheard: Callable[[str], None] = unnoticed
        self._board = board
        self._mine: list[tuple[str, Callable[[bytes], None]]] = []

    @staticmethod
    def is_outage(error: BaseException) -> bool:
        return isinstance(error, ConnectionError)

    async def open(self) -> None:
        await asyncio.sleep(0)
        if not self._board.is_up:
            raise ConnectionError("the switchboard is away")

    async def publish(self, channel: str, data: bytes) -> None:
        await self.open()
        self._board.published.append((channel, data))
        if not self._board.drops(data):
            self._board.tell(channel, data)
        if not self._board.hearers[channel]:
            self.on_unheard(channel)

    async def subscribe(self, channel: str, hear: Callable[[bytes], None]) -> None:
        self._board.hearers[channel].append(hear)
        self._mine.append((channel, hear))

    @property
    def is_listening(self) -> bool:
        return self._board.is_up

    def saver(self, backend: AsyncResultBackend[Any]) -> SaveAndPublish | None:
        return None

    async def revoke(self, run_id: str) -> None:
        await self.open()
        self._board.revoked.append(run_id)
        for hear in self._board.hear_revoked:
            hear(run_id)

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        for run_id in self._board.revoked:
            hear(run_id)
        self._board.hear_revoked.append(hear)

    async def aclose(self) -> None:
        for channel, hear in self._mine:
            self._board.hearers[channel].remove(hear)


class LocalFlow(FlowMiddleware):
    """The middleware over a switchboard."""

    def __init__(self, board: Switchboard, *, inline_limit: int = 65536, **options: Any) -> None:
        super().__init__("redis://nowhere", inline_limit=inline_limit, **options)
        self.board = board

    def _notifier(self) -> Notifier:
        return LocalNotifier(self.board)


def with_flow(
    broker: AsyncBroker, board: Switchboard, inline_limit: int = 65536, **options: Any
) -> LocalFlow:
    """Give a broker the middleware."""
    flow = LocalFlow(board, inline_limit=inline_limit, **options)
    broker.add_middlewares(flow)
    return flow
