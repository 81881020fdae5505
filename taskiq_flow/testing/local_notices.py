"""Notices between engines and workers that are in this process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from taskiq import AsyncBroker, AsyncResultBackend

from taskiq_flow.middleware import FlowMiddleware
from taskiq_flow.transport.protocol import Notifier, SaveAndPublish, unnoticed


class LocalNotices:
    """What carries the notices between the notifiers of one process, in place of a server.

    ``published``: the channel and the bytes of each notice so far. ``revoked``: the runs that
    workers were told to end. ``is_up``: ``False`` has notifiers raise ``ConnectionError``.
    ``drops``: called with each notice; ``True`` loses it.

    >>> from taskiq_flow.testing import LocalFlowMiddleware, LocalNotices
    >>> notices = LocalNotices()
    >>> notices.drops = lambda notice: True
    >>> LocalFlowMiddleware(notices)
    <LocalFlowMiddleware of no broker yet, prefix 'taskiq_flow'>
    """

    def __init__(self) -> None:
        self.hearers: defaultdict[str, list[Callable[[bytes], None]]] = defaultdict(list)
        self.revoked: list[str] = []
        self.hear_revoked: list[Callable[[str], None]] = []
        self.published: list[tuple[str, bytes]] = []
        self.is_up = True
        self.drops: Callable[[bytes], bool] = lambda _: False

    def tell(self, channel: str, data: bytes) -> None:
        """Pass a notice to all who listen on a channel."""
        for hear in tuple(self.hearers[channel]):
            hear(data)


class LocalNotifier:
    """A connection to ``LocalNotices``: the twin of the notifiers that speak to servers.

    >>> from taskiq_flow.testing import LocalNotices, LocalNotifier
    >>> async def main():
    ...     notifier, heard = LocalNotifier(LocalNotices()), []
    ...     await notifier.subscribe("tides", heard.append)
    ...     await notifier.publish("tides", b"ebb")
    ...     return heard
    >>> asyncio.run(main())
    [b'ebb']
    """

    most_bytes = 1_048_576

    def __init__(self, notices: LocalNotices) -> None:
        self.on_unheard: Callable[[str], None] = unnoticed
        self._notices = notices
        self._mine: list[tuple[str, Callable[[bytes], None]]] = []
        self._hears_revoked: list[Callable[[str], None]] = []

    @staticmethod
    def is_outage(error: BaseException) -> bool:
        """Whether an error says that the notices are away."""
        return isinstance(error, ConnectionError)

    async def open(self) -> None:
        """Connect. Raises ``ConnectionError`` while the notices are not up."""
        await asyncio.sleep(0)
        if not self._notices.is_up:
            raise ConnectionError("the notices are away")

    async def publish(self, channel: str, data: bytes) -> None:
        """Send ``data`` to all who listen on the channel, unless it is dropped."""
        await self.open()
        self._notices.published.append((channel, data))
        if not self._notices.drops(data):
            self._notices.tell(channel, data)
        if not self._notices.hearers[channel]:
            self.on_unheard(channel)

    async def subscribe(self, channel: str, hear: Callable[[bytes], None]) -> None:
        """Listen on a channel until ``aclose``."""
        await self.open()
        self._notices.hearers[channel].append(hear)
        self._mine.append((channel, hear))

    @property
    def is_listening(self) -> bool:
        """Whether the notices are up."""
        return self._notices.is_up

    def saver(self, backend: AsyncResultBackend[Any]) -> SaveAndPublish | None:
        """Nothing saves a result and its notice in one step here."""
        return None

    async def revoke(self, run: str) -> None:
        """Tell every worker that a run is over."""
        await self.open()
        self._notices.revoked.append(run)
        for hear in tuple(self._notices.hear_revoked):
            hear(run)

    async def subscribe_to_revocations(self, hear: Callable[[str], None]) -> None:
        """Call for each run that was revoked, or is from now on."""
        for run in self._notices.revoked:
            hear(run)
        self._notices.hear_revoked.append(hear)
        self._hears_revoked.append(hear)

    async def aclose(self) -> None:
        """Disconnect. May be called more than once."""
        while self._mine:
            channel, hear = self._mine.pop()
            self._notices.hearers[channel].remove(hear)
        while self._hears_revoked:
            self._notices.hear_revoked.remove(self._hears_revoked.pop())


class LocalFlowMiddleware(FlowMiddleware):
    """A ``FlowMiddleware`` whose notices stay in this process, for any broker.

    ``notices``: shared by the middlewares that are to hear of each other; new ones if left out. One
    middleware serves an engine and a worker on the same broker. ``options``: those of
    ``FlowMiddleware``.

    >>> from taskiq_flow.testing import LocalBroker, LocalFlowMiddleware
    >>> LocalBroker().with_middlewares(LocalFlowMiddleware(inline_limit=0)).middlewares
    [<LocalFlowMiddleware of LocalBroker, prefix 'taskiq_flow'>]
    """

    def __init__(self, notices: LocalNotices | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.notices = LocalNotices() if notices is None else notices

    def _is_carried_beside(self, broker: AsyncBroker) -> bool:
        return True

    def _notifier(self) -> Notifier:
        return LocalNotifier(self.notices)
